"""What a run on a GPU restores when it resumes within a task, on the meta device for every registered method."""

import sys
from unittest import mock

import pytest
import torch
from torch import nn

from tests import contract
from utils.cli import registry
from utils.engine import checkpoint, launch
from utils.engine.run import MID_TASK, Run
from utils.features import FeatureStore
from utils.memory.buffer import Buffer

META = torch.device("meta")
STOP_IN = 1  # the task whose last safe point is checked: there are teachers, memories and generators by then
OF_THE_RUN = {"args", "dataset", "loss", "transform", "original_transform", "normalization_transform", "run", "opt"}


class Stop(Exception):
    pass


def on_a_gpu(real):
    """Tensors of the model are written as if they lay on a GPU; random states and stored samples stay on the CPU."""

    def encode(tensor, name, entries, seen):
        content = real(tensor, name, entries, seen)
        moves = (
            name.startswith("state.model") and tensor.shape != torch.get_rng_state().shape and ".tensors." not in name
        )
        return content | {"moved": True} if moves else content

    return encode


def state_inside_a_task(name: str, path) -> None:
    """Write the last safe point inside a task of a toy run, before its end_task or in the middle of it."""

    def tick(run, before_save=None, **position):
        run.position = run.position | position
        if run.position["task"] > STOP_IN:
            raise Stop
        if run.position["task"] == STOP_IN or run.model.N_TASKS == 1:
            checkpoint.save(path, run.state(run.position), model=run.model.NAME)

    with (
        mock.patch.object(Run, "tick", tick),
        mock.patch.object(checkpoint, "_encode_tensor", on_a_gpu(checkpoint._encode_tensor)),
    ):
        try:
            contract.run(name)
        except Stop:
            pass


def tensors_of(value, path: str, met: set[int]):
    """(path, tensor) of all that hangs on a value, without stored samples (they have a device of their own)."""
    if id(value) in met or isinstance(value, (type, Buffer, FeatureStore)):
        return
    met.add(id(value))
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from tensors_of(item, f"{path}.{key}", met)
    elif isinstance(value, (list, tuple, set)):
        for number, item in enumerate(value):
            yield from tensors_of(item, f"{path}.{number}", met)
    elif isinstance(value, nn.Module) and "site-packages" in (
        getattr(sys.modules.get(type(value).__module__), "__file__", "") or ""
    ):
        yield from ((f"{path}.{key}", tensor) for key, tensor in value.state_dict().items())
    elif isinstance(value, nn.Module) or type(value).__module__.partition(".")[0] in {"utils", "models", "backbone"}:
        for key, item in vars(value).items():
            if key not in OF_THE_RUN and not isinstance(item, torch.optim.Optimizer):
                yield from tensors_of(item, f"{path}.{key}".removeprefix("."), met)


@pytest.mark.parametrize("name", registry.names("model"))
def test_a_run_resumed_inside_a_task_finds_its_tensors_on_the_device(name, tmp_path):
    (tmp_path / "ckpt").mkdir()
    state_inside_a_task(name, tmp_path / "ckpt" / MID_TASK)
    model = contract.build(name).model.to(META)
    run = Run(model, model.args, mock.Mock(folder=tmp_path), {})
    run.restore(run.saved(MID_TASK))
    anew = model.checkpoint_skip()  # made by the constructor, not read from the file
    found = list(tensors_of(model, "", set()))
    left = [path for path, tensor in found if tensor.device != META and path.split(".")[0] not in anew]
    assert len(found) > 2 and not left, f"on the CPU after a resume: {', '.join(left[:9])}"


def test_a_checkpoint_given_by_hand_is_read_to_the_device(tmp_path, monkeypatch):
    path = tmp_path / "any.safetensors"
    path.touch()
    model = contract.build("sgd").model.to(META)
    model.args.loadcheck, devices = str(path), []
    state = {"model": {}, "position": {"task": 0, "phase": "end"}}
    monkeypatch.setattr(checkpoint, "load", lambda *a, device="cpu", **k: devices.append(device) or stub)
    stub = state | {
        "rng": checkpoint.rng_state(),
        "rows": {"matrices": {}},
        "loop": {},
        "wall_s": 1.0,
        "record_bytes": 0,
    }
    stub["position"] |= {"epoch": 0, "batch": 0}
    monkeypatch.setattr(checkpoint, "restore", lambda *a: None)
    launch.load_checkpoint(model, model.args)
    assert devices == [META]
