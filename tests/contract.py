"""Shared by the contract tests: toy streams of every setting, a toy net, and runs of a method on them.

A method is run with the flags of its own parser; those it requires get the values of REQUIRED, or small ones by type.
TOY_ARGS of the class are arguments of these checks alone: TOY_ARGS = {"fit_steps": 3}.
"""

import contextlib
import functools
import io
import tempfile
from argparse import Action, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import torch
from torch import nn
from torch.func import debug_unwrap

import main
from backbone import MammothBackbone, ReturnTypes, answer
from backbone.multimodal import MultimodalNet
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.gcl_dataset import GCLDataset
from datasets.utils.samples import ArraySamples
from tests import fabricate, fabricate_mm, fabricate_mtil, fabricate_real, fabricate_streams
from utils import cli
from utils.cli import plugins, registry
from utils.engine import training
from utils.engine.evaluate import logits_of
from utils.pair import Pair

REQUIRED = {
    "buffer_size": "18",
    "minibatch_size": "4",
    "reference": "synthetic",
}  # by flag; other required flags get a value by type
BY_TYPE = {"int": "2", "float": "0.5", "boolean": "1", "str": "a"}
BATCH_SIZE = 4
PER_CLASS = [7, 7, 7, 6, 7, 6, 6, 6, 7]  # training images: 21, 13, 25 in a task, so the last batch of each holds one
NAMES = ["cup", "star", "fish", "key", "apple", "boat", "tree", "bell", "moon"]  # words that the tiny CLIP knows


class ToyClasses(ContinualDataset):
    """Nine classes in tasks of 3, 2 and 4; images of 3 x 8 x 8 bytes with a bright row for the class."""

    NAME = "toy-class-il"
    SETTING = "class-il"
    N_TASKS = 3
    N_CLASSES_PER_TASK = [3, 2, 4]
    SIZE = (8, 8)
    MEAN, STD = (0.5,) * 3, (0.25,) * 3
    CLASS_NAMES = NAMES
    TEMPLATES = ["a photo of a {}.", "a picture of a {}."]
    DEFAULTS = {"batch_size": BATCH_SIZE, "n_epochs": 2, "backbone": "toy-net", "lr": 0.05}

    def load(self, train: bool) -> ArraySamples:
        return pictures(torch.arange(9).repeat_interleave(torch.tensor(PER_CLASS if train else [3] * 9)), train)


class ToyTasks(ToyClasses):
    """The same with the task known at test time."""

    NAME = "toy-task-il"
    SETTING = "task-il"


class ToyPairs(ToyClasses):
    """The same images, each with six token ids."""

    NAME = "toy-pairs"

    def load(self, train: bool) -> ArraySamples:
        samples = super().load(train)
        text = torch.randint(1, 50, (len(samples), 6), generator=torch.Generator().manual_seed(7 + train))
        return ArraySamples(Pair(samples.data, text), samples.targets)


class ToyDomains(ContinualDataset):
    """Four classes in each of three domains."""

    NAME = "toy-domain-il"
    SETTING = "domain-il"
    N_TASKS = 3
    N_CLASSES_PER_TASK = 4
    SIZE = (8, 8)
    MEAN, STD = (0.5,) * 3, (0.25,) * 3
    CLASS_NAMES = NAMES[:4]
    DEFAULTS = ToyClasses.DEFAULTS

    def load(self, train: bool) -> ArraySamples:
        per_domain = 17 if train else 8
        samples = pictures(torch.arange(3 * per_domain) % 4, train)
        samples.task_ids = torch.arange(3).repeat_interleave(per_domain)
        return samples


class ToyGeneral(GCLDataset):
    """Four classes in one stream, seen once."""

    NAME = "toy-general"
    SETTING = "general-continual"
    N_CLASSES_PER_TASK = 4
    SIZE = (8, 8)
    CLASS_NAMES = NAMES[:4]
    DEFAULTS = {**ToyClasses.DEFAULTS, "n_epochs": 1}

    def load(self, train: bool) -> ArraySamples:
        return pictures(torch.arange(33 if train else 12) % 4, train)


def pictures(labels: torch.Tensor, train: bool) -> ArraySamples:
    draw = torch.Generator().manual_seed(int(train))
    order = torch.randperm(len(labels), generator=draw)
    images = torch.randint(0, 120, (len(labels), 3, 8, 8), generator=draw, dtype=torch.uint8)
    images[torch.arange(len(labels)), labels % 3, labels % 8] += 120
    return ArraySamples(images[order], labels[order])


