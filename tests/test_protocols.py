"""Presets: their flags exist, their first tasks are the published ones, contradictions are recorded."""

import json

import numpy as np
import pytest

from datasets.utils import stream_shape as shape
from tests.conftest import ROOT
from tests.toys import toy_args
from utils import cli
from utils.cli import protocols, registry, signatures
from utils.cli.listing import listing
from utils.engine import launch
from utils.errors import UserError

PRESETS = [
    (name, dataset, variant)
    for name in protocols.names()
    for dataset, entry in protocols.content(name)["datasets"].items()
    for variant in ((entry or {}).get("variants") or protocols.content(name).get("variants") or [""])
]
# first raw classes of each preset: from the notes about the protocols, not from the files
P100, P200 = [68, 56, 78, 8, 23, 84, 90, 65, 74, 76], [168, 136, 51, 9, 183, 101, 171, 99, 42, 159]
P300, ICARL = [169, 221, 146, 296, 92, 229, 49, 70, 126, 77], [87, 0, 52, 58, 44, 91, 68, 97, 51, 15]
FIRST = {
    ("c3box", "seq-cifar100-224"): (100, P100),
    ("c3box", "seq-cifar100"): (100, P100),
    ("c3box", "seq-cub200"): (200, P200),
    ("c3box", "seq-imagenet-r"): (200, P200),
    ("c3box", "seq-objectnet"): (200, P200),
    ("c3box", "seq-cars100"): (100, P100),
    ("c3box", "seq-ucf101"): (100, P100),
    ("c3box", "seq-aircraft"): (100, P100),
    ("c3box", "seq-food101"): (100, P100),
    ("c3box", "seq-sun300"): (300, P300),
    ("rapf", "seq-cifar100-224"): (100, ICARL),
    ("rapf", "seq-cifar100"): (100, ICARL),
    ("rapf", "seq-cub200"): (200, [110, 54, 8, 122, 168, 136, 42, 139, 193, 46]),
    ("rapf", "seq-imagenet-r"): (200, [29, 75, 18, 9, 62, 46, 133, 54, 89, 24]),
    ("rapf", "seq-imagenet100"): (100, P100),
    ("pilot", "seq-cifar100-224"): (100, P100),
    ("pilot", "seq-imagenet-r"): (200, P200),
    ("pilot", "seq-imagenet-a"): (200, P200),
    ("pilot", "seq-cub200"): (200, P200),
    ("pilot", "seq-objectnet"): (200, P200),
    ("mammoth", "seq-cifar100"): (100, [69, 23, 57, 12, 89, 87, 34, 84, 3, 15]),
    ("mammoth", "seq-cifar100-224"): (100, [69, 23, 57, 12, 89, 87, 34, 84, 3, 15]),
    ("mammoth", "seq-eurosat-rgb"): (10, [4, 9, 1, 5, 0, 6, 3, 2, 7, 8]),
    ("l2p", "seq-cifar100-224"): (100, list(range(10))),
    ("l2p", "seq-imagenet-r"): (200, list(range(10))),
    ("zscl", "seq-cifar100-224"): (100, ICARL),
    ("zscl", "seq-cifar100"): (100, ICARL),
    ("zscl", "seq-tinyimg"): (200, [131, 181, 22, 172, 144, 92, 97, 187, 58, 93]),
}


def raw_order(flags, n, seed=1993):
    """Raw labels in the order of the stream, as a dataset computes it from the flags."""
    args = toy_args(**{"seed": seed, **flags})
    if flags.get("permute_classes"):
        order = np.random.RandomState(args.seed).permutation(n)
    else:
        order = shape.list_order(args, n)
    return np.argsort(order).tolist()


@pytest.mark.parametrize(("name", "dataset"), FIRST, ids="-".join)
def test_first_tasks_are_the_published_ones(name, dataset):
    n, first = FIRST[name, dataset]
    preset = protocols.find(name, dataset)
    order = raw_order(preset.flags, n)
    assert order[: len(first)] == first
    told = preset.first_task
    assert told and order[: len(told)] == told and told[: len(first)] == first[: len(told)]


