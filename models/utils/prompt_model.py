"""Shared by prompt methods: one frozen network that takes prompts or prefixes, and the query that selects them.

On streams with questions the network is the fusion transformer over cached tokens; on images only it is CLIP's image
tower, or with --vit a vision transformer of timm. A method writes `observe` and `states` once for all three.
"""

from argparse import ArgumentParser

import torch
from torch import Tensor
from torch.nn.functional import normalize

from backbone.clip_encoder import ClipImageEncoder
from backbone.fusion import SIZE_FLAGS
from backbone.hub import HubBackbone
from backbone.hub_flags import chosen
from backbone.prompted_vit import PromptedClip, prompted_timm
from models.utils.answer_training import AnswerTraining
from models.utils.continual_model import ContinualModel
from models.utils.fused_model import FusedModel, add_fused_args
from models.utils.head_distillation import add_head_distillation_args, head_divergence
from models.utils.vlm_model import EVAL_ROWS, VLMModel
from utils.errors import UserError
from utils.flags import boolean, non_negative


def add_prompt_args(parser: ArgumentParser) -> ArgumentParser:
    """The flags of a prompt method."""
    parser.set_defaults(optimizer="adam", lr=0.03)
    add = add_fused_args(parser).add_argument
    add("--vit", help="timm:<name>, a vision transformer in place of CLIP's image tower (images only)")
    add("--vit_pretrained", type=boolean, default=True, help="with its published weights")
    add(
        "--query",
        choices=["visual", "both"],
        default="visual",
        help="features that select prompts for an image with a question",
    )
    add_head_distillation_args(parser, weight=0.0)
    add("--clip_grad", type=non_negative, default=1.0, help="maximum gradient norm, 0 for no clipping")
    return parser


