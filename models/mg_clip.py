"""MG-CLIP: low-rank adapters on keys and values, few epochs so that names keep their distance, and a visual head.

Huang et al., ICCV 2025, arXiv 2507.09118.

    adapters  in both towers, carried on from task to task, cross-entropy over the task's names          -> `tune`
    epochs    after each epoch of the first task: the mean score of images with wrong names; the epoch in which it has
              moved by more than --gap_change of its zero-shot value is the last, in every task         -> `wrong_pairs`
    head      V (C, D): new rows start at the class means of unit adapted features, then --visual_epochs of Adam with
              cross-entropy of visual_scale cos(x, V_c) over the task's classes                          -> `learn_head`
    scores    log of (softmax(names) + visual_weight softmax(visual)) / (1 + visual_weight) over the seen classes

Choices: --visual_scale 1 is the released head without temperature, whose softmax is nearly flat. --lora_scale is ours:
the adapters are added with scale / rank. --gap_change 0 makes --n_epochs in every task. Images are not augmented.

No table has a row of it; on the picture world:
    python main.py --model mg-clip --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from backbone.clip import is_vit
from backbone.key_value_lora import add_key_value_lora
from models.utils.adapter_training import AdapterTraining
from models.utils.vlm_model import add_vlm_args
from utils.class_means import class_means
from utils.errors import UserError
from utils.flags import natural, non_negative, positive, positive_int


def mean_of_wrong(scores, labels):
    """Mean of scores (N, K) without those at the labels (N,)."""
    right = scores.gather(1, labels[:, None]).sum()
    return (scores.sum() - right) / (scores.numel() - len(scores))


class MgClip(AdapterTraining):
    NAME = "mg-clip"
    COMPATIBILITY = ["class-il", "task-il"]
    EVERY_CLASS = True
    IDLE_FLAGS = dict.fromkeys(("lr_scheduler", "scheduler_mode", "lr_milestones", "sched_multistep_lr_gamma"), "")
    TOY_ARGS = {"lr": 0.01, "batch_size": 8, "visual_lr": 0.01, "visual_scale": 5} | {
        "gap_change": 0.05,
        "visual_batch_size": 8,
    }

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(optimizer="adam", lr=1e-3, n_epochs=10, batch_size=128)
        add = add_vlm_args(parser).add_argument
        add("--lora_rank", type=positive_int, default=8, help="rank of an adapter")
        add("--lora_scale", type=positive, default=8.0, help="an adapter adds scale / rank times B A")
        add("--gap_change", type=non_negative, default=0.1, help="change of wrong pairs that ends training, 0: never")
        add("--visual_epochs", type=natural, default=3, help="epochs of the visual head")
        add("--visual_lr", type=positive, default=5e-4, help="its learning rate (Adam, cosine)")
        add("--visual_batch_size", type=positive_int, default=64, help="features per step of it")
        add("--visual_scale", type=positive, default=1.0, help="factor on its cosines")
        add("--visual_weight", type=non_negative, default=4.0, help="its weight against names")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if not is_vit(self.net.clip):
            raise UserError(f"mg-clip needs transformer blocks; {self.net.name} has a ResNet: choose a ViT CLIP")
        for tower in (self.net.clip.visual.transformer, self.net.clip.transformer):
            add_key_value_lora(tower.resblocks, args.lora_rank, args.lora_scale)
        self.V = nn.Parameter(torch.zeros(self.num_classes, self.feature_dim, device=self.device))
        self.epochs = None  # found in the first task
        self.zero_shot = None  # mean score of wrong pairs before training
        self.texts = None  # unit features of all names; None when an adapter has moved
        self.opt = self.get_optimizer()

    def end_task(self, dataset):
        loader = self.loader_of(dataset)
        self.tune(loader)
        self.texts = None
        self.learn_head(*self.adapted(loader))

    # adapters

    def tune(self, loader):
        ruled, first = self.args.gap_change > 0 and not self.current_task, not self.work_done
        if first:
            self.opt = self.get_optimizer()
            self.zero_shot = self.wrong_pairs(loader) if ruled else None
        epochs = 1 if self.args.debug_mode else self.args.n_epochs
        last = epochs if self.epochs is None else self.epochs
        for epoch in self.work("adapters", epochs):
            if self.epochs is not None and epoch >= self.epochs:
                continue
            losses = []
            for n, batch in enumerate(loader.epoch(epoch)):
                self.set_rate(self.args.lr, (epoch + n / len(loader)) / last)
                losses.append(self.step(*batch[:2]))
            self.work_loss = torch.stack(losses).mean()
            if ruled and (self.wrong_pairs(loader) / self.zero_shot - 1).abs() > self.args.gap_change:
                self.epochs = epoch + 1

    @torch.no_grad()
    def wrong_pairs(self, loader):
        """Mean score of the task's images with names other than their own."""
        rows, labels = self.adapted(loader)
        return mean_of_wrong(self.logits(rows, self.task_names()), labels - self.n_past_classes)

    # visual head

    def learn_head(self, rows, labels):
        if "head" not in self.work_done:
            means = class_means(rows[None], labels, self.num_classes)[0]
            with torch.no_grad():
                self.V[self.n_past_classes : self.n_seen_classes] = means[self.n_past_classes : self.n_seen_classes]
        groups, size = [{"params": [self.V], "weight_decay": 0.0}], self.args.visual_batch_size  # old rows stay
        self.train_on("head", rows, labels, self.head_loss, self.args.visual_epochs, groups, size=size)

    def begin_pass(self, n):
        self.set_rate(self.args.visual_lr, self.work_done.get("head", 0) / self.args.visual_epochs)

    def head_loss(self, x, y, rows, number):
        first = self.n_past_classes
        return cross_entropy(self.visual(x)[:, first : self.n_seen_classes], y - first)

    def visual(self, features):
        """visual_scale times the cosines with the head's rows (B, C)."""
        return self.args.visual_scale * normalize(features, dim=1) @ normalize(self.V, dim=1).T

    def forward(self, x):
        features, seen, weight = self.encode(x), self.n_seen_classes, self.args.visual_weight
        if self.texts is None:
            self.texts = self.text_features(self.dataset.get_class_names())
        names = self.logits(features, self.texts[:seen]).log_softmax(1)
        visual = self.visual(features)[:, :seen].log_softmax(1) + math.log(max(weight, 1e-30))
        return torch.logaddexp(names, visual) - math.log(1 + weight)
