"""Runs every fault of the table: do the tests that are named for it notice it?

    bash scripts/test.sh mutants [--only PATTERN] [--jobs N] [--record]

Each worker has a copy of the tree, made once. A fault is written into the copy, a process forked from this one, which
has imported torch and pytest but nothing from the tree, runs the named tests there, and the file is restored. Before
that all named tests run once without any fault. `killed`: a named test failed. `ALIVE`: none did. `broken`: the fault
does not fit the file, or a test does not exist, fails or is skipped without it. The exit code is 1 if any is alive or
broken.
"""

import argparse
import fnmatch
import gc
import importlib
import json
import math
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from table import Fault, misfit, read

ROOT = Path(__file__).resolve().parents[2]
LEFT_BEHIND = {"data", "runs", "results", "checkpoints", "cache"}
LIBRARIES = [
    *("numpy", "PIL.Image", "safetensors.torch", "scipy.linalg", "scipy.optimize", "torch", "torch.func"),
    *("torchvision.transforms.v2", "scipy.stats", "scipy.cluster.vq", "clip"),
]
FOREIGN = 90  # exit code of a child that ran something of the tree outside its copy
LIMIT_S = 60  # seconds of computation; a fault that makes a test run longer is noticed by that
PATIENCE = 10  # times as long may pass on the clock, on a machine with other work
MARK = "<!-- mutants: written by tests/mutants/run.py --record -->"


@dataclass
class Result:
    fault: Fault
    state: str  # killed, ALIVE or broken
    seconds: float = 0.0
    why: str = ""

    def line(self) -> str:
        return f"{self.state:6} {self.seconds:6.2f} s  {self.fault.name}" + (f"  [{self.why}]" if self.why else "")


def preload(root: Path) -> None:
    """What every child would import anew otherwise: libraries that the tree asks for, nothing of the tree."""
    import pytest  # noqa: F401
    import xdist.plugin  # noqa: F401

    asked = root / "requirements.txt"
    if asked.is_file() and "torch" in asked.read_text():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in LIBRARIES:
                importlib.import_module(name)
        torch = sys.modules["torch"]
        torch.set_num_threads(1)
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)  # loads what torch loads late
    gc.collect()
    gc.freeze()


def copy_tree(root: Path, to: Path) -> None:
    """The tree without what runs, tools and the virtual environment leave in it."""

    def skipped(folder: str, names: list[str]) -> list[str]:
        top = Path(folder) == root
        return [n for n in names if n == "__pycache__" or n.startswith(".") or (top and n in LEFT_BEHIND)]

    shutil.copytree(root, to, ignore=skipped)


class Outcomes:
    """Pytest plugin: how many parts of each test passed, and which did not."""

    def __init__(self):
        self.passed, self.failed = set(), set()

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed.add(report.nodeid)
        elif report.when == "call" and report.passed and not hasattr(report, "wasxfail"):
            self.passed.add(report.nodeid)

    def bad(self, test: str) -> bool:
        """Whether nothing of a test passed, or something failed."""

        def of(nodes):
            return any(node == test or node.startswith(f"{test}[") for node in nodes)

        return of(self.failed) or not of(self.passed)


