"""Replay memory: the content of its tuples, and what a checkpoint restores."""

import copy
from argparse import Namespace

import numpy as np
import pytest
import torch
from safetensors.torch import save as to_safetensors
from torchvision import transforms as T

from tests.buffer_toys import fill, numbered, stored
from tests.toys import random_pairs
from utils.errors import UserError
from utils.memory.buffer import Buffer
from utils.memory.strategies import STRATEGIES
from utils.pair import Pair


def full_buffer() -> Buffer:
    """Ten samples i with label i, logits (i, -i) and task i // 4."""
    return fill(
        Buffer(10),
        10,
        labels=lambda i: i.long(),
        logits=lambda i: torch.stack([i, -i], 1),
        task_labels=lambda i: i.long() // 4,
    )


def test_get_data_gives_rows_in_the_promised_order():
    buffer = full_buffer()
    index, plain, doubled, labels, logits, tasks = buffer.get_data(
        7, transform=lambda x: 2 * x, return_index=True, return_not_aug=True, not_aug_transform=lambda x: x + 100
    )
    assert index.shape == (7,) and len(index.unique()) == 7  # no repetition
    number = index.float()
    assert torch.equal(doubled[:, 0], 2 * number) and torch.equal(plain[:, 0], number + 100)
    assert torch.equal(labels, index) and torch.equal(tasks, index // 4)
    assert torch.equal(logits, torch.stack([number, -number], 1))
    assert labels.dtype == tasks.dtype == torch.int64 and logits.dtype == torch.float32
    assert buffer.used_attributes == ["examples", "labels", "logits", "task_labels"]
    assert len(buffer.get_data(3)) == 4 and buffer.iteration == 2


def test_get_data_clips_the_size_and_covers_everything():
    buffer = full_buffer()
    assert sorted(buffer.get_data(99)[1].tolist()) == list(range(10))
    half = fill(Buffer(10), 4, labels=lambda i: i.long())
    assert sorted(half.get_data(99)[1].tolist()) == [0, 1, 2, 3]  # free places are never served


def test_mask_task_out_by_task_labels_and_by_labels():
    buffer = full_buffer()
    assert sorted(buffer.get_data(99, mask_task_out=1)[1].tolist()) == [0, 1, 2, 3, 8, 9]
    plain = fill(Buffer(10), 10, labels=lambda i: i.long())
    assert sorted(plain.get_data(99, mask_task_out=1, cpt=5)[1].tolist()) == [0, 1, 2, 3, 4]


def test_mask_task_out_with_tasks_of_different_sizes():
    """Classes per task as a list, as datasets declare them: labels 0-2, 3, 4-9."""
    plain = fill(Buffer(10), 10, labels=lambda i: i.long())
    for task, (first, end) in enumerate(((0, 3), (3, 4), (4, 10))):
        left = sorted(plain.get_data(99, mask_task_out=task, cpt=[3, 1, 6])[1].tolist())
        assert left == [*range(first), *range(end, 10)]
    with pytest.raises(UserError, match="cpt"):
        plain.get_data(4, mask_task_out=1)


def test_force_indexes_serves_exactly_those():
    index, examples, labels, *_ = full_buffer().get_data(99, force_indexes=[7, 0, 7], return_index=True)
    assert index.tolist() == labels.tolist() == examples[:, 0].int().tolist() == [7, 0, 7]


def test_balanced_data_takes_the_same_number_of_each_class():
    np.random.seed(0)
    buffer = fill(Buffer(40), 40, labels=lambda i: (i >= 20).long() + (i >= 36).long())  # 20, 16 and 4 of a class
    assert np.bincount(buffer.get_balanced_data(12)[1]).tolist() == [4, 4, 4]
    assert sorted(np.bincount(buffer.get_balanced_data(11)[1]).tolist()) == [3, 4, 4]
    assert np.bincount(buffer.get_balanced_data(30)[1]).tolist() == [10, 10, 4]  # no repetition to make up for it
    chosen = buffer.get_balanced_data(8, n_classes=2)[1]
    assert sorted(np.bincount(chosen, minlength=3).tolist()) == [0, 4, 4]


def test_byte_codec_is_exact_for_byte_images_and_a_quarter_of_the_memory():
    images = (torch.arange(256, dtype=torch.uint8).float() / 255).view(16, 1, 4, 4)
    packed, plain = Buffer(16, codec="uint8"), Buffer(16)
    packed.add_data(images)
    plain.add_data(images)
    assert torch.equal(packed.get_all_data()[0], images) and torch.equal(plain.get_all_data()[0], images)
    assert plain.nbytes == 4 * packed.nbytes == 4 * 256
    packed.add_data((images * 255).to(torch.uint8))  # bytes as they are
    assert set(packed.get_all_data()[0].mul(255).round().int().flatten().tolist()) <= set(range(256))
    again = Buffer(16, codec="uint8")
    again.load(packed.serialize())
    assert torch.equal(again.get_all_data()[0], packed.get_all_data()[0])


def test_byte_codec_takes_the_nearest_byte():
    images, buffer = torch.linspace(0, 1, 1000)[:, None], Buffer(1000, codec="uint8")
    buffer.add_data(images)
    assert (buffer.get_all_data()[0] - images).abs().max() <= 0.5 / 255 + 1e-6


def test_bytes_given_to_a_float_buffer_mean_the_same_picture():
    images = torch.randint(0, 256, (4, 1, 2, 2), dtype=torch.uint8)
    packed, plain = Buffer(4, codec="uint8"), Buffer(4)
    packed.add_data(images)
    plain.load(packed.serialize())
    assert torch.equal(plain.get_all_data()[0], images.float() / 255)


def test_max_bytes_lowers_the_number_of_places():
    sample = 3 * 4 + 8 + 2 * 4  # three floats, a label, two logits
    buffer = Buffer(100, max_bytes=5 * sample + 1)
    for _ in range(4):
        buffer.add_data(torch.rand(4, 3), labels=torch.zeros(4, dtype=torch.long), logits=torch.rand(4, 2))
    assert (buffer.buffer_size, len(buffer), buffer.nbytes) == (5, 5, 5 * sample)
    with pytest.raises(UserError, match="more than the buffer's 10"):
        Buffer(100, max_bytes=10).add_data(torch.rand(1, 3))
    with pytest.raises(UserError, match="do not fit"):
        Buffer(100, max_bytes=24).load({"examples": torch.rand(3, 3)})


@pytest.mark.parametrize("codec", ["float", "uint8"])
def test_pairs_pass_through(codec):
    pairs, buffer = random_pairs(6), Buffer(8, codec=codec)
    buffer.add_data(pairs, labels=torch.arange(6))
    seen, labels = buffer.get_data(6)
    assert isinstance(seen, Pair) and seen.text.dtype == torch.int64 and sorted(labels.tolist()) == list(range(6))
    assert torch.equal(seen.image, pairs.image[labels]) and torch.equal(seen.text, pairs.text[labels])
    assert buffer.nbytes == 6 * (6 * (1 if codec == "uint8" else 4) + 4 * 8 + 8)
    again = Buffer(8, codec=codec)
    again.load_state(copy.deepcopy(buffer.state()))
    assert torch.equal(again.get_all_data()[0].image, pairs.image)


def test_pairs_are_augmented_by_their_image_only():
    pairs, buffer = random_pairs(3), Buffer(3)
    buffer.add_data(pairs, labels=torch.arange(3))
    mirrored = buffer.get_all_data(transform=T.Compose([T.RandomHorizontalFlip(1.0)]))[0]
    assert torch.equal(mirrored.image, pairs.image.flip(-1)) and torch.equal(mirrored.text, pairs.text)


@pytest.mark.parametrize("n", [3, 30])
def test_nbytes_is_the_sum_on_disk(n):
    buffer = fill(Buffer(8, codec="uint8"), n, labels=lambda i: i.long(), logits=lambda i: torch.stack([i, i], 1))
    header = to_safetensors({k: v[:0] for k, v in buffer.serialize().items()})
    full = to_safetensors({k: v.contiguous() for k, v in buffer.serialize().items()})
    payload = [len(f) - 8 - int.from_bytes(f[:8], "little") for f in (header, full)]  # file = length, header, data
    assert payload == [0, buffer.nbytes]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_state_continues_bit_for_bit(strategy):
    """A buffer put back from its state draws, replaces and serves as the one that went on."""
    columns = {"labels": lambda i: (i % 3).long(), "sample_selection_scores": lambda i: (i * 7) % 11}
    np.random.seed(0)
    needs = {
        "ring": {"n_classes": 3},
        "abs": {"dataset": Namespace(c_task=1, get_offsets=lambda task: (task, task + 2))},
    }.get(strategy, {})
    first = fill(Buffer(9, sample_selection_strategy=strategy, **needs), 23, **columns)
    first.get_data(2)
    second = Buffer(9, sample_selection_strategy=strategy, **needs)
    second.load_state(copy.deepcopy(first.state()))
    results = []
    for buffer in (first, second):
        np.random.seed(5)
        fill(buffer, 40, **columns)
        results.append(
            [buffer.get_data(4, return_index=True), buffer.get_all_data(), (buffer.num_seen_examples, buffer.iteration)]
        )
    for one, two in zip(*results, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_state_of_another_strategy_is_not_the_same_continuation():
    """The scores matter: without them lars would choose other places."""
    np.random.seed(0)
    first = fill(Buffer(20, sample_selection_strategy="lars"), 20, sample_selection_scores=lambda i: (i == 3).float())
    second = Buffer(20, sample_selection_strategy="lars")
    second.load_state(copy.deepcopy(first.state()))
    assert second.sample_selection_fn.weights().tolist() == [float(i == 3) for i in range(20)]


def test_unlimited_keeps_everything_and_doubles():
    buffer = Buffer(5, sample_selection_strategy="unlimited")
    sizes = []
    for stop in (4, 10, 11, 45):
        start = len(buffer)
        buffer.add_data(numbered(start, stop), labels=torch.arange(start, stop))
        sizes.append(len(buffer.data["examples"]))
        assert stored(buffer) == buffer.get_all_data()[1].tolist() == list(range(stop))
    assert sizes == [10, 10, 20, 80] and not buffer.is_full() and buffer.nbytes == 45 * (4 + 8)
    again = Buffer(5, sample_selection_strategy="unlimited")
    again.load(buffer.serialize())
    assert stored(again) == list(range(45))
    again.add_data(numbered(45, 90), labels=torch.arange(45, 90))
    assert stored(again) == list(range(90))


def test_serialize_and_load_replace_the_content():
    source = full_buffer()
    target = fill(Buffer(10), 30, labels=lambda i: i.long())
    target.load(source.serialize())
    assert target.num_seen_examples == 10 and target.used_attributes == source.used_attributes
    assert all(torch.equal(a, b) for a, b in zip(target.get_all_data(), source.get_all_data(), strict=True))
    source.add_data(
        numbered(50, 90), labels=torch.zeros(40).long(), logits=torch.zeros(40, 2), task_labels=torch.zeros(40).long()
    )
    assert stored(target) == list(range(10))  # a copy, not a view


def test_empty_forgets_everything():
    buffer = full_buffer()
    buffer.empty()
    assert buffer.is_empty() and len(buffer) == 0 and buffer.used_attributes == [] and buffer.nbytes == 0
    with pytest.raises(AttributeError, match="does not contain 'labels'"):
        _ = buffer.labels
    fill(buffer, 3)
    assert stored(buffer) == [0, 1, 2]


@pytest.mark.parametrize(
    "make, fact",
    [
        (lambda: Buffer(0), "must be at least 1"),
        (lambda: Buffer(-3), "must be at least 1"),
        (lambda: Buffer(4, sample_selection_strategy="newest"), "unknown buffer strategy 'newest'"),
        (lambda: Buffer(4, codec="jpeg"), "unknown buffer codec 'jpeg'"),
        (lambda: Buffer(4).load({"examples": torch.rand(5, 1)}), "5 stored samples do not fit"),
        (lambda: Buffer(4).add_data(torch.rand(3, 1), labels=torch.zeros(2).long()), "3 examples but 2 labels"),
        (lambda: Buffer(4).add_data(torch.rand(3, 1), logits=torch.zeros(4, 2)), "3 examples but 4 logits"),
        (lambda: Buffer(4).get_data(2), "empty"),
    ],
)
def test_mistakes_are_told(make, fact):
    with pytest.raises(UserError, match=fact):
        make()


def test_dataloader_serves_the_stored_samples():
    buffer = full_buffer()
    loader = buffer.get_dataloader(None, batch_size=4, transform=lambda x: x + 1)
    batches = list(loader)
    assert [len(b[0]) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([b[0] for b in batches])[:, 0], torch.arange(10.0) + 1)
    assert torch.equal(torch.cat([b[1] for b in batches]), torch.arange(10))
    assert len(list(buffer.get_dataloader(None, batch_size=4, drop_last=True))) == 2
    torch.manual_seed(0)
    shuffled = torch.cat([b[1] for b in buffer.get_dataloader(None, batch_size=4, shuffle=True)])
    assert shuffled.tolist() != list(range(10)) and sorted(shuffled.tolist()) == list(range(10))


def test_dataloader_serves_pairs():
    pairs, buffer = random_pairs(5), Buffer(5)
    buffer.add_data(pairs, labels=torch.arange(5))
    (first, labels), (rest, _) = buffer.get_dataloader(None, batch_size=3)
    assert (
        torch.equal(first.image, pairs.image[:3])
        and torch.equal(rest.text, pairs.text[3:])
        and labels.tolist() == [0, 1, 2]
    )


def test_replace_writes_into_taken_places():
    buffer = full_buffer()
    buffer.replace(torch.tensor([2, 7]), logits=torch.tensor([[9.0, 9.0], [8.0, 8.0]]))
    assert (
        buffer.logits[2].tolist() == [9, 9]
        and buffer.logits[7].tolist() == [8, 8]
        and buffer.logits[3].tolist() == [3, -3]
    )
    assert buffer.labels.tolist() == list(range(10))