def test_every_preset_with_an_order_is_in_the_table():
    ordered = {
        (name, dataset)
        for name, dataset, _ in PRESETS
        if name != "tiny" and protocols.find(name, dataset).first_task is not None
    }
    assert ordered == set(FIRST)


def test_the_list_of_the_picture_world_is_the_same_rule():
    order = raw_order(protocols.find("tiny", "seq-tiny").flags, 60)
    assert order == np.random.RandomState(1993).permutation(60).tolist()
    assert protocols.find("tiny", "seq-tiny").first_task == order[:6]


def test_the_cifar_preset_makes_that_first_task(monkeypatch):
    """On the stream itself: the names of the first task are those of raw classes 68, 56, 78, 8, 23."""
    from datasets.seq_cifar100 import NAMES, SequentialCIFAR100

    flags = protocols.find("c3box/bhalf", "seq-cifar100-224").flags
    stream = SequentialCIFAR100(toy_args(**{k: v for k, v in flags.items() if k != "permute_classes"}))
    assert stream.N_CLASSES_PER_TASK == [50, 10, 10, 10, 10, 10]
    names = stream.get_class_names()
    assert (
        names[:5] == [NAMES[raw] for raw in (68, 56, 78, 8, 23)] == ["road", "palm tree", "snake", "bicycle", "cloud"]
    )


def all_flags():
    """Every flag of the framework, of any method, and of any stream or network."""
    known = {a.dest for a in cli.new_parser()._actions}
    for name in registry.index("model"):
        parser = cli.new_parser()
        cli.add_model_args(parser, registry.load("model", name))
        known |= {a.dest for a in parser._actions}
    for kind in ("dataset", "backbone"):
        for name in registry.index(kind):
            parser = cli.new_parser()
            signatures.add_arguments(parser, registry.load(kind, name), name)
            known |= {a.dest for a in parser._actions}
    return known


def test_presets_set_flags_that_exist_on_streams_that_exist():
    """A misspelt flag would be left out in silence, so each must be a flag of something."""
    known = all_flags()
    models = set(registry.index("model"))
    missing = set()
    for name, dataset, variant in PRESETS:
        preset = protocols.find(f"{name}/{variant}" if variant else name, dataset)
        unknown = set(preset.flags) - known
        missing |= {f"--{flag} of protocol {name} on {dataset}" for flag in unknown}
        if not registry.exists("dataset", dataset):
            missing.add(dataset)
    for name in protocols.names():
        found = protocols.content(name)
        assert found["about"] and found["source"]
        assert set(found["table"]["models"]) <= models and all(type(s) is int for s in found["table"]["seeds"])
    assert not missing


def test_hashes_are_stable_and_differ():
    found = [[protocols.find(f"{n}/{v}" if v else n, d).sha256 for n, d, v in PRESETS] for _ in range(2)]
    assert found[0] == found[1] and len(set(found[0])) == len(PRESETS) and {len(h) for h in found[0]} == {12}


def parsed(*argv):
    return cli.parse(["--model", "clip", "--dataset", "seq-tiny", *argv])


def test_a_protocol_sets_defaults_and_tells_their_origin(capsys):
    found = parsed("--protocol", "tiny")
    assert found.args.first_classes == 30 and found.args.classes_per_task == 10
    assert found.origins["first_classes"] == "protocol tiny/bhalf" and found.args.clip_backbone == "tiny"
    assert found.args.protocol == "tiny/bhalf" and found.args.protocol_deviations == {}
    parsed("--protocol", "tiny", "--show_config")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("image_transform")]
    assert line.split() == ["image_transform", "'squash'", "protocol", "tiny/bhalf"]


