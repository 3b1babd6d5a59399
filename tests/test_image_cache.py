"""--image_cache 1: the same pixels, each file decoded once, and what is damaged, full or shared."""

import errno
import os
from argparse import Namespace
from unittest import mock

import numpy as np
import pytest
import torch
from torchvision import transforms as T

from datasets import get_dataset
from datasets.utils import image_cache
from datasets.utils.image_cache import ImageCache, ImageCaches, split_steps
from datasets.utils.loaders import Loader, Split
from datasets.utils.mtil_stream import JoinedSamples
from datasets.utils.samples import ArraySamples, FileSamples, PairFiles
from tests import fabricate
from utils import free_memory
from utils.errors import UserError
from utils.pair import Pair

PLAIN = [T.ToTensor(), T.Normalize((0.5,) * 3, (0.25,) * 3)]
SQUASH = T.Compose([T.Resize((9, 7), T.InterpolationMode.BICUBIC), *PLAIN])


@pytest.fixture
def stream(tmp_path):
    """stream(**flags): three classes of files, 12 training and 6 test images of several sizes."""
    root = fabricate.image_folder(tmp_path / "pictures", ["ant", "bee", "cow"])

    def make(**flags):
        given = {"dataset": "seq-folder", "folder_path": str(root), "n_tasks": 2, "image_size": 16, "batch_size": 4}
        return get_dataset(Namespace(**given, seed=0, base_path=str(tmp_path), non_verbose=True, **flags))

    return make


@pytest.fixture
def opened(monkeypatch):
    """The rows that are decoded from their files."""
    rows, real = [], FileSamples.open
    monkeypatch.setattr(FileSamples, "open", lambda self, row: rows.append(row) or real(self, row))
    return rows


def folder_of(tmp_path):
    (found,) = [p for p in (tmp_path / "image_cache").iterdir() if (p / "rows.u4").stat().st_size == 4 * 6]
    return found


def batches(dataset) -> list:
    """All tensors of a training pass, a test pass and the plain images of both tasks."""
    found = []
    for _ in range(dataset.N_TASKS):
        train, test = dataset.get_data_loaders()
        for part in (train.epoch(1), test, train.plain()):
            found += [tensor for batch in part for tensor in batch]
    return found


@pytest.mark.parametrize("train", ["crop", "fixed"])
def test_every_pixel_is_the_same(stream, train):
    """Also where training begins with fixed steps and goes on with random ones, whose numbers stay the same."""
    passes = []
    for flags in ({}, {"image_cache": True}, {"image_cache": True}):
        dataset = stream(**flags)
        if train == "fixed":
            dataset.TRANSFORM = T.Compose([T.Resize((20, 20)), T.RandomCrop(16), T.RandomHorizontalFlip(), *PLAIN])
        passes.append(batches(dataset))
    for other in passes[1:]:
        assert len(other) == len(passes[0]) and all(map(torch.equal, passes[0], other))


def test_a_test_image_is_decoded_once_for_all_passes_and_runs(stream, opened):
    for _ in range(2):
        _, test = stream(image_cache=True).get_data_loaders()
        for _ in range(3):
            assert [batch[0].shape for batch in test] == [(4, 3, 16, 16)]
    assert sorted(opened) == [0, 1, 2, 3], "the two classes of the first task, two images each"


def test_clip_preprocessing_is_kept_too(stream, opened):
    from backbone.clip import load_clip

    _, test = stream(image_cache=True).get_data_loaders()
    plain = stream().get_data_loaders()[1]
    for loader in (test, plain):
        loader.dataset.transform = load_clip("tiny").preprocess
    once, again, file = (torch.cat([batch[0] for batch in loader]) for loader in (test, test, plain))
    assert torch.equal(once, file) and torch.equal(again, file) and len(opened) == 2 * len(file)


def test_which_steps_are_kept():
    assert split_steps(SQUASH).size == (9, 7) and len(split_steps(SQUASH).rest.transforms) == 2
    cut = split_steps(T.Compose([T.Resize(9), T.CenterCrop(7), T.RandomCrop(5), *PLAIN]))
    assert cut.size == (7, 7) and isinstance(cut.rest.transforms[0], T.RandomCrop)
    for whole in ([T.RandomResizedCrop(7)], [T.Resize(9), T.RandomCrop(7)], [], [T.CenterCrop(9), T.Resize(7)]):
        assert split_steps(T.Compose([*whole, *PLAIN])) is None
    assert split_steps(T.Compose([T.ColorJitter(0.2), T.CenterCrop(7)])) is None


def cache_of(tmp_path, n: int = 4, steps=SQUASH) -> ImageCache:
    root = tmp_path / "pictures"
    if not root.exists():
        fabricate.image_folder(root, ["ant", "bee"], n_train=n, n_test=1)
    return ImageCache(tmp_path / "cache", FileSamples(sorted(root.rglob("*.png"))[:n], range(n)), split_steps(steps))


