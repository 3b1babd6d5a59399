"""Own folders and lists through seq-folder: what the columns make of them, transparent and broken images, help."""

import hashlib
import json
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import get_dataset, get_dataset_class
from datasets.seq_folder import FolderQuestions
from datasets.utils.image_files import open_image
from tests import fabricate_own as own
from utils.cli import parser as cli_parser
from utils.cli import plugins, registry, signatures
from utils.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return own.folder(tmp_path_factory.mktemp("own") / "symbols", each=5)


def stream(path: Path, **options):
    args = Namespace(dataset="seq-folder", folder_path=str(path), image_size=16, batch_size=8, seed=0)
    args.__dict__.update({"clip_backbone": "tiny", "base_path": str(Path(path).parent)} | options)
    return get_dataset(args)


def images_of(dataset, train: bool) -> set[str]:
    return {f"{path.parent.name}/{path.name}" for path in dataset.samples(train).paths}


# a folder of classes


def test_a_hash_of_the_path_splits_a_folder_of_classes(root):
    dataset = stream(root, n_tasks=2, test_share=0.3)
    train, test = images_of(dataset, True), images_of(dataset, False)
    everything = {f"{path.parent.name}/{path.name}" for path in root.glob("*/*.png")}
    assert train | test == everything and not train & test
    for name in own.CLASSES:
        value = {
            f"{name}/{p.name}": int(hashlib.md5(f"{name}/{p.name}".encode()).hexdigest()[:16], 16) / 16**16
            for p in (root / name).glob("*.png")
        }
        low, high = min(value.values()), max(value.values())
        assert {k for k, v in value.items() if v < max(min(0.3, high), np.nextafter(low, 1))} == {
            key for key in test if key.startswith(f"{name}/")
        }
    assert dataset.get_class_names() == ["blue star", "green leaf", "grinning face", "red heart"]
    assert dataset.N_CLASSES_PER_TASK == 2 and stream(root).N_TASKS == 4, "five tasks at most"


def test_more_images_leave_the_part_of_the_others(root, tmp_path):
    more = own.folder(tmp_path / "more", each=7)
    before, after = (images_of(stream(path, test_share=0.4), False) for path in (root, more))
    assert len(before) > 4 and len(before - after) <= len(own.CLASSES), "only an image that stood in for a class"


def test_shares_that_cannot_be(root, tmp_path):
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(UserError, match="must be between 0 and 1"):
            stream(root, test_share=share)
    path = own.listed(tmp_path / "l.csv", [r | {"image": str(root / r["image"])} for r in rows_with(root, "split")])
    with pytest.raises(UserError, match="says which images are for tests"):
        stream(path, test_share=0.2)
    (tmp_path / "one" / "a").mkdir(parents=True)
    own.symbol(0, 0, 0).save(tmp_path / "one" / "a" / "x.png")
    with pytest.raises(UserError, match="class 'a' has a single image"):
        stream(tmp_path / "one")


# lists


def rows_with(root: Path, *columns: str) -> list[dict]:
    return own.rows(root, "image", "label", *columns)


KINDS = [
    ((), "class-il", False, False, [1, 1, 1, 1]),
    (("split",), "class-il", False, False, [1, 1, 1, 1]),
    (("task", "split"), "class-il", False, False, [2, 2]),
    (("domain", "split"), "domain-il", False, False, [4, 4]),
    (("text", "split"), "class-il", True, False, [1, 1, 1, 1]),
    (("text", "domain"), "domain-il", True, False, [4, 4]),
    (("question", "answers", "task", "split"), "domain-il", True, True, [4, 4]),
]


@pytest.mark.parametrize("end", ["csv", "jsonl"])
@pytest.mark.parametrize(
    "columns, setting, text, asks, classes", KINDS, ids=["-".join(row[0]) or "plain" for row in KINDS]
)
def test_columns_decide_what_the_stream_is(root, end, columns, setting, text, asks, classes):
    path = own.listed(root / f"list{'_'.join(columns)}.{end}", rows_with(root, *columns))
    dataset = stream(path)
    assert (dataset.SETTING, dataset.HAS_TEXT, dataset.VQA) == (setting, text, asks)
    assert [dataset.get_offsets(t)[1] - dataset.get_offsets(t)[0] for t in range(dataset.N_TASKS)] == classes
    assert type(dataset) is get_dataset_class(Namespace(dataset="seq-folder", folder_path=str(path)))
    seen = [dataset.get_data_loaders() for _ in range(dataset.N_TASKS)]
    n_train, n_test = (sum(len(loaders[part].dataset) for loaders in seen) for part in (0, 1))
    assert n_train + n_test == 40 and n_test == (16 if "split" in columns else n_test) and n_test > 0
    if "domain" in columns:
        for place, vendor in enumerate(own.VENDORS):
            rows = seen[place][0].dataset.rows
            assert {dataset.samples(True).paths[int(r)].name.split("_")[0] for r in rows} == {vendor}


