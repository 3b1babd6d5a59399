"""The contract of methods: named checks, run for every registered model; a new file is checked without new code here.

One check of one method: `pytest tests/test_contract_models.py -k "hook_order and derpp"`.
"""

import functools
import math
import re
from argparse import Namespace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

from datasets.utils.continual_dataset import ContinualDataset
from tests import contract
from tests.contract import STREAMS, build, images_of, logits, own_actions, run, sample_value, settings_of
from tests.toy_clip import toy_clip
from utils import cli
from utils.cli import registry
from utils.engine import checkpoint, evaluate, launch
from utils.engine.module_state import SKIP
from utils.errors import UserError
from utils.flags import boolean
from utils.settings import SETTINGS, SPLIT_SETTINGS, UNMASKED

ROOT = Path(__file__).resolve().parent.parent
TEXTS = {
    "prompt_template": "an image of a {}.",
    "rel": "vv",
    "reference": "self",
    "buffer_bytes_per_class": "4x",
    "buffer_bytes": ["60000", "1500", "700"],
    "mask_rule": "ratio:0.25",
}
# another value for a flag that takes text


@functools.cache
def trained(name: str) -> contract.Toy:
    """One run that the checks which only look share."""
    return run(name)


# the checks


def described(name: str) -> None:
    cls = contract.model_class(name)
    assert registry.canonical(cls.NAME) == name.removeprefix(registry.PLUGIN)
    assert cls.COMPATIBILITY and set(cls.COMPATIBILITY) <= set(SETTINGS)
    assert len(registry.index("model")[name].line.split()) >= 3, (
        "the file's first docstring line says what the method does"
    )


def runs_in_every_setting_it_names(name: str) -> None:
    for setting in settings_of(name):
        toy = run(name, STREAMS[setting].NAME)
        key = "class_il_last" if UNMASKED & {setting} else "task_il_last"
        assert 0 <= toy.summary[key] <= 100, setting


def takes_pairs(name: str) -> None:
    if not set(SPLIT_SETTINGS) & set(contract.model_class(name).COMPATIBILITY):
        pytest.skip("the stream of pairs has tasks with classes of their own")
    with mock.patch.object(contract.ToyPairs, "SETTING", settings_of(name)[0]):
        toy = run(name, "toy-pairs")
    assert logits(toy)[:, : toy.model.n_seen_classes].isfinite().all()


def only_adds_flags_that_parse(name: str) -> None:
    def surface(parser):
        return {a.dest: (a.option_strings, a.type, a.choices, a.nargs, a.required) for a in parser._actions}

    parser = cli.new_parser()
    before = surface(parser)
    cli.add_model_args(parser, contract.model_class(name))
    after = surface(parser)
    assert {k: v for k, v in after.items() if k in before} == before, "flags of the framework stay as they are"
    for action in own_actions(name):
        assert action.help, f"{action.dest} has no help text"
        value = sample_value(action)
        assert value is None or cli.check_values(action.option_strings[0], action, [value]) is None, action.dest


def hook_order(name: str) -> None:
    toy = trained(name)
    word = "".join(
        {
            "begin_task": "b",
            "begin_epoch": "e",
            "observe": "o",
            "end_epoch": "p",
            "end_task": "t",
            "forward": "f",
            "end_eval": "v",
        }[call[0]]
        for call in toy.calls
    )
    epochs = toy.args.n_epochs if toy.model.trains_in_loop else 0
    pattern = rf"(?:bf*(?:ef*(?:of*)+pf*){{{epochs}}}t[of]*fv){{{toy.dataset.N_TASKS}}}"
    assert re.fullmatch(pattern, word), f"{word} does not match {pattern}"
    task = -1
    for hook, current, args, _ in toy.calls:
        task += hook == "begin_task"
        assert hook == "forward" or current == task, f"{hook} of task {task} saw current_task {current}"
        assert hook not in {"begin_task", "end_task"} or args == (toy.dataset,)
    assert toy.model.current_task == toy.dataset.N_TASKS and toy.model.n_seen_classes == toy.dataset.N_CLASSES


def finite(name: str) -> None:
    toy = trained(name)
    assert all(map(math.isfinite, toy.losses))
    for key, tensor in toy.model.state_dict().items():
        assert tensor.isfinite().all(), key
    assert all(math.isfinite(v) for v in toy.summary.values())


