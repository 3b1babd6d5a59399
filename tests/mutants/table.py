"""The table of faults: YAML files beside this one, one for each area of the code.

utils/engine/metrics.py:                   the file with the fault
- wrong: rows before training count        what is wrong, as a reviewer would say it
  old: R[j:, j].max()                      text on one line that occurs exactly once in the file
  new: R[:, j].max()                       what stands there instead
  tests: test_metrics.py::test_forgetting  the tests that must fail, a name or a list of names
"""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

FIELDS = {"wrong", "old", "new", "tests"}


@dataclass(frozen=True)
class Fault:
    """One line of a file changed for the worse, and the tests that have to notice."""

    area: str  # name of the table's file
    file: str
    wrong: str
    old: str
    new: str
    tests: tuple[str, ...]  # as pytest names them, from the root of the tree

    @property
    def name(self) -> str:
        return f"{self.file}: {self.wrong}"

    def applied(self, text: str) -> str:
        return text.replace(self.old, self.new)


def read(folder: Path) -> list[Fault]:
    """All faults of a folder of tables; ValueError names an entry that is not whole."""
    faults = []
    for path in sorted(folder.glob("*.yaml")):
        try:
            files = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise ValueError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from None
        for file, entries in files.items():
            for entry in entries:
                if set(entry) != FIELDS or not all(isinstance(entry[k], str) for k in FIELDS - {"tests"}):
                    raise ValueError(
                        f"{path.name}: {file}: an entry has the texts {', '.join(sorted(FIELDS))}: {entry}"
                    )
                tests = [entry["tests"]] if isinstance(entry["tests"], str) else entry["tests"]
                ids = tuple(f"tests/{test}" for test in tests)
                faults.append(Fault(path.stem, file, entry["wrong"], entry["old"], entry["new"], ids))
    return faults


def misfit(fault: Fault, root: Path) -> str | None:
    """Why a fault cannot be tried, seen without running anything; None where it can."""
    source = root / fault.file
    if not source.is_file():
        return f"there is no file {fault.file}"
    text = source.read_text(encoding="utf-8")
    if "\n" in fault.old + fault.new:
        return "a fault is on one line"
    if fault.old == fault.new:
        return "old and new text are the same"
    if text.count(fault.old) != 1:
        return f"the old text occurs {text.count(fault.old)} times, not once"
    try:
        if source.suffix == ".py":
            compile(fault.applied(text), fault.file, "exec")
    except SyntaxError as error:
        return f"the file does not compile with it: {error}"
    if not fault.tests:
        return "it names no test"
    for test in fault.tests:
        path, _, name = test.partition("::")
        if name.partition("[")[0] not in test_names(root / path):
            return f"there is no test {test}"
    return None


@cache
def test_names(path: Path) -> frozenset[str]:
    """Names of the functions in a file of tests."""
    if not path.is_file():
        return frozenset()
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef))