class ToyNet(MammothBackbone):
    """Convolution, BatchNorm, mean over halves, linear; token ids of pairs join the features as a mean embedding."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.words = nn.Embedding(50, 6)
        self.classifier = nn.Linear(24, num_classes)
        self.feature_dim = 24

    def forward(self, x, returnt: ReturnTypes = "out"):
        image, text = (x.image, x.text) if isinstance(x, Pair) else (x, None)
        maps = self.norm(self.conv(image)).relu()  # (B, 6, 8, 8)
        features = nn.functional.adaptive_avg_pool2d(maps, (4, 1)).flatten(1)
        if text is not None:
            features = features + self.words(text).mean(1).repeat(1, 4)
        return answer(returnt, self.classifier, features, features)


def toy_net(num_classes: int) -> ToyNet:
    return ToyNet(num_classes)


STREAMS = {c.SETTING: c for c in (ToyClasses, ToyTasks, ToyDomains, ToyGeneral)}
TOYS = {"dataset": {c.NAME: c for c in (*STREAMS.values(), ToyPairs)}, "backbone": {"toy-net": toy_net}}


@contextlib.contextmanager
def toys() -> Iterator[None]:
    """The toy streams and the toy net have names on the command line inside this block."""
    with contextlib.ExitStack() as stack:
        for kind, named in TOYS.items():
            stack.enter_context(mock.patch.dict(registry._registered[kind], named))
        yield


def model_class(name: str) -> type:
    return registry.load("model", name)


def settings_of(name: str) -> list[str]:
    """The settings a model names that have a toy stream; the first is the one most checks use."""
    return [s for s in STREAMS if s in model_class(name).COMPATIBILITY]


def uses_clip(name: str) -> bool:
    return any(base.__name__ == "VLMModel" for base in model_class(name).__mro__)


def own_actions(name: str) -> list[Action]:
    """The flags that a model adds to the framework's."""
    parser = cli.new_parser()
    before = {a.dest for a in parser._actions}
    cli.add_model_args(parser, model_class(name))
    return [a for a in parser._actions if a.dest not in before]


def sample_value(action: Action) -> str | None:
    """A value that the flag accepts; None if its type does not determine one."""
    if action.dest in REQUIRED:
        return REQUIRED[action.dest]
    if action.choices:
        return str(next(iter(action.choices)))
    return BY_TYPE.get(getattr(action.type, "__name__", "str"))


def usual_clip() -> str:
    """The CLIP of toy runs; the contract puts a smaller one here."""
    return "tiny"


def argv_of(name: str, stream: str) -> list[str]:
    """The command line of a toy run: the flags that the model requires, and a CLIP for a CLIP method."""
    argv = [
        "--model",
        name,
        "--dataset",
        stream,
        "--seed",
        "0",
        "--device",
        "cpu",
        "--non_verbose",
        "1",
        "--disable_log",
        "1",
    ]
    for action in own_actions(name):
        if action.dest == "clip_backbone":
            argv += ["--clip_backbone", model_class(name).TOY_ARGS.get("clip_backbone") or usual_clip()]
        elif action.required or action.dest in REQUIRED:
            argv += [action.option_strings[0], sample_value(action)]
    argv += [word for root in plugins._roots for word in ("--plugins", str(root))]
    for flag, value in model_class(name).TOY_ARGS.items():
        argv += [f"--{flag}", str(value)] if flag != "clip_backbone" else []
    return [*argv, "--base_path", feature_folder().name] if uses_clip(name) else argv


@functools.cache
def feature_folder() -> tempfile.TemporaryDirectory:
    """Features of the toy images under the embedded CLIP, encoded once for all runs."""
    return tempfile.TemporaryDirectory(prefix="toy_features_")


@dataclass
class Toy:
    """A model on a toy stream, before or after its run."""

    model: nn.Module
    dataset: ContinualDataset
    args: Namespace
    summary: dict = field(default_factory=dict)
    rows: dict = field(default_factory=dict)  # score matrices
    calls: list = field(default_factory=list)  # (hook, current_task, what it was called with) in order
    losses: list = field(default_factory=list)
    images: int = 0  # that entered the first layer of the network, or of a copy of it, while this was trained


