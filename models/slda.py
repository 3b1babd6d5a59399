"""Streaming linear discriminant analysis on frozen CLIP features: class means and one shared covariance, closed form.

Hayes & Kanan, CVPRW 2020, arXiv 1909.01520. With Sigma the pooled within-class covariance and a the shrinkage,

    S = (1 - a) Sigma + a tr(Sigma) / D I,   W = S^-1 mu_c,   b_c = -mu_c . W_c / 2 + log prior_c

Choices: moments are accumulated in float64, so task order does not matter; --normalize 1 uses unit features;
--prior empirical weighs classes by their image counts, uniform does not; the default shrinkage 1e-2 is ours.

Row of docs/cgil.md, by scripts/claims/cgil.yaml, one seed:
    python main.py --model slda --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.functional import normalize

from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.flags import LOOP_FLAGS, boolean, fraction


class Slda(VLMModel):
    NAME = "slda"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")
    FUSES_TEXT = True

    @staticmethod
    def get_parser(parser):
        parser.add_argument(
            "--shrinkage", type=fraction, default=1e-2, help="weight of the scaled identity in the covariance"
        )
        parser.add_argument(
            "--prior",
            choices=["empirical", "uniform"],
            default="empirical",
            help="class prior: proportional to the image counts, or uniform",
        )
        parser.add_argument("--normalize", type=boolean, default=True, help="unit features")
        return add_vlm_args(parser, names=False)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        dim = self.feature_dim
        self.sums = torch.zeros(self.num_classes, dim, dtype=torch.float64)
        self.counts = torch.zeros(self.num_classes, dtype=torch.float64)
        self.second_moment = torch.zeros(dim, dim, dtype=torch.float64)  # sum of f f^T
        self.head = None  # (W (C, D), b (C,)) on the device; solved after each task

    def end_task(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        features, labels = self.prepare(features).double().cpu()[labels.cpu() >= 0], labels.cpu()[labels.cpu() >= 0]
        self.sums.index_add_(0, labels, features)
        self.counts += torch.bincount(labels, minlength=self.num_classes)
        self.second_moment += features.T @ features
        self.head = self.solve()

    def prepare(self, features):
        return normalize(features, dim=1) if self.args.normalize else features

    def solve(self):
        total, dim = self.counts.sum(), len(self.second_moment)
        means = self.sums / self.counts.clamp(min=1)[:, None]
        covariance = (self.second_moment - (self.counts[:, None] * means).T @ means) / total
        a = self.args.shrinkage
        shrunk = (1 - a) * covariance + a * covariance.trace() / dim * torch.eye(dim, dtype=torch.float64)
        weights = means @ torch.linalg.pinv(shrunk, hermitian=True)
        prior = (self.counts / total).log() if self.args.prior == "empirical" else torch.zeros_like(self.counts)
        bias = -0.5 * (means * weights).sum(1) + prior
        return weights.float().to(self.device), bias.float().to(self.device)

    def forward(self, x):
        weights, bias = self.head
        return (self.prepare(self.encode(x)) @ weights.T + bias)[:, : self.n_seen_classes]
