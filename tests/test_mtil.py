"""MTIL and X-TAIL: eleven fabricated data sets in their published layouts; splits, shots, orders, mixed batches."""

import json
import shutil
import warnings
from argparse import Namespace

import numpy as np
import pytest
import torch
from torch.utils.data import random_split
from torchvision import datasets as tv

import main
from datasets import get_dataset
from datasets.utils.mtil_protocol import DOMAINS, ORDERS
from datasets.utils.mtil_readers import cut
from datasets.utils.mtil_stream import few_per_class
from datasets.utils.samples import ArraySamples
from tests import contract
from tests import fabricate_mtil as fabricate
from tests.clip_weights import openai_state, random_clip
from tests.conftest import newest_record
from utils.engine import evaluate, metrics
from utils.errors import UserError

FILES = [d for d in DOMAINS if d not in {"cifar100", "mnist"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return fabricate.mtil(tmp_path_factory.mktemp("mtil"))


def make(base, name="mtil", **flags):
    return get_dataset(Namespace(dataset=name, base_path=str(base), seed=0, batch_size=8, **flags))


def read(base, name="mtil", **flags):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = make(base, name, **flags)
        dataset.check_samples()
        dataset.get_class_names()
    return dataset


def refused(base, **flags) -> str:
    with pytest.raises(UserError) as error:
        read(base, **flags)
    assert "\n" not in str(error.value)
    return str(error.value)


# protocol


def test_published_sizes_orders_and_numbers_of_sentences():
    assert sum(d.n_classes for d in DOMAINS.values()) == 1201
    assert (sum(d.n_train for d in DOMAINS.values()), sum(d.n_test for d in DOMAINS.values())) == (319_352, 97_209)
    assert [len(DOMAINS[d].templates) for d in ORDERS["I"]] == [2, 34, 18, 8, 3, 1, 1, 1, 1, 9, 2]
    for domain in DOMAINS.values():
        assert len(set(domain.templates)) == len(domain.templates) and all(t.count("{}") == 1 for t in domain.templates)
    assert sorted(ORDERS["I"]) == sorted(ORDERS["II"]) == sorted(DOMAINS)
    assert ORDERS["II"][0] == "cars" and ORDERS["II"][-1] == "cifar100"
    first = [DOMAINS[d].templates[0].format("X") for d in ("aircraft", "cars", "dtd", "mnist", "sun397")]
    assert first == [
        "a photo of a X, a type of aircraft.",
        "a photo of a X, a type of car.",
        "a photo of a X texture.",
        'a photo of the number: "X".',
        "a photo of a X.",
    ]


@pytest.mark.parametrize("n, wanted", [(8677, (6941, 1736)), (27_000, (21_600, 5400)), (108_754, (87_003, 21_751))])
def test_the_cut_is_torchs_random_split_of_seed_42(n, wanted):
    train, test = cut(list(range(n)))
    assert (len(train), len(test)) == wanted
    if n < 10_000:
        parts = random_split(range(n), wanted, torch.Generator().manual_seed(42))
        assert [list(part) for part in parts] == [train, test]


# readers


def test_pixels_meet_labels_and_names_in_every_domain(base):
    """The writers put the class into the brightness of the images."""
    dataset = read(base)
    assert dataset.N_CLASSES == 1201 and dataset.get_class_names()[100:102] == ["off-center face", "centered face"]
    for domain, content in zip(dataset.domains, dataset.contents, strict=True):
        assert len(content.names) == DOMAINS[domain].n_classes == len(set(content.names))
        for part in (content.train, content.test):
            assert set(part.targets.tolist()) == set(range(DOMAINS[domain].n_classes)), domain
            if domain in FILES:
                some = range(0, len(part), max(1, len(part) // 40))
                bright = torch.tensor([float(np.asarray(part.open(k)).mean()) for k in some])
                assert (bright - part.targets[list(some)] % 190 - 29.5).abs().max() < 12, domain
    names = dict(zip(dataset.domains, [c.names for c in dataset.contents], strict=True))
    assert names["eurosat"][0] == "annual crop land" and names["mnist"][3] == "3 - three"
    assert names["sun397"][0] == "place 000/indoor" and names["aircraft"][1] == "A1-200/1"
    assert "aquarium fish" in names["cifar100"]
    assert names["flowers"][0] == "pink primrose" and names["caltech101"][-1] == "yin and yang symbol"


def test_flowers_agree_with_torchvision(base, monkeypatch):
    """Its reader insists on the published checksums, so these are taken out of its table here."""
    files = {k: (name, None) for k, (name, _) in tv.Flowers102._file_dict.items()}
    monkeypatch.setattr(tv.Flowers102, "_file_dict", files)
    ours = read(base, task_order="flowers").contents[0]
    for split, part in (("train", ours.train), ("test", ours.test)):
        theirs = tv.Flowers102(str(base), split=split)
        assert [(str(p), int(c)) for p, c in zip(theirs._image_files, theirs._labels, strict=True)] == [
            (str(p), int(c)) for p, c in zip(part.paths, part.targets, strict=True)
        ]


def test_sun397_does_not_depend_on_the_file_system(base):
    content = read(base, task_order="sun397").contents[0]
    listed = sorted(p.relative_to(base).as_posix() for p in (base / "SUN397").rglob("*.jpg"))
    wanted = random_split(listed, (len(content.train), len(content.test)), torch.Generator().manual_seed(42))
    for part, names in zip((content.train, content.test), wanted, strict=True):
        assert [p.relative_to(base).as_posix() for p in part.paths] == list(names)


def test_tasks_orders_and_sentences(base):
    dataset = read(base, mtil_order="II")
    assert dataset.domains == ORDERS["II"] and dataset.get_offsets(1) == (196, 297)
    assert dataset.class_templates()[0] == list(DOMAINS["cars"].templates)
    assert dataset.class_templates()[-1] == list(DOMAINS["cifar100"].templates)
    few = read(base, task_order="mnist, dtd")
    assert (few.N_TASKS, few.N_CLASSES, few.N_CLASSES_PER_TASK) == (2, 57, [10, 47])
    train, test = few.get_data_loaders()
    images, labels, plain = next(iter(train))
    assert images.shape == plain.shape == (8, 3, 224, 224) and int(test.dataset.targets.max()) == 9
    moved = read(base, task_order="mnist,dtd", custom_task_order=[1, 0])
    assert moved.class_templates()[0] == list(DOMAINS["dtd"].templates) and moved.get_offsets(0) == (0, 47)
    assert ", from aircraft" in refused(base, task_order="mnist,mars")
    assert "at most once" in refused(base, task_order="mnist,mnist")


def test_few_shots():
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1, 2, 0])
    samples = ArraySamples(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), labels)
    for shots in (1, 2, 3):
        few = few_per_class(samples, shots, (0,))
        assert few.targets.bincount().tolist() == [min(shots, n) for n in labels.bincount().tolist()]
        assert torch.equal(labels[few.data.flatten().long()], few.targets)
        assert torch.equal(few.data, few_per_class(samples, shots, (0,)).data)
    assert len({str(few_per_class(samples, 1, (k,)).data.flatten().tolist()) for k in range(9)}) > 1


def test_shots_leave_the_test_sets_alone(base):
    few, more, full = (read(base, task_order="caltech101,mnist", shots=k) for k in (1, 2, 0))
    assert few.samples(True).targets.bincount().tolist() == [1] * 111
    counts = full.samples(True).targets.bincount()
    assert torch.equal(more.samples(True).targets.bincount(), counts.clamp(max=2))
    assert few.fingerprint() != full.fingerprint()
    assert torch.equal(few.samples(False).targets, full.samples(False).targets)
    assert "--shots -1" in refused(base, shots=-1)


def test_coop_lists_and_xtail(tmp_path):
    fabricate.FABRICATORS["xtail"](tmp_path)
    dataset = read(tmp_path, "xtail")
    assert dataset.N_CLASSES == 1100 and "cifar100" not in dataset.domains and dataset.N_TASKS == 10
    assert dataset.split == "coop" and dataset.shots == 16
    names = dataset.get_class_names()
    assert names[100] == "caltech101 kind 0" and len(dataset.contents[1].names) == 100
    assert all("train" in p.name for p in dataset.contents[1].train.paths)
    assert all("test" in p.name for p in dataset.contents[1].test.paths)
    path = tmp_path / DOMAINS["dtd"].coop[0]
    table = json.loads(path.read_text())
    table["train"][3][0] = "../../../secret.jpg"
    path.write_text(json.dumps(table))
    assert "is outside" in refused(tmp_path, name="xtail", task_order="dtd")
    path.write_text(json.dumps({"train": [], "test": []}))
    assert "has 0 classes" in refused(tmp_path, name="xtail", task_order="dtd")
    path.write_text("{")
    text = refused(tmp_path, name="xtail", task_order="dtd")
    assert f"{path} is truncated or corrupt" in text and "KaiyangZhou/CoOp" in text and "prepare_data" not in text
    path.unlink()
    for name in ("xtail", "mtil"):
        text = refused(tmp_path, name=name, task_order="dtd", split="coop")
        assert f"{path} does not exist" in text and "KaiyangZhou/CoOp" in text and "\n" not in text
        assert "prepare_data" not in text and DOMAINS["dtd"].source not in text


@pytest.mark.parametrize("domain", DOMAINS)
def test_absent_data_is_told_in_one_line(domain, tmp_path):
    text = refused(tmp_path, task_order=domain)
    assert str(tmp_path / DOMAINS[domain].place) in text and DOMAINS[domain].source.split("/")[0] in text
    assert "prepare_data.py mtil" in text and list(tmp_path.iterdir()) == []


BROKEN = {
    "aircraft": ("fgvc-aircraft-2013b/data/images_variant_train.txt", "0100000 no such variant\n"),
    "dtd": ("dtd/dtd/labels/train1.txt", "one/two/three\n"),
    "food": ("food-101/meta/train.json", "{"),
    "pets": ("oxford-iiit-pet/annotations/test.txt", "a b\n"),
    "flowers": ("flowers-102/setid.mat", "no matrix"),
    "cars": ("stanford_cars/devkit/cars_train_annos.mat", "no matrix"),
    "sun397": ("SUN397/ClassName.txt", "/a/elsewhere\n"),
    "eurosat": ("eurosat/2750/Extra/x.jpg", ""),
}


@pytest.mark.parametrize("domain", BROKEN)
def test_broken_lists_are_told_in_one_line(domain, tmp_path):
    fabricate.mtil(tmp_path, (domain,))
    name, content = BROKEN[domain]
    fabricate.write(tmp_path / name, content)
    assert "truncated or corrupt" in refused(tmp_path, task_order=domain)


def test_listed_images_must_be_there(tmp_path):
    fabricate.mtil(tmp_path, ("pets",))
    next((tmp_path / "oxford-iiit-pet" / "images").iterdir()).unlink()
    assert "listed but does not exist" in refused(tmp_path, task_order="pets")
    shutil.rmtree(tmp_path / "oxford-iiit-pet" / "annotations")
    assert str(tmp_path / "oxford-iiit-pet") in refused(tmp_path, task_order="pets")


def test_other_counts_than_published_are_warned_of(base):
    with pytest.warns(UserWarning, match="1880 \\+ 1880 are published; scores are not comparable"):
        make(base, task_order="dtd").check_samples()


# scores


@pytest.mark.parametrize("way", metrics.CROSS_DOMAIN)
def test_transfer_average_last_by_hand(way):
    scores = metrics.summary({way: [[80, 50, 40], [70, 90, 45], [60, 85, 95]]})
    assert scores == pytest.approx({f"{way}_transfer": 46.25, f"{way}_avg": 615 / 9, f"{way}_last": 80.0})


def test_largest_gap():
    nan = float("nan")
    assert metrics.largest_gap([[1, 5], [nan, 3]], [[2, nan], [4, 3]]) == 1.0
    assert np.isnan(metrics.largest_gap([[nan]], [[3]]))


@pytest.fixture
def toys():
    with contract.toys():
        yield


def both_ways(toy, future: bool):
    loaders = dict(enumerate(toy.dataset.test_loaders))
    return (f(toy.model, toy.dataset, loaders, future) for f in (evaluate.evaluate_tasks, evaluate.evaluate_mixed))


@pytest.mark.parametrize("future", [False, True])
def test_mixed_batches_change_nothing_for_a_method_of_single_images(toys, future):
    toy = contract.run("clip")
    toy.args.eval_batch_size = 4
    toy.dataset.c_task = 1  # the third task counts as one to come
    toy.model._n_seen_classes = 5
    plain, mixed = both_ways(toy, future)
    for t in range(3 if future else 2):
        assert mixed[t].count == plain[t].count > 0
        names = ["task_il"] + ["class_il"] * (t < 2) + ["all_names"] * future
        assert [getattr(mixed[t], n) for n in names] == [getattr(plain[t], n) for n in names], t


def test_mixed_batches_find_a_method_that_reads_the_batch_out(toys):
    """It names the task by a vote of the batch, which is right as long as a batch holds one domain."""
    toy = contract.run("ncm")
    forward, offsets = toy.model.forward, [toy.dataset.get_offsets(t) for t in range(3)]

    def by_vote(x):
        outputs = forward(x)
        best = outputs.argmax(1)
        first, last = max(offsets, key=lambda o: int(((best >= o[0]) & (best < o[1])).sum()))
        return evaluate.only_columns(outputs, first, last)

    plain, mixed = both_ways(toy, False)
    assert [s.class_il for s in plain.values()] == [s.class_il for s in mixed.values()]
    toy.model.forward = by_vote
    toy.args.eval_batch_size = 9
    plain, mixed = both_ways(toy, False)
    gaps = [
        abs(a.percent("class_il") - b.percent("class_il")) for a, b in zip(plain.values(), mixed.values(), strict=True)
    ]
    assert max(gaps) > 5


def test_mixed_batches_hold_several_data_sets_in_an_order_of_the_seed(toys):
    toy = contract.run("ncm")
    toy.args.eval_batch_size = 6
    loaders = dict(enumerate(toy.dataset.test_loaders))
    first, again = (list(evaluate.mixed_batches(toy.model, loaders, toy.args)) for _ in range(2))
    mixed = torch.cat([labels for _, labels in first])
    whole = torch.cat([loader.dataset.targets for loader in loaders.values()])
    assert torch.equal(mixed.sort().values, whole.sort().values) and len(first) > 2
    tasks = torch.bucketize(mixed, torch.tensor([toy.dataset.get_offsets(t)[1] for t in loaders]), right=True)
    assert (tasks.diff() != 0).sum() > 2 * len(loaders), "they alternate"
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    toy.args.seed += 1
    assert not torch.equal(
        mixed, torch.cat([labels for _, labels in evaluate.mixed_batches(toy.model, loaders, toy.args)])
    )


def test_mixed_batches_need_tasks_with_classes_of_their_own(toys):
    with pytest.raises(UserError, match="--mixed_batches 1 needs tasks with classes of their own"):
        contract.run("sgd", "toy-domain-il", mixed_batches=1)


# end to end


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as OpenAI's, with a smaller ViT."""
    path = tmp_path_factory.mktemp("weights") / "small.pt"
    torch.save(openai_state(random_clip(vision_layers=1, transformer_layers=1, context_length=77)), path)
    return path


def launch(base, weights, results, *more) -> list[dict]:
    argv = [
        "--dataset",
        "mtil",
        "--clip_backbone",
        str(weights),
        "--seed",
        "0",
        "--base_path",
        str(base),
        *more,
        "--results_path",
        str(results),
        "--non_verbose",
        "1",
        "--device",
        "cpu",
    ]
    assert main.main(argv) == 0
    return newest_record(results)


def test_all_eleven_end_to_end(base, weights, tmp_path):
    rows = launch(base, weights, tmp_path, "--model", "clip")
    tasks, summary = [row for row in rows if row["type"] == "task"], rows[-1]["summary"]
    assert len(tasks) == 11 and rows[-1]["status"] == "done"
    matrices = {n: np.array([t["scores"][n] for t in tasks], dtype=float) for n in ("task_il", "all_names")}
    for name, way in (("task_il", "mtil"), ("all_names", "xtail")):
        R = matrices[name]
        assert R.shape == (11, 11) and not np.isnan(R).any() and (R == R[0]).all(), "nothing is trained"
        assert summary[f"{way}_last"] == pytest.approx(R[0].mean()) == pytest.approx(summary[f"{way}_avg"])
        assert summary[f"{way}_transfer"] == pytest.approx(R[0, 1:].mean())
    assert summary["xtail_last"] <= summary["mtil_last"]
    assert any("are published" in str(row) for row in rows if row["type"] == "warning")


def test_mulki_end_to_end(base, weights, tmp_path):
    rows = launch(
        base,
        weights,
        tmp_path,
        "--model",
        "mulki",
        "--image_cache",
        "1",
        "--n_iters",
        "2",
        "--fitting_mode",
        "iters",
        "--batch_size",
        "4",
        "--avg_freq",
        "1",
        "--cache_teacher",
        "1",
        "--lr",
        "0.001",
        "--test_templates",
        "first",
    )
    R = np.array([row["scores"]["task_il"] for row in rows if row["type"] == "task"], dtype=float)
    assert R.shape == (11, 11) and not np.isnan(R).any() and (R != R[0]).any(), (
        "domains not yet trained are scored, too"
    )
    above = [R[:j, j].mean() for j in range(1, 11)]
    assert rows[-1]["summary"]["mtil_transfer"] == pytest.approx(np.mean(above))
    assert list(tmp_path.rglob("*.png")), "a heat map"


@pytest.mark.parametrize("model", ["finetune-clip", "zscl"])
def test_tuned_on_three_with_mixed_batches(model, base, weights, tmp_path):
    more = ["--reference", "synthetic", "--n_reference", "8", "--reference_batch", "4"] if model == "zscl" else []
    rows = launch(
        base,
        weights,
        tmp_path,
        "--model",
        model,
        "--task_order",
        "mnist,eurosat,pets",
        "--mixed_batches",
        "1",
        "--n_iters",
        "2",
        "--fitting_mode",
        "iters",
        "--batch_size",
        "4",
        *more,
    )
    summary = rows[-1]["summary"]
    for end in ("transfer", "avg", "last"):
        for way in ("mtil", "xtail"):
            assert summary[f"mixed_{way}_{end}"] == pytest.approx(summary[f"{way}_{end}"], abs=2)
    assert summary["mixed_gap"] < 5
