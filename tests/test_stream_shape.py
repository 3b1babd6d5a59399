"""Sizes of tasks, parts of classes and of images, long tails and blurry tasks: laws, hand counts, idle flags."""

import hashlib
import random

import numpy as np
import pytest
import torch

from datasets.utils import stream_shape as shape
from datasets.utils.stream_views import resize_to
from tests.toys import ToyDomains, ToyStream, toy_args
from utils.cli import parser as cli_parser
from utils.cli.stream_flags import two_percents
from utils.errors import UserError


def stream(cls=ToyStream, **flags):
    return cls(toy_args(**flags))


def rows_of(dataset):
    """Rows and labels of the training images and test images of each task."""
    tasks = []
    for _ in range(dataset.N_TASKS):
        train, test = dataset.get_data_loaders()
        tasks.append((train.dataset.rows, train.dataset.targets, test.dataset.targets))
    return tasks


def short(order):
    return hashlib.sha256(",".join(map(str, order)).encode()).hexdigest()[:12]


ORDERS = [  # name, n, first items, hash: of the published lists, from the notes about each protocol
    ("perm1993", 100, [68, 56, 78, 8, 23, 84, 90, 65, 74, 76], "997a048a5344"),
    ("perm1993", 200, [168, 136, 51, 9, 183], "1d364b99a591"),
    ("perm1993", 300, [169, 221, 146, 296, 92], "18613efa7667"),
    ("perm1993", 196, [59, 134, 162, 9, 42], "124a81ac3a00"),
    ("perm1993", 10, [4, 2, 7, 6, 0, 3, 5, 8, 9, 1], "2670e10e311e"),
    ("icarl", 100, [87, 0, 52, 58, 44, 91, 68, 97, 51, 15], "62e36f48cf4f"),
    ("rapf-cub200", 200, [110, 54, 8, 122, 168], "ab4c71b3406c"),
    ("rapf-imagenet-r", 200, [29, 75, 18, 9, 62], "e8ece42ce00b"),
    ("shuffle0", 200, [131, 181, 22, 172, 144], "b0c978e9a0ad"),
    ("shuffle0", 100, [23, 8, 11, 7, 48], None),
    ("natural", 4, [0, 1, 2, 3], None),
]


@pytest.mark.parametrize(("name", "n", "first", "digest"), ORDERS)
def test_published_orders(name, n, first, digest):
    order = shape.order_list(name, n)
    assert order[: len(first)] == first and sorted(order) == list(range(n))
    assert digest is None or short(order) == digest


def test_the_two_directions_of_a_list():
    """By index the first task is the first items of the list; by value it is where the list has the small numbers."""
    listed = [4, 2, 0, 1, 3, 5]
    by_index = shape.list_order(toy_args(class_order_list="perm7"), 6)
    order = shape.order_list("perm7", 6)
    assert [int(by_index[raw]) for raw in order] == list(range(6))
    by_value = shape.list_order(toy_args(class_order_list="perm7", class_order_direction="value"), 6)
    assert by_value.tolist() == order and by_index.tolist() != order
    dataset = stream(custom_class_order=listed)
    assert dataset.get_class_names()[:3] == ["4", "2", "0"]


def test_seed_1993_on_cifar_begins_with_road():
    """PyCIL's direction: raw class 68 is label 0; Mammoth's flags give another first task."""
    order = shape.list_order(toy_args(class_order_list="perm1993"), 100)
    assert np.argsort(order)[:5].tolist() == [68, 56, 78, 8, 23] and order[68] == 0 and order[0] == 69
    other = np.random.RandomState(1993).permutation(100)  # --permute_classes 1 --class_order_seed 1993
    assert np.argsort(other)[:5].tolist() == [69, 23, 57, 12, 89]


def test_a_list_from_a_file_and_what_is_wrong_with_one(tmp_path):
    good, bad, words = tmp_path / "a.txt", tmp_path / "b.txt", tmp_path / "c.txt"
    good.write_text("2, 0\n1")
    bad.write_text("0 0 1")
    words.write_text("zero one")
    assert shape.order_list(str(good), 3) == [2, 0, 1]
    for name, told in ((bad, "each of 0..2 once"), (words, "not a list of integers"), ("perm", "no such list")):
        with pytest.raises(UserError, match=told):
            shape.order_list(str(name), 3)


@pytest.mark.parametrize(
    ("first", "each", "n", "sizes"),
    [
        (5, 3, 12, [5, 3, 3, 1]),
        (None, 5, 12, [5, 5, 2]),
        (50, 10, 100, [50] + [10] * 5),
        (6, None, 6, [6]),
        (4, 1, 6, [4, 1, 1]),
    ],
)
def test_sizes_of_tasks(first, each, n, sizes):
    assert shape.task_sizes(toy_args(first_classes=first, classes_per_task=each), n, [2, 4]) == sizes


