"""Shared by methods that train the whole CLIP on a stream of domains: the step, the schedule, scores, weight averaging.

A method overrides `penalty` (what is added to the cross-entropy), and the hooks it needs. Plain sequential fine-tuning
is this class with a penalty of 0. Follows the protocol of Zheng et al., ICCV 2023, arXiv 2303.06628: AdamW on both
towers but not on the logit scale, linear warm-up and a cosine to 0, label smoothing, the first template in training and
the mean over all templates at test.

Choices: the first step of the warm-up has rate lr / warm-up steps, not 0; images go through the dataset's augmentation
(--augment 0: as CLIP's test images); the cross-entropy is over the task's own names (--label_space seen, all).
"""

import argparse
import copy
from argparse import ArgumentParser

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint
from torchvision.transforms import v2
from torchvision.transforms.transforms import Normalize

from backbone.clip import DTYPES, CLIPBackbone, cast
from backbone.lora import adapted, add_lora, fold_lora
from models.utils.vlm_model import TEXT_ROWS, VLMModel, add_vlm_args
from utils.batch_transforms import BatchTransform, flatten
from utils.errors import UserError
from utils.flags import boolean, fraction, natural, positive, positive_int
from utils.pair import Inputs, Pair
from utils.passes import eval_batch_size
from utils.randomness import generator
from utils.schedulers import warmup_cosine
from utils.settings import option
from utils.weights import add_to_mean, set_weights


def add_tuning_args(parser: ArgumentParser, label_smoothing: float = 0.2) -> ArgumentParser:
    """The flags of every method that tunes CLIP; optimizer and rate are the framework's."""
    parser.set_defaults(optimizer="adamw", lr=1e-5)
    add = add_vlm_args(parser).add_argument
    add(
        "--label_space",
        choices=["domain", "seen", "all"],
        default="domain",
        help="names in the training softmax: the task's, those seen, all",
    )
    add("--label_smoothing", type=fraction, default=label_smoothing, help="label smoothing of the cross-entropy")
    add("--warmup", type=fraction, default=0.1, help="fraction of a task's steps for linear warm-up")
    add(
        "--domain_lr",
        type=rates,
        help="learning rates of domains in place of --lr, for example aircraft=5e-5,mnist=5e-5",
    )
    add("--augment", type=boolean, default=True, help="the dataset's augmentation; 0: as at test time")
    add(
        "--name_chunk",
        type=natural,
        default=64,
        help="class names whose text activations a step keeps at once, 0 for all; exact, the rest is recomputed",
    )
    add("--test_templates", choices=["all", "first"], default="all", help="templates averaged per class key")
    return parser


