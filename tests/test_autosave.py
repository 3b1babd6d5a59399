"""Checkpoints written during training: their content, their cost, and how errors are reported."""

import copy
import os
import signal
import threading
import time

import pytest
import torch

from tests.conftest import in_child
from utils.engine import autosave, checkpoint
from utils.engine.autosave import Saver
from utils.errors import UserError


@pytest.fixture
def held(monkeypatch):
    """Files are written when this event is set, and not before."""
    go, real = threading.Event(), checkpoint._write_safetensors
    monkeypatch.setattr(checkpoint, "_write_safetensors", lambda *args: (go.wait(20), real(*args)))
    return go


def test_the_file_holds_the_moment_of_the_snapshot(tmp_path, held):
    weights, saver = torch.arange(5000.0), Saver(60)
    state = {"weights": weights, "sizes": [1, 2]}
    saver.start(tmp_path / "a", state, "toy")
    weights.add_(1)  # training continues
    state["sizes"].append(3)
    assert not (tmp_path / "a").exists()
    held.set()
    saver.wait()
    found = checkpoint.load(tmp_path / "a", model="toy")
    assert torch.equal(found["weights"], torch.arange(5000.0)) and found["sizes"] == [1, 2]


def test_one_file_at_a_time_and_the_next_waits(tmp_path, held):
    saver = Saver(1e-6)
    saver.start(tmp_path / "a", [1], "toy")
    assert not saver.due(), "a file is being written"
    held.set()
    saver.start(tmp_path / "a", [2], "toy")
    saver.wait()
    assert saver.due() and checkpoint.load(tmp_path / "a", model="toy") == [2]


@pytest.mark.parametrize("how", ["due", "start", "wait"])
def test_an_error_of_the_thread_is_raised_in_the_training_once(tmp_path, how):
    (tmp_path / "file").write_text("in the place of a folder")
    saver = Saver(60)
    saver.start(tmp_path / "file" / "a", [1], "toy")
    saver.thread.join()
    with pytest.raises(UserError, match="cannot write .*save to another folder"):
        saver.due() if how == "due" else saver.wait() if how == "wait" else saver.start(tmp_path / "b", [1], "toy")
    saver.check()


def test_snapshots_take_at_most_their_share(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(autosave.time, "monotonic", lambda: now[0])
    saver = Saver(60, expected_s=3.0)
    for passed, due in ((59, False), (61, False), (149, False), (151, True)):
        now[0] = 1000.0 + passed
        assert saver.due() is due, f"{passed} s after the start, where a snapshot takes 3 s, which is 2 % of 150 s"
    saver.last, saver.cost_s, saver.spent_s = now[0], 4.0, 5.0
    for passed, due in ((212, False), (449, False), (451, True)):
        now[0] = 1000.0 + passed
        assert saver.due() is due, f"{passed} s after the start, with 5 s spent and 4 s to spend"
    saver.interval, saver.last, saver.spent_s = 0.5, now[0] - 0.6, 1e9
    assert saver.due(), "an interval below a second is kept as asked for"
    saver.interval = 0.0
    assert not saver.due()


def test_equal_tensors_are_stored_once_and_stay_apart(tmp_path):
    weights = torch.randn(100, 100)
    nearly = weights.clone()
    nearly[99, 99] += 1
    negative = torch.zeros(2000), -torch.zeros(2000)
    state = {"net": weights, "start": weights.clone(), "nearly": nearly, "zeros": list(negative)}
    checkpoint.save(tmp_path / "a", state, model="toy")
    assert (tmp_path / "a").stat().st_size < 2 * 40_000 + 2 * 8_000 + 3_000
    found = checkpoint.load(tmp_path / "a", model="toy")
    assert torch.equal(found["net"], weights) and torch.equal(found["start"], weights)
    assert (
        torch.equal(found["nearly"], nearly)
        and found["zeros"][1].signbit().all()
        and not found["zeros"][0].signbit().any()
    )
    found["net"].add_(1)
    assert torch.equal(found["start"], weights), "they were two tensors, and are"


def test_other_names_of_a_memory_share_it_again(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(40, 40))
    state = {
        "p": parameter,
        "same": parameter,
        "view": parameter.detach(),
        "row": parameter.detach()[0],
        "again": parameter.data,
    }
    checkpoint.save(tmp_path / "a", state, model="toy")
    assert (tmp_path / "a").stat().st_size < 6400 + 160 + 2000
    found = checkpoint.load(tmp_path / "a", model="toy")
    assert found["same"] is found["p"] and isinstance(found["p"], torch.nn.Parameter)
    assert not isinstance(found["view"], torch.nn.Parameter) and found["again"] is found["view"]
    found["view"].zero_()
    assert not found["p"].any() and found["row"].any(), "a part of a memory is a tensor of its own"


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_file(tmp_path):
    checkpoint.save(tmp_path / "a", torch.zeros(100_000), model="toy")

    def killed():
        saver = Saver(60)
        saver.start(tmp_path / "a", torch.ones(20_000_000), "toy")
        while not list(tmp_path.glob("*.tmp")):
            time.sleep(1e-4)
        os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(in_child(killed))
    assert checkpoint.load(tmp_path / "a", model="toy").shape in {(100_000,), (20_000_000,)}
    checkpoint.save(tmp_path / "a", torch.ones(3), model="toy")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_files_of_the_first_schema_are_read(tmp_path, monkeypatch):
    state = {"x": torch.randn(2000)}
    real = checkpoint._write_safetensors

    def old(file, entries, metadata):
        real(file, entries, {k: v for k, v in metadata.items() if k != "same"} | {"schema": "1"})

    monkeypatch.setattr(checkpoint, "_write_safetensors", old)
    checkpoint.save(tmp_path / "a", copy.copy(state), model="toy")
    assert torch.equal(checkpoint.load(tmp_path / "a", model="toy")["x"], state["x"])