def test_classes_follow_the_task_column(root):
    rows = [r | {"task": {"red_heart": 10, "blue_star": 2}.get(r["label"], 9)} for r in rows_with(root, "split")]
    dataset = stream(own.listed(root / "order.csv", rows))
    assert dataset.get_class_names() == ["blue star", "green leaf", "grinning face", "red heart"]
    assert dataset.N_CLASSES_PER_TASK == [1, 2, 1]
    for flag, value in (("n_tasks", 2), ("classes_per_task", 2), ("first_classes", 1)):
        with pytest.raises(UserError, match=f"--{flag}: the column task or domain .* sets the tasks"):
            stream(root / "order.csv", **{flag: value})
    rows[0] = rows[0] | {"task": 1 - rows[0]["task"] % 2}
    rows = [r | {"task": (k + (r["split"] == "test")) % 2} for k, r in enumerate(rows)]
    assert stream(own.listed(root / "shared.csv", rows)).SETTING == "domain-il", "a class in two tasks"


def test_answers_become_classes_and_earn_credit(root):
    rows = own.rows(root, "image", "task", "question", "answers", "split")
    first = next(k for k, row in enumerate(rows) if row["split"] == "test" and row["task"] == 0)
    rows[first]["answers"] = ["round"] * 3 + ["square"] * 7
    dataset = stream(own.listed(root / "credit.jsonl", rows))
    assert dataset.get_class_names() == ["round", "square", "blue", "green"]
    samples = dataset.samples(False)
    row = samples.paths.index(root / rows[first]["image"])
    assert samples.extras["soft"][row].tolist() == pytest.approx([0.9, 1.0, 0, 0]), "VQA accuracy of 3 and 7 of ten"
    no_task = own.listed(root / "no_task.csv", own.rows(root, "image", "question", "answers"))
    with pytest.raises(UserError, match="questions need a column task or domain"):
        stream(no_task)


def test_unused_columns_are_named_once(root):
    path = own.listed(root / "more.csv", rows_with(root, "note", "task", "domain"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        stream(path), stream(path)
    assert [str(w.message) for w in told] == [f"{path}: columns that are not used: note, domain"]


# names and templates


def test_names_and_templates_from_files(root, tmp_path):
    spoken = {name: f"the {name.split('_')[1]}" for name in own.CLASSES}
    (tmp_path / "n.json").write_text(json.dumps(spoken | {"n0001": "unknown"}))
    (tmp_path / "n.txt").write_text("\n".join(f"{k} {v}, of any kind" for k, v in spoken.items()))
    (tmp_path / "t.txt").write_text("an emoji of a {}.\n\na symbol: {}\n")
    for name in ("n.json", "n.txt"):
        dataset = stream(root, class_names=str(tmp_path / name), templates=[str(tmp_path / "t.txt")])
        assert dataset.get_class_names() == ["the star", "the leaf", "the face", "the heart"]
        assert dataset.get_prompt_templates() == ["an emoji of a {}.", "a symbol: {}"]
    bad = [
        ("class_names", '{"red_heart": "heart"}', "has no name for class 'blue_star' (3 of 4"),
        ("class_names", "[1]", "every class needs a text as its name"),
        ("class_names", "{", "cannot be read"),
        ("templates", "a photo of a {}.\nno place", "line 2"),
        ("templates", "\n", "the file is empty"),
    ]
    for flag, text, message in bad:
        (tmp_path / "bad.json").write_text(text)
        value = str(tmp_path / "bad.json")
        with pytest.raises(UserError, match=message.replace("(", r"\(")):
            stream(root, **{flag: [value] if flag == "templates" else value})


# transparent and broken images


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparent_images_are_laid_on_the_color(tmp_path, mode):
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, 0], pixels[0, 1], pixels[0, 2] = (100, 100, 100, 255), (100, 100, 100, 0), (100, 100, 100, 128)
    image = Image.fromarray(pixels).convert("LA" if mode == "LA" else "RGBA")
    if mode in {"P", "PA"}:
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
        image.putpalette([100, 100, 100] * 3)
        image.info["transparency"] = bytes([255, 0, 128])
    image.save(tmp_path / "x.png", **({"transparency": bytes([255, 0, 128])} if mode in {"P", "PA"} else {}))
    red = {color: np.asarray(open_image(tmp_path / "x.png", background=color))[0, :, 0] for color in ("white", "black")}
    np.testing.assert_allclose(red["white"], [100, 255, 255 * (1 - 128 / 255) + 100 * 128 / 255], atol=1)
    np.testing.assert_allclose(red["black"], [100, 0, 100 * 128 / 255], atol=1)
    assert np.asarray(open_image(tmp_path / "x.png"))[0, :, 0].tolist() == [100, 100, 100], "hidden colors"


def test_transparent_images_are_counted_and_are_other_content(root, capsys):
    Image.new("RGB", (8, 8)).save(root / "red_heart" / "alpha_0.png")  # one of 40 is opaque
    try:
        white, black, ignored = (stream(root, transparency=kind) for kind in ("white", "black", "ignore"))
        for dataset in (white, ignored):
            dataset.check_samples()
        assert capsys.readouterr().out == "39 of 40 images are transparent: laid on white\n"
        assert white.facts()["transparent"] == 39
        white.check_samples()
        assert "39 of 40" in capsys.readouterr().out, "counted again although files are remembered"
        assert len({d.fingerprint() for d in (white, black, ignored)}) == 3, "features are not shared"
        corner = [d.samples(True).open(0).getpixel((0, 0)) for d in (white, black)]
        assert corner == [(255, 255, 255), (0, 0, 0)]
    finally:
        own.symbol(1, 0, 0).save(root / "red_heart" / "alpha_0.png")


def test_few_broken_images_are_left_out_and_recorded(tmp_path):
    root = own.folder(tmp_path / "symbols", each=4)
    bad = [root / "red_heart" / "beta_1.png", root / "blue_star" / "alpha_2.png"]
    for path in bad:
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match="2 of 32 images cannot be read"):
        stream(root, skip_broken=1).check_samples()
    dataset = stream(root, skip_broken=2)
    with pytest.warns(UserWarning, match="2 of 32 images cannot be read and are left out"):
        dataset.check_samples()
    assert images_of(dataset, True) | images_of(dataset, False) == {
        f"{p.parent.name}/{p.name}" for p in root.glob("*/*.png") if p not in bad
    }
    assert [any(str(path) in told for told in dataset.facts()["skipped"]) for path in bad] == [True, True]
    for loader in dataset.get_data_loaders():
        assert all(isinstance(batch[0], torch.Tensor) for batch in loader)


