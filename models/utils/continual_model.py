"""ContinualModel: what every method is, and the counters the loop keeps for it."""

from __future__ import annotations

import inspect
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn, optim

from models.utils.forward_counter import ForwardCounter
from utils import ranks
from utils.batch_transforms import augmentation_of
from utils.conf import get_device
from utils.errors import UserError
from utils.pair import Inputs
from utils.precision import mix
from utils.weights import without_decay_of_vectors

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset

Loss = torch.Tensor | float | dict[str, Any]  # a dict has 'loss'


class ContinualModel(nn.Module):
    """A method writes `observe` (one optimization step) and as many of the other hooks as it needs.

    Hooks, in the order of a task: begin_task, begin_epoch, observe, end_epoch, end_task, forward, end_eval. The
    `meta_*` methods are called by the loop; they keep the counters and then call the hook.
    """

    NAME: str
    net: nn.Module  # None in a method without network
    COMPATIBILITY: list[str]
    AVAIL_OPTIMS = ["sgd", "adam", "adamw"]
    trains_in_loop = True  # False: all work is in end_task, observe is never called
    IDLE_FLAGS: dict[str, str] = {}  # framework flags without effect, refused -> the one to give, or ""
    stream_at_hand = None  # the dataset, while get_model calls a constructor that has no parameter for it
    EVERY_CLASS = False  # True: each class of a task must have training images in it, in streams of domains too
    LEAST_IMAGES = 1  # training images of each class
    TOY_ARGS: dict = {}  # arguments of the contract checks: a run on their toy streams is short, and every flag matters
    NOT_TRIED: dict[str, str] = {}  # flags whose effect the checks cannot see: why; added to the base classes' own
    ONE_RANK = ""  # why it cannot run on several ranks, as what follows its name: "takes one sample in each step"
    LOOKS_AHEAD = False  # True: future tasks are evaluated unless --eval_future is 0
    future_forward: Callable[[Inputs], torch.Tensor]  # of models that can name classes not trained yet
    work_loss: float | torch.Tensor | None = None  # of the last step of `work`: shown, and checked

    @staticmethod
    def get_parser(parser: ArgumentParser) -> ArgumentParser:
        return parser

    def __init__(
        self,
        backbone: nn.Module | None,
        loss: Callable,
        args: Namespace,
        transform: Callable | None,
        dataset: ContinualDataset | None = None,
    ) -> None:
        super().__init__()
        if dataset is None:
            from datasets import get_dataset

            dataset = self.stream_at_hand or get_dataset(args)
        self.net, self.loss, self.args, self.dataset = backbone, loss, args, dataset
        self.original_transform = transform
        self.transform = augmentation_of(transform)
        self.normalization_transform = dataset.get_normalization_transform()
        self.num_classes = self.N_CLASSES = dataset.N_CLASSES
        self.n_tasks = self.N_TASKS = dataset.N_TASKS
        self.SETTING = dataset.SETTING
        self._cpt = dataset.N_CLASSES_PER_TASK
        self._current_task = 0
        self._task_iteration = self._epoch_iteration = 0
        self._n_classes_current_task = self._n_past_classes = self._n_seen_classes = -1
        self.device = get_device(getattr(args, "device", None))
        self.opt = self.get_optimizer()
        self.run: Any = None  # set by the loop while it trains
        self.work_done: dict[str, int] = {}  # finished steps of long work inside end_task
        self.forward_counter = ForwardCounter()
        self.prepare_net()

    def prepare_net(self) -> None:
        """Count the images that `net` is called with, deal them over ranks, and with -O 2 make its products in bf16;
        called again wherever a method may have replaced it."""
        if not isinstance(self.net, nn.Module):
            return
        if self.forward_counter not in self.net._forward_pre_hooks.values():
            self.net.register_forward_pre_hook(self.forward_counter)
        ranks.deal_calls(self.net)
        if (getattr(self.args, "code_optimization", None) or 0) >= 2:
            mix(self.net, self.device)

    def compiled_parts(self) -> list[nn.Module]:
        """What -O 3 compiles: modules that the method calls as a whole; if there are none, -O 3 is refused."""
        return [] if self.net is None else [self.net]

    # hooks

    def begin_task(self, dataset: ContinualDataset) -> None:
        """Before the first batch of a task."""

    def begin_epoch(self, epoch: int, dataset: ContinualDataset) -> None:
        """Before each pass over a task."""

    def observe(
        self,
        inputs: Inputs,
        labels: torch.Tensor,
        not_aug_inputs: Inputs,
        epoch: int | None = None,
        **extras: torch.Tensor,
    ) -> Loss:
        """One step of training; returns the loss, or a dict with 'loss'."""
        raise UserError(
            f"model {self.NAME} defines no observe(inputs, labels, not_aug_inputs, epoch); add it to its file"
        )

    def end_epoch(self, epoch: int, dataset: ContinualDataset) -> None:
        """After each pass over a task."""

    def end_task(self, dataset: ContinualDataset) -> None:
        """After the last batch of a task."""

    def forward(self, x: Inputs) -> torch.Tensor:
        """Logits for evaluation."""
        return self.net(x)

    def end_eval(self, dataset: ContinualDataset, accs: tuple[list[float], list[float]]) -> None:
        """After the evaluation that follows a task; accs = (class-IL, task-IL) of the tasks seen."""

    def get_parameters(self) -> Iterable[nn.Parameter]:
        """What the optimizer trains."""
        return self.net.parameters()

    def get_optimizer(
        self, params: Iterable[nn.Parameter] | None = None, lr: float | None = None
    ) -> optim.Optimizer | None:
        """The optimizer of the --optim flags; None where there is nothing to train."""
        if params is None:
            params = [] if self.net is None else [p for p in self.get_parameters() if p.requires_grad]
        params, args = list(params), self.args
        if not params:
            return None
        lr = getattr(args, "lr", None) if lr is None else lr
        if lr is None:
            if getattr(args, "n_epochs", None) == 0 or getattr(args, "inference_only", False):
                return None
            raise UserError(f"--lr is missing: model {self.NAME} trains by gradient steps")
        decay = getattr(args, "optim_wd", 0.0)
        if decay and not getattr(args, "decay_vectors", True):
            params = without_decay_of_vectors(params)
        if args.optimizer == "sgd":
            momentum, nesterov = getattr(args, "optim_mom", 0.0), getattr(args, "optim_nesterov", False)
            if nesterov and not momentum:
                raise UserError("--optim_nesterov 1 needs --optim_mom above 0")
            return optim.SGD(params, lr=lr, weight_decay=decay, momentum=momentum, nesterov=nesterov)
        return {"adam": optim.Adam, "adamw": optim.AdamW}[args.optimizer](params, lr=lr, weight_decay=decay)

    def get_debug_iters(self) -> int:
        """Batches per epoch and per test set with --debug_mode."""
        return 5

    # what a checkpoint and the record need

    def stored_bytes(self) -> dict[str, int]:
        """Bytes kept between tasks besides the network, by attribute."""
        from models.utils.stored_bytes import stored_bytes

        return stored_bytes(self)

    def reference_sha256(self) -> str | None:
        """Checksum of data from outside the stream that the method holds; a resumed run must have the same."""
        return None

    @property
    def image_forwards(self) -> int:
        """Images that went through the network or a copy of it."""
        return self.forward_counter.images

    def cached_inputs(self, loader: Any) -> torch.Tensor | None:
        """Features of a whole test set that `forward` takes instead of its images; None if nothing is frozen."""
        return None

    def touches_task_start(self) -> bool:
        """Whether begin_task does anything, such as change the loaders, that a resumed task has to repeat."""
        return type(self).begin_task is not ContinualModel.begin_task

    def future_variants(self, x: Inputs) -> dict[str, torch.Tensor]:
        """Logits over all names in other ways than future_forward, measured along with it, by name."""
        return {}

    def extra_scores(self) -> dict[str, list[float]]:
        """More scores of the evaluation just made (after end_eval): by name, a percentage for each task seen."""
        return {}

    def checkpoint_skip(self) -> set[str]:
        """Submodules that the constructor recreates exactly, so a checkpoint need not contain them."""
        return set()

    def work(self, name: str, steps: int) -> Iterator[int]:
        """Steps of long work inside end_task, with a bar, and with a safe point after each to save and go on from.

        After a resume the steps done are skipped, so their results must be in attributes of the model.
        """
        from utils.progress import progress

        done = self.work_done.get(name, 0)
        with progress(name, steps, self.args, done) as bar:
            for step in range(done, steps):
                yield step
                self.work_done[name] = step + 1
                if self.work_loss is not None:
                    loss, self.work_loss = float(self.work_loss), None
                    if not math.isfinite(loss):
                        raise UserError(
                            f"the loss is {loss} in task {self.current_task + 1}, {name}, step {step + 1}: lower "
                            "the learning rate or check the data; the last good checkpoint is kept"
                        )
                    bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
                bar.update(1)
                if self.run is not None:
                    with self.run.polling():
                        self.run.tick(phase="end")

    # counters

    @property
    def current_task(self) -> int:
        """0-based; incremented after end_task."""
        return self._current_task

    @property
    def task_iteration(self) -> int:
        return self._task_iteration

    @property
    def epoch_iteration(self) -> int:
        return self._epoch_iteration

    @property
    def n_classes_current_task(self) -> int:
        return self._n_classes_current_task

    @property
    def n_past_classes(self) -> int:
        return self._n_past_classes

    @property
    def n_seen_classes(self) -> int:
        return self._n_seen_classes

    @property
    def n_remaining_classes(self) -> int:
        return self.N_CLASSES - self._n_seen_classes

    @property
    def cpt(self) -> int | list[int]:
        """Classes per task, as the dataset declares them."""
        return self._cpt

    @cpt.setter
    def cpt(self, value: int | list[int]) -> None:
        self._cpt = value

    classes_per_task = cpt

    def get_offsets(self, task: int) -> tuple[int, int]:
        return self.dataset.get_offsets(task)

    def to(self, *args: Any, **kwargs: Any) -> ContinualModel:
        device = args[0] if args else kwargs.get("device")
        if isinstance(device, (str, torch.device)):
            self.device = torch.device(device)
        return super().to(*args, **kwargs)

    def load_buffer(self, buffer) -> None:
        """Take over a Buffer, or its tensors as a dict."""
        if isinstance(buffer, dict):
            self.buffer.load(buffer)
        elif buffer.buffer_size != self.args.buffer_size:
            raise UserError(f"the buffer has {buffer.buffer_size} places, but --buffer_size is {self.args.buffer_size}")
        else:
            self.buffer = buffer

    # called by the loop

    def meta_begin_task(self, dataset: ContinualDataset) -> None:
        self._task_iteration = self._epoch_iteration = 0
        self.work_done.clear()
        start, end = dataset.get_offsets(self.current_task)
        self._n_classes_current_task, self._n_past_classes, self._n_seen_classes = end - start, start, end
        if self.opt is not None and not self._keeps_optimizer():
            self.opt.zero_grad(set_to_none=True)
            self.opt = self.get_optimizer()
        self.begin_task(dataset)
        self.prepare_net()

    def _keeps_optimizer(self) -> bool:
        return hasattr(self, "scheduler") and getattr(self, "custom_scheduler", None) is not None

    def meta_begin_epoch(self, epoch: int, dataset: ContinualDataset) -> None:
        self._epoch_iteration = 0
        self.begin_epoch(epoch, dataset)

    def meta_observe(
        self,
        inputs: Inputs,
        labels: torch.Tensor,
        not_aug_inputs: Inputs,
        epoch: int | None = None,
        **extras: torch.Tensor,
    ) -> Loss:
        if self._has_unlabelled():
            labelled = labels != -1
            if not bool(labelled.any()):
                return 0.0
            inputs, labels, not_aug_inputs = inputs[labelled], labels[labelled], not_aug_inputs[labelled]
            extras = {k: v[labelled] for k, v in extras.items()}
        positional, named = self._bind(inputs, labels, not_aug_inputs, epoch, extras)
        result = self.observe(*positional, **named)
        self._task_iteration += 1
        self._epoch_iteration += 1
        return result

    def _has_unlabelled(self) -> bool:
        partly = min(getattr(self.args, "label_perc", 1.0), getattr(self.args, "label_perc_by_class", 1.0)) < 1
        return partly and "cssl" not in self.COMPATIBILITY

    def _bind(self, inputs, labels, not_aug_inputs, epoch, extras: dict) -> tuple[tuple, dict]:
        """Arguments for observe: those its signature names, and the three tensors by position if it names none."""
        offered = {"inputs": inputs, "labels": labels, "not_aug_inputs": not_aug_inputs, "epoch": epoch, **extras}
        names, takes_all, required = self._observe_signature()
        if "inputs" not in names:
            return (inputs, labels, not_aug_inputs)[: len(names)], {
                k: v for k, v in extras.items() if takes_all or k in names
            }
        missing = [n for n in required if n not in offered]
        if missing:
            hint = "; true_labels comes with --noise_rate above 0" if "true_labels" in missing else ""
            raise UserError(
                f"model {self.NAME} needs {', '.join(missing)}, which {self.dataset.NAME} does not provide{hint}"
            )
        return (), {k: v for k, v in offered.items() if takes_all or k in names}

    def _observe_signature(self) -> tuple[list[str], bool, list[str]]:
        signature = _SIGNATURES.get(type(self))
        if signature is None:
            parameters = list(inspect.signature(type(self).observe).parameters.values())[1:]
            names = [p.name for p in parameters if p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD}]
            required = [p.name for p in parameters if p.name in names and p.default is p.empty]
            signature = names, any(p.kind is p.VAR_KEYWORD for p in parameters), required
            _SIGNATURES[type(self)] = signature
        return signature

    def meta_end_epoch(self, epoch: int, dataset: ContinualDataset) -> None:
        self.end_epoch(epoch, dataset)

    def meta_end_task(self, dataset: ContinualDataset) -> None:
        self.end_task(dataset)
        self.prepare_net()
        self._current_task += 1

    def autolog_wandb(self, locals: dict, extra: dict | None = None) -> None:
        """Nothing: losses are in the progress bar and the record. Files written for Mammoth may call it."""

    def meta_end_eval(self, dataset: ContinualDataset, accs: tuple[list[float], list[float]]) -> None:
        """end_eval refers to the task just evaluated, so the counter is set back to it during the call."""
        self._current_task -= 1
        try:
            self.end_eval(dataset, accs)
        finally:
            self._current_task += 1


_SIGNATURES: dict[type, tuple[list[str], bool, list[str]]] = {}
