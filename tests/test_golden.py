"""Frozen numbers of every method on the toy stream. After an intended change: `python -m tests.test_golden`.

One file per method in tests/golden/, holding the loss and the mean logit over all test images after a toy run. Other
processors round differently, so the last digits are free; a change of the math moves the first ones.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests import contract
from utils.cli import registry

FOLDER = Path(__file__).parent / "golden"


def numbers(name: str) -> dict[str, float]:
    toy = contract.run(name)
    _, labels = contract.images_of(toy)
    outputs = contract.logits(toy).float().clamp(-1e8, 1e8)
    return {"loss": float(cross_entropy(outputs, labels)), "logit": float(outputs.mean())}


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


@pytest.mark.parametrize("name", [e.name for e in registry.index("model").values()])
def test_numbers_are_the_frozen_ones(name):
    path = FOLDER / f"{name}.json"
    assert path.is_file(), f"no frozen numbers of {name}: python -m tests.test_golden {name}"
    assert numbers(name) == pytest.approx(json.loads(path.read_text()), rel=2e-2, abs=1e-3)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with contract.toys():
        for chosen in sys.argv[1:] or registry.index("model"):
            (FOLDER / f"{chosen}.json").write_text(json.dumps(numbers(chosen), indent=2) + "\n")
            print(chosen, (FOLDER / f"{chosen}.json").read_text())