class Slot:
    """One worker: a copy of the tree, and at most one forked process in it."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.copy, self.folder = root, folder / "tree", folder
        copy_tree(root, self.copy)

    def start(self, tests: list[str], limit: float, keep_bytecode: bool, more: list[str]) -> int:
        """Fork a process that runs tests in the copy, for so many seconds of computation at most; its id."""
        for name in ("out", "outcomes.json"):
            (self.folder / name).unlink(missing_ok=True)
        child = os.fork()
        if child:
            return child
        try:
            os.setpgid(0, 0)  # with what a test starts, so that a time-out ends all of it
            resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 1))
            os._exit(self.run_pytest(tests, keep_bytecode, more))
        finally:
            os._exit(FOREIGN + 1)

    def run_pytest(self, tests: list[str], keep_bytecode: bool, more: list[str]) -> int:
        import pytest

        out = os.open(self.folder / "out", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.chdir(self.copy)
        here = str(Path(__file__).resolve().parent)
        sys.path[:] = [str(self.copy), *(p for p in sys.path if p and Path(p).resolve() != Path(here))]
        sys.dont_write_bytecode = not keep_bytecode
        outcomes = Outcomes()
        base = ["-n", "0", "-p", "no:cacheprovider", "--tb=short", f"--basetemp={self.folder / 'tmp'}"]
        code = int(pytest.main([*base, *more, *tests], plugins=[outcomes]))
        files = {getattr(m, "__file__", None) or "" for m in list(sys.modules.values())}
        outside = [
            f for f in files if f.startswith(f"{self.root}/") and "site-packages" not in f and not f.startswith(here)
        ]
        if outside:
            return FOREIGN
        report = {test: outcomes.bad(test) for test in tests}
        (self.folder / "outcomes.json").write_text(json.dumps(report))
        return code

    def apply(self, fault: Fault) -> Callable[[], None]:
        """Write a fault into the copy; the function returned puts the file back."""
        path = self.copy / fault.file
        text, stat = path.read_text(encoding="utf-8"), path.stat()
        path.write_text(fault.applied(text), encoding="utf-8")
        # bytecode goes by size and second: the faulty file must not pass for the one it was compiled from
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**12))

        def back() -> None:
            path.write_text(text, encoding="utf-8")
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

        return back

    def outcomes(self) -> dict[str, bool]:
        path = self.folder / "outcomes.json"
        return json.loads(path.read_text()) if path.is_file() else {}


def work_off(jobs: list, slots: list[Slot], start: Callable, done: Callable, patience: float) -> None:
    """Each job on a free slot: `start(slot, job)` forks, `done(slot, job, code, seconds)` hears of the end.

    The exit code of a process that was ended for running too long is None.
    """
    waiting, free, running, overdue = list(reversed(jobs)), list(slots), {}, set()
    try:
        while waiting or running:
            while waiting and free:
                slot, job = free.pop(), waiting.pop()
                running[start(slot, job)] = (slot, job, time.perf_counter())
            child, status = os.waitpid(-1, os.WNOHANG)
            if child in running:
                slot, job, began = running.pop(child)
                code = os.waitstatus_to_exitcode(status)
                too_long = child in overdue or code == -signal.SIGXCPU
                done(slot, job, None if too_long else code, time.perf_counter() - began)
                free.append(slot)
                continue
            for child, (_, _, began) in running.items():
                if child not in overdue and time.perf_counter() - began > patience:
                    overdue.add(child)
                    os.killpg(child, signal.SIGKILL)
            time.sleep(0.005)
    finally:
        for child in running:  # interrupted
            os.killpg(child, signal.SIGKILL)


def failing_without_a_fault(tests: list[str], slots: list[Slot], limit: float) -> set[str]:
    """Those of the tests that do not pass in the tree as it is. Bytecode of the copies is made here."""
    bad, again = set(), []

    def start(slot, group):
        return slot.start(group, 10 * limit, True, [])

    def done(slot, group, code, seconds):
        found = slot.outcomes()
        if code in {0, 1} and found:
            bad.update(test for test, is_bad in found.items() if is_bad)
        elif len(group) > 1:  # one that cannot be collected stops all: each on its own
            again.extend([test] for test in group)
        else:
            bad.update(group)

    groups = defaultdict(list)
    for test in tests:
        groups[test.partition("::")[0]].append(test)
    work_off(list(groups.values()), slots, start, done, 10 * limit * PATIENCE)
    work_off(list(again), slots, start, done, limit * PATIENCE)
    return bad


def judge(code: int | None) -> tuple[str, str]:
    """(state, reason) from the exit code of pytest."""
    if code is None:
        return "killed", "ran too long"
    known = {
        0: ("ALIVE", ""),
        1: ("killed", ""),
        2: ("broken", "the tests cannot be imported with this fault"),
        4: ("broken", "a test is not there"),
        5: ("broken", "no test ran"),
        FOREIGN: ("broken", "the tests read code outside their copy"),
    }
    return known.get(code, ("broken", f"the tests ended with code {code}"))


def run_all(faults: list[Fault], root: Path, n_jobs: int, limit: float, say: Callable[[str], None]) -> list[Result]:
    """Every fault tried; the results in the order of the faults."""
    results = {}
    for fault in faults:
        why = misfit(fault, root)
        if why:
            results[fault] = Result(fault, "broken", why=why)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        slots = [Slot(root, Path(folder) / str(k)) for k in range(n_jobs)]
        fitting = [f for f in faults if f not in results]
        tests = list(dict.fromkeys(test for fault in fitting for test in fault.tests))
        bad = failing_without_a_fault(tests, slots, limit)
        for fault in fitting:
            if bad & set(fault.tests):
                names = ", ".join(sorted(bad & set(fault.tests)))
                results[fault] = Result(fault, "broken", why=f"does not pass without the fault: {names}")
        for result in results.values():
            say(result.line())
        undo = {}

        def start(slot, fault):
            undo[slot] = slot.apply(fault)
            return slot.start(list(fault.tests), limit, False, ["-x"])

        def done(slot, fault, code, seconds):
            undo.pop(slot)()
            state, why = judge(code)
            results[fault] = Result(fault, state, seconds, why)
            say(results[fault].line())

        work_off([f for f in fitting if f not in results], slots, start, done, limit * PATIENCE)
    return [results[fault] for fault in faults]


def chosen(faults: list[Fault], args: argparse.Namespace) -> list[Fault]:
    """The faults that the flags name."""
    if args.only:
        pattern = args.only if re.search(r"[*?[]", args.only) else f"*{args.only}*"
        faults = [f for f in faults if fnmatch.fnmatch(f"{f.area} {f.name}".lower(), pattern.lower())]
    if args.draw:
        faults = random.Random(args.seed).sample(faults, min(args.draw, len(faults)))
    return faults


def count(results: list[Result], state: str) -> int:
    return sum(r.state == state for r in results)


def section(results: list[Result], root: Path, seconds: float, n_jobs: int) -> str:
    """The part of docs/testing.md that a run writes: counts by file."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True)
    rows = defaultdict(list)
    for r in results:
        rows[r.fault.file].append(r)
    lines = [
        MARK,
        f"{len(results)} faults in {len(rows)} files, {count(results, 'killed')} killed, "
        f"{count(results, 'ALIVE')} alive, {count(results, 'broken')} broken; "
        f"{seconds:.0f} s in all, {n_jobs} at a time "
        f"({time.strftime('%Y-%m-%d')}, on top of {commit.stdout.strip() or 'no commit'}).",
        "",
        "| file | faults | killed | seconds |",
        "|---|---|---|---|",
    ]
    for file, own in sorted(rows.items()):
        lines.append(f"| `{file}` | {len(own)} | {count(own, 'killed')} | {sum(r.seconds for r in own):.1f} |")
    return "\n".join(lines) + "\n"


