"""docs/compatibility.md has a row for each method and a column for each offline stream, and its cells are true."""

from argparse import Namespace

import pytest

from models import get_model_names
from scripts import compatibility
from scripts.compatibility import STREAMS
from tests import contract
from utils import cli
from utils.cli import registry
from utils.engine import launch
from utils.errors import UserError

LINES = compatibility.PAGE.read_text(encoding="utf-8").splitlines()
ROWS = {line.split("`")[1]: [c.strip() for c in line.split("|")[2:-1]] for line in LINES if line.startswith("| `")}
CELLS = {(m, s): cell for m, row in ROWS.items() for s, cell in zip(STREAMS, row, strict=True)}
REASONS = dict(line[2:].split(": ", 1) for line in LINES if line.startswith("- "))


class Nowhere:
    """A folder that a fabricator cannot write to."""

    def __truediv__(self, other):
        raise OSError("this stream reads files")


def needs_no_files(name: str) -> bool:
    try:
        return set(contract.FABRICATORS[name](Nowhere())) <= {"clip_backbone"}
    except (OSError, TypeError):
        return False


def test_rows_and_columns_are_the_registry():
    assert list(ROWS) == get_model_names()
    assert set(STREAMS) == {name for name in contract.FABRICATORS if needs_no_files(name)}
    assert set(CELLS.values()) == {"runs", *REASONS}


def test_every_cell_agrees_with_the_check_of_settings():
    args = vars(cli.parse(["--model", "sgd", "--dataset", "seq-tiny", "--lr", "0.1"]).args)
    refused = 0
    for (model, stream), cell in CELLS.items():
        pair = Namespace(**args | {"model": model, "dataset": stream})
        try:
            launch.check(pair, contract.model_class(model), registry.load("dataset", stream))
        except UserError as error:
            assert REASONS[cell] == compatibility.short(model, stream, str(error)), (model, stream)
            refused += 1
        else:
            assert cell == "runs" or "works with" not in REASONS[cell], (model, stream)
    assert refused > 10


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Where both pairs find the images of their stream, drawn once."""
    return tmp_path_factory.mktemp("base")


SAMPLE = [
    next((pair for pair, c in CELLS.items() if c == letter), None)
    for letter, reason in REASONS.items()
    if "works with" not in reason
]


@pytest.mark.parametrize("model, stream", [*SAMPLE, ("er", "clove-tiny-function")])
def test_a_sample_of_pairs_is_taken_to_the_start_of_training(model, stream, base):
    told = compatibility.refusal(model, stream, base)
    cell = CELLS[model, stream]
    assert (cell == "runs") == (told is None)
    assert told is None or compatibility.short(model, stream, told) == REASONS[cell]
