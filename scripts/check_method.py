"""The contract checks for the author of a plug-in: python scripts/check_method.py my_method.py

One line for each check, ok, skip or FAIL with the reason: the checks of tests/test_contract_models.py on toy streams,
then a short run on seq-tiny. The exit code is 1 if a check fails. `--only NAME ...` runs some of them, `--list` shows
them all.
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import main as entry  # noqa: E402
from utils import cli  # noqa: E402
from utils.cli import plugins, registry  # noqa: E402
from utils.errors import UserError  # noqa: E402

LAST = "short_run_on_seq_tiny"


class Lines:
    """A pytest plug-in that prints a line for each check and nothing else."""

    def __init__(self, file: Path):
        self.file, self.counts = file, {"ok": 0, "skip": 0, "FAIL": 0}

    def pytest_runtest_logreport(self, report) -> None:
        if report.when == "call" or report.outcome != "passed":
            check = report.nodeid.rpartition("-")[2].rstrip("]")
            outcome = {"passed": "ok", "skipped": "skip", "failed": "FAIL"}[report.outcome]
            self.show(outcome, check, self.reason(report), report.duration)

    def show(self, outcome: str, check: str, reason: str, seconds: float) -> None:
        self.counts[outcome] += 1
        print(f"{outcome:<4}  {check:<41}  {seconds:5.1f} s  {reason}".rstrip(), flush=True)

    def reason(self, report) -> str:
        """One line, with the place in the method's file if the error came from there."""
        if report.skipped:
            return report.longrepr[2].removeprefix("Skipped: ")
        if report.passed:
            return ""
        text = " ".join(report.longrepr.reprcrash.message.split())[:200].removeprefix("AssertionError: ")
        places = [entry.reprfileloc for entry in report.longrepr.reprtraceback.reprentries if entry.reprfileloc]
        own = [place for place in places if Path(ROOT, place.path).resolve() == self.file.resolve()]
        return text + (f" ({self.file.name}, line {own[-1].lineno})" if own else "")


def check_names() -> list[str]:
    from tests import test_contract_models

    return [*(check.__name__ for check in test_contract_models.CHECKS), LAST]


def model_of(path: Path, asked: str | None) -> str:
    """The method that the file defines, or the one that `--model` chooses."""
    plugins.use([str(path)])
    found = [name for name, entry in registry.index("model").items() if plugins.owns(entry.path)]
    if asked is not None:
        found = [name for name in found if name.removeprefix(registry.PLUGIN) == registry.canonical(asked)]
    if len(found) != 1:
        raise UserError(
            f"{path} defines {'several methods' if found else 'no method'}{f' {asked}' if asked else ''}: "
            + (
                f"choose one of {', '.join(found)} with --model"
                if found
                else 'a class needs NAME = "..." and COMPATIBILITY'
            )
        )
    return found[0]


def on_toys(name: str, checks: list[str], lines: Lines) -> None:
    """The checks of the tests, run by pytest, which shows what an assertion compared."""
    from tests import contract

    if not contract.settings_of(name):
        raise UserError(
            f"model {name} works in {', '.join(contract.model_class(name).COMPATIBILITY) or 'no setting'}; "
            f"the checks have streams of {', '.join(contract.STREAMS)}"
        )
    ids = [f"{ROOT / 'tests/test_contract_models.py'}::test_contract[{name}-{check}]" for check in checks]
    pytest.main(
        ["--rootdir", str(ROOT), "-o", "addopts=", "-p", "no:terminal", "-p", "no:cacheprovider", *ids], plugins=[lines]
    )


def on_seq_tiny(name: str, lines: Lines) -> None:
    """Train a few batches of the first two tasks through main.py."""
    from tests import contract

    started = time.perf_counter()
    if "class-il" not in contract.model_class(name).COMPATIBILITY:
        lines.show("skip", LAST, "seq-tiny is class-il", 0.0)
        return
    reason, outcome = "", "ok"
    with tempfile.TemporaryDirectory() as folder:
        argv = [*contract.argv_of(name, "seq-tiny"), "--results_path", folder, "--debug_mode", "1", "--stop_after", "1"]
        argv += [] if "--lr" in argv else ["--lr", "0.01"]
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                entry.run(cli.parse(argv))
        except Exception as error:  # a method may raise anything
            reason, outcome = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}", "FAIL"
    lines.show(outcome, LAST, reason, time.perf_counter() - started)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", help="the method's .py file")
    parser.add_argument("--model", help="the method to check, if the file defines several")
    parser.add_argument("--only", nargs="+", metavar="CHECK", help="names of the checks to run (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names of the checks and exit")
    args = parser.parse_args(argv)
    started = time.perf_counter()
    try:
        if args.list:
            print("\n".join(check_names()))
            return 0
        if args.file is None:
            raise UserError("name the method's file: python scripts/check_method.py my_method.py")
        path = Path(args.file).expanduser().resolve()
        name, known = model_of(path, args.model), check_names()
        if wrong := sorted(set(args.only or ()) - set(known)):
            raise UserError(f"--only: unknown check {', '.join(wrong)}; --list shows the names")
        chosen = [check for check in known if check in (args.only or known)]
        os.chdir(ROOT)
        lines = Lines(path)
        registry.load("model", name)
        if toys := [check for check in chosen if check != LAST]:
            on_toys(name, toys, lines)
        if LAST in chosen:
            on_seq_tiny(name, lines)
    except UserError as error:
        return cli.fail(error)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in lines.counts.items())
    print(f"{name}: {counts}, {time.perf_counter() - started:.0f} s")
    return 1 if lines.counts["FAIL"] or sum(lines.counts.values()) != len(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