def test_a_contradicting_flag_is_a_deviation():
    found = parsed("--protocol", "tiny/b0", "--classes_per_task", "12", "--shots", "2", "--seed", "3")
    assert found.args.classes_per_task == 12
    assert found.args.protocol_deviations == {
        "classes_per_task": {"protocol": 6, "given": 12},
        "shots": {"protocol": None, "given": 2},
    }
    assert parsed("--protocol", "tiny/b0", "--classes_per_task", "6").args.protocol_deviations == {}
    preset = launch.preset_of(found.args)
    assert preset["name"] == "tiny/b0" and preset["sha256"] == protocols.find("tiny/b0", "seq-tiny").sha256
    line = protocols.pinned(found.args)
    assert "image_transform squash" in line and line.endswith("deviations: classes_per_task, shots")
    assert launch.preset_of(parsed().args) is None


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--protocol", "tinny"], "Closest: tiny"),
        (["--protocol", "../tiny"], "unknown protocol"),
        (["--protocol", "tiny/half"], "does not have variant 'half' of seq-tiny; it has bhalf, b0"),
        (["--protocol", "c3box"], "does not have data set seq-tiny"),
        (["--protocol", "tiny", "--clip_backbone", "RN50"], "does not allow --clip_backbone RN50; it knows tiny"),
    ],
)
def test_what_a_protocol_refuses(argv, told):
    with pytest.raises(UserError, match=told) as error:
        parsed(*argv)
    assert len(str(error.value).splitlines()) == 1


def test_a_protocol_refuses_a_method_without_its_weights():
    with pytest.raises(UserError, match="is for methods on --vit .* or --backbone .*, which model clip does not read"):
        cli.parse(["--model", "clip", "--dataset", "seq-imagenet-r", "--protocol", "pilot"])


def test_a_broken_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(protocols, "FOLDER", tmp_path)
    for text, told in (
        ("datasets: [a]", "does not list datasets"),
        ("dataset: {}", "unknown key dataset"),
        ("a: [", "yaml"),
    ):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UserError, match=told):
            protocols.find("x", "seq-tiny")


def test_a_changed_list_changes_the_hash(tmp_path, monkeypatch):
    before = protocols.find("rapf", "seq-cub200").sha256
    (tmp_path / "orders").mkdir()
    for path in (protocols.FOLDER / "rapf.yaml", protocols.FOLDER / "orders/rapf-cub200.txt"):
        (tmp_path / path.relative_to(protocols.FOLDER)).write_text(path.read_text())
    monkeypatch.setattr(protocols, "FOLDER", tmp_path)
    assert protocols.find("rapf", "seq-cub200").sha256 == before
    listed = tmp_path / "orders/rapf-cub200.txt"
    listed.write_text(listed.read_text().replace("110 54", "54 110"))
    assert protocols.find("rapf", "seq-cub200").sha256 != before


def test_the_listing_has_every_protocol():
    text = listing("protocols")
    assert text.startswith(f"protocols ({len(protocols.names())})")
    assert all(any(line.split()[0] == name for line in text.splitlines()[1:]) for name in protocols.names())
    assert {"c3box", "rapf", "pilot", "mammoth", "l2p", "zscl", "xtail", "odcl", "vqacl", "clove", "tiny"} <= set(
        protocols.names()
    )
    assert len(listing("protocols", "r*").splitlines()) == 2


def test_a_table_is_what_is_there():
    assert protocols.table("tiny", "models") == ["clip", "ncm"] and protocols.table("tiny", "seeds") == ["0"]
    assert set(protocols.table("tiny", "datasets")) == {"seq-tiny", "mtil-tiny"}


def test_orders_are_lists_of_every_class_once():
    for path in sorted((ROOT / "datasets/protocols/orders").glob("*.txt")):
        order = [int(word) for word in path.read_text().split()]
        assert sorted(order) == list(range(len(order))), path
    assert json.dumps(shape.order_list("icarl", 100)[:3]) == "[87, 0, 52]"
