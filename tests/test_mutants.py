"""The table of deliberate faults fits the code, a dozen of them are detected, and the runner reports its findings."""

import subprocess
import sys
from collections import Counter

import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "tests" / "mutants"))
import table

sys.path.pop(0)
RUNNER = ROOT / "tests" / "mutants" / "run.py"


def run(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(RUNNER), *argv], cwd=ROOT, capture_output=True, text=True)


def test_every_fault_fits_its_file_and_names_tests():
    faults = table.read(ROOT / "tests" / "mutants")
    assert not [f"{f.name}: {why}" for f in faults if (why := table.misfit(f, ROOT))]
    twice = [key for key, n in Counter((f.file, f.old, f.new) for f in faults).items() if n > 1]
    assert not twice and len(Counter(f.name for f in faults)) == len(faults)
    assert len(faults) >= 80


def test_a_dozen_drawn_at_random_are_noticed():
    """Another dozen for each commit; the seed is in the message of a failure."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    seed = commit or "no commit"
    print(f"seed of the draw: {seed}")
    done = run("--draw", "12", "--seed", seed, "--jobs", "2")
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}{done.stderr}"
    assert "12 faults: 12 killed, 0 ALIVE, 0 broken" in done.stdout


TABLE = """
pkg.py:
- {wrong: is killed, old: a + b, new: a - b, tests: test_pkg.py::test_add}
- {wrong: lives, old: return 2 * a, new: return a + a, tests: test_pkg.py::test_double}
- {wrong: runs on, old: n = n - 1, new: n = n + 1, tests: 'test_pkg.py::test_count[3]'}
- {wrong: is not there, old: no such text, new: other, tests: test_pkg.py::test_add}
- {wrong: has no test, old: a + b, new: a * b, tests: test_pkg.py::test_nothing}
- {wrong: has no such case, old: a + b, new: b, tests: 'test_pkg.py::test_count[9]'}
- {wrong: fails anyway, old: a + b, new: a, tests: test_pkg.py::test_fails}
- {wrong: is skipped, old: a + b, new: a / b, tests: test_pkg.py::test_skipped}
- {wrong: stops the import, old: START = 1, new: START = none, tests: test_pkg.py::test_add}
"""
CODE = """
START = 1
def add(a, b):
    return a + b
def double(a):
    return 2 * a
def count(n):
    while n != 0:
        n = n - 1
    return n
"""
TESTS = """
import sys, pathlib
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))
import pkg, pytest
def test_add():
    assert pkg.add(2, 1) == 3
def test_double():
    assert pkg.double(3) == 6
@pytest.mark.parametrize("n", [1, 3])
def test_count(n):
    assert pkg.count(n) == 0
def test_fails():
    assert pkg.add(1, 1) == 3
def test_skipped():
    pytest.skip("never")
"""


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    (tmp_path / "pkg.py").write_text(CODE)
    (tmp_path / "tests" / "test_pkg.py").write_text(TESTS)
    (tmp_path / "tests" / "mutants" / "some.yaml").write_text(TABLE)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "testing.md").write_text("Written by hand.\n\n<!-- mutants: old\n")
    return tmp_path


def test_the_runner_tells_killed_alive_and_broken(tree):
    before = {path: path.read_bytes() for path in tree.rglob("*.*") if path.name != "testing.md"}
    done = run("--root", str(tree), "--jobs", "2", "--limit", "4", "--record")
    states = {line.split("pkg.py: ")[1].split("  [")[0]: line.split()[0] for line in done.stdout.splitlines()[:-1]}
    assert states == {
        "is killed": "killed",
        "lives": "ALIVE",
        "runs on": "killed",
        "is not there": "broken",
        "has no test": "broken",
        "has no such case": "broken",
        "fails anyway": "broken",
        "is skipped": "broken",
        "stops the import": "broken",
    }
    assert done.returncode == 1 and "9 faults: 2 killed, 1 ALIVE, 6 broken" in done.stdout
    assert (
        "ran too long" in done.stdout
        and "does not pass without the fault: tests/test_pkg.py::test_fails" in done.stdout
    )
    page = (tree / "docs" / "testing.md").read_text()
    assert page.startswith("Written by hand.\n") and "| `pkg.py` | 9 | 2 |" in page
    assert all(path.read_bytes() == content for path, content in before.items()), "the tree itself is not touched"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--only", "no such fault"], "no fault matches 'no such fault'; there are 9"),
        (["--jobs", "0"], "'0' is no number of at least 1"),
        (["--record", "--draw", "3"], "--record is for all faults"),
    ],
)
def test_mistakes_are_told_in_one_line(tree, argv, message):
    done = run("--root", str(tree), *argv)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "text, message", [("pkg.py: [", "some.yaml is no YAML"), ("pkg.py: [{old: a}]", "an entry has")]
)
def test_a_table_that_is_not_whole_is_named(tree, text, message):
    (tree / "tests" / "mutants" / "some.yaml").write_text(text)
    done = run("--root", str(tree))
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1]
