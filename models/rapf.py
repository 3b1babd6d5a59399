"""RAPF: a linear adapter of frozen CLIP features, kept by pseudo-features of old classes and a fusion of its weights.

Huang et al., ECCV 2024, arXiv 2407.14143.

    scores   exp(logit_scale) cos(W f, t_c), t the text features of the names
    step     cross-entropy over the seen classes on the batch and on 10 beta draws of N(mean_c, cov_c) for some old
             classes, each of them once per epoch; for names nearer than --hard_distance (old i, new j), on 20 beta
             draws of i: mean relu(0.1 - <a, t_i> + <a, t_j>), a = W z of unit length                     -> `loss_of`
    fusion   W_old = U S V^T; in the basis U each number moves from old to new by its share of the largest change plus
             --mix_bias, at most 1                                                                          -> `fuse`

Choices: an epoch passes every old class once, so a step takes old classes / steps of them (the released code fixes the
number per data set). Covariances get 1e-3 of their mean variance on the diagonal where the paper adds 1e-4; --shrinkage
1 is the released one for few images per class. A W that did not move stays (released: 0 / 0).

No table has a row of it; on the picture world:
    python main.py --model rapf --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import math

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from models.utils.feature_training import FeatureTraining
from models.utils.vlm_model import add_vlm_args
from utils.flags import boolean, fraction, non_negative, positive
from utils.generative.gaussians import FullGaussian, ShrunkGaussian

MARGIN = 0.1


def fuse(old, new, bias):
    """Weights (D, D) between `old` and `new`: per number in the basis of the old left singular vectors."""
    u, *_ = torch.linalg.svd(old)
    moved = u.T @ (new - old)
    largest = moved.abs().max()
    share = (moved.abs() / largest.where(largest > 0, 1) + bias).clamp(max=1)
    return old + u @ (moved * share)


def hard_pairs(texts, first, distance):
    """Classes (old i, new j), both (P,), on the CPU, whose unit texts (S, D) are nearer than `distance`."""
    return (torch.cdist(texts[:first], texts[first:]) < distance).nonzero().cpu().T + torch.tensor([[0], [first]])


def hinge(adapted, own, other):
    """Mean of relu(margin - <a, own> + <a, other>): unit features (P, n, D), texts of both classes (P, D)."""
    return (MARGIN - ((own - other)[:, None] * adapted).sum(2)).relu().mean()


class Rapf(FeatureTraining):
    NAME = "rapf"
    COMPATIBILITY = ["class-il", "task-il"]
    EVERY_CLASS = True
    TOY_ARGS = {"hard_distance": 0.9, "beta": 0.2, "lr_milestones": 1}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(optimizer="adam", lr=1e-3, n_epochs=15, batch_size=100, lr_scheduler="multisteplr")
        parser.set_defaults(lr_milestones=[4, 10])
        add = add_vlm_args(parser).add_argument
        add("--beta", type=positive, default=2.0, help="10 beta pseudo-features per old class, 20 beta per hard pair")
        add("--mix_bias", type=fraction, default=0.6, help="least share of the new weights in the fusion")
        add(
            "--hard_distance", type=non_negative, default=0.55, help="distance of unit texts below which names are hard"
        )
        add("--shrinkage", type=boolean, default=False, help="covariances get mean variances and covariances added")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.texts = self.text_features(self.dataset.get_class_names())  # (C, D)
        self.adapter = nn.Linear(self.feature_dim, self.feature_dim, bias=False).to(self.device)
        self.gaussians = (ShrunkGaussian if args.shrinkage else FullGaussian)()
        self.start = None  # the adapter before the task, within the task
        self.queue, self.per_step = None, 0  # old classes in the order of this epoch, and how many a step takes
        self.pairs = torch.zeros(2, 0, dtype=torch.long)
        self.opt = self.get_optimizer()

    def get_parameters(self):
        return self.adapter.parameters() if hasattr(self, "adapter") else []

    def end_task(self, dataset):
        features, labels = self.labeled(dataset)
        if not self.work_done:
            self.start = self.adapter.weight.detach().clone()
            self.pairs = hard_pairs(self.texts[: self.n_seen_classes], self.n_past_classes, self.args.hard_distance)
        self.train_on("adapter", features, labels, self.loss_of)
        if self.n_past_classes:
            with torch.no_grad():
                self.adapter.weight.copy_(fuse(self.start, self.adapter.weight, self.args.mix_bias))
        self.gaussians.fit({int(c): features[labels == c] for c in labels.unique()})
        self.start, self.queue, self.pairs = None, None, self.pairs[:, :0]

    def begin_pass(self, n):
        self.queue = torch.randperm(self.n_past_classes)
        self.per_step = math.ceil(self.n_past_classes / math.ceil(n / self.args.batch_size))

    def loss_of(self, x, y, rows, number):
        chosen = self.queue[number * self.per_step : (number + 1) * self.per_step]
        if len(chosen):
            drawn = self.gaussians.sample(chosen, max(1, round(10 * self.args.beta))).to(x.device)  # (K, n, D)
            x = torch.cat([x, drawn.flatten(0, 1)])
            y = torch.cat([y, chosen.to(y.device).repeat_interleave(drawn.shape[1])])
        loss = cross_entropy(self.logits(self.adapter(x), self.texts[: self.n_seen_classes]), y)
        if self.pairs.shape[1]:
            drawn = self.gaussians.sample(self.pairs[0], max(1, round(20 * self.args.beta))).to(x.device)
            own, other = self.texts[self.pairs.to(x.device)]
            loss = loss + hinge(normalize(self.adapter(drawn), dim=2), own, other)
        return loss

    def forward(self, x):
        return self.logits(self.adapter(self.encode(x)), self.texts[: self.n_seen_classes])

    def future_forward(self, x):
        return self.logits(self.adapter(self.encode(x)), self.texts)
