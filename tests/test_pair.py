"""Pair: acts as a tensor of images wherever loaders, buffers and methods only index, move and join it."""

import numpy as np
import pytest
import torch
from torchvision import transforms as T

from datasets.utils.loaders import Loader, Split
from datasets.utils.samples import ArraySamples
from models.er import Er
from tests.toys import Linear, ToyStream, random_pairs, toy_args
from utils.pair import Pair, collate


def same(a: Pair, b: Pair) -> bool:
    return torch.equal(a.image, b.image) and torch.equal(a.text, b.text)


@pytest.mark.parametrize(
    "index", [3, slice(1, 4), torch.tensor([4, 0, 0]), torch.arange(6) % 2 == 0, np.array([5, 1]), [2, 2]], ids=str
)
def test_indexing_acts_on_both_halves(index):
    pairs = random_pairs(6)
    taken = pairs[index]
    assert torch.equal(taken.image, pairs.image[index]) and torch.equal(taken.text, pairs.text[index])


def test_it_answers_what_code_for_tensors_asks():
    pairs = random_pairs(6)
    assert (len(pairs), pairs.shape, pairs.size(0), pairs.size()) == (6, (6, 1, 2, 3), 6, (6, 1, 2, 3))
    assert (pairs.dtype, pairs.device.type) == (torch.float32, "cpu")
    assert [p.image.shape for p in pairs] == [(1, 2, 3)] * 6  # iteration ends
    copied = pairs.clone()
    copied.image.zero_(), copied.text.zero_()
    assert pairs.image.any() and pairs.text.any()
    pairs.image.requires_grad_()
    assert not pairs.detach().image.requires_grad and same(pairs.detach(), pairs.cpu())


@pytest.mark.parametrize("dim", [0, 1])
def test_cat_and_stack(dim):
    a, b = random_pairs(4), random_pairs(4, seed=1)
    joined, stacked = torch.cat((a, b), dim=dim), torch.stack([a, b], dim=dim)
    assert torch.equal(joined.image, torch.cat((a.image, b.image), dim))
    assert torch.equal(joined.text, torch.cat((a.text, b.text), dim))
    assert torch.equal(stacked.image, torch.stack((a.image, b.image), dim))
    assert torch.equal(stacked.text, torch.stack((a.text, b.text), dim))
    assert torch.cat((a, b)).text.dtype == torch.int64
    assert same(torch.concat((a, b)), torch.concatenate((a, b)))


def test_what_has_no_meaning_is_refused():
    pairs = random_pairs(4)
    for parts in ((pairs, pairs.image), (pairs.image, pairs)):
        with pytest.raises(TypeError, match="mixed with plain tensors"):
            torch.cat(parts)
    with pytest.raises(TypeError):
        torch.relu(pairs)


@pytest.mark.parametrize(
    "how",
    [
        (torch.float64,),
        ("cpu", torch.float64),
        (torch.float64, True),
        ("cpu", torch.float64, True),
        (torch.zeros(1, dtype=torch.float64),),
    ],
    ids=str,
)
def test_a_dtype_is_for_the_image_only(how):
    moved = random_pairs(4).to(*how)
    assert moved.image.dtype == torch.float64 and moved.text.dtype == torch.int64
    assert torch.equal(moved.text, random_pairs(4).text)


def test_a_dtype_by_keyword_and_a_plain_move():
    pairs = random_pairs(4)
    assert pairs.to(dtype=torch.float16).text.dtype == torch.int64
    assert pairs.to(device="cpu", dtype=torch.float16).image.dtype == torch.float16
    assert same(pairs.to("cpu"), pairs) and pairs.to("meta").text.device.type == pairs.to("meta").device.type == "meta"


def test_collate_stacks_single_samples():
    pairs = random_pairs(5)
    assert same(collate([pairs[i] for i in range(5)]), pairs)
    assert torch.equal(collate([torch.ones(2), torch.zeros(2)]), torch.tensor([[1.0, 1], [0, 0]]))
    assert collate([3, 1]).tolist() == [3, 1] and collate([torch.tensor(3), torch.tensor(1)]).tolist() == [3, 1]


class PairStream(ToyStream):
    """ToyStream with token ids that name the class and the row."""

    def load(self, train):
        plain = super().load(train)
        rows = torch.arange(len(plain))
        text = torch.stack([plain.targets, rows, rows % 5, rows * 0], 1)
        return ArraySamples(Pair(plain.data, text), plain.targets)


@pytest.mark.parametrize(
    "transform, whole",
    [
        (T.Compose([T.RandomHorizontalFlip(), T.ToTensor()]), True),  # batch form
        (T.Compose([T.ColorJitter(0.1), T.ToTensor()]), False),  # one image at a time
    ],
)
def test_through_a_loader(transform, whole):
    """Both roads serve every sample once, image and text still together."""
    samples = PairStream(toy_args()).samples(True)
    split = Split(samples, torch.arange(len(samples)), samples.targets, transform, True)
    assert (split.batch_form() is not None) == whole
    batches = list(Loader(split, 7, ("t",), shuffle=True).epoch(0))
    aug, labels, plain = (
        torch.cat([b[0] for b in batches]),
        torch.cat([b[1] for b in batches]),
        torch.cat([b[2] for b in batches]),
    )
    rows = plain.text[:, 1]
    assert rows.tolist() != sorted(rows.tolist()) and sorted(rows.tolist()) == list(range(len(samples)))
    assert torch.equal(plain.image, samples.data.image[rows].float() / 255)
    assert torch.equal(plain.text[:, 0], labels) and torch.equal(aug.text, plain.text)
    assert aug.image.shape == plain.image.shape and not torch.equal(aug.image, plain.image)


def test_er_takes_pairs_unchanged():
    """A task and a half through the loop's own entry points: replay sees stored pairs beside the stream's."""
    args = toy_args(lr=0.01)
    stream, net, sizes = PairStream(args), Linear(10, 6), []
    model = Er(net, stream.get_loss(), args, None, stream)
    net.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    stream.get_data_loaders()
    model.meta_begin_task(stream)
    for inputs, labels, plain in stream.train_loader.epoch(0):
        assert torch.isfinite(model.meta_observe(inputs, labels, plain, epoch=0))
    assert sizes == [8, 12, 12]  # 24 images in batches of 8, then with 4 replayed
    kept, labels = model.buffer.get_all_data()
    assert isinstance(kept, Pair) and torch.equal(kept.text[:, 0], labels)
    assert model.stored_bytes() == {"buffer": 12 * (6 * 4 + 4 * 8 + 8)}
