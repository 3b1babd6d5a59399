"""Published image data sets, in each layout that their readers support: counts, labels, names, and bad files."""

import importlib.util
import io
import json
import os
import pickle
import tarfile
import warnings
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from datasets import get_dataset, get_dataset_class
from datasets.utils.array_files import as_images
from datasets.utils.file_streams import held_out, read_split_list
from tests import fabricate_real as real
from tests.clip_weights import openai_state, random_clip
from tests.conftest import newest_record
from utils.errors import UserError

LAYOUTS = [
    ("seq-imagenet-r", real.imagenet_r, "plain"),
    ("seq-imagenet-r", real.imagenet_r, "folders"),
    ("seq-imagenet-r", real.imagenet_r, "yaml"),
    ("seq-imagenet-r", real.imagenet_r, "txt"),
    ("seq-cars196", real.cars196, "published"),
    ("seq-cars196", real.cars196, "tensors"),
    ("seq-cub200", real.cub200, "published"),
    ("seq-cub200", real.cub200, "arrays"),
    ("seq-eurosat-rgb", real.eurosat, "2750"),
    ("seq-eurosat-rgb", real.eurosat, "."),
    ("seq-isic", real.isic, "published"),
    ("seq-isic", real.isic, "pickles"),
]


def make(name: str, base: Path, **flags):
    return get_dataset(Namespace(dataset=name, base_path=str(base), seed=0, batch_size=8, **flags))