def record(path: Path, text: str) -> None:
    """Replace everything from the mark on."""
    page = path.read_text(encoding="utf-8")
    path.write_text(page.partition(MARK)[0] + text, encoding="utf-8")


def positive_int(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of at least 1")
    return int(text)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--only", metavar="PATTERN", help="faults whose area, file or text holds this, or matches it with *"
    )
    parser.add_argument("--jobs", type=positive_int, default=os.cpu_count() or 1, help="workers (default: the cores)")
    parser.add_argument("--draw", type=positive_int, help="only so many of them, drawn at random")
    parser.add_argument("--seed", default="0", help="of that draw, any text")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds of computation that one fault may take")
    parser.add_argument("--record", action="store_true", help="write the counts into docs/testing.md")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree, with its table in tests/mutants")
    args = parser.parse_args(argv)
    root = args.root.resolve()
    if args.record and (args.only or args.draw):
        parser.error("--record is for all faults: leave out --only and --draw")
    try:
        every = read(root / "tests" / "mutants")
    except ValueError as error:
        parser.error(str(error))
    faults = chosen(every, args)
    if not faults:
        parser.error(f"no fault matches '{args.only}'; there are {len(every)}" if args.only else "the table is empty")
    began, n_jobs = time.perf_counter(), min(args.jobs, len(faults))
    preload(root)
    results = run_all(faults, root, n_jobs, args.limit, lambda line: print(line, flush=True))
    seconds = time.perf_counter() - began
    if args.record:
        record(root / "docs" / "testing.md", section(results, root, seconds, n_jobs))
    counts = [f"{count(results, state)} {state}" for state in ("killed", "ALIVE", "broken")]
    print(f"{len(results)} faults: {', '.join(counts)}; {seconds:.1f} s, {n_jobs} at a time")
    return int(count(results, "killed") < len(results))


if __name__ == "__main__":
    sys.exit(main())