def test_tasks_partition_classes_and_images():
    dataset, plain = stream(first_classes=1, classes_per_task=2), stream()
    assert dataset.N_TASKS == 4 and dataset.N_CLASSES_PER_TASK == [1, 2, 2, 1]
    tasks = rows_of(dataset)
    assert [t.unique().tolist() for _, t, _ in tasks] == [[0], [1, 2], [3, 4], [5]]
    rows = torch.cat([r for r, _, _ in tasks])
    assert sorted(rows.tolist()) == list(range(len(plain.samples(True))))
    assert stream(classes_per_task=3).N_CLASSES_PER_TASK == 3


def test_idle_flags_leave_the_stream_as_it_is():
    plain, idle = stream(), stream(shots=0, imbalance=1.0, first_classes=None, classes=None, blurry=None)
    assert plain.fingerprint() == idle.fingerprint()
    for a, b in zip(rows_of(plain), rows_of(idle), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    many = rows_of(stream(shots=1000))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(many, rows_of(stream()), strict=True))


@pytest.mark.parametrize(
    "flags",
    [
        {"shots": 3},
        {"imbalance": 4.0},
        {"blurry": (50, 20)},
        {"classes": "first:4"},
        {"first_classes": 2},
        {"imbalance": 4.0, "imbalance_shuffle": True},
    ],
)
def test_shapes_are_in_the_fingerprint_and_follow_the_seed(flags):
    prints = [stream(**flags).fingerprint() for _ in range(2)]
    assert prints[0] == prints[1] != stream().fingerprint()
    a, b = rows_of(stream(**flags)), rows_of(stream(**flags))
    assert all(torch.equal(x[0], y[0]) for x, y in zip(a, b, strict=True))
    if set(flags) & {"shots", "blurry"}:
        others = [rows_of(stream(**flags, seed=seed)) for seed in range(1, 6)]
        assert any(not torch.equal(a[0][0], other[0][0]) for other in others)


def test_shots_keep_so_many_of_each_class():
    dataset = stream(shots=3, custom_class_order=[5, 4, 3, 2, 1, 0])
    for _, labels, tests in rows_of(dataset):
        assert labels.bincount()[labels.unique()].tolist() == [3] * len(labels.unique())
        assert tests.bincount()[tests.unique()].tolist() == [4] * len(tests.unique())
    seeds = [rows_of(stream(shots=2, shots_seed=s))[0][0].tolist() for s in (1, 1, 2, 3)]
    assert seeds[0] == seeds[1] and seeds[0] not in seeds[2:]


def test_the_long_tail_by_hand():
    """Classes have 7..12 images; rank r of 6 keeps floor(n r^...): ratio 32 is a factor of 2 from class to class."""
    counts = torch.cat([labels for _, labels, _ in rows_of(stream(imbalance=32.0))]).bincount().tolist()
    assert counts == [7, 4, 2, 1, 1, 1]  # 7, 8/2, 9/4, 10/8, 11/16 -> 1, 12/32 -> 1
    shuffled = torch.cat([labels for _, labels, _ in rows_of(stream(imbalance=32.0, imbalance_shuffle=True))])
    assert shuffled.bincount().min() == 1 and shuffled.bincount().tolist() != counts


def test_the_tail_follows_the_order_of_the_stream():
    counts = torch.cat([t for _, t, _ in rows_of(stream(imbalance=32.0, custom_class_order=[5, 4, 3, 2, 1, 0]))])
    assert counts.bincount().tolist() == [12, 5, 2, 1, 1, 1]


def test_blurry_tasks():
    """Half of the classes stay; the others leave a fifth of their images to the other two tasks; nothing is lost."""
    dataset = stream(blurry=(50, 20))
    assert dataset.SETTING == "general-continual" and dataset.get_offsets(0) == (0, 6)
    tasks = rows_of(dataset)
    rows = torch.cat([r for r, _, _ in tasks])
    assert sorted(rows.tolist()) == list(range(57))  # 7 + 8 + ... + 12
    own = [0, 0, 0, 1, 2, 2]
    moved = [0] * 6
    for task, (_, labels, tests) in enumerate(tasks):
        assert {own[c] for c in tests.tolist()} == {task}
        for c in labels.tolist():
            moved[c] += own[c] != task
    expected = [round((7 + c) * 0.2) for c in range(6)]
    assert all(m in (0, e) for m, e in zip(moved, expected, strict=True)) and sum(m > 0 for m in moved) == 3


def test_blurry_images_go_to_all_other_tasks():
    labels = torch.zeros(40, dtype=torch.long)
    task = shape.blurred_tasks(toy_args(blurry=(0, 30)), labels, torch.ones(40, dtype=torch.bool), [1, 1, 1, 1], "x")
    assert task.bincount().tolist() == [28, 4, 4, 4]


