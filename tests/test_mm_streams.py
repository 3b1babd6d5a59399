"""Images with texts: each layout, phases, missing and broken parts, and the captions that a script writes."""

import importlib.util
import json
import subprocess
import sys
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from datasets import get_dataset
from datasets.utils.samples import PairFiles
from tests import fabricate_mm as mm
from tests.conftest import newest_record
from utils.errors import UserError
from utils.features import FeatureStore
from utils.pair import Pair

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("caption_images", ROOT / "scripts" / "caption_images.py")
captions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(captions)
pytestmark = pytest.mark.filterwarnings("ignore:.*not comparable", "ignore:.*are left out")


def make(name, base, **flags):
    dataset = get_dataset(Namespace(dataset=name, base_path=str(base), seed=0, batch_size=4, **flags))
    dataset.samples(True), dataset.samples(False), dataset.get_class_names()
    return dataset


def refused(name, base, **flags):
    with pytest.raises(UserError) as error:
        make(name, base, **flags)
    assert "\n" not in str(error.value)
    return str(error.value)


def brightness(picture) -> float:
    return float(np.asarray(picture.convert("L"), dtype=float).mean())


def test_pair_files_keep_image_and_text_together(tmp_path):
    paths = [mm.picture(tmp_path / f"{k}.jpg", 60 * k) for k in range(3)]
    samples = PairFiles([paths[k] for k in (2, 0, 2, 1)], torch.arange(8).view(4, 2), [0, 1, 0, 1])
    assert samples.place.tolist() == [0, 1, 0, 2] and len(samples.distinct) == 3
    assert samples.data[torch.tensor([2])].text.tolist() == [[4, 5]] and samples.data[1].image == str(paths[0])
    other = PairFiles(samples.paths, samples.text + 1, samples.targets)
    assert other.fingerprint != samples.fingerprint and other.distinct.fingerprint == samples.distinct.fingerprint
    with pytest.raises(UserError, match="do not belong together"):
        PairFiles(paths, torch.zeros(2, 2), [0, 1, 2])


def test_a_picture_that_many_ask_about_is_encoded_once(tmp_path):
    paths = [mm.picture(tmp_path / f"{k}.jpg", 60 * k) for k in range(2)]
    samples = PairFiles([paths[k] for k in (1, 0, 1, 1)], torch.zeros(4, 2, dtype=torch.long), [0, 0, 0, 0])

    class Mean:
        deterministic, dim, key = True, 1, "mean"

        def __call__(self, pictures):
            return torch.tensor([[brightness(p)] for p in pictures])

    store = FeatureStore(None, "ram", progress=False)
    rows = store.rows(samples, torch.arange(4), Mean()).flatten().tolist()
    assert store.forwards == 2 and rows[0] == rows[2] == rows[3] != rows[1]
    assert rows[1] == pytest.approx(brightness(samples.open(1)))


@pytest.mark.parametrize(
    "name, write, form",
    [
        ("mm-imagenet-r", mm.mm_imagenet_r, "jsonl"),
        ("mm-imagenet-r", mm.mm_imagenet_r, "object"),
        ("upmc-food101", mm.upmc_food101, "csv"),
        ("upmc-food101", mm.upmc_food101, "json"),
        ("mm-imdb", mm.mm_imdb, "published"),
        ("mm-imdb", mm.mm_imdb, "folders"),
    ],
)
def test_every_layout(name, write, form, tmp_path):
    write(tmp_path, form)
    dataset = make(name, tmp_path)
    counts = [dataset.samples(part).targets.bincount().tolist() for part in (True, False)]
    assert counts == [[10] * 6, [2] * 6] if name == "mm-imdb" else counts == [[1] * dataset.N_CLASSES] * 2
    samples, names = dataset.samples(True), dataset.get_class_names()
    if name == "upmc-food101":
        assert names[0] == ("dish100" if form == "json" else "deep dish 0") and set(names) >= {"dish1", "deep dish 0"}
        for path, label in zip(samples.paths, samples.targets.tolist(), strict=True):
            assert path.parent.name.replace("_", " ") == names[label]
    if name == "mm-imdb":
        assert names[0] == "drama" and "western" not in names
        assert all(
            f"about {names[label].capitalize()}" in text
            for text, label in zip(samples.captions, samples.targets.tolist(), strict=True)
        )
    inputs, labels, plain = next(iter(dataset.get_data_loaders()[0]))
    assert isinstance(inputs, Pair) and isinstance(plain, Pair) and inputs.image.shape[1:] == (3, 224, 224)
    split = dataset.train_loader.dataset
    for position in (0, len(split) - 1):
        row = int(split.rows[position])
        assert torch.equal(split[position][0].text, samples.text[row]) and int(split[position][1]) == int(
            samples.targets[row]
        )
        assert torch.equal(split[position][2].image, split.not_aug(samples.open(row)))


