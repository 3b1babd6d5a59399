"""The replay memory of records: its content, its bytes, and whether it is a uniform sample."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from backbone import fusion
from backbone.clip import load_clip
from tests.clip_toys import random_clip_folder
from utils.errors import UserError
from utils.memory.exemplars import fill_buffer
from utils.memory.record_buffer import RecordBuffer, replay_buffer
from utils.memory.records import GREY
from utils.pair import Pair

SIDE, GRID = 4, 4


def pictures(n, seed=0):
    return torch.randint(0, 256, (n, 3, SIDE * GRID, SIDE * GRID), generator=torch.Generator().manual_seed(seed)) / 255


def attention(x):
    """Row r of the grid gets attention r; of the words, the first three after the start."""
    image = x.image if isinstance(x, Pair) else x
    words = None
    if isinstance(x, Pair):
        words = torch.zeros(x.text.shape)
        words[:, 1:4] = 1.0
    return torch.arange(GRID).repeat_interleave(GRID).float().expand(len(image), -1), words


def test_kept_patches_come_back_and_dropped_ones_are_grey():
    memory, images = RecordBuffer(10, attention=attention), pictures(3)
    memory.add_data(images, labels=torch.tensor([2, 0, 1]))
    found, labels = memory.get_all_data()
    half = SIDE * GRID // 2
    for image, label in zip(found, labels, strict=True):
        own = images[[2, 0, 1].index(int(label))]
        assert torch.allclose(image[:, half:], own[:, half:], atol=1e-6)  # rows of more than the mean attention
        assert torch.all(image[:, :half] == GREY / 255)
    record = 9 + 2 + 8 * 3 * SIDE * SIDE  # header, a bit for each of 16 cells, 8 patches
    assert memory.records.sizes.tolist() == [record] * 3
    assert memory.nbytes == 3 * (record + 16 + 8)  # key and place, label


def test_dropped_pixels_cannot_be_read_back():
    images, other = pictures(2), pictures(2, seed=1)
    other[:, :, SIDE * GRID // 2 :] = images[:, :, SIDE * GRID // 2 :]
    found = []
    for x in (images, other):
        memory = RecordBuffer(10, attention=attention)
        memory.add_data(x, labels=torch.tensor([0, 1]))
        found.append(memory.records.data)
    assert torch.equal(*found)


def test_texts_lose_words_but_keep_start_and_end():
    text = torch.tensor([[90, 5, 6, 7, 8, 9, 99, 0], [90, 5, 6, 7, 99, 0, 0, 0]])
    memory = RecordBuffer(10, attention=attention)
    memory.add_data(Pair(pictures(2), text), labels=torch.tensor([0, 1]))
    found, labels = memory.get_all_data()
    assert found.text.shape == text.shape
    rows = found.text[labels.argsort()].tolist()
    assert rows[0] == [90, 5, 6, 7, 99, 0, 0, 0]
    assert rows[1][0] == 90 and 99 in rows[1] and set(rows[1]) <= {0, 5, 6, 7, 90, 99}


def test_jpegs_need_no_network():
    flat = torch.full((3, 3, 16, 16), 0.5) * torch.tensor([0.2, 1.0, 1.8]).view(3, 1, 1, 1)
    memory = RecordBuffer(10)
    memory.add_data(flat, labels=torch.arange(3))
    found, labels = memory.get_all_data()
    assert torch.allclose(found, flat[labels], atol=0.02)
    assert memory.nbytes > int(memory.records.sizes.sum())


def test_the_budget_holds_after_every_batch():
    generator = torch.Generator().manual_seed(0)

    def uneven(x):
        return torch.rand(len(x), GRID * GRID, generator=generator) ** 3, None

    memory = RecordBuffer(1000, max_bytes=6000, attention=uneven)
    np.random.seed(0)
    for step in range(40):
        before = (
            {} if memory.records is None else {float(k): memory.records.record(i) for i, k in enumerate(memory.keys)}
        )
        memory.add_data(pictures(7, seed=step), labels=torch.full((7,), step))
        assert memory.nbytes <= 6000
        assert memory.nbytes == memory.records.data.numel() + len(memory) * 24
        for row, key in enumerate(memory.keys):
            assert float(key) not in before or before[float(key)] == memory.records.record(row), "records never change"
    assert memory.is_full() and memory.nbytes > 6000 - 700
    small = RecordBuffer(1000, max_bytes=100, attention=uneven)
    with pytest.raises(UserError, match="raise --buffer_bytes"):
        small.add_data(pictures(2), labels=torch.tensor([0, 1]))


@pytest.mark.parametrize("limit", [{"buffer_size": 8}, {"buffer_size": 100, "max_bytes": 8 * (9 + 2 + 384 + 24)}])
def test_every_sample_is_kept_with_the_same_probability(limit):
    counts, images = np.zeros(40), pictures(40)
    np.random.seed(1)
    for _ in range(300):
        memory = RecordBuffer(**limit, attention=attention)
        for rows in torch.arange(40).split(7):
            memory.add_data(images[rows], labels=rows)
        assert len(memory) == 8
        counts[memory.labels.numpy()] += 1
    assert chisquare(counts).pvalue > 0.01


def test_state_is_the_whole_memory():
    np.random.seed(2)
    memory, again = (RecordBuffer(5, max_bytes=10_000, attention=attention) for _ in range(2))
    memory.add_data(pictures(9), labels=torch.arange(9), logits=torch.randn(9, 3))
    again.load_state(memory.state())
    for buffer in (memory, again):
        np.random.seed(3)
        buffer.add_data(pictures(9, seed=1), labels=torch.arange(9) + 9, logits=torch.ones(9, 3))
    for a, b in zip(memory.get_all_data(), again.get_all_data(), strict=True):
        assert torch.equal(a, b)
    memory.empty()
    assert memory.is_empty() and len(memory) == 0 and memory.nbytes == 0


class Stream:
    """Two tasks of two classes with ten images each, in the way that fill_buffer asks."""

    def __init__(self, task):
        self.task, self.train_loader, self.dataset = task, self, self
        self.targets = torch.arange(20) % 2 + 2 * task

    def get_offsets(self, t):
        return 2 * t, 2 * t + 2

    def plain(self, positions=slice(None)):
        yield pictures(20, seed=self.task)[positions], self.targets[positions]


def test_old_exemplars_are_not_masked_again():
    """By classes, as iCaRL fills its memory: old records stay byte for byte, and every class has its share."""
    size = 9 + 2 + 8 * 3 * SIDE * SIDE + 24
    memory = RecordBuffer(40, max_bytes=8 * size, attention=attention)
    torch.manual_seed(0)
    fill_buffer(memory, Stream(0), 0)
    assert memory.labels.bincount().tolist() == [4, 4]
    first = [memory.records.record(i) for i in range(8)]
    fill_buffer(memory, Stream(1), 1)
    assert memory.labels.bincount().tolist() == [2, 2, 2, 2] and memory.nbytes <= 8 * size
    assert [memory.records.record(i) for i in range(4)] == [*first[:2], *first[4:6]]
    tight = RecordBuffer(40, max_bytes=2 * size, attention=attention)
    fill_buffer(tight, Stream(0), 0)
    with pytest.raises(UserError, match="cannot store a sample of each of 4 classes"):
        fill_buffer(tight, Stream(1), 1)


def test_networks_without_attention_are_refused():
    args = Namespace(buffer_size=5, buffer_bytes=None, exemplar_codec="masked")
    with pytest.raises(UserError, match="clip-visual"):
        replay_buffer(args, torch.nn.Linear(2, 2), None)
    with pytest.raises(UserError, match="choose --exemplar_codec uint8"):
        RecordBuffer(5).add_data(torch.rand(2, 1, 8, 8), labels=torch.tensor([0, 1]))


def test_attention_of_the_towers_is_that_of_the_multimodal_network():
    """The same maps by the code that runs on any choice of patches, given all of them."""
    from backbone.clip_visual import patch_attention, word_attention
    from backbone.fusion import make_fusion
    from backbone.multimodal import MultimodalNet
    from utils.memory.records import full_tokens, patchify

    clip = load_clip(random_clip_folder().name)
    net = MultimodalNet(clip, make_fusion(clip, "none", 16, 1, 2), 3, "none").eval()
    images = torch.randn(3, 3, clip.resolution, clip.resolution)
    ids = clip.tokenize(["a fish", "a photo of a striped fish", "fish"])
    _, maps = net.attend(full_tokens(patchify(images, net.side), ids), "tower", "mean", "mean")
    want = patch_attention(clip.clip.visual, images)
    assert torch.allclose(maps.image * 2, 2 * want / want.sum(1, keepdim=True), atol=1e-5)
    words = word_attention(clip, ids)
    assert torch.allclose(maps.text, words / words.sum(1, keepdim=True), atol=1e-5)


def test_the_quality_of_jpegs_is_a_flag_and_masks_compose_with_it():
    sizes = {}
    for codec, quality in (("masked", None), ("masked_jpeg", 20), ("masked_jpeg", 90), ("jpeg", 20), ("jpeg", 90)):
        args = Namespace(buffer_size=5, buffer_bytes=None, exemplar_codec=codec, jpeg_quality=quality)
        net = torch.nn.Linear(2, 2)
        net.attention = attention
        memory = replay_buffer(args, net, None)
        memory.add_data(pictures(3), labels=torch.arange(3))
        sizes[codec, quality] = int(memory.records.sizes.sum())
        assert memory.get_all_data()[0].shape == (3, 3, 16, 16)
    assert sizes["masked_jpeg", 20] < sizes["masked_jpeg", 90] < sizes["masked", None]
    assert sizes["jpeg", 20] < sizes["jpeg", 90]
    with pytest.raises(UserError, match="--jpeg_quality"):
        replay_buffer(Namespace(buffer_size=5, exemplar_codec="masked", jpeg_quality=20), torch.nn.Linear(2, 2), None)


@pytest.mark.parametrize("by_class", [True, False])
def test_labels_count_from_the_first_record_on(by_class):
    size = 9 + 2 + 8 * 3 * SIDE * SIDE + 24
    memory = RecordBuffer(40, max_bytes=6 * size - 1, attention=attention)
    if by_class:
        fill_buffer(memory, Stream(0), 0)
    else:
        memory.add_data(pictures(9), labels=torch.arange(9))
    assert len(memory) == (4 if by_class else 5) and memory.nbytes <= 6 * size - 1


@pytest.mark.parametrize("codec", ["masked", "jpeg", "masked_jpeg"])
@pytest.mark.parametrize("model,more", [("er", ()), ("derpp", ("--alpha", "0.1", "--beta", "0.5")), ("icarl", ())])
def test_rehearsal_under_a_budget(model, more, codec, run_main, monkeypatch):
    for size, value in {"layers": 1, "width": 64, "heads": 2}.items():
        monkeypatch.setitem(fusion.FRESH, size, value)
    code, rows = run_main(
        "--model",
        model,
        "--dataset",
        "mm-tiny",
        "--backbone",
        "clip-fused",
        "--buffer_size",
        "1000",
        "--buffer_bytes",
        "60000",
        "--exemplar_codec",
        codec,
        "--batch_size",
        "8",
        "--lr",
        "0.01",
        "--debug_mode",
        "1",
        "--stop_after",
        "1",
        "--seed",
        "0",
        *more,
    )
    assert code == 0
    stored = [row["stored_bytes"] for row in rows if row["type"] == "task"]
    assert all(0 < s["buffer"] <= 60000 for s in stored), stored