def test_a_part_of_the_classes(tmp_path):
    dataset = stream(classes="first:4", classes_per_task=2, class_order_list="perm5")
    assert (dataset.N_CLASSES, dataset.N_TASKS) == (4, 2)
    names = dataset.get_class_names()
    assert names == [str(raw) for raw in shape.order_list("perm5", 4)]
    tasks = rows_of(dataset)
    raw = dataset.samples(True).targets
    for rows, labels, _ in tasks:
        assert [names[c] for c in labels.tolist()] == [str(c) for c in raw[rows].tolist()]
    assert sum(len(r) for r, _, _ in tasks) == 7 + 8 + 9 + 10
    listed = tmp_path / "names.txt"
    listed.write_text("5\n1\n")
    assert stream(classes=str(listed)).get_class_names() == ["1", "5"]


BAD = [
    ({"classes": "first:7"}, "first:1 to first:6"),
    ({"classes": "nowhere.txt"}, "a file with one class name per line"),
    ({"first_classes": 7}, "more than the 6 classes"),
    ({"classes_per_task": 9}, "more than the 6 classes"),
    ({"shots": 2, "imbalance": 2.0}, "use one"),
    ({"imbalance_shuffle": True}, "needs --imbalance"),
    ({"shots_seed": 1}, "needs --shots"),
    ({"class_order_direction": "value"}, "needs --class_order_list"),
    ({"class_order_list": "icarl"}, "each of 0..5 once"),
    ({"class_order_list": "perm1", "permute_classes": True}, "not several"),
    ({"blurry": (50, 10), "joint": True}, "contradict"),
    ({"blurry": (50, 10), "classes_per_task": 6}, "two tasks"),
    ({"custom_task_order": [1, 0, 2], "classes_per_task": 2}, "contradict"),
]


@pytest.mark.parametrize(("flags", "told"), BAD)
def test_shapes_that_do_not_fit_are_refused(flags, told):
    with pytest.raises(UserError, match=told) as error:
        stream(**flags)
    assert len(str(error.value).splitlines()) == 1


def test_domains_are_not_split_anew():
    with pytest.raises(UserError, match="it is domain-il"):
        stream(ToyDomains, classes_per_task=2)

    class Mtil(ToyStream):
        MTIL = True

    with pytest.raises(UserError, match="its tasks are domains"):
        stream(Mtil, first_classes=2)


def test_a_list_with_a_strange_name_is_refused(tmp_path):
    listed = tmp_path / "names.txt"
    listed.write_text("5\nno such class\n")
    with pytest.raises(UserError, match="has no class 'no such class'"):
        stream(classes=str(listed))


@pytest.mark.parametrize("text", ["50", "101,5", "50,0", "a,b", "50,100"])
def test_blurry_needs_two_percentages(text):
    with pytest.raises(Exception, match="N,M in percent"):
        two_percents(text)
    assert two_percents("50,10") == (50, 10)


def test_squash_keeps_both_ends_of_a_wide_image():
    from PIL import Image
    from torchvision import transforms as T

    wide = Image.new("RGB", (80, 40), "black")
    wide.paste("red", (0, 0, 8, 40))
    wide.paste("blue", (72, 0, 80, 40))
    squashed, cut = (T.Compose(resize_to(kind, (20, 20)))(wide) for kind in ("squash", "shorter"))
    assert squashed.size == cut.size == (20, 20)
    assert squashed.getpixel((0, 10))[0] > 200 and squashed.getpixel((19, 10))[2] > 200
    assert max(cut.getpixel((0, 10))) < 50 and max(cut.getpixel((19, 10))) < 50
    (first, _) = resize_to("crop", (224, 224))
    assert first.size == 256


def test_views_of_a_stream():
    dataset = stream(templates=["a {} x.", "the {} x."], underscores=True, image_transform="squash")
    assert dataset.get_prompt_templates() == ["a {} x.", "the {} x."] and len(dataset.class_templates()) == 6
    dataset.CLASS_NAMES = ["a b", "c", "d", "e", "f", "g"]
    assert dataset.get_class_names()[0] == "a_b"
    train, _ = dataset.get_data_loaders()
    inputs, _, plain = next(iter(train))
    assert torch.equal(inputs, plain), "squash does not augment"


def test_merged_names_count_as_one_answer():
    dataset = stream(merge_names=True)
    dataset.CLASS_NAMES = ["lamp", "cup", "lamp", "key", "crab", "cup"]
    outputs = torch.eye(6)[[2, 1, 3, 5, 0]]
    labels = torch.tensor([0, 1, 4, 1, 2])
    assert dataset.score(outputs, labels, {}).tolist() == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert dataset.name_groups().tolist() == [0, 1, 0, 3, 4, 1]
    plain = stream()
    plain.CLASS_NAMES = dataset.CLASS_NAMES
    assert plain.score(outputs, labels, {}).tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]


def test_the_flags_are_flags_of_every_command():
    known = {a.dest for a in cli_parser.new_parser()._actions}
    assert set(shape.SHAPE_FLAGS) | {"class_order_list", "templates", "probe", "merge_names"} <= known


def test_python_shuffle_is_pythons():
    order = list(range(30))
    random.Random(3).shuffle(order)
    assert shape.order_list("shuffle3", 30) == order
