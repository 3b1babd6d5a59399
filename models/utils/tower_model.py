"""Shared by methods that add trained parts to the blocks of one frozen vision transformer.

The transformer is CLIP's image tower, or with --vit one of timm. Nothing in it changes: a method hands `states` the
edits of its blocks (backbone/edits.py) or replaced weights, and trains their tensors and a head.
"""

from argparse import ArgumentParser
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call

from backbone.prompted_vit import PromptedClip, prompted_timm
from models.utils.answer_training import AnswerTraining
from models.utils.continual_model import ContinualModel
from models.utils.vlm_model import EVAL_ROWS, VLMModel, add_vlm_args
from utils.flags import boolean, non_negative
from utils.passes import plain_batches


def add_tower_args(parser: ArgumentParser, clip_grad: float = 0.0) -> ArgumentParser:
    """The flags of a method on a transformer."""
    add = add_vlm_args(parser, names=False).add_argument
    add("--vit", help="timm:<name>, a vision transformer in place of CLIP's image tower")
    add("--vit_pretrained", type=boolean, default=True, help="with its published weights")
    add("--clip_grad", type=non_negative, default=clip_grad, help="maximum gradient norm, 0 for no clipping")
    return parser


class TowerModel(AnswerTraining, VLMModel):
    """`tower` is the frozen transformer, `states(images, ...)` its class states (B, W)."""

    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    NOT_TRIED = dict.fromkeys(("vit", "vit_pretrained"), "timm's networks are larger; tests/test_tower_model.py")

    def __init__(self, backbone, loss, args, transform, dataset=None):
        if args.vit:
            ContinualModel.__init__(self, prompted_timm(args.vit, args.vit_pretrained), loss, args, transform, dataset)
            self.to(self.device)
        else:
            super().__init__(backbone, loss, args, transform, dataset)
            self.net.tower = PromptedClip(self.net)
            self.net.tower.register_forward_pre_hook(self.forward_counter)
        self.width, self.n_layers = self.tower.width, self.tower.n_layers
        self.make_head(self.width)

    @property
    def tower(self):
        return self.net if self.args.vit else self.net.tower

    def compiled_parts(self):
        return [self.tower] if isinstance(self.net, torch.nn.Module) else []

    def get_parameters(self):
        return self.parameters()

    def checkpoint_skip(self):
        return {"net"} if self.args.vit else super().checkpoint_skip()

    def change_transform(self, dataset):
        if not self.args.vit:
            super().change_transform(dataset)

    def cached_inputs(self, loader):
        return None

    @property
    def image_forwards(self):
        return self.forward_counter.images if self.args.vit else VLMModel.image_forwards.fget(self)

    def states(self, images, prompts: Tensor | None = None, edits=None, weights: dict | None = None) -> Tensor:
        """Class states (B, W) under prompts (B, n, W), an edit for each block, or other weights by their names."""
        images = getattr(images, "image", images)
        more = {"prompts": prompts, "edits": edits}
        if weights is None:
            return self.tower(images, **more)
        return functional_call(self.tower, weights, (images,), more, tie_weights=False)  # a module may have two names

    def plain_pass(self, dataset) -> Iterator[tuple]:
        """(images, labels) of all labeled training images of the task, without augmentation."""
        loader = dataset.train_loader
        prepared = plain_batches(self, dataset) if self.args.vit else loader.with_batch_size(EVAL_ROWS)
        for images, labels, *_ in prepared:
            known = labels >= 0
            yield images[known].to(self.device), labels[known].to(self.device)

    @torch.no_grad()
    def class_sums(self, dataset, features) -> tuple[Tensor, Tensor]:
        """Sums (C, D) of `features(images)` (B, D) over the task's training images, and their numbers (C,)."""
        total, count = 0.0, torch.zeros(self.num_classes, device=self.device)
        for images, labels in self.plain_pass(dataset):
            found = features(images)
            total = total + found.new_zeros(self.num_classes, found.shape[1]).index_add_(0, labels, found)
            count += labels.bincount(minlength=self.num_classes)
        return total, count

    def begin_task(self, dataset):
        self.grow_head(dataset.train_loader.dataset)
        self.new_task(dataset)
        self.opt = self.get_optimizer()

    def new_task(self, dataset) -> None:
        """What a method adds for a task, before its optimizer is made."""

    def forward(self, x):
        images = getattr(x, "image", x)
        with torch.no_grad():
            return torch.cat([self.answers(part) for part in images.split(EVAL_ROWS)])

    def answers(self, x) -> Tensor:
        """Logits (B, C) of images."""
        raise NotImplementedError(f"{type(self).__name__} defines no answers()")