def test_another_size_or_content_is_another_cache(tmp_path):
    first = cache_of(tmp_path)
    assert cache_of(tmp_path).folder == first.folder
    assert cache_of(tmp_path, steps=T.Resize((9, 8))).folder != first.folder
    assert cache_of(tmp_path, steps=T.Resize((9, 7))).folder != first.folder, "another interpolation"
    first.samples.paths[1].write_bytes(first.samples.paths[2].read_bytes())
    assert cache_of(tmp_path).folder != first.folder


@pytest.mark.parametrize("damage", ["pixels", "checksums", "cut", "empty", "longer"])
def test_damage_is_decoded_again(tmp_path, damage, monkeypatch):
    rows = torch.arange(4)
    cache = cache_of(tmp_path)
    whole = cache.images(rows).clone()
    assert whole.shape == (4, 3, 9, 7) and whole.dtype == torch.uint8
    pixels, checks = (cache.folder / name for name in ("pixels.u8", "rows.u4"))
    content = pixels.read_bytes()
    if damage == "checksums":
        checks.write_bytes(bytes([7]) * 16)
    else:
        changes = {"pixels": content[:50] + b"\0\xff" + content[52:], "cut": content[:300], "empty": b""}
        pixels.write_bytes(changes.get(damage, content + b"more"))
    again = cache_of(tmp_path)
    told = []
    monkeypatch.setattr(image_cache, "warn_once", told.append)
    assert torch.equal(again.images(rows), whole) and pixels.read_bytes() == content
    assert len(told) == (damage != "longer") and all("are decoded again" in text for text in told)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    cache = cache_of(tmp_path)
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(image_cache.os, "pwrite", full)
    with pytest.raises(UserError, match="no space left for .*; free some space or leave out --image_cache"):
        cache.images(torch.arange(4))
    monkeypatch.undo()
    assert cache_of(tmp_path).images(torch.arange(4)).any(), "what is not there is decoded next time"
    usage = mock.Mock(return_value=Namespace(free=100))
    monkeypatch.setattr(image_cache.shutil, "disk_usage", usage)
    with pytest.raises(UserError, match="--image_cache needs .* for 4 images .*: free some space or leave out"):
        cache_of(tmp_path, steps=T.Resize((30, 30))).images(torch.arange(4))


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError, match="cannot write .*cache.*; leave out --image_cache"):
        cache_of(tmp_path).images(torch.arange(4))


def test_two_processes_share_a_cache(tmp_path):
    """One writes rows 0 and 1, another all; both see the same, and neither's work is lost."""
    cache, rows = cache_of(tmp_path), torch.arange(4)
    expected = torch.from_numpy(np.stack([cache.decoded(k) for k in range(4)]))
    children = []
    for mine in (rows[:2], rows):
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(cache_of(tmp_path).images(mine), expected[mine]) else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    with mock.patch.object(ImageCache, "decode", lambda self, rows, progress: len(rows) and pytest.fail("decoded")):
        assert torch.equal(cache_of(tmp_path).images(rows), expected)


def test_images_with_texts_and_joined_lists(tmp_path, opened):
    """Several questions about an image share its place; a joined list keeps files and arrays alike."""
    files = cache_of(tmp_path).samples
    asked = PairFiles([files.paths[k] for k in (2, 0, 2, 1)], torch.arange(8).view(4, 2), range(4))
    drawn = ArraySamples(torch.randint(0, 255, (3, 1, 11, 12), dtype=torch.uint8), range(3))
    for samples in (asked, JoinedSamples([files, drawn], [0, 4])):
        plain, kept = (
            Loader(Split(samples, torch.arange(len(samples)), samples.targets, SQUASH, False), 3, ("k",), False)
            for _ in range(2)
        )
        kept.dataset.image_caches = ImageCaches(tmp_path / "cache", False)
        expected = list(plain)
        opened.clear()
        for _ in range(2):
            for mine, theirs in zip(kept, expected, strict=True):
                assert torch.equal(first_image(mine), first_image(theirs)) and torch.equal(mine[1], theirs[1])
        assert len(opened) == (3 if samples is asked else 4), "each file once"


def first_image(batch):
    return batch[0].image if isinstance(batch[0], Pair) else batch[0]


def test_default_workers(monkeypatch):
    monkeypatch.setattr(free_memory, "processors", lambda: 4)
    assert [free_memory.readers_for(n) for n in (0, 100, 2000, 10**6)] == [0, 0, 3, 3]
    monkeypatch.setattr(free_memory, "processors", lambda: 1)
    assert free_memory.readers_for(10**6) == 0
    monkeypatch.setattr(free_memory, "processors", lambda: 64)
    assert free_memory.readers_for(10**6) == 8


def test_images_in_memory_are_not_cached(run_main, capsys):
    code, _ = run_main("--model", "sgd", "--dataset", "seq-mnist", "--lr", "0.1", "--image_cache", "1")
    told = capsys.readouterr().err
    assert code == 2 and "--image_cache: seq-mnist reads no image files that could be kept; leave it out" in told


def test_files_are_counted_for_it(stream, data):
    assert stream().n_files() == 18
    assert get_dataset(Namespace(dataset="seq-mnist", base_path=str(data))).n_files() == 0
