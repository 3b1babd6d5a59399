"""Crafted checkpoints: a file fills what the program built and never decides which code runs; damage is one line."""

import copy
import json
import random

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tests.test_module_state import Memory, Toy
from utils.engine import checkpoint, state_names
from utils.errors import UserError

FUZZED = 400  # mutated states


class Armed(Memory):
    """An object with methods that no file may call."""

    fired: list[str] = []

    def __init__(self, path="none"):
        super().__init__()
        self.fired.append(f"__init__ {path}")

    def erase(self, state=None):
        self.fired.append("erase")

    @property
    def secret(self):
        self.fired.append("secret")
        return self


class Method(Toy):
    """A method of a learner, with tripwires: methods and a property that a state could name."""

    def __init__(self):
        super().__init__()
        self.memory = Armed()

    def observe(self):
        return "observed"

    @property
    def trap(self):
        Armed.fired.append("trap")
        return self.net


def trained() -> Method:
    torch.manual_seed(0)
    model = Method()
    for _ in range(2):
        model.begin_task()
        model.step()
        model.end_task()
    return model


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    path = tmp_path_factory.mktemp("state") / "a.safetensors"
    checkpoint.save(path, checkpoint.capture(trained())[0], model="toy")
    return lambda: checkpoint.load(path, model="toy")


def set_attribute(name, packed, place=None):
    def craft(node):
        (node if place is None else node["children"][place])["attributes"][name] = packed

    return craft


def change(*path, to):
    def craft(node):
        for part in path[:-1]:
            node = node[part]
        node[path[-1]] = to

    return craft


def object_with(load, kind=f"{Armed.__module__}.Armed"):
    return change("attributes", "memory", to=("object", [kind, load, {"rows": []}]))


