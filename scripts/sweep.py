"""Runs every configuration of a grid once, some at a time; the same command again does what is left.

    python scripts/sweep.py GRID                      a YAML grid, a file of `python main.py ...` lines, protocol:tiny
    python scripts/sweep.py GRID --jobs 4 --gpus 0,1  four at a time, on two GPUs
    python scripts/sweep.py GRID --dry_run            prints the commands, starts nothing
    python scripts/sweep.py GRID --on slurm --partition gpu --gres gpu:1
    python scripts/sweep.py GRID --on ray --num_gpus 0.5
    python scripts/sweep.py GRID --only cifar -- --base_path /data    some of the runs; flags after -- go to each
    python scripts/sweep.py status GRID               how far each run is, from the records

All commands are checked before the first one starts. A configuration is what its record says it is (the hash of its
arguments): a finished one is skipped, an unfinished one continues. The format of a grid: scripts/sweeps/grid.py, and
docs/sweeps.md.
"""

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.sweeps import gpus, grid, live, on_ray, on_slurm, plan, pool, state
from scripts.sweeps.plan import Job
from utils import cli
from utils.cli import shell
from utils.engine.record import format_table
from utils.errors import UserError, disk_errors

RESULTS = "./runs/"
OF_A_PLACE = {
    "local": ("jobs", "gpus", "retries"),
    "slurm": ("jobs", *on_slurm.OPTIONS, "sbatch"),
    "ray": ("retries", "num_cpus", "num_gpus"),
}


def parser_of() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("grid", help="a YAML grid, a file of `python main.py ...` lines, or protocol:NAME")
    parser.add_argument("--on", choices=list(OF_A_PLACE), default="local", help="where the runs are started")
    parser.add_argument("--jobs", type=positive, help="runs at a time (default: one per GPU, else 1; slurm: no limit)")
    parser.add_argument("--gpus", help="GPUs to use, for example 0,1 (default: all)")
    parser.add_argument("--retries", type=natural, help="how often a crashed run is continued in one call (default 1)")
    parser.add_argument("--only", help="a regular expression: the commands in which it is found")
    parser.add_argument("--seeds", type=natural, nargs="+", help="instead of the grid's own")
    parser.add_argument(
        "--results_path", type=Path, help=f"folder of the records (default: the grid's, else {RESULTS})"
    )
    parser.add_argument("--dry_run", action="store_true", help="print the commands and start nothing")
    for name, text in on_slurm.OPTIONS.items():
        parser.add_argument(f"--{name}", help=f"slurm: {text}")
    parser.add_argument("--sbatch", help="slurm: further options of sbatch, in quotes")
    parser.add_argument("--num_cpus", type=share, help="ray: CPUs of a run (default 1)")
    parser.add_argument("--num_gpus", type=share, help="ray: GPUs of a run, for example 0.5 (default 1, or 0 if none)")
    return parser


def natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 0 on")
    return int(text)


def positive(text: str) -> int:
    if natural(text) < 1:
        raise argparse.ArgumentTypeError("it must be 1 or more")
    return int(text)


def share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 0 on")
    return value


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    own, more = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    status = own[:1] == ["status"]
    args = parser_of().parse_args(own[1:] if status else own)
    try:
        check(args)
        jobs, note = planned(args, more)
        if status:
            return show_status(jobs)
        records = state.Records()
        finished = [job for job in jobs if records.finished(job) is not None]
        done = {job.key for job in finished}
        waiting = [job for job in jobs if job.key not in done]
        if args.dry_run:
            print("\n".join(command(job) for job in jobs))
        told = f"{args.grid}: {len(jobs)} configurations, {len(finished)} finished before{note}"
        print(told, file=sys.stderr if args.dry_run else sys.stdout, flush=True)
        if args.dry_run:
            return 0
        if args.on == "slurm" and waiting:
            return on_slurm.submit(waiting, args)
        code = (on_ray.run if args.on == "ray" else local)(waiting, jobs, args) if waiting else 0
        records = state.Records()
        print(format_table(state.table(jobs, [records.state(job) for job in jobs])))
        return code
    except UserError as error:
        return cli.fail(error)


def check(args: argparse.Namespace) -> None:
    """Options that the chosen place does not have."""
    known = {option for options in OF_A_PLACE.values() for option in options}
    wrong = [o for o in sorted(known - set(OF_A_PLACE[args.on])) if getattr(args, o) is not None]
    if wrong:
        where = " or ".join(place for place, options in OF_A_PLACE.items() if wrong[0] in options)
        raise UserError("\n".join(f"--{option} needs --on {where}" for option in wrong))


def planned(args: argparse.Namespace, more: Sequence[str]) -> tuple[list[Job], str]:
    """The jobs of a grid, each understood and checked, and a note about lines that are left out."""
    found = grid.read(args.grid, args.seeds, more)
    results = args.results_path or Path(found.results or RESULTS)
    lines = found.lines
    if args.only is not None:
        try:
            lines = [line for line in lines if re.search(args.only, shlex.join(line.argv))]
        except re.error as error:
            raise UserError(f"--only {args.only}: {error}") from None
        if not lines:
            raise UserError(f"--only {args.only}: none of the {len(found.lines)} commands has it")
    jobs, repeated = plan.jobs_of(lines, results)
    return jobs, f"; {len(repeated)} lines repeat another one ({repeated[0]}, ...)" if repeated else ""


def command(job: Job) -> str:
    return shlex.join(["python", "main.py", *job.argv])


def show_status(jobs: Sequence[Job]) -> int:
    """The table of all runs; 0 if all are finished, else 1."""
    records = state.Records()
    states = [records.state(job) for job in jobs]
    print(format_table(state.table(jobs, states)))
    counts = {s: sum(found.status == s for found in states) for s in dict.fromkeys(found.status for found in states)}
    print(", ".join(f"{n} {s}" for s, n in counts.items()))
    return int(counts.keys() != {"done"})


def local(waiting: Sequence[Job], jobs: Sequence[Job], args: argparse.Namespace) -> int:
    """The pool on this machine."""
    for folder in {job.home for job in waiting}:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
    dealt = gpus.chosen(args.gpus)
    at_once = min(args.jobs or len(dealt.names) or 1, len(waiting))
    left = {job.key for job in waiting}
    warm = {job.data for job in jobs if job.key not in left}
    screen = live.Screen(sys.stdout)
    retries = 1 if args.retries is None else args.retries
    try:
        return pool.run(pool.Pool(waiting, at_once, dealt, retries, told=screen.told, warm=warm), screen.draw)
    finally:
        screen.clear()


if __name__ == "__main__":
    sys.exit(shell.exits(main))