def read(name: str, base: Path, **flags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = make(name, base, **flags)
        dataset.samples(True), dataset.samples(False), dataset.get_class_names()
    return dataset


def refused(name: str, base: Path) -> str:
    with pytest.raises(UserError) as error:
        read(name, base)
    assert "\n" not in str(error.value)
    return str(error.value)


def kind_of(path: Path, name: str) -> int:
    """Number of the class of an image, from where the fabricators put it."""
    folder = path.parent.name
    if name == "seq-imagenet-r":
        return real.WNIDS.index(folder)
    return real.EUROSAT.index(folder) if name == "seq-eurosat-rgb" else int(folder[:3]) - 1


@pytest.mark.parametrize("name, write, form", LAYOUTS)
def test_every_layout(name, write, form, tmp_path):
    write(tmp_path, form)
    dataset = read(name, tmp_path)
    assert dataset.N_CLASSES == {"seq-imagenet-r": 200, "seq-cars196": 196, "seq-cub200": 200}.get(
        name, dataset.N_CLASSES
    )
    each = 2 if (name, form) == ("seq-isic", "published") else 1
    for train in (True, False):
        samples = dataset.samples(train)
        assert samples.targets.bincount().tolist() == [each] * dataset.N_CLASSES
        paths = getattr(samples, "paths", None)
        if paths and name in {"seq-imagenet-r", "seq-cub200", "seq-eurosat-rgb"}:
            names = dataset.get_class_names()
            for path, label in zip(paths, samples.targets.tolist(), strict=True):
                kind = kind_of(path, name)
                form_of = {"seq-imagenet-r": f"thing {kind}", "seq-cub200": f"painted bird {kind + 1}"}
                assert names[label] == (form_of.get(name) or f"Kind {real.EUROSAT[kind]}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train, test = dataset.get_data_loaders()
    inputs, labels, plain = next(iter(train))
    assert inputs.shape == plain.shape == (len(labels), 3, 224, 224)
    assert dataset.get_offsets(dataset.N_TASKS - 1)[1] == dataset.N_CLASSES


def test_tasks_of_cars_are_nine_times_twenty_and_sixteen(tmp_path):
    real.cars196(tmp_path)
    dataset, sizes = read("seq-cars196", tmp_path), []
    for _ in range(dataset.N_TASKS):
        train, _ = dataset.get_data_loaders()
        sizes.append(len(train.dataset.targets.unique()))
    assert sizes == [20] * 9 + [16]
    assert dataset.get_class_names()[7] == "Maker Model 7 Coupe 2012"


def test_pixels_meet_their_labels(tmp_path):
    """Brightness identifies the class in the arrays and in the .mat layout, whose rows are shuffled."""
    real.cub200(tmp_path, "arrays"), real.cars196(tmp_path)
    birds = read("seq-cub200", tmp_path).samples(False)
    assert [int(np.asarray(birds.open(k)).mean()) for k in range(200)] == birds.targets.tolist()
    cars = read("seq-cars196", tmp_path).samples(False)
    bright = torch.tensor([float(np.asarray(cars.open(k)).mean()) for k in range(196)])
    wanted = cars.targets % 190 + 29.5
    assert (bright - wanted).abs().max() < 12
    real.isic(tmp_path, "pickles")
    skin = read("seq-isic", tmp_path).samples(True)
    assert [int(skin.arrays[k].max()) for k in range(6)] == [round((k + 1) * 255 / 7) for k in range(6)]


def test_lists_decide_split_and_order(tmp_path):
    real.imagenet_r(tmp_path / "a", "yaml"), real.imagenet_r(tmp_path / "b", "plain")
    listed, plain = read("seq-imagenet-r", tmp_path / "a"), read("seq-imagenet-r", tmp_path / "b")
    labels = np.random.default_rng(5).permutation(200)
    assert [listed.get_class_names()[labels[k]] for k in range(200)] == plain.get_class_names()
    assert plain.get_class_names()[:3] == ["thing 0", "thing 1", "thing 2"]
    with (
        pytest.warns(UserWarning, match="no train and test list"),
        pytest.warns(UserWarning, match="400 images on disk"),
    ):
        make("seq-imagenet-r", tmp_path / "b").samples(True)
    assert all(held_out(f"{p.parent.name}/{p.name}") for p in plain.samples(False).paths)


def test_a_lesion_is_never_in_both_parts(tmp_path):
    root = real.isic(tmp_path)
    rows = [line.split(",")[:2] for line in (root / f"{real.ISIC}_LesionGroupings.csv").read_text().split()[1:]]
    dataset = read("seq-isic", tmp_path)
    parts = [{dict(rows)[p.stem] for p in dataset.samples(part).paths} for part in (True, False)]
    assert len(parts[0]) == len(parts[1]) == 6 and not parts[0] & parts[1]


@pytest.mark.parametrize("name", real.FABRICATORS)
def test_the_default_backbone_is_one_that_timm_knows(name):
    import timm

    library, _, model = get_dataset_class(name).DEFAULTS["backbone"].partition(":")
    assert library == "timm" and timm.is_model(model)


def test_split_lists():
    assert read_split_list(["a b.jpg 3", "c.jpg"]) == [("a b.jpg", 3), ("c.jpg", None)]
    assert read_split_list(["data:", "- 'x/y.jpg'", "targets:", "- 7"]) == [("x/y.jpg", 7)]
    for wrong in (
        ["data:", "- a", "targets:"],
        ["data: !!python/object/apply:os.system [x]"],
        ["data:", "- a", "targets:", "- b"],
    ):
        with pytest.raises(ValueError):
            read_split_list(wrong)


class Evil:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_files_that_would_run_code_are_refused(tmp_path):
    evil = Evil(tmp_path / "made")
    isic, cars, cub = real.isic(tmp_path, "pickles"), real.cars196(tmp_path, "tensors"), real.cub200(tmp_path, "arrays")
    (isic / "train_images.pkl").write_bytes(pickle.dumps([evil]))
    (cars / "train_images.pt").unlink()
    torch.save([evil], cars / "train_images.pt")
    holder = np.empty(1, dtype=object)
    holder[0] = evil
    np.savez(cub / "train_data.npz", data=holder, targets=np.zeros(1, int), classes=np.array(["a"]))
    for name in ("seq-isic", "seq-cars196", "seq-cub200"):
        assert "truncated or corrupt" in refused(name, tmp_path)
    assert not evil.path.exists()
    pickle.loads((isic / "train_images.pkl").read_bytes())
    assert evil.path.exists()  # so the file was dangerous


@pytest.mark.parametrize(
    "name, write, form, file",
    [
        ("seq-cars196", real.cars196, "tensors", "test_images.pt"),
        ("seq-cars196", real.cars196, "tensors", "class_names.json"),
        ("seq-cars196", real.cars196, "published", "cars_test_annos_withlabels.mat"),
        ("seq-cub200", real.cub200, "arrays", "test_data.npz"),
        ("seq-cub200", real.cub200, "published", "train_test_split.txt"),
        ("seq-eurosat-rgb", real.eurosat, "2750", "split.json"),
        ("seq-isic", real.isic, "pickles", "test_labels.pkl"),
        ("seq-isic", real.isic, "published", f"{real.ISIC}_LesionGroupings.csv"),
        ("seq-imagenet-r", real.imagenet_r, "plain", "README.txt"),
    ],
)
def test_truncated_then_missing(name, write, form, file, tmp_path):
    path = write(tmp_path, form) / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"{path} is truncated or corrupt" in refused(name, tmp_path)
    path.write_bytes(b"")
    assert str(path) in refused(name, tmp_path)
    path.unlink()
    message = refused(name, tmp_path)
    assert f"{path} does not exist" in message and f"prepare_data.py {name} --base_path {tmp_path}" in message


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_rows_that_cannot_be(tmp_path):
    root = real.eurosat(tmp_path)
    for old, new, message in (
        ('"River/River_1.jpg", 8', '"River/River_1.jpg", 10', "label 10; there are 10 classes"),
        ("River/River_1.jpg", "../River_1.jpg", "is outside"),
        ("River/River_1.jpg", "River/none.jpg", "does not exist"),
        ("Kind River", "Kind Lake", "does not give each of the 10 labels one name"),
    ):
        before = (root / "split.json").read_text()
        change(root / "split.json", old, new)
        assert message in refused("seq-eurosat-rgb", tmp_path)
        (root / "split.json").write_text(before)
    root = real.cub200(tmp_path)
    change(root / "image_class_labels.txt", "400 200", "400 201")
    assert "label 200; there are 200 classes" in refused("seq-cub200", tmp_path)
    root = real.imagenet_r(tmp_path, "txt")
    (root / "test.txt").rename(root / "other.txt")
    assert "a list for one part only" in refused("seq-imagenet-r", tmp_path)
    (root / "other.txt").rename(root / "test.txt")
    change(root / "test.txt", "/art_", "/none_")
    assert "does not exist" in refused("seq-imagenet-r", tmp_path)


def test_tensors_of_other_content(tmp_path):
    root = real.cars196(tmp_path, "tensors")
    torch.save(torch.arange(196) + 1, root / "train_labels.pt")
    with pytest.raises(UserError, match="labels run from 1 to 196"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make("seq-cars196", tmp_path).get_data_loaders()
    torch.save(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), root / "train_images.pt")
    assert "not uint8 (N, 3, 224, 224)" in refused("seq-cars196", tmp_path)
    for wrong in (np.full((2, 2, 3), 1.5), np.zeros((2, 2, 4), np.uint8), np.zeros((2, 2, 3), np.int8)):
        with pytest.raises(ValueError):
            as_images([wrong])


def test_a_count_that_is_not_the_published_one_is_said(tmp_path):
    real.eurosat(tmp_path)
    with pytest.warns(UserWarning, match="20 images on disk, 21600 are published"):
        make("seq-eurosat-rgb", tmp_path).samples(True)


QUICK = [
    "--gr_vae_hidden_dim",
    "8",
    "--gr_vae_latent_dim",
    "4",
    "--gr_vae_n_iters",
    "2",
    "--num_epochs_alignment",
    "1",
    "--batch_size_alignment",
    "8192",
]


@pytest.mark.parametrize("model, more", [("clip", []), ("ncm", []), ("cgil", QUICK)])
def test_clip_methods_run_on_renditions(tmp_path, model, more):
    """The command line, on a file in OpenAI's format; the last task's scores cover every class."""
    real.imagenet_r(tmp_path, "yaml")
    weights = tmp_path / "clip.pt"
    torch.save(openai_state(random_clip(vision_layers=1, transformer_layers=1, context_length=77)), weights)
    argv = [
        "--model",
        model,
        "--dataset",
        "seq-imagenet-r",
        "--clip_backbone",
        str(weights),
        "--seed",
        "0",
        *more,
        "--base_path",
        str(tmp_path),
        "--results_path",
        str(tmp_path / "runs"),
        "--non_verbose",
        "1",
        "--device",
        "cpu",
    ]
    assert main.main(argv) == 0
    rows = newest_record(tmp_path / "runs")
    assert len([row for row in rows if row["type"] == "task"]) == 10 and rows[-1]["status"] == "done"
    assert 0 <= rows[-1]["summary"]["class_il_last"] <= 100
    assert any("30000 are published" in str(row) for row in rows if row["type"] == "warning")


def test_prepared_archives_stay_in_their_folder(tmp_path):
    spec = importlib.util.spec_from_file_location(
        "prepare_data", Path(main.__file__).parent / "scripts" / "prepare_data.py"
    )
    prepare_data = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare_data)
    for name, safe in (("set/a.txt", True), ("../evil.txt", False)):
        with tarfile.open(tmp_path / "set.tar", "w") as archive:
            member = tarfile.TarInfo(name)
            member.size = 2
            archive.addfile(member, io.BytesIO(b"ok"))
        if safe:
            prepare_data.unpack(tmp_path / "set.tar", tmp_path / "to")
            assert (tmp_path / "to" / "set" / "a.txt").read_text() == "ok"
        else:
            with pytest.raises(OSError):
                prepare_data.unpack(tmp_path / "set.tar", tmp_path / "to")
            assert not (tmp_path / "evil.txt").exists()
    (tmp_path / "whole.json").write_text(json.dumps({}))
    assert prepare_data.checksum_of(tmp_path / "whole.json") == "99914b932bd37a50b983c5e7c90ae93b"