# the command line


RUNS = {
    "pairs": (("text", "split"), ["--model", "ncm"]),
    "questions": (("question", "answers", "task", "split"), ["--model", "sgd", "--lr", "0.01", "--n_epochs", "1"]),
}


@pytest.mark.parametrize("kind", RUNS)
def test_own_lists_run(root, run_main, tmp_path, kind):
    columns, model = RUNS[kind]
    path = own.listed(root / f"run_{kind}.jsonl", rows_with(root, *columns))
    where = ["--folder_path", str(path), "--image_size", "48", "--clip_backbone", "tiny"]
    code, rows = run_main(*model, "--dataset", "seq-folder", *where, "--seed", "0")
    assert code == 0 and rows[-1]["status"] == "done"
    assert rows[0]["data"]["transparent"] == 40 and rows[0]["protocol"]["n_tasks"] == (2 if kind == "questions" else 4)
    assert "vqa_last" in rows[-1]["summary"] if kind == "questions" else rows[-1]["summary"]["class_il_last"] > 25


def all_flags():
    parser = cli_parser.new_parser()
    for kind in ("dataset", "backbone"):
        for name in registry.names(kind):
            signatures.add_arguments(parser, registry.load(kind, name), kind)
    signatures.add_arguments(parser, FolderQuestions, "questions")
    for name in registry.names("model"):
        other = cli_parser.new_parser()
        cli_parser.add_model_args(other, registry.load("model", name))
        yield from other._actions
    yield from parser._actions


def test_every_flag_has_help():
    assert not sorted({a.option_strings[0] for a in all_flags() if not (a.help or "").strip()})


# plug-ins


BASES = {
    "captioned": "from datasets.utils.mm_files import CaptionedFiles as Base",
    "questions": "from datasets.utils.vqa import VQADataset as Base",
    "domains": "from datasets.utils.domain_stream import (\n    DomainStream as Base,\n    Part,\n)",
    "module": "from datasets.utils import file_streams as Base",
}


@pytest.mark.parametrize("kind", BASES)
def test_files_that_extend_our_bases_are_found(tmp_path, kind):
    base = "Base.FileStream" if kind == "module" else "Base"
    path = tmp_path / "mine.py"
    path.write_text(f'"""A stream of mine"""\n\n{BASES[kind]}\n\n\nclass Mine({base}):\n    NAME = "my-stream"\n')
    try:
        plugins.use([str(path)])
        assert registry.index("dataset")["my-stream"].line.startswith("A stream of mine")
        assert "my-stream" not in registry.index("model")
    finally:
        plugins.use(None)


def test_a_model_that_extends_one_of_ours_is_found(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text('from models.er import Er\n\n\nclass Mine(Er):\n    NAME = "my-er"\n')
    try:
        plugins.use([str(path)])
        assert "my-er" in registry.index("model") and "my-er" not in registry.index("dataset")
    finally:
        plugins.use(None)


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "import torch\n\n\nclass Mine(torch.nn.Module):\n    NAME = 'mine'\n",
            "no model, dataset or backbone is recog",
        ),
        ("from models.er import Er\n\n\nclass Mine(Er):\n    pass\n", "NAME = '...'"),
        ("def broken(:\n", "cannot be read as Python"),
    ],
)
def test_a_file_in_which_nothing_is_recognized_says_so(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        plugins.use([str(tmp_path / "mine.py")])
    plugins.use(None)
