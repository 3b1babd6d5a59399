"""Shared by methods that regularize CLIP fine-tuning: distillation from one teacher, a weight merge after each task."""

from argparse import ArgumentParser

import torch
from torch import Tensor
from torch.nn.functional import normalize

from backbone.clip import CLIPBackbone
from models.utils.clip_tuning import ClipTuning
from utils.distillation import soft_divergence
from utils.flags import fraction, non_negative, positive
from utils.randomness import generator
from utils.weights import interpolate


def add_distillation_args(parser: ArgumentParser, teacher: str) -> ArgumentParser:
    """The flags of distillation from one teacher."""
    add = parser.add_argument
    add(
        "--teacher",
        choices=["previous", "pretrained"],
        default=teacher,
        help="the model before the task, or the one before all tasks",
    )
    add("--kd_weight", type=non_negative, default=1.0, help="weight of the distillation")
    add("--temperature", type=positive, default=2.0, help="temperature of the distillation")
    return parser


def add_merge_args(parser: ArgumentParser, alpha: float) -> ArgumentParser:
    """The flag of the merge after a task, named as in mulki."""
    text = "weight of the new parameters when merging with those before the task; 1 for no merge"
    parser.add_argument("--inter_alpha", type=fraction, default=alpha, help=text)
    return parser


def two_way_divergence(images: Tensor, texts: Tensor, taught: Tensor, taught_texts: Tensor, scale, T: float) -> Tensor:
    """T^2 [KL over texts, mean over images + KL over images, mean over texts] from the teacher's to the student's.

    images, taught (B, D) and texts, taught_texts (K, D) are unit features. The gradient is that of the released code's
    soft cross-entropy; the value is 0 where both agree.
    """
    given, wanted = scale * images @ texts.T, scale * taught @ taught_texts.T
    return T**2 * (soft_divergence(given, wanted, T) + soft_divergence(given.T, wanted.T, T))


def random_sentences(net: CLIPBackbone, n: int, n_tokens: int, *key) -> Tensor:
    """Token ids (n, L) of sentences of random words, drawn by the key, with start and end of text."""
    sample = net.tokenize("a")[0]
    start, end = sample[:1], sample.max().view(1)
    n_tokens = min(n_tokens, net.context_length - 2)
    words = torch.randint(1, int(min(start, end)), (n, n_tokens), generator=generator(*key))
    return torch.cat([start.expand(n, 1), words, end.expand(n, 1)], dim=1)


class HeldTuning(ClipTuning):
    """A tuned CLIP with a frozen teacher within each task and a merge after it. `teacher` answers `taught(pixels)`."""

    KEEPS_TEACHER = True  # within a task; False if a method runs it once at the start of a task

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        lasting = self.KEEPS_TEACHER and getattr(args, "teacher", None) == "pretrained"
        self.pretrained = self.frozen_copy() if lasting else None
        self.previous = None  # the model before the task, within the task
        self.start = None  # weights before the task, within the task

    def checkpoint_skip(self):
        texts = {f"{net}.{part}" for net in ("pretrained", "previous") for part in ("tokenizer", "preprocess")}
        return super().checkpoint_skip() | texts | {"pretrained"}

    def begin_task(self, dataset):
        super().begin_task(dataset)
        if self.KEEPS_TEACHER and getattr(self.args, "teacher", None) == "previous":
            self.previous = self.frozen_copy()
        self.start = self.copied_weights() if self.needs_start() else None

    def needs_start(self) -> bool:
        return getattr(self.args, "inter_alpha", 1.0) < 1

    @property
    def teacher(self) -> CLIPBackbone:
        return self.pretrained if self.previous is None else self.previous

    @torch.no_grad()
    def taught(self, pixels: Tensor) -> Tensor:
        """Unit features (B, D) of CLIP's input by the teacher."""
        return self.image_rows(self.teacher, pixels).float()

    @torch.no_grad()
    def taught_texts(self, tokens: Tensor) -> Tensor:
        """Unit features (K, D) of token ids by the teacher."""
        return normalize(self.text_rows(self.teacher, tokens), dim=1)

    def end_task(self, dataset):
        super().end_task(dataset)
        if getattr(self.args, "inter_alpha", 1.0) < 1:
            interpolate(self.net, self.start, self.args.inter_alpha)
        self.previous = self.start = self.keys = None
