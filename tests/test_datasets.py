"""Streams over fabricated files: counts, orders, deterministic batches, labels, domains."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as TF

from datasets import get_dataset, get_dataset_class
from datasets.utils.labels import symmetric_noise, unlabelled, validation_mask
from datasets.utils.loaders import Split
from datasets.utils.samples import ArraySamples, FileSamples
from tests import fabricate
from tests.toys import ToyDomains, ToyStream, toy_args
from utils.cli import configs
from utils.randomness import generator

pytestmark = pytest.mark.filterwarnings("ignore:.*published ones")
# name -> tasks, classes of a task, image shape, training and test images of the fabricated files
SETS = {
    "seq-mnist": (5, 2, (1, 28, 28), 300, 100),
    "perm-mnist": (20, 10, (1, 28, 28), 300, 100),
    "rot-mnist": (20, 10, (1, 28, 28), 300, 100),
    "seq-cifar10": (5, 2, (3, 32, 32), 200, 100),
    "seq-cifar100": (10, 10, (3, 32, 32), 400, 200),
    "seq-folder": (3, [2, 1, 1], (3, 16, 16), 20, 12),
}
FOLDERS = ["ant", "big_cat", "cow", "dog"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    base = tmp_path_factory.mktemp("sets")
    fabricate.mnist(base, 300, 100)
    fabricate.cifar10(base, 200, 100)
    fabricate.cifar100(base, 400, 200)
    fabricate.image_folder(base / "pictures", FOLDERS, n_train=5, n_test=3)
    return base


@pytest.fixture
def make(base):
    def build(name: str, **options):
        given = {
            "seed": 0,
            "base_path": str(base),
            "folder_path": str(base / "pictures"),
            "n_tasks": 3,
            "image_size": 16,
        }
        return get_dataset(Namespace(dataset=name, **(given | options)))

    return build


def tasks_of(dataset) -> list[tuple]:
    """(training split, test split) of every task."""
    loaders = [dataset.get_data_loaders() for _ in range(dataset.N_TASKS)]
    return [(train.dataset, test.dataset) for train, test in loaders]


def same(a, b) -> bool:
    batches = list(zip(a, b, strict=True))
    return len(batches) > 0 and all(torch.equal(x, y) for one, two in batches for x, y in zip(one, two, strict=True))


@pytest.mark.parametrize("name", SETS)
def test_counts_shapes_and_labels(make, name):
    n_tasks, per_task, shape, n_train, n_test = SETS[name]
    dataset = make(name)
    sizes = per_task if isinstance(per_task, list) else [per_task] * n_tasks
    domain = dataset.SETTING == "domain-il"
    total = sizes[0] if domain else sum(sizes)
    assert dataset.N_TASKS == n_tasks and dataset.N_CLASSES == total == len(dataset.get_class_names())
    train_loader, test_loader = dataset.get_data_loaders()
    first = 0
    for task in range(n_tasks):
        if task:
            train_loader, test_loader = dataset.get_data_loaders()
        end = total if domain else first + sizes[task]
        share = 1 if domain else sizes[task] / total
        assert dataset.get_offsets() == (0 if domain else first, end)
        assert len(train_loader.dataset) == n_train * share and len(test_loader.dataset) == n_test * share
        for split in (train_loader.dataset, test_loader.dataset):
            assert split.targets.unique().tolist() == list(range(0 if domain else first, end))
        first = first if domain else end
    image, label, plain = next(iter(train_loader))
    assert image.shape == plain.shape == (len(label), *shape) and image.dtype == plain.dtype == torch.float32
    assert 0 <= float(plain.min()) and float(plain.max()) <= 1
    assert len(next(iter(test_loader))) == 2
    assert dataset.get_batch_size() == dataset.DEFAULTS["batch_size"]


def test_class_names_and_published_values(make):
    cifar = make("seq-cifar10")
    assert cifar.get_class_names()[:2] == ["airplane", "automobile"] and cifar.get_class_names()[9] == "truck"
    assert make("seq-folder").get_class_names() == ["ant", "big cat", "cow", "dog"]
    hundred = make("seq-cifar100")
    names = hundred.get_class_names()
    assert len(set(names)) == 100 and (names[0], names[1], names[99]) == ("apple", "aquarium fish", "worm")
    for a, b in (("beaver", "dolphin"), ("whale", "beaver"), ("lawn mower", "rocket")):
        assert hundred.MISTAKEN_FOR[names.index(a)] == names.index(b)
    assert sorted(hundred.MISTAKEN_FOR) == sorted(hundred.MISTAKEN_FOR.values()) == list(range(100))


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar_pickles_of_every_kind_hold_the_same(tmp_path, base, protocol):
    fabricate.cifar10(tmp_path, 200, 100, protocol=protocol)
    theirs, ours = (
        get_dataset(Namespace(dataset="seq-cifar10", base_path=str(b))).load(True) for b in (tmp_path, base)
    )
    assert torch.equal(theirs.data, ours.data) and torch.equal(theirs.targets, ours.targets)


def test_files_hold_what_was_written(make, base):
    raw = (base / "MNIST" / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    samples = make("seq-mnist").load(True)
    assert samples.data.numpy().tobytes() == raw and samples.data.shape == (300, 1, 28, 28)


def test_mnist_may_lie_one_folder_higher(make, base, tmp_path):
    (tmp_path / "MNIST").symlink_to(base / "MNIST" / "MNIST")
    assert len(make("seq-mnist", base_path=str(tmp_path)).load(False)) == 100


# batches


@pytest.mark.parametrize("name", ["seq-folder", "seq-cifar10"])
def test_a_pass_can_be_repeated_and_entered_anywhere(make, name):
    dataset = make(name, batch_size=4)
    train, test = dataset.get_data_loaders()
    whole = list(train.epoch(3))
    assert same(whole, train.epoch(3)) and same(whole[1:], train.epoch(3, start=1))
    assert same(whole, make(name, batch_size=4).get_data_loaders()[0].epoch(3))
    assert not torch.equal(whole[0][0], list(train.epoch(4))[0][0])
    assert not torch.equal(whole[0][0], list(make(name, batch_size=4, seed=1).get_data_loaders()[0].epoch(3))[0][0])
    shown = torch.cat([label for _, label, _ in whole])
    assert torch.equal(shown.sort().values, train.dataset.targets.sort().values)
    assert same(test, test)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_each_pass_has_an_order_of_its_own():
    loader = ToyStream(toy_args()).get_data_loaders()[0]
    orders = [tuple(loader.order(name).tolist()) for name in (("epoch", 0), ("epoch", 1), ("plain", 1))]
    assert len(set(orders)) == 3 and all(sorted(order) == list(range(len(loader.dataset))) for order in orders)


def test_workers_do_not_change_the_numbers(make):
    passes = []
    for workers in (0, 1, 3):
        train, test = make("seq-folder", batch_size=4, num_workers=workers).get_data_loaders()
        torch.manual_seed(workers)  # the global state must not matter
        passes.append([*train.epoch(1), *[(*batch, torch.zeros(0)) for batch in test]])
    assert same(passes[0], passes[1]) and same(passes[0], passes[2])


def test_random_states_outside_stay_as_they_were(make):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(make("seq-folder").get_data_loaders()[0].epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_batched_crop_and_flip_equal_pillow_with_the_same_numbers(make):
    dataset = make("seq-cifar10", batch_size=16)
    train, test = dataset.get_data_loaders()
    key = (0, "seq-cifar10", 0, "epoch", 2)
    numbers = torch.rand(len(train.dataset), 3, generator=generator(*key, "augment"))
    order, moved = train.order(("epoch", 2)), 0
    images, labels, plain = (torch.cat(column) for column in zip(*train.epoch(2), strict=True))
    for place, position in enumerate(order.tolist()):
        row = int(train.dataset.rows[position])
        picture = TF.to_pil_image(dataset.samples(True).data[row])
        top, left = (min(8, int(v * 9)) for v in numbers[position, :2].tolist())
        crop = TF.crop(TF.pad(picture, 4), top, left, 32, 32)
        crop = TF.hflip(crop) if numbers[position, 2] < 0.5 else crop
        moved += (top, left) != (4, 4)
        torch.testing.assert_close(images[place], TF.normalize(TF.to_tensor(crop), dataset.MEAN, dataset.STD))
        assert torch.equal(plain[place], TF.to_tensor(picture)) and labels[place] == train.dataset.targets[position]
    assert moved > len(order) // 2
    image = dataset.samples(False).data[int(test.dataset.rows[0])].float() / 255
    torch.testing.assert_close(test.dataset[0][0], TF.normalize(image, dataset.MEAN, dataset.STD))


def test_strong_transform_changes_colours_and_reaches_the_model(make):
    strong = make("seq-cifar10", transform_type="strong", batch_size=8)
    assert "ColorJitter" in str(strong.get_transform()) and "ColorJitter" not in str(
        make("seq-cifar10").get_transform()
    )
    train, _ = strong.get_data_loaders()
    batch = next(train.epoch(0))
    assert batch[0].shape == (8, 3, 32, 32) and same(train.epoch(0), train.epoch(0))


def test_drop_last(make):
    train, test = make("seq-cifar10", batch_size=16, drop_last=True).get_data_loaders()
    assert [len(batch[1]) for batch in train.epoch(0)] == [16, 16] and len(train) == 2  # of 40 images
    assert [len(batch[1]) for batch in test] == [16, 4]


# orders


def raw_targets(dataset) -> torch.Tensor:
    return dataset.samples(True).targets


def check_order(dataset, order: np.ndarray) -> None:
    """Labels of every task are order[raw label], and names follow them."""
    names = type(dataset).CLASS_NAMES
    for split, test in tasks_of(dataset):
        for part, samples in ((split, dataset.samples(True)), (test, dataset.samples(False))):
            assert part.targets.tolist() == [order[t] for t in samples.targets[part.rows].tolist()]
    assert all(dataset.get_class_names()[order[raw]] == names[raw] for raw in range(len(order)))


def test_permute_classes_as_numpy_draws_it(make):
    np.random.seed(7)
    expected = np.random.permutation(10)
    check_order(make("seq-cifar10", permute_classes=True, seed=7), expected)
    check_order(make("seq-cifar10", permute_classes=True, seed=1, class_order_seed=7), expected)


def test_custom_class_order_lists_raw_classes(make):
    wanted = [9, 0, 8, 1, 7, 2, 6, 3, 5, 4]
    dataset = make("seq-cifar10", custom_class_order=wanted)
    check_order(dataset, np.argsort(wanted))
    assert dataset.get_class_names()[:2] == ["truck", "airplane"]


def test_custom_task_order_moves_whole_tasks(make):
    dataset = make("seq-folder", custom_task_order=[2, 0, 1])  # tasks of 2, 1 and 1 classes
    assert dataset.N_CLASSES_PER_TASK == [1, 2, 1]
    assert dataset.get_class_names() == ["dog", "ant", "big cat", "cow"]
    assert [len(train) for train, _ in tasks_of(dataset)] == [5, 10, 5]


def test_custom_task_order_of_domains(make):
    order = list(range(19, -1, -1))
    plain, moved = make("perm-mnist"), make("perm-mnist", custom_task_order=order)
    first, _ = moved.get_data_loaders()
    last = tasks_of(plain)[-1][0]
    assert torch.equal(first.dataset.data, last.data)


def test_joint_is_one_task(make):
    dataset = make("seq-cifar10", joint=True)
    ((train, test),) = tasks_of(dataset)
    assert (len(train), len(test), dataset.get_offsets()) == (200, 100, (0, 10))


def test_test_loaders_of_the_future(make):
    dataset = make("seq-cifar10", permute_classes=True)
    dataset.get_data_loaders()
    _, ahead = dataset.all_loaders()
    assert dataset.c_task == 0 and len(dataset.test_loaders) == 1 and len(ahead) == 5
    assert [t.dataset.targets.unique().tolist() for t in ahead] == [[2 * k, 2 * k + 1] for k in range(5)]
    assert same(ahead[0], dataset.test_loaders[0])


# labels


@pytest.mark.parametrize("share, fraction", [(0.3, 0.3), (25, 0.25)])
def test_validation_holds_out_the_ceiling_of_each_class(make, share, fraction):
    dataset, full = make("seq-cifar10", validation=share), make("seq-cifar10")
    for (train, held), (whole, _) in zip(tasks_of(dataset), tasks_of(full), strict=True):
        for label in whole.targets.unique():
            n = int((whole.targets == label).sum())
            assert int((held.targets == label).sum()) == math.ceil(n * fraction)
        assert sorted(train.rows.tolist() + held.rows.tolist()) == whole.rows.tolist()
    final = dataset.final_test_loaders
    assert len(final) == 5 and same(final[-1], full.test_loaders[-1])


def test_validation_complete_holds_all_classes_so_far(make):
    dataset = make("seq-cifar10", validation=0.25, validation_mode="complete")
    assert [t.targets.unique().tolist() for _, t in tasks_of(dataset)] == [list(range(2 * k + 2)) for k in range(5)]


def test_symmetric_noise_is_exact_and_never_the_own_class(make):
    clean, noisy = make("seq-cifar100"), make("seq-cifar100", noise_rate=0.5)
    for (a, _), (b, _) in zip(tasks_of(clean), tasks_of(noisy), strict=True):
        assert torch.equal(a.targets, b.true_labels) and torch.equal(a.rows, b.rows)
        for label in a.targets.unique():
            own = a.targets == label
            assert int((b.targets[own] != label).sum()) == round(int(own.sum()) * 0.5)
    batch = next(noisy.train_loader.epoch(0))
    assert len(batch) == 4 and noisy.train_loader.dataset.extra_return_fields == ["true_labels"]


@pytest.mark.parametrize("permute", [False, True])
def test_asymmetric_noise_follows_the_table(make, permute):
    dataset = make("seq-cifar10", noise_rate=0.4, noise_type="asymmetric", permute_classes=permute)
    names, wrong = dataset.get_class_names(), set()
    for train, _ in tasks_of(dataset):
        pairs = zip(train.true_labels.tolist(), train.targets.tolist(), strict=True)
        seen = [(names[a], names[b]) for a, b in pairs if a != b]
        wrong |= set(seen)
        assert len(seen) == 8 * len({a for a, _ in seen})  # 0.4 of 20 images
    assert wrong == {("truck", "automobile"), ("bird", "airplane"), ("cat", "dog"), ("dog", "cat"), ("deer", "horse")}


@pytest.mark.parametrize("flag", ["label_perc", "label_perc_by_class"])
def test_label_percentages(make, flag):
    for train, _ in tasks_of(make("seq-cifar10", **{flag: 0.25})):
        kept = train.targets[train.targets != -1]
        assert sorted(torch.bincount(kept)[kept.unique()].tolist()) == [5, 5] and len(train) == 40


# files and configurations


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_list_gives_the_same_as_its_folder(make, base, ending):
    path = fabricate.image_list(base / "pictures" / f"list.{ending}", fabricate.rows_of(base / "pictures"))
    folder, listed = make("seq-folder"), make("seq-folder", folder_path=str(path))
    for _ in range(3):
        (train, test), (train2, test2) = folder.get_data_loaders(), listed.get_data_loaders()
        assert same(train.epoch(0), train2.epoch(0)) and same(test, test2)


def test_folder_details(make, tmp_path):
    fabricate.image_folder(tmp_path, [str(k) for k in range(12)], 1, 1, splits=("train", "val"))
    (tmp_path / "train" / ".cache").mkdir()
    dataset = make("seq-folder", folder_path=str(tmp_path), n_tasks=5)
    assert dataset.get_class_names() == [str(k) for k in range(12)]  # by value: 2 before 10
    assert dataset.N_CLASSES_PER_TASK == [3, 3, 2, 2, 2]
    train, test = dataset.get_data_loaders()
    image, _, plain = next(iter(train))
    assert image.shape == plain.shape == (3, 3, 16, 16)
    picture = dataset.samples(False).open(int(test.dataset.rows[0]))
    torch.testing.assert_close(test.dataset[0][0], dataset.TEST_TRANSFORM(picture))


def test_configs_change_the_stream(make):
    for name, config, tasks, classes in (
        ("seq-cifar100", "5tasks", 5, 20),
        ("seq-cifar100", "20tasks", 20, 5),
        ("perm-mnist", "10tasks", 10, 10),
    ):
        copy = type("Copy", (get_dataset_class(name),), {})
        configs.dataset_config(copy, config)
        dataset = copy(make(name).args)
        assert (dataset.N_TASKS, dataset.N_CLASSES_PER_TASK, len(tasks_of(dataset))) == (tasks, classes, tasks)
    ((_, values),) = configs.dataset_config(get_dataset_class("seq-cifar10"), "online")
    assert values == {"n_epochs": 1}
    ((_, values),) = configs.dataset_config(get_dataset_class("seq-cifar100"), "noscheduler")
    assert values == {"lr_scheduler": None}


# parts on their own


def test_every_pass_has_an_order_and_an_augmentation_of_its_own(make):
    train, _ = make("seq-cifar10", batch_size=16).get_data_loaders()
    orders = [train.order(("epoch", e)) for e in range(2)]
    assert len({tuple(order.tolist()) for order in [*orders, torch.arange(len(train.dataset))]}) == 3
    first, second = (
        torch.cat([batch[0] for batch in train.epoch(e)])[order.argsort()] for e, order in enumerate(orders)
    )
    moved = (first != second).flatten(1).any(1)  # by image, in the order of the split
    assert moved.float().mean() > 0.9


def test_single_items_have_random_numbers_of_their_own(make):
    split = make("seq-folder").get_data_loaders()[0].dataset
    split.transform = lambda picture: torch.rand(4)
    items = split.items(("a", "key"))
    assert torch.equal(items[0][0], items[0][0]) and not torch.equal(items[0][0], items[1][0])
    assert not torch.equal(items[0][0], split.items(("another", "key"))[0][0])


def test_fields_of_all_samples_follow_the_rows_of_a_split():
    samples = ArraySamples(torch.zeros(6, 1, 2, 2, dtype=torch.uint8), torch.zeros(6), whole=torch.arange(6))
    split = Split(samples, torch.tensor([4, 2]), torch.tensor([0, 0]), None, True)
    split.add_extra_return_field("later", 10 * torch.arange(6))
    split.add_extra_return_field("own", torch.tensor([7, 8]))
    assert [split.whole.tolist(), split.later.tolist(), split.own.tolist()] == [[4, 2], [40, 20], [7, 8]]


def test_files_are_opened_in_color(tmp_path):
    from PIL import Image

    for mode in ("L", "RGBA", "P", "RGB"):
        Image.new(mode, (5, 4)).save(tmp_path / f"{mode}.png")
        assert FileSamples([tmp_path / f"{mode}.png"], [0]).open(0).mode == "RGB"


def test_symmetric_noise_reaches_every_other_class():
    noisy = symmetric_noise(torch.full((4000,), 2), 0.5, 5, seed=0)
    counts = noisy.bincount(minlength=5).tolist()
    assert counts[2] == 2000 and all(abs(counts[c] - 500) < 4 * 500**0.5 for c in (0, 1, 3, 4))


def test_noise_leaves_the_test_labels_alone(make):
    clean, noisy = (make("seq-cifar10", **more) for more in ({}, {"noise_rate": 0.5}))
    for (_, a), (_, b) in zip(tasks_of(clean), tasks_of(noisy), strict=True):
        assert torch.equal(a.targets, b.targets)


def test_labels_that_stay_by_class_and_by_task():
    """Classes of 40, 8 and 2 images, a quarter: 10, 2 and at least 1 by class; 50 / 4 / 3 = 4 of each by task."""
    targets = torch.tensor([0] * 40 + [1] * 8 + [2] * 2)
    by_class, by_task = (unlabelled(targets, 0.25, 3, kind, seed=0) for kind in (True, False))
    assert targets[~by_class].bincount().tolist() == [10, 2, 1]
    assert targets[~by_task].bincount().tolist() == [4, 4, 2]
    assert targets[~unlabelled(targets, 0.01, 3, False, 0)].bincount().tolist() == [1, 1, 1]


def test_the_held_out_part_is_drawn_at_random():
    masks = [validation_mask(torch.zeros(40), 0.25, seed) for seed in range(3)]
    assert all(int(mask.sum()) == 10 for mask in masks)
    assert len({tuple(mask.tolist()) for mask in [*masks, torch.arange(40) < 10]}) == 4
    assert int(validation_mask(torch.zeros(7), 0.3, 0).sum()) == 3  # the ceiling of 2.1


def test_domains_named_by_their_samples_come_in_the_order_asked_for():
    class Named(ToyDomains):
        def load(self, train):
            samples = super().load(train)
            samples.task_ids = torch.arange(len(samples)) % 3 // 2  # a third is of domain 1
            return samples

    for order in ([0, 1], [1, 0]):
        parts = tasks_of(Named(toy_args(custom_task_order=order)))
        for task, (train, test) in zip(order, parts, strict=True):
            assert (train.rows % 3 // 2 == task).all() and (test.rows % 3 // 2 == task).all() and len(train) > 5