def forward_shape(name: str) -> None:
    toy = trained(name)
    inputs, seen = images_of(toy)[0], toy.model.n_seen_classes
    outputs = logits(toy, inputs)
    assert outputs.shape[0] == len(inputs) and seen <= outputs.shape[1] <= toy.dataset.N_CLASSES
    assert outputs[:, :seen].isfinite().all() and outputs.is_floating_point()


def one_seed_one_result(name: str) -> None:
    first, second = trained(name), run(name)
    for key, matrix in first.rows["matrices"].items():
        np.testing.assert_array_equal(matrix, second.rows["matrices"][key])
    assert first.losses == second.losses
    assert torch.equal(logits(first), logits(second))
    for (key, a), b in zip(first.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def state_round_trip(name: str, tmp_path) -> None:
    toy, path = trained(name), tmp_path / "model.safetensors"
    expected = logits(toy)
    state, lost = checkpoint.capture(toy.model, skipped(toy.model))
    assert not lost, f"a checkpoint does not hold {lost}"
    checkpoint.save(path, state, model=name)
    fresh = build(name, seed=1)
    for _ in range(fresh.dataset.N_TASKS):
        fresh.dataset.get_data_loaders()
        if hasattr(fresh.model, "change_transform"):
            fresh.model.change_transform(fresh.dataset)
    checkpoint.restore(fresh.model, checkpoint.load(path, model=name), skipped(fresh.model))
    assert fresh.model.n_seen_classes == toy.model.n_seen_classes and fresh.model.current_task == toy.model.current_task
    fresh.model.eval()
    assert torch.equal(logits(fresh, images_of(toy)[0]), expected)
    checkpoint.save(
        tmp_path / "again.safetensors", checkpoint.capture(fresh.model, skipped(fresh.model))[0], model=name
    )
    assert bits(fresh.model, tmp_path) == bits(toy.model, tmp_path)


def refuses_a_setting_it_does_not_name(name: str) -> None:
    cls, toy = contract.model_class(name), build(name)
    fits = set(cls.COMPATIBILITY)
    foreign = set(SETTINGS) - (fits | {"class-il"} if "task-il" in fits else fits)  # scored within its tasks
    assert foreign, "no method fits every setting"
    for setting in foreign:
        stream = type("Foreign", (ContinualDataset,), {"NAME": "foreign", "SETTING": setting})
        with pytest.raises(UserError) as refusal:
            launch.check(Namespace(**{**vars(toy.args), "dataset": "foreign", "eval_future": False}), cls, stream)
        text = str(refusal.value)
        assert f"foreign is {setting}" in text and "Datasets that fit: " in text and "\n" not in text


def stored_bytes_true(name: str) -> None:
    toy = trained(name)
    assert sum(toy.model.stored_bytes().values()) == bytes_beside_the_net(toy.model), toy.model.stored_bytes()


def batch_of_one_equals_batch_of_many(name: str) -> None:
    toy = trained(name)
    inputs = images_of(toy)[0]
    single = torch.cat([logits(toy, inputs[i : i + 1]) for i in range(len(inputs))])
    torch.testing.assert_close(single, logits(toy, inputs), atol=1e-5, rtol=1e-5)


def shuffled_batch_gives_shuffled_outputs(name: str) -> None:
    toy = trained(name)
    inputs = images_of(toy)[0]
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(toy, inputs[order]), logits(toy, inputs)[order], atol=1e-5, rtol=1e-5)


def no_task_id_where_it_is_unknown(name: str) -> None:
    if not UNMASKED & set(contract.model_class(name).COMPATIBILITY):
        pytest.skip("the method is told the task at test time")
    toy = run(name, STREAMS[next(s for s in settings_of(name) if s in UNMASKED)].NAME)
    forwards = [(len(args), kwargs) for hook, _, args, kwargs in toy.calls if hook == "forward"]
    assert forwards and all(call == (1, {}) for call in forwards)