OPT = ("attributes", "opt", 1)
CRAFTED = {
    "constructor of an object": object_with("__init__"),
    "another method of an object": object_with("erase"),
    "saving method of an object": object_with("state"),
    "property of an object": object_with("secret"),
    "dunder of an object": object_with("__setattr__"),
    "object of another class": object_with("load_state", "utils.features.FeatureStore"),
    "loader that is no text": object_with(["load_state"]),
    "a bound method as a tensor": set_attribute("loss_value", ("tensor_at", "observe")),
    "a property as a module": set_attribute("other", ("module_at", "trap")),
    "a property on the way to a tensor": set_attribute("other", ("tensor_at", "trap.classifier.weight")),
    "a method covered by data": set_attribute("observe", ("plain", 1)),
    "a method covered by a module": set_attribute("observe", ("module_at", "net")),
    "a method of a submodule covered": set_attribute("forward", ("module_at", "net"), "net"),
    "a property covered": set_attribute("trap", ("plain", 1)),
    "hooks": set_attribute("_forward_hooks", ("dict", {0: ("module_at", "net")})),
    "hooks of a submodule": set_attribute("_forward_pre_hooks", ("dict", {0: ("module_at", "net")}), "net"),
    "a class": set_attribute("__class__", ("plain", "x")),
    "a registry": set_attribute("_modules", ("plain", {})),
    "an attribute without a name": set_attribute(3, ("plain", 1)),
    "a part named as hooks": change("children", "_forward_hooks", to=None),
    "a part named as a path": change("children", "a.b", to=None),
    "kind of value that does not exist": set_attribute("x", ("eval", "1")),
    "kind of value that is a method": set_attribute("x", ("Restorer__init__", "1")),
    "kind of value that runs the restorer": set_attribute("x", ("_restorer", 1)),
    "no pair": set_attribute("x", 7),
    "function": change("attributes", "activation", to=("code", "os.system")),
    "optimizer: a module of torch": change(*OPT, "class", to="torch.optim.lr_scheduler"),
    "optimizer: no optimizer": change(*OPT, "class", to="torch.optim.os"),
    "optimizer: base class": change(*OPT, "class", to="torch.optim.optimizer.Optimizer"),
    "optimizer over a method": change(*OPT, "params", to=[["observe"]]),
    "optimizer state of another": change(*OPT, "state", to={"state": {}, "param_groups": []}),
    "scheduler: covers step": change("attributes", "scheduler", 1, "state", to={"step": 1}),
    "scheduler: covers its optimizer": change("attributes", "scheduler", 1, "state", to={"optimizer": 1}),
    "scheduler: another class": change("attributes", "scheduler", 1, "class", to="os.system"),
    "module: a function of torch.nn": change("children", "net", "class", to="torch.nn.functional.relu"),
    "module: unknown": change("children", "net", "class", to="subprocess.Popen"),
    "module: no text": change("children", "net", "class", to=None),
    "module: same as nothing": change("children", "net", to={"same_as": "nowhere"}),
    "parameter that is no tensor": change("children", "net", "parameters", to={"w": 5}),
    "generator: unknown": change("attributes", "generator", 1, "bit_generator", to="os"),
    "generator: wrong state": change("attributes", "generator", 1, "state", to={"state": "x"}),
    "torch generator on no device": change(
        "attributes", "torch_rng", to=("torch_generator", ["nowhere", torch.zeros(3)])
    ),
    "random state": change("attributes", "python_rng", to=("python_random", (3, (1, 2), None))),
    "no attributes": change("attributes", to=None),
    "no children": change("children", to=5),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_states_are_refused_in_one_line(name, state):
    crafted, model = state(), Method()
    CRAFTED[name](crafted)
    Armed.fired.clear()
    with pytest.raises(UserError) as refused:
        checkpoint.restore(model, crafted)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert Armed.fired == [], "a method that the file named was called"
    assert not name.startswith("kind of value") or "which is unknown" in str(refused.value)
    assert model.observe() == "observed"


def test_the_untouched_state_is_accepted(state):
    model = Method()
    checkpoint.restore(model, state())
    assert model.current_task == 2 and len(model.memory.rows) == 2


def places(node, path=()):
    """Every place of a nested state."""
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def replaced(node, path, value):
    """A copy with another value at a place; tuples on the way are made anew."""
    if not path:
        return value
    if isinstance(node, tuple):
        return tuple(replaced(v, path[1:], value) if i == path[0] else v for i, v in enumerate(node))
    node = copy.copy(node)
    node[path[0]] = replaced(node[path[0]], path[1:], value)
    return node


def test_mutated_states_restore_or_are_refused(state):
    draw = random.Random(14)
    known = [p for p in places(state()) if p]
    words = [
        "",
        "observe",
        "trap",
        "erase",
        "__init__",
        "net",
        "memory",
        "load_state",
        "os.system",
        "a.b",
        "_forward_hooks",
    ]
    values = [
        None,
        True,
        -1,
        10**30,
        float("nan"),
        b"x",
        [],
        {},
        (),
        ("module_at", "trap"),
        ("object", []),
        torch.zeros(2),
        nn.Parameter(torch.ones(1)),
        *words,
    ]
    counts = {"restored": 0, "refused": 0}
    for _ in range(FUZZED):
        crafted, model = state(), Method()
        for _ in range(draw.choice([1, 1, 2, 3])):
            path = draw.choice(known)
            try:
                crafted = replaced(crafted, path, draw.choice(values))
            except (LookupError, TypeError):
                continue  # an earlier mutation took that place away
        Armed.fired.clear()
        try:
            checkpoint.restore(model, crafted)
            counts["restored"] += 1
        except UserError as error:
            counts["refused"] += 1
            assert "\n" not in str(error)
        assert Armed.fired == [] and model.observe() == "observed"
    assert min(counts.values()) > FUZZED // 10, counts


TEXTS = {
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000,
    "number of 5,000 digits": '{"float": ' + "9" * 5000 + "}",
    "queue longer than memory": '{"deque": [' + "9" * 30 + ", []]}",
    "array of objects": '{"array": ["w", "|O", [1]]}',
    "array of a dtype with code": '{"array": ["w", "__import__", [1]]}',
    "dtype that is half a tuple": '{"array": ["w", "f4,(", [1]]}',
    "shape that does not fit": '{"array": ["w", "<f4", [99999999999999]]}',
    "scalar of objects": '{"scalar": ["O", "AAAAAAAAAAA="]}',
    "base64 that is none": '{"bytes": "a"}',
    "set of lists": '{"set": [[1]]}',
    "pair of three": '{"pair": [1, 2, 3]}',
    "two tags": '{"tensor": 1, "list": 2}',
    "no tag": "{}",
    "items that are no pairs": '{"dict": [1]}',
    "tensor of another type": '{"tensor": {"entry": "w", "dtype": "load", "shape": [1]}}',
    "gradient of integers": '{"tensor": {"entry": "i", "leaf": true}}',
    "device that does not exist": '{"device": "nowhere"}',
    "range without end": '{"range": []}',
    "not JSON": "\ud800",
}


@pytest.mark.parametrize("name", TEXTS)
def test_crafted_structures_are_damaged_files(name, tmp_path):
    path = tmp_path / "a.safetensors"
    text = TEXTS[name].encode("utf-8", "replace").decode()
    save_file(
        {"w": torch.ones(1), "i": torch.ones(1, dtype=torch.long)}, path, {"model": "er", "schema": "1", "state": text}
    )
    with pytest.raises(UserError, match="damaged") as refused:
        checkpoint.load(path, model="er")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


RUN = {
    "position": {"task": 0, "phase": "done", "epoch": 0, "batch": 0},
    "model": {},
    "rng": checkpoint.rng_state(),
    "rows": {"matrices": {}},
    "loop": {},
    "wall_s": 1.0,
    "record_bytes": 0,
    "forwards": {"image_forwards": 3},
}
BAD_RUNS = {
    "position": [
        5,
        None,
        "task phase epoch batch",
        {"task": "0", "phase": "done", "epoch": 0, "batch": 0},
        {"task": -1, "phase": "done", "epoch": 0, "batch": 0},
        {"task": 0, "phase": "x", "epoch": 0, "batch": 0},
    ],
    "model": [None, []],
    "rng": [
        None,
        {},
        {"python": 1, "numpy": 2, "torch": 3, "cuda": 4},
        RUN["rng"] | {"python": (3, (-1,) * 625, None)},
    ],
    "rows": [None, {}, {"matrices": 3}],
    "loop": [None],
    "wall_s": ["long", None, float("nan")],
    "record_bytes": [-1, "x", None, 1.5],
    "forwards": [{"observe": 3}, {"image_forwards": "x"}, 5],
}


@pytest.mark.parametrize("key", BAD_RUNS)
def test_a_run_whose_parts_have_other_types_is_refused(key, tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, RUN, model="er")
    assert checkpoint.load_run(path, model="er")["forwards"] == {"image_forwards": 3}
    for value in BAD_RUNS[key]:
        checkpoint.save(path, RUN | {key: value}, model="er")
        with pytest.raises(UserError, match="does not contain the complete state of a run"):
            checkpoint.load_run(path, model="er")


def test_header_metadata_of_other_kinds(tmp_path):
    path = tmp_path / "a.safetensors"
    for metadata in ({"schema": "1e9"}, {"schema": "9" * 5000}, {"state": json.dumps({"eval": "1"})}):
        save_file({"w": torch.ones(1)}, path, {"model": "er", "schema": "1", "state": "1"} | metadata)
        with pytest.raises(UserError):
            checkpoint.load(path, model="er")


@pytest.mark.parametrize("crafted", [{"step": 1}, {"get_lr": 1}, {"optimizer": 1}, {"__class__": 1}, {3: 1}])
def test_the_schedule_of_the_loop_takes_no_code(crafted):
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], 0.1), 2)
    with pytest.raises(UserError, match="code, not data"):
        state_names.load_scheduler(scheduler, scheduler.state_dict() | crafted, "the schedule")
    state_names.load_scheduler(scheduler, scheduler.state_dict() | {"last_epoch": 7}, "the schedule")
    assert scheduler.last_epoch == 7
