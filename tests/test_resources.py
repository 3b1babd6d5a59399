"""What a run takes and gives back: memory, files, threads. Numbers depend on neither threads, workers nor batches."""

import contextlib
import gc
import io
import os
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch

import main
from datasets.utils.samples import ArraySamples
from models.utils.continual_model import ContinualModel
from tests import contract, fabricate
from tests.faults import kills
from utils.cli import registry

TASKS = 50


class Fifty(contract.ToyClasses):
    """Fifty tasks of two classes with four images each."""

    NAME = "toy-fifty"
    N_TASKS = TASKS
    N_CLASSES_PER_TASK = 2
    CLASS_NAMES = [f"{a} {b}" for a in contract.NAMES for b in [*contract.NAMES, "cup cup", "star star", "fish fish"]][
        :100
    ]
    DEFAULTS = contract.ToyClasses.DEFAULTS | {"n_epochs": 1}

    def load(self, train: bool) -> ArraySamples:
        return contract.pictures(torch.arange(2 * TASKS * (4 if train else 1)) % (2 * TASKS), train)


def slow(*names: str) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def live_bytes() -> int:
    """Bytes of all tensors that Python knows."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor):  # isinstance asks lazy modules for their class
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("name", ["er", *slow("icarl", "ncm", "slda")])
def test_memory_of_fifty_tasks_is_what_the_method_stores(name):
    """Tensors, objects and resident memory after task 50 against task 20."""
    readings = {}
    real = ContinualModel.meta_end_eval

    def end_eval(model, *args, **kwargs):
        result = real(model, *args, **kwargs)
        if model.current_task in {19, TASKS - 1}:
            stored = sum(model.stored_bytes().values())
            readings[model.current_task] = live_bytes() - stored, len(gc.get_objects()), resident_bytes() - stored
        return result

    with (
        mock.patch.dict(registry._registered["dataset"], {"toy-fifty": Fifty}),
        mock.patch.object(ContinualModel, "meta_end_eval", end_eval),
        contract.toys(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        assert main.main(contract.argv_of(name, "toy-fifty")) == 0
    (tensors, objects, resident), (tensors_end, objects_end, resident_end) = readings[19], readings[TASKS - 1]
    assert tensors_end - tensors < 100_000
    assert objects_end - objects < 3_000
    assert resident_end - resident < 8 * 2**20


def open_files() -> dict[str, str]:
    """Descriptors of this process and what they are open on."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing itself
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


@pytest.mark.parametrize("name", ["er", *slow("cgil", "clumo", "mulki", "exemplar-masking")])
def test_files_and_threads_are_given_back(name, tmp_path):
    """The second of two runs leaves what the first one left: nothing is held for each run."""
    left = []
    for k in range(2):
        with contract.toys(), contextlib.redirect_stdout(io.StringIO()):
            assert main.main(kills.command(name, tmp_path / str(k), "--autosave", "0.001")) == 0
        gc.collect()
        left.append((open_files(), threading.active_count()))
    assert left[1][1] == left[0][1] and sorted(left[1][0].values()) == sorted(left[0][0].values())
    assert not [target for target in left[1][0].values() if target.startswith(str(tmp_path))]


def scores(toy: contract.Toy) -> tuple[dict, dict]:
    """Score matrices and the summary without what another toy run may have spared it: time, memory, features."""
    spared = {"wall_s", "peak_bytes", "image_forwards"}
    return toy.rows["matrices"], {k: v for k, v in toy.summary.items() if k not in spared}


def assert_close(a: contract.Toy, b: contract.Toy, tolerance: float) -> None:
    (rows, summary), (others, other) = scores(a), scores(b)
    assert summary.keys() == other.keys()
    for key in rows:
        torch.testing.assert_close(
            *(torch.tensor(r[key]) for r in (rows, others)), rtol=0, atol=tolerance, equal_nan=True
        )
    assert {k: v for k, v in summary.items() if abs(v - other[k]) > tolerance} == {}


METHODS = [
    "er",
    "clip",
    *(pytest.param(n, marks=pytest.mark.slow) for n in ("cgil", "icarl", "mulki", "clumo", "slda")),
]


@pytest.mark.parametrize("name", METHODS)
def test_numbers_do_not_depend_on_the_evaluation_batch(name):
    stream = kills.stream_of(name)
    whole, small = (contract.run(name, stream, eval_batch_size=size) for size in (64, 2))
    assert_close(whole, small, 1e-4)  # a percentage; the calibration error is a mean of rounded confidences


@pytest.mark.parametrize("name", METHODS)
def test_one_and_two_threads_agree(name):
    stream = kills.stream_of(name)
    one = contract.run(name, stream)
    torch.set_num_threads(2)
    try:
        two = contract.run(name, stream)
    finally:
        torch.set_num_threads(1)
    assert_close(one, two, 1e-5)


def test_numbers_do_not_depend_on_the_workers(tmp_path):
    """Images are read and augmented in 0 or 2 processes: equal records and weights."""
    fabricate.image_folder(tmp_path / "images", ["ant", "bee"], 8, 4)
    for workers in (0, 2):
        argv = ["--model", "er", "--buffer_size", "10", "--lr", "0.1", "--seed", "1", "--device", "cpu"]
        argv += ["--dataset", "seq-folder", "--folder_path", str(tmp_path / "images"), "--n_tasks", "2"]
        argv += ["--image_size", "16", "--n_epochs", "1", "--batch_size", "4", "--num_workers", str(workers)]
        argv += ["--results_path", str(tmp_path / str(workers) / "runs"), "--base_path", str(tmp_path)]
        argv += ["--savecheck", "last"]
        with contextlib.redirect_stdout(io.StringIO()):
            assert main.main([*argv, "--non_verbose", "1"]) == 0
    assert kills.differences(tmp_path / "0", tmp_path / "2") == []