def evaluation_leaves_the_state(name: str, tmp_path) -> None:
    toy = run(name)
    loaders = dict(enumerate(toy.dataset.test_loaders))
    toy.model.train()
    evaluate.evaluate_tasks(toy.model, toy.dataset, loaders)  # what is made once, on demand, is there now
    before, states = bits(toy.model, tmp_path), checkpoint.rng_state()
    first = evaluate.evaluate_tasks(toy.model, toy.dataset, loaders)
    assert bits(toy.model, tmp_path) == before, "evaluation changed the model"
    after = checkpoint.rng_state()
    assert torch.equal(states["torch"], after["torch"]) and states["python"] == after["python"], (
        "it drew random numbers"
    )
    assert (states["numpy"][1] == after["numpy"][1]).all()
    toy.args.eval_batch_size = 2
    second = evaluate.evaluate_tasks(toy.model, toy.dataset, loaders)
    scores = [[(s.class_il, s.task_il) for s in found.values()] for found in (first, second)]
    np.testing.assert_array_equal(*scores, err_msg="it depends on the batch size")


def unequal_tasks_are_measured(name: str) -> None:
    if settings_of(name)[0] not in SPLIT_SETTINGS:
        pytest.skip("tasks share their classes")
    toy = trained(name)
    assert [toy.dataset.get_offsets(t) for t in range(3)] == [(0, 3), (3, 5), (5, 9)]
    told = set(toy.model.COMPATIBILITY) == {"task-il"}  # always told the task: no class-il
    for matrix in ("task_il",) if told else ("class_il", "task_il"):
        measured = ~np.isnan(toy.rows["matrices"][matrix])
        assert measured[np.tri(3, dtype=bool)].all()
    expected = np.tri(3, dtype=bool) & (not told)
    np.testing.assert_array_equal(~np.isnan(toy.rows["matrices"]["class_il"]), expected)


def single_last_batch(name: str) -> None:
    toy = run(name, n_epochs=1) if "n_epochs" not in contract.model_class(name).IDLE_FLAGS else trained(name)
    assert all(map(math.isfinite, toy.losses)) and logits(toy).isfinite().all()
    if toy.model.trains_in_loop:
        sizes = [
            len(kwargs["inputs"] if "inputs" in kwargs else args[0])
            for hook, task, args, kwargs in toy.calls
            if hook == "observe" and task == 0
        ]
        assert sizes[-1] == 1 and set(sizes[:-1]) == {contract.BATCH_SIZE}


def what_is_not_tried_is_a_flag_with_a_reason(name: str) -> None:
    flags = {action.dest for action in own_actions(name)}
    for flag, reason in not_tried(name).items():
        assert flag in flags, f"NOT_TRIED names --{flag}, which {name} does not have"
        assert len(reason.split()) >= 3, f"NOT_TRIED says nothing about --{flag}"
        for path in re.findall(r"tests/\w+\.py", reason):
            assert flag in (ROOT / path).read_text(), f"{path} does not mention --{flag}"


def every_flag_changes_something(name: str) -> None:
    """Looked for after the first task, and if nothing has changed by then after all of them."""
    base, no_value, reasons = effect(trained(name)), [], not_tried(name)
    first = effect(run(name, stop_after=0))
    for action in own_actions(name):
        if action.dest in reasons:
            continue
        values = other_values(action, getattr(trained(name).args, action.dest))
        if not values:
            no_value.append(action.dest)
            continue
        refused = 0
        for value in values:
            try:
                if effect(run(name, **{action.dest: value}, stop_after=0)) != first:
                    break
                if effect(run(name, **{action.dest: value})) != base:
                    break
            except UserError:  # together with the other flags
                refused += 1
        else:
            assert refused < len(values), f"--{action.dest}: each of {values} is refused"
            raise AssertionError(f"--{action.dest} set to {values} changes nothing")
    if no_value:
        pytest.skip(f"no other value is known for {', '.join(no_value)}: add one to TEXTS")


def images_are_counted(name: str) -> None:
    toy = trained(name)
    assert toy.summary["image_forwards"] == toy.images
    before, inputs = toy.model.image_forwards, images_of(toy)[0]
    with contract.counted_images() as entered:
        logits(toy, inputs)
    assert toy.model.image_forwards - before == len(entered) > 0


