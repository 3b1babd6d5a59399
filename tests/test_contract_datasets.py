"""The contract of datasets: named checks, run for every registered dataset on files fabricated in its real layout.

A new dataset needs one line in tests/contract.py: what writes its files.
"""

import socket
import urllib.request
from argparse import Namespace

import pytest
import torch

from datasets import get_dataset, get_dataset_class
from tests.contract import FABRICATORS
from utils import cli
from utils.cli import registry
from utils.errors import UserError
from utils.pair import Pair
from utils.settings import SETTINGS, SPLIT_SETTINGS

NAMES = sorted(registry.index("dataset"))
FEW = 6  # images in a batch where they are transformed
WORLD: dict[str, tuple] = {}  # name -> (base path, flags), filled once


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A download is an error, not something slow."""

    connect = socket.socket.connect

    def refuse(*args, **kwargs):
        raise AssertionError(f"tried to reach the network: {args}")

    def only_inside(self, address):  # worker processes talk through sockets that are files
        return connect(self, address) if self.family == socket.AF_UNIX else refuse(address)

    monkeypatch.setattr(socket.socket, "connect", only_inside)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def make(request, tmp_path_factory):
    """make(**flags): the dataset under test, on its fabricated files."""
    name = request.node.callspec.params["name"]
    if name not in FABRICATORS:
        pytest.fail(f"dataset '{name}' has no line in FABRICATORS (tests/contract.py): add what writes its files")
    if name not in WORLD:
        base = tmp_path_factory.mktemp(name)
        own = FABRICATORS[name](base) or {}
        WORLD[name] = base, own, any(base.iterdir())
    base, own, needs_files = WORLD[name]

    def build(**flags):
        defaults = get_dataset_class(name).DEFAULTS
        given = {
            "dataset": name,
            "base_path": str(base),
            "seed": 0,
            "batch_size": defaults.get("batch_size"),
            **own,
            **flags,
        }
        return get_dataset(Namespace(**given))

    build.needs_files = needs_files
    return build


def first_images(inputs) -> torch.Tensor:
    return inputs.image if isinstance(inputs, Pair) else inputs


# the checks


def described(name, make):
    entry, cls = registry.index("dataset")[name], get_dataset_class(name)
    assert len(entry.line.split()) >= 3, "the file's first docstring line says what the stream is"
    assert registry.canonical(cls.NAME) == name and cls.SETTING in SETTINGS and entry.setting == cls.SETTING
    assert {"batch_size", "n_epochs", "backbone"} <= set(cls.DEFAULTS)
    assert registry.exists("backbone", str(cls.DEFAULTS["backbone"]).partition(":")[0])  # timm:<model> is of timm


def constructs_from_the_command_line(name, make):
    from utils.cli import signatures

    parser = cli.new_parser()
    signatures.add_arguments(parser, get_dataset_class(name), name)
    dataset = make()
    assert dataset.c_task == -1 and dataset.train_loader is None and dataset.test_loaders == []
    assert dataset.N_TASKS >= 1 and dataset.N_CLASSES >= 2


def tasks_partition_the_classes(name, make):
    dataset = make()
    split, end_before = dataset.SETTING in SPLIT_SETTINGS, 0
    for task in range(dataset.N_TASKS):
        train, test = dataset.get_data_loaders()
        first, end = dataset.get_offsets(task)
        assert dataset.get_offsets() == (first, end)
        assert (first, end) == ((end_before, end) if split else (0, dataset.N_CLASSES)) and first < end
        end_before = end
        for loader in (train, test):
            labels = loader.dataset.targets.unique()
            assert int(labels.min()) >= first and int(labels.max()) < end, f"task {task}"
            assert not split or len(labels) == end - first, f"task {task} lacks a class"
        assert (
            dataset.train_loader is train and dataset.test_loaders[-1] is test and len(dataset.test_loaders) == task + 1
        )
    assert dataset.get_offsets(dataset.N_TASKS - 1)[1] == dataset.N_CLASSES


def items_have_the_declared_form(name, make):
    dataset = make(batch_size=FEW)
    train, test = dataset.get_data_loaders()
    inputs, labels, plain, *_ = next(iter(train))
    test_inputs, test_labels, *_ = next(iter(test))
    size = tuple(dataset.SIZE)
    for images in (first_images(inputs), first_images(plain), first_images(test_inputs)):
        assert images.dtype == torch.float32 and images.dim() == 4
        assert images.shape[1] in {1, 3} and tuple(images.shape[2:]) == size
        assert images.isfinite().all()
    assert 0 <= float(first_images(plain).min()) and float(first_images(plain).max()) <= 1, (
        "not augmented: plain [0, 1]"
    )
    assert labels.dtype == test_labels.dtype == torch.int64 and len(labels) == len(inputs) == len(plain)
    assert len(labels) <= dataset.get_batch_size()


def workers_change_nothing(name, make):
    passes = []
    for workers in (0, 1):
        train, test = make(num_workers=workers, batch_size=FEW).get_data_loaders()
        torch.manual_seed(workers)
        batches = [next(iter(train)), next(iter(test))]
        passes.append([torch.as_tensor(first_images(part)) for batch in batches for part in batch])
    assert all(torch.equal(a, b) for a, b in zip(*passes, strict=True))


def names_and_templates(name, make):
    dataset = make()
    names = dataset.get_class_names()
    assert len(names) == dataset.N_CLASSES and all(isinstance(n, str) and n.strip() for n in names)
    told_by = list(zip(names, map(tuple, dataset.class_templates()), strict=True))
    assert len(set(told_by)) == len(names), (
        "two classes of one name and one set of sentences cannot be told apart by text"
    )
    templates = dataset.get_prompt_templates()
    assert templates and all(t.count("{}") == 1 for t in templates)


def transforms_belong_together(name, make):
    dataset = make()
    normalize, inverse = dataset.get_normalization_transform(), dataset.get_denormalization_transform()
    assert (normalize is None) == (inverse is None)
    if normalize is not None:
        image = torch.rand(len(normalize.mean), 4, 4, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(inverse(normalize(image)), image)


def fingerprint_tells_the_data(name, make):
    first, again = make().fingerprint(), make().fingerprint()
    assert first == again and isinstance(first, str) and len(first) == 64


def one_task_too_many(name, make):
    dataset = make()
    for _ in range(dataset.N_TASKS):
        dataset.get_data_loaders()
    with pytest.raises(UserError, match="there is no task"):
        dataset.get_data_loaders()


def missing_data_is_told(name, make, tmp_path):
    if not make.needs_files:
        pytest.skip("the stream is made in memory")
    absent = tmp_path / "nothing here"
    flags = {k: str(absent) for k, v in WORLD[name][1].items() if str(WORLD[name][0]) in str(v)}  # the paths it takes
    with pytest.raises(UserError) as error:
        make(base_path=str(absent), **flags).get_data_loaders()
    text = str(error.value)
    assert str(absent) in text and "\n" not in text
    assert flags or ("prepare_data.py" in text and " from " in text), "path, source and the command that fetches it"
    assert not absent.exists()


CHECKS = [
    described,
    constructs_from_the_command_line,
    tasks_partition_the_classes,
    items_have_the_declared_form,
    workers_change_nothing,
    names_and_templates,
    transforms_belong_together,
    fingerprint_tells_the_data,
    one_task_too_many,
    missing_data_is_told,
]


@pytest.mark.filterwarnings("ignore:.*not comparable", "ignore:This DataLoader will create")
@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_contract(name, check, make, tmp_path):
    check(name, make, tmp_path) if check.__code__.co_argcount == 3 else check(name, make)
