import io

import pytest
import torch
from PIL import Image

from datasets.utils import image_check
from datasets.utils.image_check import check_images, files_of
from datasets.utils.mtil_stream import JoinedSamples
from datasets.utils.samples import ArraySamples, FileSamples, PairFiles
from utils.errors import UserError


def write(path, kind: str, cut: int = 0):
    data = io.BytesIO()
    Image.effect_noise((40, 30), 90).save(data, kind)
    path.write_bytes(data.getvalue()[: len(data.getvalue()) - cut])
    return path


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that are opened."""
    names, real = [], image_check.what_is_wrong
    monkeypatch.setattr(image_check, "what_is_wrong", lambda path: (names.append(path.name), real(path))[1])
    return names


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "GIF"])
def test_whole_and_truncated_files(tmp_path, kind):
    assert image_check.what_is_wrong(write(tmp_path / "whole", kind)) is None
    assert image_check.what_is_wrong(write(tmp_path / "cut", kind, 200))
    assert image_check.what_is_wrong(tmp_path / "none") == "missing"


def test_what_can_be_read_is_no_mistake(tmp_path):
    """Bytes after the end: only decoding can check such a file."""
    path = write(tmp_path / "a", "JPEG")
    path.write_bytes(path.read_bytes() + b"\0" * 100)
    assert image_check.what_is_wrong(path) is None


def test_all_that_is_wrong_is_named_at_once(tmp_path):
    paths = [write(tmp_path / f"{i:02}.png", "PNG", 200 if i % 2 else 0) for i in range(24)]
    with pytest.raises(UserError) as error:
        check_images([*paths, paths[1], tmp_path / "gone.png"], tmp_path / "cache", False)
    text = str(error.value)
    assert text.startswith("13 of 25 images cannot be read: ") and text.endswith(" and 3 more: replace or remove them")
    assert [str(p) in text for p in paths[1::2]] == [True] * 10 + [False] * 2 and "\n" not in text


def test_a_file_is_opened_once_until_it_changes(tmp_path, opened):
    paths = [write(tmp_path / f"{i}.jpg", "JPEG") for i in range(4)]
    for expected in (["0.jpg", "1.jpg", "2.jpg", "3.jpg"], []):
        opened.clear()
        check_images(paths, tmp_path / "cache", False)
        assert sorted(opened) == expected
    write(paths[2], "JPEG", 300)
    for _ in range(2):  # what is wrong is not remembered
        opened.clear()
        with pytest.raises(UserError, match="1 of 4 images cannot be read: .*2.jpg"):
            check_images(paths, tmp_path / "cache", False)
        assert opened == ["2.jpg"]


def test_a_cache_that_cannot_be_written_is_no_mistake_of_the_images(tmp_path):
    (tmp_path / "cache").write_text("in the place of the folder")
    with pytest.warns(UserWarning, match="images are checked again"):
        check_images([write(tmp_path / "a.png", "PNG")], tmp_path / "cache", False)


def test_files_of_every_kind_of_sample_list(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    pairs = PairFiles([*paths, *paths], torch.zeros(6, 4), torch.zeros(6))
    joined = JoinedSamples([FileSamples(paths[:2], [0, 0]), ArraySamples(torch.zeros(1, 3, 2, 2), [0])], [0, 1])
    assert [files_of(s) for s in (pairs, joined)] == [paths, paths[:2]]
