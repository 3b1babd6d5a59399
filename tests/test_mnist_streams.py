"""The MNIST streams: permuted and rotated domains, and the stream of rotating digits."""

from argparse import Namespace

import pytest
import torch
from torchvision.transforms import functional as TF

from datasets import get_dataset
from datasets.mnist_360 import stream_angles, stream_order
from datasets.utils.loaders import Loader
from datasets.utils.mnist_files import rotated_pixels, show_pixels
from tests import fabricate
from utils.randomness import generator


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    base = tmp_path_factory.mktemp("mnist")
    fabricate.mnist(base, 300, 100)
    return lambda name, **options: get_dataset(
        Namespace(**({"dataset": name, "seed": 0, "base_path": str(base)} | options))
    )


def same(a, b) -> bool:
    batches = list(zip(a, b, strict=True))
    return len(batches) > 0 and all(torch.equal(x, y) for one, two in batches for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize("name", ["perm-mnist", "rot-mnist"])
def test_a_domain_is_a_function_of_seed_and_task(make, name):
    def digits(dataset, n: int = 2) -> list[torch.Tensor]:
        return [dataset.get_data_loaders()[0].dataset.data for _ in range(n)]

    first, second = digits(make(name))
    torch.manual_seed(123)
    assert all(map(torch.equal, digits(make(name)), (first, second)))
    assert not torch.equal(first, second) and not torch.equal(first, digits(make(name, seed=1))[0])
    dataset = make(name)
    train, test = dataset.get_data_loaders()
    source = dataset.source_pixels(0)
    for split, raw in ((train.dataset, dataset.samples(True)), (test.dataset, dataset.samples(False))):
        assert torch.equal(split.data, show_pixels(raw.data, source)) and torch.equal(split.targets, raw.targets)
    image, _, plain = next(iter(train))
    assert torch.equal(image, plain)  # what a buffer stores is the digit of the task, not the upright one


def test_permutations_move_every_pixel_once(make):
    dataset = make("perm-mnist")
    raw, moved = dataset.samples(True).data, dataset.get_data_loaders()[0].dataset.data
    assert torch.equal(raw.flatten(1).sort(1).values, moved.flatten(1).sort(1).values) and not torch.equal(raw, moved)


def test_angles_and_turning(make):
    dataset = make("rot-mnist")
    angles = [dataset.angle(t) for t in range(20)]
    assert all(0 <= a < 180 for a in angles) and len(set(angles)) == 20 and max(angles) - min(angles) > 90
    turned = dataset.get_data_loaders()[0].dataset.data
    assert torch.equal(turned, TF.rotate(dataset.samples(True).data, angles[0]))
    image = torch.randint(0, 256, (1, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    degrees = torch.tensor([0.0, 30, 45, 90, 123.4, 180, 270, 301.7], dtype=torch.float64)
    each = show_pixels(image.expand(8, -1, -1, -1), rotated_pixels(degrees))
    assert torch.equal(each, torch.cat([TF.rotate(image, a) for a in degrees.tolist()]))


def test_stream_of_turning_digits(make):
    dataset = make("mnist-360")
    train, test = dataset.get_data_loaders()
    batches = list(train.epoch(0))
    assert len(train) == len(batches) and same(batches[3:], train.epoch(0, start=3))
    assert same(batches, make("mnist-360").get_data_loaders()[0])
    pairs = [tuple(sorted(set(labels.tolist()))) for _, labels, _ in batches]
    order = [p for p, before in zip(pairs, [None, *pairs], strict=False) if len(p) == 2 and p != before]
    assert order == 3 * [*((k, k + 1) for k in range(8)), (0, 8)]
    shown = torch.cat([labels for _, labels, _ in batches])
    assert shown.bincount().tolist() == [30] * 9 and {len(labels) for _, labels, _ in batches} == {10}  # 5 + 5
    angles = stream_angles(shown, True)
    rows = torch.cat([plain for _, _, plain in batches])
    raw = {image.numpy().tobytes() for image in dataset.samples(True).data}
    for d in range(9):
        own = angles[shown == d]
        assert float(own[0]) == 60 * (d - 1)
        torch.testing.assert_close(own.diff(), torch.full((len(own) - 1,), 360 / len(own), dtype=torch.float64))
    upright = rows[(angles % 360 == 0)]  # digit 1 starts upright
    assert len(upright) and all((255 * image).round().byte().numpy().tobytes() in raw for image in upright)
    assert len(test.dataset) == 90 and torch.equal(test.dataset.targets, test.dataset.targets.sort().values)
    assert dataset.N_CLASSES == 9 and isinstance(train.with_batch_size(7), Loader)


def test_stream_batches_mix_in_proportion_to_what_is_left():
    """30 zeros and 60 ones: chunks of 5 and 10, 4 * 5/15 = 1.3 zeros, then 4 * 4/11 = 1.5, 4 * 3/7 = 1.7, the rest."""
    targets = torch.cat([torch.full((60 if d == 1 else 30,), d) for d in range(9)])
    rows, sizes = stream_order(targets, 4, generator("test"))
    first = [targets[batch].bincount(minlength=2).tolist() for batch in rows.split(sizes)[:4]]
    assert first == [[1, 3], [1, 3], [2, 2], [1, 2]]
    assert rows.unique().numel() == rows.numel()  # no image twice


def test_stream_with_validation(make):
    dataset = make("mnist-360", validation=0.2)
    train, test = dataset.get_data_loaders()
    assert len(test.dataset) == 9 * 6 and len(dataset.final_test_loaders[0].dataset) == 90
    assert len(train.dataset) <= 9 * 24
