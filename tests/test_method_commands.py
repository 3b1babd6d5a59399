"""Each method file names the command that produces its table row: it parses, and the table's script runs it."""

import ast
import functools
import re
import shlex
from pathlib import Path

import pytest

from scripts import claims_table, tiny_world
from scripts.sweeps import grid
from tests.test_scripts import OF_A_SEED, without
from utils import cli
from utils.cli import registry

ROOT = registry.ROOT
FILES = sorted({entry.path for entry in registry.index("model").values()})
HOUSEKEEPING = {
    "--notes",
    "--results_path",
    "--resume",
    "--non_verbose",
    "--autosave",
    "--base_path",
    "--device",
    "--features",
}
NO_TABLE = {"ridge", "rail", "first-stage-starprompt", "icarl-clip", "exemplar-masking"}  # measured nowhere in docs/
NO_TABLE |= {"acil", "ranpac", "simplecil", "moe-adapters", "rapf", "proof", "engine", "bofa", "diki"}
NO_TABLE |= {"attriclip", "mg-clip", "clg-cbm"}
NO_TABLE |= {"coda-prompt", "lora", "ease", "aper", "slca", "merge", "starprompt", "second-stage-starprompt"}
NO_TABLE |= {"lwf-mc", "er-tricks", "xder-ce", "xder-rpc", "clap4clip", "quad", "pnn"}
NO_ROW = {"lwf-vr", "wise-ft"}  # arms of a script that were not run for its page


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text()), clean=False)


def command(path: Path) -> list[str]:
    found = re.findall(r"^ +python main\.py (.+)$", docstring(path), re.M)
    assert len(found) == 1, f"{path.name}: its docstring needs the one command that makes its row of a table"
    return shlex.split(found[0])


def flags(argv: list[str]) -> dict[str, tuple[str, ...]]:
    """Flag -> values, without what changes no number."""
    found: dict[str, tuple[str, ...]] = {}
    for word in argv:
        if word.startswith("--"):
            found[name := word] = ()
        else:
            found[name] += (registry.canonical(word) if name == "--model" else word,)
    return {name: values for name, values in found.items() if name not in HOUSEKEEPING}


@functools.cache
def run_by(script: str) -> list[dict[str, tuple[str, ...]]]:
    """What a script or a table of claims runs, whatever the seed; scripts/X.sh runs the grid X."""
    if script == "scripts/tiny_world.py":
        common = ["--permute_classes", "1", "--device", "cpu"]
        return [flags(["--dataset", d, *shlex.split(f), *common]) for d, _, _, f, _ in tiny_world.RUNS]
    if script.endswith(".yaml"):
        table = claims_table.read_table(Path(script).stem)
        jobs = claims_table.jobs_of(table, Path("runs"), table.seeds[:1])
        return [flags(without(job.argv, *OF_A_SEED)) for job in jobs]
    lines = grid.read(str(ROOT / "scripts" / "grids" / f"{Path(script).stem}.yaml")).lines
    return [flags(without(line.argv, *OF_A_SEED)) for line in lines]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_command_is_understood_and_runs_this_method(path):
    parsed = cli.parse(command(path))
    assert Path(parsed.model_class.__module__.replace(".", "/")).name == path.stem
    assert parsed.args.seed is not None and "picture_seed" in parsed.args


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_the_command_is_one_of_the_script_that_makes_the_table(path):
    name = command(path)[command(path).index("--model") + 1]
    place = re.search(
        r"(docs/\w+\.md).*(scripts/[\w/]+\.\w+)|(scripts/[\w/]+\.\w+) \((docs/\w+\.md)\), no row", docstring(path)
    )
    if name in NO_TABLE:
        assert place is None and "No table has a row of it" in docstring(path)
        return
    page, script = place.group(1) or place.group(4), place.group(2) or place.group(3)
    assert (place.group(4) is not None) == (name in NO_ROW)
    text = (ROOT / page).read_text()
    assert Path(script).name in text and (ROOT / script).is_file()
    assert flags(without(command(path), *OF_A_SEED)) in run_by(script)


def test_the_exceptions_are_methods():
    assert NO_TABLE | NO_ROW <= set(registry.names("model"))