def bf16_reaches_the_network(name: str) -> None:
    """-O 2, whatever the method calls and when: in the loop, in end_task, or in evaluation alone."""
    base = trained(name)
    with mock.patch.object(torch, "set_float32_matmul_precision"):  # which changes products of a CPU by itself
        toy = run(name, code_optimization=2)
    assert effect(toy) != effect(base) and toy.images == toy.summary["image_forwards"]
    assert all(map(math.isfinite, toy.losses)) and logits(toy).dtype == torch.float32
    lasting = [key for key, tensor in toy.model.state_dict().items() if tensor.dtype == torch.bfloat16]
    assert not lasting, f"-O 2 leaves {lasting} in bf16"


def compiled_parts_are_called(name: str) -> None:
    """-O 3: every module that is compiled is called, and in a region of bf16."""
    compiled, called = [], {}

    def compile_(module):
        compiled.append(module)

        def call(*args, **kwargs):
            called[id(module)] = torch.is_autocast_enabled("cpu")
            return module._call_impl(*args, **kwargs)

        module._compiled_call_impl = call

    precision = torch.get_float32_matmul_precision()
    try:
        with mock.patch.object(nn.Module, "compile", compile_):
            toy = run(name, code_optimization=3)
        logits(toy)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert compiled and {id(module): True for module in compiled} == called


def learns_from_nothing_it_may_not_see(name: str) -> None:
    """What two tasks leave does not change with test images, images of later tasks, or names of later classes."""
    stream = STREAMS[settings_of(name)[0]]
    flags = {"stop_after": 1} if stream.N_TASKS > 1 else {}
    base = run(name, **flags)
    inputs, seen = images_of(base)[0], base.model.n_seen_classes
    expected = logits(base, inputs)[:, :seen]
    with mock.patch.object(stream, "load", noisy(stream.load, base.dataset.get_offsets(1)[1])):
        toy = run(name, **flags)
    assert not torch.equal(images_of(toy)[0], inputs), "the test images were replaced"
    assert torch.equal(logits(toy, inputs)[:, :seen], expected), "it depends on test images or on images of later tasks"
    for (key, a), b in zip(base.model.net.state_dict().items(), toy.model.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), f"{key} depends on test images or on images of later tasks"
    if contract.uses_clip(name) and seen < base.dataset.N_CLASSES and name not in KNOWS_ALL_NAMES:
        others = [
            *stream.CLASS_NAMES[:seen],
            *["crown", "gear", "leaf", "drop", "hat"][: base.dataset.N_CLASSES - seen],  # a token each, like the others
        ]
        with mock.patch.object(stream, "CLASS_NAMES", others):
            toy = run(name, **flags)
        gap = (logits(toy, inputs)[:, :seen] - expected).abs().max()
        assert gap <= 1e-4, "it depends on names of later classes"  # names are encoded in other batches


LOOP_VALUES = {"lr": "0.013", "n_epochs": "3", "batch_size": "3", "optimizer": "adamw"}


def flags_of_the_loop_act_or_are_refused(name: str) -> None:
    cls = contract.model_class(name)
    for flag, value in (LOOP_VALUES | {"backbone": "toy-net"}).items():
        if flag == "backbone" and not getattr(cls, "BUILDS_OWN_NET", False):
            continue  # the toy streams' only network
        if flag == "backbone" or flag in cls.IDLE_FLAGS:
            with pytest.raises(UserError, match=f"--{flag} changes nothing with {name}: ") as refusal:
                run(name, **{flag: value})
            assert "\n" not in str(refusal.value)
        else:
            value = "sgd" if flag == "optimizer" and trained(name).args.optimizer != "sgd" else value
            assert effect(run(name, **{flag: value})) != effect(trained(name)), f"--{flag} {value} changes nothing"


KNOWS_ALL_NAMES = {"rail"}  # it asks the zero-shot classifier over all names whether an image is of a known domain


def noisy(load, first_later: int):
    """`load` with noise for test images and for training images of tasks after the second."""

    def loaded(dataset, train: bool):
        samples = load(dataset, train)
        ids = getattr(samples, "task_ids", None)
        later = samples.targets >= first_later if ids is None else ids > 1
        later = later if train else torch.ones_like(samples.targets, dtype=torch.bool)
        noise = torch.randint(0, 256, samples.data.shape, generator=torch.Generator().manual_seed(9), dtype=torch.uint8)
        samples.data = torch.where(later.view(-1, *[1] * (samples.data.dim() - 1)), noise, samples.data)
        return samples

    return loaded