class PromptModel(AnswerTraining, FusedModel):
    """`prepare` gives (input, query) of a batch, `body` runs the network on an input with prompts or prefixes."""

    RATE_BATCH: int | None = 256
    NOT_TRIED = dict.fromkeys(
        (*SIZE_FLAGS, "fusion_train", "key_feature", "query", "vit", "vit_pretrained"),
        "the fusion is used where images come with questions; tests/test_prompt_baselines.py",
    ) | {"kd_type": "there is no distillation by default; tests/test_head_distillation.py"}

    def __init__(self, backbone, loss, args, transform, dataset=None):
        self.uses = "timm" if args.vit else "clip"
        if args.vit and chosen(args) != "clip":
            raise UserError("--vit reads only images, --vqa_backbone reads questions: give only one of them")
        if args.vit:
            net = prompted_timm(args.vit, args.vit_pretrained)
            ContinualModel.__init__(self, net, loss, args, transform, dataset)
            self.to(self.device)
        else:
            super().__init__(backbone, loss, args, transform, dataset)
            if isinstance(self.net, HubBackbone) and not self.dataset.HAS_TEXT:
                raise UserError(
                    f"--vqa_backbone {args.vqa_backbone} is for images with questions; {self.dataset.NAME} does "
                    "not have any: leave the flag out"
                )
            self.net.tower = None if isinstance(self.net, HubBackbone) else PromptedClip(self.net)
            if self.net.tower is not None:
                self.net.tower.register_forward_pre_hook(self.forward_counter)
        if self.dataset.HAS_TEXT:
            if args.vit:
                raise UserError(f"--vit reads only images, but {self.dataset.NAME} has questions: leave the flag out")
            self.uses = "fused"
        elif args.query == "both":
            raise UserError(
                f"--query both is for images with questions; {self.dataset.NAME} does not have any: leave the flag out"
            )
        elif not args.vit:
            self.encoder = ClipImageEncoder(self.net)  # of the queries
            self.net.fusion.requires_grad_(False)
        (network,) = self.compiled_parts()
        self.width, self.n_layers = network.width, network.n_layers
        self.make_head(self.width)
        self.register_buffer("teacher", None)  # rows of the head after the task before, with --kd_weight

    def compiled_parts(self):
        return [
            {"timm": self.net, "clip": getattr(self.net, "tower", None), "fused": getattr(self.net, "fusion", None)}[
                self.uses
            ]
        ]

    @property
    def query_dim(self) -> int:
        if self.uses == "timm":
            return self.width
        if self.uses == "fused" and (self.args.key_feature != "clip" or isinstance(self.net, HubBackbone)):
            return self.net.vision_width + (self.net.text_width if self.args.query == "both" else 0)
        return self.net.embed_dim * (2 if self.uses == "fused" and self.args.query == "both" else 1)

    # the three networks

    def change_transform(self, dataset):
        if self.uses != "timm":
            super().change_transform(dataset)

    def cached_inputs(self, loader):
        return super().cached_inputs(loader) if self.uses == "fused" else None

    def checkpoint_skip(self):
        return {"net"} if self.uses == "timm" else super().checkpoint_skip() | {"net.tower"}

    @property
    def image_forwards(self):
        return self.forward_counter.images if self.uses == "timm" else VLMModel.image_forwards.fget(self)

    @property
    def question_forwards(self):
        return self.questions.forwards if self.uses == "fused" else 0

    def prepare(self, x, query=None) -> tuple:
        """(what `body` takes, unit query (B, D)); `query` is the one known from the cache."""
        if self.uses == "fused":
            batch = self.read(x)
            parts = [batch.visual, batch.textual] if self.args.query == "both" else [batch.visual]
            return batch, normalize(torch.cat([normalize(part, dim=1) for part in parts], dim=1), dim=1)
        x = getattr(x, "image", x)
        if query is None:
            if self.uses == "clip":
                self.forward_counter.add(x)
            with torch.no_grad():
                query = self.net(x) if self.uses == "timm" else self.net.encode_image(x).float()
        return x, normalize(query, dim=1)

    def body(self, x, prompts=None, prefixes=None, prompt_states=False):
        """CLS state (B, W), with `prompt_states` also those of the prompts."""
        if self.uses == "fused":
            return self.net.fusion(x.image, x.text, x.seen, prompts, prefixes, prompt_states)
        return (self.net if self.uses == "timm" else self.net.tower)(x, prompts, prefixes, prompt_states)

    # training

    def begin_task(self, dataset):
        if self.uses == "fused":
            self.train_on_cached_tokens(dataset)
        split, task = dataset.train_loader.dataset, self.current_task
        if self.uses == "clip" and hasattr(split, "add_extra_return_field"):  # every query is computed once
            split.add_extra_return_field("query", self.image_features(split)[0])
        if self.uses == "fused":
            self.set_fusion_training(first=task == 0)
        self.grow_head(split)
        self.new_task(split)
        self.opt = self.get_optimizer()

    def new_task(self, split) -> None:
        """What a method adds for a task, before its optimizer is made."""

    def get_optimizer(self, params=None, lr=None):
        """The learning rate is that of a batch of RATE_BATCH, where a method's code has one."""
        base = self.args.lr if lr is None else lr
        per_batch = self.args.batch_size / self.RATE_BATCH if self.RATE_BATCH else 1
        return super().get_optimizer(params, base * per_batch if base else None)

    def end_task(self, dataset):
        if self.args.kd_weight:
            self.teacher = self.head.rows()

    def head_loss(self, states: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy among the task's own answers, and with --kd_weight the distillation of the head."""
        logits = self.head(states)
        loss = self.answer_loss(logits, labels)
        if self.teacher is None:
            return loss
        return loss + self.args.kd_weight * head_divergence(logits, states, self.teacher, self.args.kd_type)

    # inference

    def forward(self, x):
        starts = range(0, len(x), EVAL_ROWS)
        return torch.cat([self.answers(*self.prepare(x[start : start + EVAL_ROWS])) for start in starts])

    def answers(self, x, query) -> Tensor:
        """Logits (B, answers) at test time."""
        raise NotImplementedError(f"{type(self).__name__} defines no answers()")
