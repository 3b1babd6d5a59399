"""The far domain of the picture world: pinned bytes, drawn in any order, and names that pre-training never had."""

import hashlib
from collections import Counter

import numpy as np
import torch

from datasets.tiny_world import captions, far, streams, world

SHA256 = "a3826eb3c839d55d616d49624ceda3a8142f42694cdf552d5de34f54389039dc"


def test_bytes_are_pinned():
    n = far.WEAVES * far.KINDS
    images = far.draw(far.SEED, np.arange(n), far.classes())
    assert images.shape == (n, 3, far.SIDE, far.SIDE) and images.dtype == torch.uint8
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest() == SHA256


def test_an_image_does_not_depend_on_what_is_drawn_with_it():
    index, kinds = np.arange(far.CHUNK + 6), np.arange(far.CHUNK + 6) % (far.WEAVES * far.KINDS)
    together = far.draw(far.SEED, index, kinds)
    some = np.array([far.CHUNK + 3, 0, 17])
    assert torch.equal(far.draw(far.SEED, index[some], kinds[some]), together[some])
    assert not torch.equal(far.draw(far.SEED + 1, index[:1], kinds[:1]), together[:1])


def test_both_factors_are_drawn():
    """The same places with another weave or another kind of cell are other images."""
    index, n = np.zeros(far.WEAVES * far.KINDS, dtype=int), far.WEAVES * far.KINDS
    images = far.draw(far.SEED, index, np.arange(n)).flatten(1)
    assert len({row.numpy().tobytes() for row in images}) == n


def test_a_cell_is_where_its_formula_says():
    """Cell and clear disc of one image, pixel by pixel."""
    axis = np.arange(far.SIDE, dtype=np.float32)
    for kind in range(far.KINDS):
        mask, around = far._cell(far.SEED, np.array([5]), np.array([kind]), 0, axis)
        cx, cy = (np.float32(16 + 16 * far.uniform(far.SEED, np.array([5]), f"far cell {a}")[0]) for a in "xy")
        radius = np.float32(11 + 2 * far.uniform(far.SEED, np.array([5]), "far radius")[0])
        mirrored = far.uniform(far.SEED, np.array([5]), "far mirror")[0] < 0.5
        for row, column in ((10, 20), (24, 24), (30, 18), (2, 45), (20, 31)):
            u, v = (np.float32(column) - cx) / radius, (np.float32(row) - cy) / radius
            u = -u if mirrored else u
            assert mask[0, row, column] == far.CELL[kind](u, v) and around[0, row, column] == (u * u + v * v < 1.7)


def test_names_are_words_that_no_caption_has():
    names = far.names()
    assert len(set(names)) == 40 == far.WEAVES * far.KINDS and all(name.isalpha() for name in names)
    told = {w for text in captions.captions(world.sample(0, np.arange(500))) for w in text.split()}
    assert not told & set(names)


def test_labels_are_balanced_and_the_test_images_are_others(monkeypatch):
    monkeypatch.setattr(far, "PER_CLASS", {True: 2, False: 1})
    train, test = far.far_tiny(True), far.far_tiny(False)
    assert set(Counter(train["labels"].tolist()).values()) == {2} and test["labels"].tolist() == list(range(40))
    assert not torch.equal(train["images"][:40], test["images"])


def test_half_of_the_mixed_stream_is_flat(monkeypatch):
    """An image is that of seq-tiny or, in about half of the cases, the flat one of the same scene."""
    monkeypatch.setattr(streams, "SEQ_TINY_SIZE", {False: 2})
    mixed, stitched, flat = (
        streams.seq_tiny(False, 3, flat_share=share)["images"].flatten(1) for share in (0.5, 0.0, 1.0)
    )
    as_stitched, as_flat = (mixed == stitched).all(1), (mixed == flat).all(1)
    assert torch.equal(as_stitched, ~as_flat) and 40 < int(as_flat.sum()) < 80
