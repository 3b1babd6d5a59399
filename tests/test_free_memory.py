"""Estimates of memory against actual use, and the limits on them."""

from argparse import Namespace

import pytest
import torch

from backbone.resnet import resnet18, resnet34
from models.rail import MOST_FEATURES, Rail
from tests import contract
from utils import conf
from utils import free_memory as memory
from utils.errors import UserError
from utils.memory.buffer import Buffer


@pytest.fixture
def allowed(monkeypatch):
    """allowed(gigabytes): what --max_memory_gb says."""
    return lambda gb: monkeypatch.setitem(conf._of_run, "max_memory_gb", gb)


def test_what_is_asked_for_is_compared_with_what_is_allowed(allowed):
    allowed(1.0)
    memory.require(2**30, "it", "less")
    with pytest.raises(
        UserError, match=r"^it needs about 1.1 GB, but only 1.1 GB are allowed by --max_memory_gb: less$"
    ):
        memory.require(2**30 + 1, "it", "less")
    allowed(None)
    assert 2**26 < memory.machine_bytes() < 2**50
    with pytest.raises(UserError, match="GB are free here"):
        memory.require(2**60, "it", "less")


@pytest.mark.parametrize("maker, filters", [(resnet18, 8), (resnet34, 4)])
def test_the_estimate_of_a_network(maker, filters, allowed):
    """Every tensor that autograd keeps, counted once: at least half the estimate and at most twice."""
    net, kept = maker(10, filters).train(), {}
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(torch.zeros(2, 3, 32, 32)).sum()
    total = sum(size for place, size in kept.items() if place not in weights)
    assert 0.5 < net.floats_per_pixel * 4 * 2 * 32 * 32 / total < 2
    bytes_of_weights = 3 * 4 * sum(p.numel() for p in net.parameters())
    allowed(bytes_of_weights * 1.1 / 2**30)
    maker(10, filters)
    allowed(bytes_of_weights * 0.8 / 2**30)
    with pytest.raises(UserError, match=f"--num_filters {filters}, with gradients"):
        maker(10, filters)


def test_readers(monkeypatch):
    monkeypatch.setattr(memory.os, "sched_getaffinity", lambda pid: range(3))
    memory.refuse_many_readers(Namespace(num_workers=12))
    with pytest.raises(UserError, match="--num_workers 13: this machine has 3 processors, which 12 workers keep busy"):
        memory.refuse_many_readers(Namespace(num_workers=13))


def test_rail_has_no_more_features_than_there_are_images(monkeypatch):
    monkeypatch.setattr(Rail, "TOY_ARGS", {})
    toy = contract.build("rail")
    assert toy.model.random.shape[1] == len(toy.dataset.samples(True)) < MOST_FEATURES


@pytest.mark.parametrize(
    "name, flags, part",
    [
        (
            "rail",
            {"rp_size": 10**6},
            "--rp_size 1000000: the sums, their damped copy and its factor needs about 24000.0 GB",
        ),
        (
            "mulki",
            {"peft": "lora", "lora_rank": 10**9},
            "--lora_rank 1000000000, with gradients and Adam's two moments, needs about",
        ),
    ],
)
def test_sizes_of_methods(name, flags, part):
    with pytest.raises(UserError, match=part):
        contract.build(name, trained=True, **flags)


def test_a_memory_for_replay(allowed):
    allowed(0.001)
    buffer = Buffer(1000)
    with pytest.raises(UserError, match=r"a memory of 1,000 samples \(examples\) needs about 0.0 GB"):
        buffer.add_data(torch.zeros(2, 3, 20, 20), labels=torch.zeros(2))
    Buffer(100).add_data(torch.zeros(2, 3, 20, 20), labels=torch.zeros(2))
