"""Measures one part of the framework: seconds of processor time, bytes, ratios, each beside its limit.

    python scripts/bench.py --suite engine --out engine.json    # measure, print a table, keep it with its machine
    python scripts/bench.py --suite cgil --help                 # the flags of a suite
    python scripts/bench.py --page engine.json cgil.json        # write the tables into docs/performance.md

A limit is the largest allowed value and holds on an idle core; --check exits with 1 if one is exceeded.
"""

import argparse
import importlib
import json
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# a process that measures imports or memory is started through this file: it imports nothing large by itself
from utils.errors import UserError, disk_errors
from utils.flags import positive_int

SUITES = {  # name -> modules; each has flags(parser) and rows(args)
    "start": ["bench_start"],
    "engine": ["bench_engine"],
    "cgil": ["bench_cgil"],
    "mulki": ["bench_mulki"],
    "clumo": ["bench_clumo"],
    "masking": ["bench_exemplar_masking"],
    "generative": ["bench_generative"],
    "growth": ["bench_growth"],
    "io": ["bench_loader", "bench_autosave"],
    "fisher": ["bench_fisher"],
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message}; --help shows the flags, with --suite NAME also those of the suite")


def understood(argv: list[str]) -> tuple[argparse.Namespace, list]:
    """The arguments, and the modules of the suite."""
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--suite")
    suite = first.parse_known_args(argv)[0].suite
    if suite not in {None, *SUITES}:
        raise UserError(f"--suite {suite}: no such suite; there are {', '.join(SUITES)}")
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--suite", metavar="NAME", help=", ".join(SUITES))
    what.add_argument("--page", nargs="+", type=Path, metavar="FILE", help="what --out wrote, for docs/performance.md")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows as JSON, to a new file")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is exceeded")
    parser.add_argument("--threads", type=positive_int, default=1)
    modules = [importlib.import_module(f"scripts.{name}") for name in SUITES.get(suite, [])]
    for module in modules:
        module.flags(parser)
    args = parser.parse_args(argv)
    if args.page and (args.out or args.check or args.threads > 1):
        raise UserError("--page writes tables and measures nothing: leave out --out, --check and --threads")
    return args, modules


def measure(args: argparse.Namespace, modules: list, argv: list[str]) -> int:
    import torch

    from scripts import bench_report

    if args.out and args.out.exists():
        raise UserError(f"--out {args.out}: the file exists; name a new one")
    if args.out and not args.out.absolute().parent.is_dir():
        raise UserError(f"--out {args.out}: there is no folder {args.out.parent}; make it first")
    os.environ["OMP_NUM_THREADS"] = str(args.threads)  # of processes that are started here
    torch.set_num_threads(args.threads)
    before = bench_report.facts()
    rows = [row for module in modules for row in module.rows(args)]
    command = shlex.join(["python", "scripts/bench.py", *argv])
    found = bench_report.document(args.suite, command, before, rows)
    print(bench_report.printed(found, rows))
    if args.out:
        with disk_errors(args.out, "choose another --out"):
            bench_report.write(args.out, found)
    return int(args.check and any(row.broken for row in rows))


def main(argv: list[str]) -> int:
    if argv[:1] == ["--child"]:
        module = importlib.import_module(f"scripts.{argv[1]}")
        print("\n" + json.dumps(module.CHILDREN[argv[2]](argv[3:])))
        return 0
    try:
        args, modules = understood(argv)
        if not args.page:
            return measure(args, modules, argv)
        from scripts import bench_report

        bench_report.write_page(args.page, SUITES)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