def build(name: str, stream: str | None = None, trained: bool = False, **flags) -> Toy:
    """A model on its first suitable stream, or the named one, made by main.py; with `trained`, after its whole run."""
    argv, made = argv_of(name, stream or STREAMS[settings_of(name)[0]].NAME), []
    for flag, value in flags.items():
        if f"--{flag}" in argv:
            argv[argv.index(f"--{flag}") + 1] = str(value)
        else:
            argv += [f"--{flag}", str(value)]

    real = training.train

    def train(model, dataset, args, record, resume):
        toy = Toy(model, dataset, args)
        made.append(toy)
        if trained:
            listen(toy)
            before = model.image_forwards  # a constructor may encode reference images
            with counted_images() as entered:
                toy.summary = real(model, dataset, args, record, resume)
            toy.images = before + len(entered)
            unlisten(toy)
            model.eval()
        return toy.summary

    with toys(), contextlib.redirect_stdout(io.StringIO()), mock.patch.object(training, "train", train):
        main.run(cli.parse(argv))
    return made[0]


@contextlib.contextmanager
def counted_images() -> Iterator[list]:
    """A list that grows by one item for each image that enters a layer of three channels, also under vmap."""
    entered, conv, embed = [], nn.Conv2d.forward, MultimodalNet.embed_patches

    def forward(layer, x):
        if layer.in_channels == 3:
            entered.extend([1] * (debug_unwrap(x).numel() // x[0].numel()))
        return conv(layer, x)

    def embed_patches(net, patches):  # by a matrix product
        entered.extend([1] * len(patches))
        return embed(net, patches)

    with (
        mock.patch.object(nn.Conv2d, "forward", forward),
        mock.patch.object(MultimodalNet, "embed_patches", embed_patches),
    ):
        yield entered


HOOKS = ("begin_task", "begin_epoch", "observe", "end_epoch", "end_task", "forward", "end_eval")


def listen(toy: Toy) -> None:
    """Write down every call of a hook; the wrappers are attributes of this instance, its class stays as it is."""

    def wrap(hook: str, call: Callable) -> Callable:
        def noted(*args, **kwargs):
            toy.calls.append((hook, toy.model.current_task, args, kwargs))
            result = call(*args, **kwargs)
            if hook == "observe":
                loss = result["loss"] if isinstance(result, dict) else result
                toy.losses.append(float(torch.as_tensor(loss).detach().mean()))
            if hook == "end_eval":
                toy.rows = toy.model.run.rows
            return result

        return noted

    for hook in HOOKS:
        setattr(toy.model, hook, wrap(hook, getattr(toy.model, hook)))


def unlisten(toy: Toy) -> None:
    for hook in HOOKS:
        vars(toy.model).pop(hook, None)


def run(name: str, stream: str | None = None, **flags) -> Toy:
    """A whole toy run with its calls written down."""
    return build(name, stream, trained=True, **flags)


def images_of(toy: Toy) -> tuple:
    """(inputs, labels) of all test sets of a run."""
    batches = [(batch[0], batch[1]) for loader in toy.dataset.test_loaders for batch in loader]
    return torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])


@torch.no_grad()
def logits(toy: Toy, inputs=None) -> torch.Tensor:
    """Logits of test images as evaluation asks for them; of all test images by default."""
    return logits_of(toy.model, images_of(toy)[0] if inputs is None else inputs, 0).clone()


# dataset name -> what writes its files under a base path and returns the flags it needs beside --base_path. A new
# dataset gets a line here; one that needs no files returns {} and writes nothing.
FABRICATORS: dict[str, Callable] = {
    "seq-mnist": lambda base: fabricate.mnist(base, 120, 60) and {},
    "perm-mnist": lambda base: fabricate.mnist(base, 120, 60) and {},
    "rot-mnist": lambda base: fabricate.mnist(base, 120, 60) and {},
    "mnist-360": lambda base: fabricate.mnist(base, 240, 60) and {},
    "seq-cifar10": lambda base: fabricate.cifar10(base, 100, 40) and {},
    "seq-cifar100": lambda base: fabricate.cifar100(base, 200, 100) and {},
    **dict.fromkeys(
        (
            "seq-tiny",
            "seq-tiny-far",
            "seq-tiny-mixed",
            "mtil-tiny",
            "clove-tiny-scene",
            "clove-tiny-function",
            "clove-tiny-rules",
        ),
        lambda base: {},
    ),
    "mm-tiny": lambda base: {"clip_backbone": "tiny-cluttered"},
    "seq-folder": lambda base: {
        "folder_path": str(fabricate.image_folder(base / "pictures", ["ant", "bee", "cow"])),
        "n_tasks": 2,
        "image_size": 16,
    },
    **fabricate_real.FABRICATORS,
    **fabricate_mtil.FABRICATORS,
    **fabricate_mm.FABRICATORS,
    **fabricate_streams.FABRICATORS,
}
