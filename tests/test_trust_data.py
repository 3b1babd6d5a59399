"""A resumed run uses the images, labels, names and weights it started with, or is refused in one line."""

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.utils.samples import FileSamples, ForeignSamples, PairFiles, fingerprint_of
from tests.conftest import comparable, in_child, newest_record
from utils import content
from utils.engine import record as results
from utils.engine import unchanged
from utils.errors import UserError

CLASSES = ["ant", "bee", "cat", "dog"]


def draw(folder: Path, seed: int = 0, classes=CLASSES) -> None:
    """train/ and test/ of uncompressed images: those of another seed have other content and the same sizes."""
    random = np.random.default_rng(seed)
    means = random.integers(40, 216, (len(classes), 1, 1, 3))
    for part, n in (("train", 6), ("test", 3)):
        for name, mean in zip(classes, means, strict=True):
            (folder / part / name).mkdir(parents=True, exist_ok=True)
            for k in range(n):
                pixels = np.clip(mean + random.integers(-30, 31, (32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{k}.bmp")


def replace_all(folder: Path, part: str = "*") -> None:
    """Other content under the old names, sizes and times."""
    old = {p: os.stat(p) for p in folder.glob(f"{part}/*/*.bmp")}
    shutil.copytree(folder, folder.with_name("kept"), dirs_exist_ok=True)
    draw(folder, seed=1)
    for kept in {"train", "test"} - {part} if part != "*" else ():
        shutil.copytree(folder.with_name("kept") / kept, folder / kept, dirs_exist_ok=True)
    for path, stat in old.items():
        assert os.stat(path).st_size == stat.st_size
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.fixture
def start(tmp_path, capsys):
    draw(tmp_path / "images")

    def run(*more: str, model=("ncm", "--clip_backbone", "tiny"), runs="runs") -> tuple[int, list[str], list[str]]:
        import main

        capsys.readouterr()
        argv = [
            "--model",
            *model,
            "--dataset",
            "seq-folder",
            "--folder_path",
            str(tmp_path / "images"),
            "--n_tasks",
            "2",
        ]
        argv += ["--image_size", "32", "--seed", "5", "--device", "cpu", "--non_verbose", "1"]
        argv += ["--base_path", str(tmp_path / "data"), "--results_path", str(tmp_path / runs), *more]
        code = main.main(argv)
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


SGD = ("sgd", "--batch_size", "4", "--backbone", "reduced-resnet18", "--lr", "0.01", "--n_epochs", "1")


def refused_for(told: tuple[int, list[str], list[str]], *words: str) -> bool:
    code, _, err = told
    errors = [line for line in err if line.startswith("error: ")]
    return code == 2 and len(errors) == 1 and all(w in errors[0] for w in (*words, "--resume force"))


@pytest.mark.parametrize("part", ["*", "test", "train"])
def test_a_finished_run_on_other_images_is_refused(start, tmp_path, part):
    assert start(model=SGD)[0] == 0
    code, out, _ = start("--resume", "auto", model=SGD)
    assert code == 0 and out[0].startswith("already finished")
    before = newest_record(tmp_path / "runs")
    replace_all(tmp_path / "images", part)
    assert refused_for(start("--resume", "auto", model=SGD), "images or labels")
    assert newest_record(tmp_path / "runs") == before
    code, out, _ = start("--resume", "force", model=SGD)
    assert code == 0 and out[0].startswith("already finished")


def test_a_killed_run_does_not_go_on_with_other_images(start, tmp_path):
    from tests.test_resume import killed_at

    status = in_child(lambda: (killed_at("evaluation", 2), start("--autosave", "0.0001", model=SGD)))
    assert os.WIFSIGNALED(status)
    (record,) = (tmp_path / "runs").rglob("record.jsonl")
    before = record.read_bytes()
    replace_all(tmp_path / "images")
    assert refused_for(start("--resume", "auto", model=SGD), "images or labels")
    assert record.read_bytes() == before
    code, out, err = start("--resume", "force", model=SGD)
    assert code == 0 and out[0].startswith("continuing") and any("images or labels" in line for line in err)
    texts = [row["text"] for row in newest_record(tmp_path / "runs") if row["type"] == "warning"]
    assert any("images or labels" in text for text in texts), "the record says that it stands on two kinds of images"


def test_a_folder_that_was_moved_or_touched_is_the_same(start, tmp_path):
    assert start(model=SGD)[0] == 0
    for path in (tmp_path / "images").rglob("*.bmp"):
        path.write_bytes(path.read_bytes())
    code, out, _ = start("--resume", "auto", model=SGD)
    assert code == 0 and out[0].startswith("already finished")


def test_other_class_names_are_refused(start, tmp_path):
    assert start(model=SGD)[0] == 0
    for part in ("train", "test"):
        (tmp_path / "images" / part / "bee").rename(tmp_path / "images" / part / "bug")
    assert refused_for(start("--resume", "auto", model=SGD), "class names", "bee -> bug")


def test_an_image_that_moved_to_another_class_is_refused(start, tmp_path):
    assert start(model=SGD)[0] == 0
    one, other = (tmp_path / "images" / "train" / name for name in ("ant", "bee"))
    (one / "5.bmp").rename(other / "0-5.bmp")
    assert refused_for(start("--resume", "auto", model=SGD), "images or labels")


def test_another_checkpoint_to_start_from_is_refused(start, tmp_path):
    assert (
        start(
            "--savecheck",
            "last",
            "--checkpoint_path",
            str(tmp_path / "kept"),
            "--stop_after",
            "0",
            model=SGD,
            runs="first",
        )[0]
        == 0
    )
    (saved,) = (tmp_path / "kept").glob("*.safetensors")
    start_file = tmp_path / "start.safetensors"
    shutil.copy(saved, start_file)
    more = ("--loadcheck", str(start_file), "--start_from", "1")
    assert start(*more, model=SGD)[0] == 0
    assert start(*more, "--resume", "auto", model=SGD)[1][-1].startswith(("plot", "record"))
    other = (
        "--savecheck",
        "last",
        "--checkpoint_path",
        str(tmp_path / "others"),
        "--stop_after",
        "0",
        "--optim_wd",
        "0.1",
    )
    assert start(*other, model=SGD, runs="first")[0] == 0
    (saved,) = (tmp_path / "others").glob("*.safetensors")
    shutil.copy(saved, start_file)
    assert refused_for(start(*more, "--resume", "auto", model=SGD), "files named by flags", "loadcheck")


def test_a_record_of_an_earlier_version_goes_on_with_a_warning(start, tmp_path):
    assert start(model=SGD)[0] == 0
    (record,) = (tmp_path / "runs").rglob("record.jsonl")
    lines = record.read_text().splitlines()
    first = json.loads(lines[0])
    for key in ("facts_version", "protocol", "class_names", "templates_sha256", "initial_sha256", "files_sha256"):
        del first[key]
    record.write_text("\n".join([json.dumps(first | {"dataset_fingerprint": "0" * 64}), *lines[1:]]) + "\n")
    code, out, err = start("--resume", "auto", model=SGD)
    assert code == 0 and out[0].startswith("already finished") and any("earlier version" in line for line in err)


def test_features_of_replaced_images_are_computed_anew(start, tmp_path):
    """Same names, sizes and times, other content: the score is that of the new images."""
    assert start()[0] == 0
    replace_all(tmp_path / "images")
    assert start("--notes", "again")[0] == 0
    found = newest_record(tmp_path / "runs")[-1]["summary"]
    shutil.rmtree(tmp_path / "data")
    assert start("--notes", "fresh")[0] == 0
    fresh = newest_record(tmp_path / "runs")[-1]["summary"]
    scores = [k for k in fresh if k.startswith(("class_il", "task_il", "ece"))]
    assert {k: found[k] for k in scores} == {k: fresh[k] for k in scores} and found["image_forwards"] == 36


def test_the_record_says_when_features_are_of_an_earlier_run(start, tmp_path):
    def reused() -> list[dict]:
        return [row for row in newest_record(tmp_path / "runs") if row["type"] == "features"]

    assert start()[0] == 0 and reused() == []
    assert start("--notes", "again")[0] == 0
    assert [row["from_earlier_runs"] for row in reused()] == [18, 18]  # of each task 12 training and 6 test images
    assert start("--notes", "off", "--features", "off")[0] == 0 and reused() == []


# digests


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{k}.bin" for k in range(4)]
    for k, path in enumerate(paths):
        path.write_bytes(bytes([k]) * 100)
    return paths


@pytest.fixture
def read(monkeypatch):
    seen, real = [], content.file_digest
    monkeypatch.setattr(content, "file_digest", lambda path: (seen.append(path), real(path))[1])
    return seen


def test_digests_are_sha256_in_the_order_of_the_paths(files):
    import hashlib

    found = content.content_digests(files[::-1])
    assert [row.tobytes() for row in found] == [hashlib.sha256(p.read_bytes()).digest() for p in files[::-1]]


def test_a_kept_digest_is_distrusted_while_times_are_recent(files, tmp_path, read, monkeypatch):
    for _ in range(2):
        content.content_digests(files, tmp_path / "kept")
    assert len(read) == 8, "files written a moment ago may change within the tick of a clock"
    monkeypatch.setattr(content, "RECENT_NS", -(10**12))  # as if long ago
    content.content_digests(files, tmp_path / "kept")
    assert len(read) == 8
    content.content_digests(files, tmp_path / "kept", trust_times=False)
    assert len(read) == 12


def test_equal_times_are_recent(files, tmp_path, read, monkeypatch):
    """A file whose time is that of its reading is read again, whatever the clock's tick."""
    monkeypatch.setattr(content, "RECENT_NS", 0)
    monkeypatch.setattr(content.time, "time_ns", lambda: os.stat(files[-1]).st_ctime_ns)
    for _ in range(2):
        content.content_digests(files[-1:], tmp_path / "kept")
    assert len(read) == 2


@pytest.mark.parametrize("how", ["in place", "renamed over", "time set back", "longer"])
def test_a_changed_file_is_read_again(how, files, tmp_path, read, monkeypatch):
    monkeypatch.setattr(content, "RECENT_NS", -(10**12))
    before = content.content_digests(files, tmp_path / "kept")
    stat = os.stat(files[2])
    if how == "renamed over":
        (tmp_path / "new").write_bytes(b"\x09" * 100)
        os.utime(tmp_path / "new", ns=(stat.st_atime_ns, stat.st_mtime_ns))
        os.replace(tmp_path / "new", files[2])
    else:
        files[2].write_bytes(b"\x09" * (101 if how == "longer" else 100))
    if how == "time set back":
        os.utime(files[2], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = content.content_digests(files, tmp_path / "kept")
    assert (before != after).any(axis=1).tolist() == [False, False, True, False] and len(read) == 5


INDEXES = [
    "",
    "[",
    "[" * 100_000,
    "{}",
    "null",
    "[1, 2, 3, 4]",
    "[[], [], [], []]",
    '[[1,2,3,4,5,"zz"]]',
    json.dumps([[1, 2, 3, 4, 5, "é" * 64]] * 4),
    json.dumps([["1", 2, 3, 4, 5, "a" * 64]] * 4),
    json.dumps([[True] * 5 + ["a" * 64]] * 4),
    "\x00\xff",
    "9" * 5000,
]


@pytest.mark.parametrize("text", INDEXES, ids=range(len(INDEXES)))
def test_a_damaged_index_is_as_none(text, files, tmp_path):
    want = content.content_digests(files, tmp_path / "kept")
    (index,) = (tmp_path / "kept").iterdir()
    index.write_text(text)
    assert (content.content_digests(files, tmp_path / "kept") == want).all()
    assert len(json.loads(index.read_text())) == 4


def test_an_index_that_cannot_be_written_does_no_harm(files, tmp_path):
    (tmp_path / "file").write_text("")
    assert content.content_digests(files, tmp_path / "file").shape == (4, 32)
    assert content.content_digests([], tmp_path / "kept").shape == (0, 32)


def test_samples_of_files_are_known_by_content(tmp_path):
    draw(tmp_path / "a")
    draw(tmp_path / "b")
    a, b = (sorted((tmp_path / x).rglob("*.bmp")) for x in "ab")
    assert FileSamples(a, [0] * 36).fingerprint == FileSamples(b, [0] * 36).fingerprint
    text = torch.zeros(36, 2, dtype=torch.long)
    pair = PairFiles(a, text, [0] * 36).fingerprint
    assert pair == PairFiles(b, text, [0] * 36).fingerprint != PairFiles(b, text + 1, [0] * 36).fingerprint
    replace_all(tmp_path / "b")
    assert FileSamples(a, [0] * 36).fingerprint != FileSamples(b, [0] * 36).fingerprint
    assert pair != PairFiles(b, text, [0] * 36).fingerprint


def test_labels_and_what_else_a_sample_carries_count(tmp_path):
    draw(tmp_path / "a")
    paths = sorted((tmp_path / "a").rglob("*.bmp"))

    def made(label=0, extra=0, task=0):
        samples = FileSamples(paths, [label] + [0] * 35, credit=torch.tensor([extra] + [0] * 35))
        samples.task_ids = torch.tensor([task] + [0] * 35)
        return fingerprint_of([samples])

    assert made() == made() and len({made(), made(label=1), made(extra=1), made(task=1)}) == 4


def test_an_image_that_changes_during_a_run_is_named(tmp_path):
    draw(tmp_path / "a")
    paths = sorted((tmp_path / "a").rglob("*.bmp"))
    samples, pairs = FileSamples(paths, [0] * 36), PairFiles(paths, torch.zeros(36, 1), [0] * 36)
    assert samples.fingerprint and pairs.fingerprint
    samples.images(torch.arange(36))
    replace_all(tmp_path / "a")
    for kind in (samples, pairs, pairs.distinct):
        with pytest.raises(UserError, match="ant/0.bmp has changed since this run began"):
            kind.images(torch.arange(2))


def test_foreign_samples_are_known_by_content(tmp_path):
    draw(tmp_path / "a")
    paths = sorted(map(str, (tmp_path / "a").rglob("*.bmp")))

    class Foreign:
        targets = [0] * 36

        def __init__(self, data):
            self.data = data

    images = [np.full((4, 4, 3), k, np.uint8) for k in range(36)]
    big = [np.zeros((64, 64, 3), np.uint8) for _ in range(36)]
    other = [image.copy() for image in big]
    other[7][30, 30] = 1  # in the middle, which repr of an array omits
    kinds = [
        paths,
        np.array(paths),
        np.array(paths, dtype=object),
        images,
        big,
        other,
        np.stack(big),
        [Image.fromarray(i) for i in big],
    ]
    found = [ForeignSamples(Foreign(data)).fingerprint for data in kinds]
    assert len(set(found[:3])) == 1 and found[7] == found[4] and len(set(found)) == 5
    again = ForeignSamples(Foreign([Image.fromarray(i) for i in big])).fingerprint
    assert again == found[7]
    replace_all(tmp_path / "a")
    assert ForeignSamples(Foreign(paths)).fingerprint != found[0]


ZSCL = (
    "zscl",
    "--clip_backbone",
    "tiny",
    "--batch_size",
    "8",
    "--lr",
    "0.001",
    "--fitting_mode",
    "iters",
    "--n_iters",
    "2",
)


@pytest.mark.parametrize("what", ["image", "text"])
def test_other_reference_data_is_refused(what, start, tmp_path):
    folder = tmp_path / "reference"
    folder.mkdir()
    for k, shade in enumerate((10, 200)):
        Image.fromarray(np.full((40, 40, 3), shade, np.uint8)).save(folder / f"{k}.png")
    (folder / "captions.txt").write_text("a red cup\na blue fish\n")
    model = (*ZSCL, "--reference", str(folder))
    assert start(model=model)[0] == 0
    code, out, _ = start("--resume", "auto", model=model)
    assert code == 0 and out[0].startswith("already finished")
    if what == "image":
        Image.fromarray(np.full((40, 40, 3), 11, np.uint8)).save(folder / "0.png")
    else:
        (folder / "captions.txt").write_text("a red cup\na green fish\n")
    assert refused_for(start("--resume", "auto", model=model), "reference images or texts")


def test_a_record_without_a_fact_is_not_compared_by_it(tmp_path):
    """A record of before the reference data was noted goes on."""
    found = results.RunRecord(tmp_path / "run")
    (tmp_path / "run").mkdir()
    found.start({k: v for k, v in FACTS.items() if k != "reference_sha256"})
    found.close()
    unchanged.check(found, FACTS, Namespace(resume="auto"))


def test_comparable_rows_of_a_killed_and_continued_run(start, tmp_path):
    """The check of inputs does not stop a run whose inputs are unchanged."""
    from tests.test_resume import killed_at

    assert start(model=SGD, runs="whole")[0] == 0
    assert os.WIFSIGNALED(in_child(lambda: (killed_at("evaluation", 2), start("--autosave", "0.0001", model=SGD))))
    assert start("--resume", "auto", model=SGD)[0] == 0
    assert comparable(newest_record(tmp_path / "runs")[-1]) == comparable(newest_record(tmp_path / "whole")[-1])


def test_the_state_at_the_start_is_parameters_and_buffers():
    """Parameters and statistics; a bit of each changes the digest, memory that a method allocates does not."""

    def model(weight=1.0, mean=0.0, scratch=7):
        net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        net[0].weight.data.fill_(weight), net[0].bias.data.zero_(), net[1].running_mean.fill_(mean)
        net.scratch = torch.full((2, 2), scratch)
        return net

    found = [
        unchanged.state_digest(m) for m in (model(), model(), model(weight=2.0), model(mean=1.0), model(scratch=8))
    ]
    assert found[0] == found[1] == found[4] and len(set(found)) == 3


FACTS = {
    "facts_version": 2,
    "dataset_fingerprint": "a" * 64,
    "class_names": ["ant", "bee"],
    "templates_sha256": "t",
    "class_order": None,
    "protocol": {"n_tasks": 2, "setting": "class-il"},
    "weights_sha256": "w",
    "initial_sha256": "i",
    "reference_sha256": "r",
    "files_sha256": {"loadcheck": "f"},
    "data": {"coverage": float("nan")},
}
OTHERS = {
    "dataset_fingerprint": "b" * 64,
    "class_names": ["ant", "bug"],
    "templates_sha256": "u",
    "class_order": [1, 0],
    "weights_sha256": None,
    "protocol": {"n_tasks": 3, "setting": "class-il"},
    "initial_sha256": "j",
    "reference_sha256": None,
    "files_sha256": {},
    "data": {"coverage": 1.0},
}


@pytest.mark.parametrize("key", OTHERS)
def test_each_fact_is_compared(key, tmp_path):
    found = results.RunRecord(tmp_path / "run")
    (tmp_path / "run").mkdir()
    found.start(FACTS)
    found.close()
    args = Namespace(resume="auto")
    unchanged.check(found, FACTS, args)
    with pytest.raises(UserError, match=unchanged.WORDS[key]) as refused:
        unchanged.check(found, FACTS | {key: OTHERS[key]}, args)
    assert "\n" not in str(refused.value) and "--resume force" in str(refused.value)
    with pytest.warns(UserWarning, match=unchanged.WORDS[key]):
        unchanged.check(found, FACTS | {key: OTHERS[key]}, Namespace(resume="force"))