@pytest.mark.parametrize("phases, sizes", [(5, [21, 20, 20, 20, 20]), (10, [11] + [10] * 9), (20, [6] + [5] * 19)])
def test_phases(phases, sizes, tmp_path):
    mm.upmc_food101(tmp_path)
    dataset = make("upmc-food101", tmp_path, phases=phases)
    assert dataset.N_CLASSES_PER_TASK == sizes
    for size in sizes:
        train, _ = dataset.get_data_loaders()
        assert len(train.dataset.targets.unique()) == size


def test_genres_that_do_not_stand_alone(tmp_path):
    mm.mm_imdb(tmp_path)
    assert "western" in make("mm-imdb", tmp_path, min_movies=2).get_class_names()
    assert "6 classes; give fewer phases" in refused("mm-imdb", tmp_path, phases=10)
    assert "at least 1" in refused("mm-imdb", tmp_path, min_movies=0)
    assert "--min_movies 10000: no genre" in refused("mm-imdb", tmp_path, min_movies=10000)


def test_captions_of_almost_all(tmp_path):
    folder = mm.mm_imagenet_r(tmp_path)
    path = folder / "captions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-8]) + "\n")
    text = refused("mm-imagenet-r", tmp_path)
    assert "caption_images.py" in text and "99 %" in text and str(path) in text
    path.unlink()
    assert "caption_images.py" in refused("mm-imagenet-r", tmp_path)


@pytest.mark.parametrize("line", ["{", '{"file": "x"}', '{"file": 3, "caption": "x"}', "[1]"])
def test_a_bad_caption_line_is_named(line, tmp_path):
    path = mm.mm_imagenet_r(tmp_path) / "captions.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    assert f"{path} line 3" in refused("mm-imagenet-r", tmp_path)


def test_captions_that_are_no_utf8_are_named(tmp_path):
    path = mm.mm_imagenet_r(tmp_path) / "captions.jsonl"
    path.write_bytes(path.read_bytes() + '{"file": "x", "caption": "café"}'.encode("latin-1"))
    assert f"{path} cannot be read as UTF-8 text" in refused("mm-imagenet-r", tmp_path)


@pytest.mark.parametrize(
    "spoil, told",
    [
        ("empty", "test_titles.csv is truncated or corrupt (it is empty)"),
        ("columns", "train_titles.csv line 2"),
        ("quote", "train_titles.csv line"),
        ("picture", "dish3_3.jpg, which does not exist"),
        ("class", "100 classes, 101 are published"),
        ("name", "test_titles.csv line 1"),
    ],
)
def test_bad_titles_are_named(spoil, told, tmp_path):
    root = mm.upmc_food101(tmp_path)
    train, test = (root / "texts" / f"{part}_titles.csv" for part in ("train", "test"))
    lines = train.read_text().splitlines()
    if spoil == "empty":
        test.write_text("")
    elif spoil == "columns":
        train.write_text("\n".join([lines[0], "dish1_1.jpg,only two", *lines[2:]]))
    elif spoil == "quote":
        train.write_text("\n".join(lines[:-1]) + '\ndish1_900.jpg,"open,dish1')
    elif spoil == "picture":
        (root / "images/train/dish3/dish3_3.jpg").unlink()
    elif spoil == "class":
        for path in (train, test):
            path.write_text("\n".join(row for row in path.read_text().splitlines() if not row.startswith("dish7_")))
    else:
        test.write_text("../../x.jpg,title,dish1\n" + test.read_text())
    assert told in refused("upmc-food101", tmp_path)


