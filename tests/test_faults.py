"""Runs that are killed at named moments, or whose disk fails, keep what was whole and end with the same numbers."""

import pytest

from models import get_model_names
from tests.faults import kills

EVERY = {"cgil": ["half a segment", "after a record line"], "clumo": ["half a checkpoint"]}  # in the normal suite


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory):
    kills.warm_up(tmp_path_factory.mktemp("warm"))


def check_kills(name: str, folder, moments: list[str] | None = None) -> None:
    occurs = kills.whole(name, folder / "whole")
    for number, moment in enumerate(moments or kills.moments_for(name, occurs)):
        result = kills.trial(name, moment, occurs[moment], folder / "whole", folder / f"killed{number}")
        assert result.sound, f"{name}: {result}"


@pytest.mark.parametrize("name", EVERY)
def test_killed_runs_end_like_the_whole_one(name, tmp_path):
    check_kills(name, tmp_path, EVERY[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", get_model_names())
def test_every_method_is_killed(name, tmp_path):
    check_kills(name, tmp_path)


def test_the_comparison_sees_a_difference(tmp_path):
    """Another seed is another run: scores, weights and random states differ."""
    assert kills.run(kills.command("sgd", tmp_path / "a", "--autosave", "600")) == 0
    argv = kills.command("sgd", tmp_path / "b", "--autosave", "600")
    argv[argv.index("--seed") + 1] = "1"
    assert kills.run(argv) == 0
    found = kills.differences(tmp_path / "a", tmp_path / "b")
    assert any("scores" in f for f in found)
    assert any(f.startswith("tensor state.model") for f in found) and "tensor state.rng.torch" in found