def rates(text: str) -> dict[str, float]:
    """Argument type: learning rates by domain, "aircraft=5e-5,mnist=5e-5"."""
    pairs = [part.strip().partition("=") for part in str(text).split(",")]
    if any(not name or not value for name, _, value in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of rates such as aircraft=5e-5,mnist=5e-5")
    return {name: positive(value) for name, _, value in pairs}


def add_averaging_args(parser: ArgumentParser, every: int = 100, include_init: bool = False) -> ArgumentParser:
    """The flags of a running mean of weights within a task."""
    add = parser.add_argument
    add(
        "--avg_freq",
        type=natural,
        default=every,
        help="steps between the weight snapshots that are averaged at the end of a task, 0 for no average",
    )
    add("--we_include_init", type=boolean, default=include_init, help="also average the start and the first step")
    return parser


def add_peft_args(parser: ArgumentParser) -> ArgumentParser:
    """The flags of low-rank tuning instead of all weights."""
    add = parser.add_argument
    add(
        "--peft",
        choices=["none", "lora"],
        default="none",
        help="what is trained: all weights, or low-rank adapters on blocks",
    )
    add("--lora_rank", type=positive_int, default=8, help="rank of an adapter")
    add("--lora_scale", type=positive, default=16.0, help="an adapter adds scale / rank times B A")
    return parser


class ClipTuning(VLMModel):
    """CLIP with gradients in both towers. `net` is the student; `forward` takes images or features (B, D)."""

    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    FROZEN_TOWER = False
    TOY_ARGS = {"lr": 0.001}
    NOT_TRIED = {
        "domain_lr": "the toy streams have no domains; tests/test_clip_tuning.py",
        "augment": "the toy streams do not augment; tests/test_mulki.py",
        "name_chunk": "exact, it bounds memory; tests/test_clip_tuning.py",
    }

    @staticmethod
    def get_parser(parser: ArgumentParser) -> ArgumentParser:
        return add_tuning_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        if args.lr_scheduler:
            raise UserError(f"--lr_scheduler: {self.NAME} has its own schedule (--warmup); leave the flag out")
        if args.clip_dtype != "fp32":
            raise UserError(
                f"--clip_dtype {args.clip_dtype}: {self.NAME} trains CLIP's weights, which requires fp32 "
                "(bf16 products: -O 2)"
            )
        super().__init__(backbone, loss, args, transform, dataset)
        self.check_rates()
        self.net.clip.logit_scale.requires_grad_(False)
        tokens = self.net.tokenize(
            [own[0].format(n) for n, own in zip(self.dataset.get_class_names(), self.class_templates(), strict=True)]
        )
        self.name_tokens = tokens[:, : int(tokens.argmax(1).max()) + 1].clone()  # (C, L), on the CPU
        self.keys = None  # unit test keys of all names (C, D); None when a weight has changed since
        self.task_steps = 0
        self.adapters: list[str] = []  # names of the weights that have low-rank adapters, within a task
        self.pixel_statistics = None  # what the augmentation normalizes with
        self.mean, self.mean_count = None, 0  # running mean of weights, and of how many snapshots

    def get_parameters(self):
        return [p for name, p in self.net.named_parameters() if not name.endswith("logit_scale")]

    def checkpoint_skip(self):
        nets = ("net", "pretrained", "previous")  # the student and copies of it, which contain the same
        return super().checkpoint_skip() | {f"{net}.{what}" for net in nets for what in ("tokenizer", "preprocess")}

    # a task

    def begin_task(self, dataset):
        split = dataset.train_loader.dataset
        if self.args.augment:
            self.pixel_statistics = normalization_of(split.transform)
        else:
            self.use_clip_preprocessing(split)
        self.task_steps = steps_of_task(self.args, dataset.train_loader)
        self.mean, self.mean_count = None, 0
        if option(self.args, "peft") == "lora":
            drawn = generator(option(self.args, "seed", 0), "lora", self.current_task)
            self.adapters = add_lora(self.net, self.args.lora_rank, self.args.lora_scale, drawn)
            self.opt = self.get_optimizer()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step(inputs, labels)

    def step(self, inputs: Inputs, labels: Tensor, **extras) -> Tensor:
        """One step: cross-entropy over names plus `penalty`; `extras` go to the penalty."""
        self.keys = None
        self.set_rate()
        self.start_mean()
        self.opt.zero_grad()
        pixels = self.clip_input(inputs)
        first, last = self.label_range()
        images, names = self.image_rows(self.net, pixels), self.name_rows(self.net, first, last)
        with torch.autocast(self.device.type, enabled=False):
            loss = self.task_loss(images, names, labels - first) + self.penalty(pixels, images, names, labels, **extras)
        loss.backward()
        self.opt.step()
        self.add_snapshot()
        return loss.detach()

    def task_loss(self, images: Tensor, names: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(self.scale * images @ names.T, labels, label_smoothing=self.args.label_smoothing)

    def penalty(self, pixels: Tensor, images: Tensor, names: Tensor, labels: Tensor, **extras) -> Tensor | float:
        """Added to the loss. pixels (B, 3, R, R) are CLIP's input, images (B, D) and names (K, D) the student's unit
        features, names those of `label_range`, labels (B,) those of the stream."""
        return 0.0

    def end_task(self, dataset):
        if self.adapters:
            fold_lora(self.net, self.adapters)
            self.net.clip.logit_scale.requires_grad_(False)
            self.adapters, self.opt = [], self.get_optimizer()
        if self.mean_count:
            set_weights(self.net, self.mean)
        self.mean, self.mean_count, self.keys = None, 0, None

    def set_rate(self) -> None:
        """The rate depends only on the step, so a resumed task does not need a schedule state."""
        factor = warmup_cosine(self.task_iteration + 1, round(self.args.warmup * self.task_steps), self.task_steps + 1)
        for group in self.opt.param_groups:
            group["lr"] = self.rate() * factor

    def rate(self) -> float:
        """--lr, or the domain's own."""
        own = self.args.domain_lr or {}
        return own.get(self.domain_names()[self.current_task], self.args.lr) if own else self.args.lr

    def domain_names(self) -> list[str]:
        """Domains in the order of the tasks; none on a stream whose tasks are not domains."""
        names = getattr(self.dataset, "domains", ())
        return [names[t] for t in self.dataset.task_order] if len(names) == len(self.dataset.task_order) else []

    def check_rates(self) -> None:
        orders = getattr(self.dataset, "ORDERS", {"": self.domain_names()})  # a run may be over some of the domains
        known = dict.fromkeys(name for order in orders.values() for name in order)
        unknown = sorted(set(self.args.domain_lr or {}) - set(known))
        if unknown:
            has = ", ".join(known) or "none"
            raise UserError(f"--domain_lr names {', '.join(unknown)}; the domains of {self.dataset.NAME}: {has}")

    # running mean of weights

    def trained_weights(self) -> dict[str, Tensor]:
        """What a task moves, by name: the live parameters, or with adapters the weights with what these add."""
        if self.adapters:
            return adapted(self.net, self.adapters)
        return {name: p for name, p in self.net.named_parameters() if p.requires_grad}

    def copied_weights(self, device: torch.device | str | None = None) -> dict[str, Tensor]:
        """Copies of `trained_weights`."""
        return {n: w.detach().to(device or w.device, copy=True) for n, w in self.trained_weights().items()}

    def start_mean(self) -> None:
        """Before a step: with --we_include_init the start of the task is the first snapshot."""
        if getattr(self.args, "avg_freq", 0) and self.args.we_include_init and not self.task_iteration:
            self.mean, self.mean_count = self.copied_weights(), 1

    def add_snapshot(self) -> None:
        """After a step: every --avg_freq steps, and with --we_include_init after the first. A task that is shorter
        keeps its last weights."""
        every, step = getattr(self.args, "avg_freq", 0), self.task_iteration + 1
        if not every or (step % every and not (step == 1 and self.args.we_include_init)):
            return
        if self.mean is None:
            self.mean, self.mean_count = self.copied_weights(), 1
        else:
            add_to_mean(self.mean, self.trained_weights(), self.mean_count)
            self.mean_count += 1

    # features

    @property
    def scale(self) -> Tensor:
        """exp(logit_scale), which is not trained."""
        return self.net.logit_scale.detach()

    def label_range(self) -> tuple[int, int]:
        """First and one-past-last name of the training softmax."""
        first = self.n_past_classes if self.args.label_space == "domain" else 0
        return first, self.num_classes if self.args.label_space == "all" else self.n_seen_classes

    def clip_input(self, inputs: Inputs) -> Tensor:
        """Training images (B, C, H, W), normalized by the dataset's augmentation, as CLIP takes them."""
        images = inputs.image if isinstance(inputs, Pair) else inputs
        if not self.args.augment:
            return images
        if self.pixel_statistics is not None:
            mean, std = self.pixel_statistics
            fits = images.shape[1] == 3 and images.shape[-2:] == (self.net.resolution, self.net.resolution)
            if fits and (mean, std) == (tuple(self.net.mean), tuple(self.net.std)):
                return images
            images = images * images.new_tensor(std)[:, None, None] + images.new_tensor(mean)[:, None, None]
        return self.net.normalize_images(images)

    def image_rows(self, net: CLIPBackbone, pixels: Tensor) -> Tensor:
        """Unit image features (B, D) by the student or a teacher, counted."""
        self.forward_counter.images += len(pixels)
        return normalize(net.encode_image(pixels).float(), dim=1)

    def name_rows(self, net: CLIPBackbone, first: int, last: int) -> Tensor:
        """Unit features (last - first, D) of class names in their training sentence, with gradients if any."""
        return self.text_rows(net, self.name_tokens[first:last])

    def text_rows(self, net: CLIPBackbone, tokens: Tensor) -> Tensor:
        """Unit features (N, D) of token ids (N, L); with gradient, chunks of --name_chunk texts."""

        def encode(part: Tensor) -> Tensor:
            return normalize(net.encode_text(part).float(), dim=1)

        chunk = option(self.args, "name_chunk", 0)
        if torch.is_grad_enabled() and net is self.net and 0 < chunk < len(tokens):
            again = {"use_reentrant": False, "preserve_rng_state": False}
            return torch.cat([checkpoint(encode, part, **again) for part in tokens.split(chunk)])
        parts = [encode(part) for part in tokens.split(TEXT_ROWS)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def frozen_copy(self, dtype: str = "fp32") -> CLIPBackbone:
        """The student as it is now, as a teacher: eval mode, no gradients, matrices in `dtype`."""
        twin = copy.deepcopy(self.net).requires_grad_(False).eval()
        cast(twin.clip, DTYPES[dtype])
        return twin

    # test

    @torch.no_grad()
    def cached_inputs(self, loader):
        """Features of a test set: encoded once for all scores."""
        if not hasattr(loader.dataset, "samples"):
            return None
        self.use_clip_preprocessing(loader.dataset)  # a resumed run did not begin the earlier tasks
        if self.args.debug_mode:
            return None
        loader = loader.with_batch_size(eval_batch_size(loader, self.args))
        rows = [self.encode(batch[0].to(self.device)) for batch in loader]
        return torch.cat(rows) if rows else None

    def encode(self, x: Inputs) -> Tensor:
        pixels = x.image if isinstance(x, Pair) else x
        return pixels if pixels.dim() == 2 else self.image_rows(self.net, pixels)

    def all_keys(self) -> Tensor:
        if self.keys is None:
            every = self.args.test_templates == "all"
            self.keys = self.text_features(self.dataset.get_class_names(), self.class_templates(every))
        return self.keys

    def forward(self, x):
        return self.logits(self.encode(x), self.all_keys()[: self.n_seen_classes])

    def future_forward(self, x):
        return self.logits(self.encode(x), self.all_keys())


def normalization_of(transform) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) that a training transform normalizes with; None where it does not."""
    steps = transform.operations if isinstance(transform, BatchTransform) else flatten(transform)
    for step in steps:
        if isinstance(step, (Normalize, v2.Normalize)):
            return tuple(map(float, step.mean)), tuple(map(float, step.std))
    return None


def steps_of_task(args, loader) -> int:
    """Steps that the loop will make in a task."""
    batches = len(loader)
    if args.fitting_mode == "iters":
        return args.n_iters
    return max(1, batches * args.n_epochs)