@pytest.mark.parametrize(
    "spoil, told",
    [
        ("json", "line 1"),
        ("poster", "which does not exist"),
        ("table", "which does not exist"),
        ("part", "'test'"),
        ("genres", "'genres'"),
    ],
)
def test_bad_movies_are_named(spoil, told, tmp_path):
    root = mm.mm_imdb(tmp_path)
    first = root / "dataset/0000001.json"
    if spoil == "json":
        first.write_text("{")
    elif spoil in {"poster", "table"}:
        (first if spoil == "table" else first.with_suffix(".jpeg")).unlink()
    elif spoil == "part":
        (root / "split.json").write_text(json.dumps({"train": ["0000001"], "dev": []}))
    else:
        first.write_text(json.dumps({"plot": ["x"]}))
    text = refused("mm-imdb", tmp_path)
    assert told in text and str(root) in text


def test_a_run_on_pictures_with_titles(tmp_path):
    mm.mm_imdb(tmp_path)
    argv = [
        "--model",
        "ncm",
        "--dataset",
        "mm-imdb",
        "--base_path",
        str(tmp_path),
        "--clip_backbone",
        "tiny",
        "--results_path",
        str(tmp_path / "runs"),
        "--seed",
        "0",
    ]
    assert main.main(argv) == 0
    assert newest_record(tmp_path / "runs")[-1]["status"] == "done"


# captions


def tell(pictures):
    """Of the pixels alone."""
    return [f"brightness  {int(brightness(p))}" for p in pictures]


def pictures(tmp_path, count=7):
    for k in range(count):
        mm.picture(tmp_path / "pictures" / f"n{k % 2}" / f"secretclass_{k}.jpg", 20 * k)
    return tmp_path / "pictures", tmp_path / "out" / "captions.jsonl"


def test_captions_go_on_after_a_kill_and_come_out_the_same(tmp_path):
    root, out = pictures(tmp_path)
    assert list(captions.caption_all(root, out, tell, "m", "p", 3)) == [3, 6, 7]
    whole = out.read_text()
    assert "secretclass" not in "".join(json.loads(line)["caption"] for line in whole.splitlines())
    seen = []

    def counted(batch):
        seen.extend(batch)
        return tell(batch)

    for size in range(0, len(whole), 37):
        out.write_text(whole[:size])
        seen.clear()
        list(captions.caption_all(root, out, counted, "m", "p", 2))
        assert out.read_text() == whole and len(seen) == 7 - whole[:size].count("\n")


def test_captions_are_of_one_model(tmp_path):
    root, out = pictures(tmp_path, 2)
    list(captions.caption_all(root, out, tell, "m", "p"))
    for model, prompt in (("other", "p"), ("m", "other")):
        with pytest.raises(captions.Problem, match="name another file"):
            list(captions.caption_all(root, out, tell, model, prompt))
    (root / "n0" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(captions.Problem, match="broken.jpg cannot be read"):
        list(captions.caption_all(root, out, tell, "m", "p"))


def test_captions_need_transformers(tmp_path):
    root, out = pictures(tmp_path, 1)
    code = (
        "import sys; sys.modules['transformers'] = None; sys.argv = ['x', *sys.argv[1:]]; import runpy; "
        f"runpy.run_path({str(ROOT / 'scripts' / 'caption_images.py')!r}, run_name='__main__')"
    )
    found = subprocess.run([sys.executable, "-c", code, str(root), str(out)], capture_output=True, text=True)
    assert found.returncode == 2 and "pip install transformers" in found.stderr
    assert found.stderr.count("\n") == 1 and not out.exists()


def test_no_prompt_has_room_for_a_name():
    assert all("{" not in prompt and "%" not in prompt for prompt in captions.PROMPTS.values())


def test_left_out_images_are_told(tmp_path):
    mm.upmc_food101(tmp_path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        make("upmc-food101", tmp_path)
    assert any("1 images have no title" in str(w.message) for w in told)
