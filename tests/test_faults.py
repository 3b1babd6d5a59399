"""Runs that are killed at named moments, or whose disk fails, keep what was whole and end with the same numbers."""

import pytest

from models import get_model_names
from tests.faults import disk, kills

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


WRITES = [("full", 8), ("full", 130), ("read-only", 14), ("renaming", 40), ("removed", 11), ("removed", 90)]


@pytest.fixture(scope="module")
def whole_er(tmp_path_factory):
    kills.whole("er", folder := tmp_path_factory.mktemp("whole"))
    return folder


@pytest.mark.parametrize("kind, at", WRITES)
def test_a_failing_disk_loses_nothing(kind, at, whole_er, tmp_path):
    assert disk.faults_of("er", kind, at, whole_er, tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["er", "cgil"])
@pytest.mark.parametrize("kind", disk.KINDS)
def test_each_of_the_first_writes_fails(name, kind, tmp_path):
    kills.whole(name, tmp_path / "whole")
    _, n_writes = disk.run(name, tmp_path / "counted")
    for at in [*range(1, 51), *range(60, n_writes, n_writes // 10)]:
        found = disk.faults_of(name, kind, at, tmp_path / "whole", tmp_path / f"run{at}")
        assert not found, f"{name}, {kind} at write {at} of {n_writes}: {found}"
