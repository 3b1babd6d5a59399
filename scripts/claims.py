"""Runs the arms of scripts/claims/NAME.yaml and writes its page: verdicts, one figure, tables.

    python scripts/claims.py cgil                    all arms, worlds and seeds, then docs/claims/cgil.md
    python scripts/claims.py cgil --quick            one seed and fewer arms; the page goes to the results
    python scripts/claims.py cgil --jobs 0           runs nothing, writes the page of what is there

Repeat the same command after it was stopped: finished runs are not started again, an unfinished one continues. The
format of the table: scripts/claims_table.py; how a verdict is made: scripts/claims_page.py.
"""

import argparse
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import claims_page, claims_table, records
from scripts.claims_table import Job, Table
from scripts.sweeps import ledger, pool
from utils import cli
from utils.cli import shell
from utils.engine.launch import git_commit
from utils.errors import UserError, disk_errors

ROOT = Path(__file__).resolve().parent.parent


def launch(jobs: Sequence[Job], results: Path, at_once: int) -> int:
    """Run the jobs, one thread each; 0, 1 if some failed, 128 + signal if it was stopped."""
    commit = git_commit()
    known = [
        replace(job, facts={"arm": job.arm, "world": job.world, "seed": job.seed, "commit": commit}) for job in jobs
    ]
    told = functools.partial(print, flush=True)
    return pool.run(pool.Pool(known, at_once, threads=1, told=told, main=ROOT / "main.py", cwd=ROOT))


def finished(results: Path) -> dict[str, records.Run]:
    """Configuration hash -> the latest finished run below a folder."""
    return {run.start["config_hash"]: run for run in records.finished(results) if run.start.get("config_hash")}


def chosen(table: Table, names: Iterable[str], pattern: str | None, flag: str) -> list[str]:
    try:
        found = [name for name in names if re.search(pattern or "", name)]
    except re.error as error:
        raise UserError(f"--{flag} {pattern}: {error}") from None
    if not found:
        raise UserError(f"--{flag} {pattern}: no match in the {flag} of {table.name}; there are {', '.join(names)}")
    return found


def quick_arms(table: Table) -> list[str]:
    named = [arm for claim in table.claims for arm in (claim.better, *claim.worse)]
    return list(table.quick.get("arms") or dict.fromkeys(named))


def plan(table: Table, args: argparse.Namespace, results: Path) -> tuple[list[Job], list[Job]]:
    """What to run, and what the page is about."""
    quick = table.quick if args.quick else {}
    seeds = args.seeds or list(quick.get("seeds") or table.seeds[:1] if args.quick else table.seeds)
    arms = quick_arms(table) if args.quick and args.arms is None else chosen(table, table.arms, args.arms, "arms")
    known = quick.get("worlds") or table.worlds
    worlds, more = chosen(table, known, args.worlds, "worlds"), quick.get("more") or ""
    if not args.quick and set(seeds) <= set(table.seeds):
        shown = claims_table.jobs_of(table, results, table.seeds)
        return [job for job in shown if job.arm in arms and job.seed in seeds and job.world in worlds], shown
    jobs = claims_table.jobs_of(table, results, seeds, arms, worlds, more)
    return jobs, jobs


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a file of scripts/claims, without .yaml")
    parser.add_argument("--quick", action="store_true", help="one seed, and the arms under `quick` in the table")
    parser.add_argument(
        "--seeds", type=int, nargs="+", help="run these; seeds outside the table get a page of their own"
    )
    parser.add_argument("--arms", help="a regular expression on the names of arms")
    parser.add_argument("--worlds", help="a regular expression on the names of worlds")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each; 0 only writes the page")
    parser.add_argument("--results_path", type=Path, help="folder of the records (default runs/claims/NAME)")
    parser.add_argument("--page", type=Path, help="default docs/claims/NAME.md, else NAME.md in the results")
    args = parser.parse_args(argv)
    try:
        return work(args)
    except UserError as error:
        return cli.fail(error)


def work(args: argparse.Namespace) -> int:
    table = claims_table.read_table(args.name)
    results = (args.results_path or ROOT / "runs" / "claims" / table.name).resolve()
    jobs, shown = plan(table, args, results)
    with disk_errors(results):
        results.mkdir(parents=True, exist_ok=True)
    done = finished(results)
    waiting = [job for job in jobs if job.config not in done]
    print(f"{table.name}: {len(jobs)} runs, {len(jobs) - len(waiting)} finished before", flush=True)
    code = launch(waiting, results, args.jobs) if args.jobs > 0 and waiting else 0
    own = {job.seed for job in shown} == set(table.seeds) and not args.quick
    page = args.page or (ROOT / "docs" / "claims" if own else results) / f"{table.name}.md"
    figure = (ROOT / "docs" / "img" if own and not args.page else page.parent) / f"claims_{table.name}.png"
    claims_page.write(table, shown, finished(results), ledger.read(results), page, figure)
    print(f"page: {page}")
    return code


if __name__ == "__main__":
    sys.exit(shell.exits(main))