CHECKS = [
    described,
    runs_in_every_setting_it_names,
    takes_pairs,
    only_adds_flags_that_parse,
    hook_order,
    finite,
    forward_shape,
    one_seed_one_result,
    state_round_trip,
    refuses_a_setting_it_does_not_name,
    stored_bytes_true,
    batch_of_one_equals_batch_of_many,
    shuffled_batch_gives_shuffled_outputs,
    no_task_id_where_it_is_unknown,
    evaluation_leaves_the_state,
    unequal_tasks_are_measured,
    single_last_batch,
    what_is_not_tried_is_a_flag_with_a_reason,
    images_are_counted,
    bf16_reaches_the_network,
    compiled_parts_are_called,
    learns_from_nothing_it_may_not_see,
    flags_of_the_loop_act_or_are_refused,
    every_flag_changes_something,
]


# what they use


def skipped(model) -> frozenset[str]:
    return SKIP | {"run", "forward_counter"} | model.checkpoint_skip()


def bits(model, folder) -> bytes:
    """The whole state of a model as the bytes of its checkpoint."""
    checkpoint.save(folder / "bits.safetensors", checkpoint.capture(model, skipped(model))[0], model="any")
    return (folder / "bits.safetensors").read_bytes()


NOT_KEPT = (torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler, ContinualDataset, Namespace)


def bytes_beside_the_net(model: nn.Module) -> int:
    """Bytes of every tensor and array that hangs on the model in any way, without those of its network."""
    storages, arrays, met = {}, {}, {id(m) for m in model.net.modules()}
    own = {t.untyped_storage().data_ptr() for t in (*model.net.parameters(), *model.net.buffers())}
    todo = [
        v
        for k, v in vars(model).items()
        if k not in {"loss", "transform", "original_transform", "normalization_transform"}
    ]
    while todo:
        value = todo.pop()
        if id(value) in met or isinstance(value, (*NOT_KEPT, type)) or type(value).__module__ == "utils.features":
            continue
        met.add(id(value))
        if isinstance(value, torch.Tensor):
            place = value.untyped_storage().data_ptr(), value.storage_offset(), value.shape
            storages[place] = value.numel() * value.element_size()
        elif isinstance(value, np.ndarray):
            arrays[id(value)] = value.nbytes
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, (list, tuple, set)):
            todo += value
        elif hasattr(value, "__dict__"):  # a buffer's strategy notes which place holds what; the samples are charged
            todo += [v for k, v in vars(value).items() if k != "sample_selection_fn"]
    return sum(size for place, size in storages.items() if place[0] not in own) + sum(arrays.values())


def not_tried(name: str) -> dict[str, str]:
    """Flags whose effect these checks cannot see, with the reasons that the class and its bases give."""
    classes = reversed(contract.model_class(name).__mro__)
    return {flag: reason for cls in classes for flag, reason in vars(cls).get("NOT_TRIED", {}).items()}


def other_values(action, value) -> list[str]:
    """Values of a flag that differ from `value` and that its type accepts."""
    if action.dest in TEXTS:
        texts = TEXTS[action.dest]
        return texts if isinstance(texts, list) else [texts]
    if action.choices:
        return [str(c) for c in action.choices if c != value]
    if isinstance(value, bool) or action.type is boolean:
        return [str(int(not value))]
    if not isinstance(value, (int, float)):
        return []
    tried = [value * 2 + 1, value * 2 + 0.125, value / 2, value // 2, 0]
    good = [v for v in tried if v != value and cli.check_values("", action, [str(v)]) is None]
    return list(dict.fromkeys(map(str, good)))[:3]


def effect(toy: contract.Toy) -> tuple:
    """All that a flag may change in a run, as something to compare."""
    return logits(toy).numpy().tobytes(), str(toy.model.stored_bytes()), str(toy.losses), str(toy.rows["matrices"])


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("name", registry.names("model"))
def test_contract(name, check, tmp_path):
    with mock.patch.object(contract, "usual_clip", toy_clip):
        check(name, tmp_path) if check.__code__.co_argcount == 2 else check(name)
