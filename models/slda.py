"""Linear discriminant analysis on frozen CLIP features: class means and one shared covariance, closed form; or FeCAM.

Hayes & Kanan, CVPRW 2020, arXiv 1909.01520. With Sigma the pooled within-class covariance and a the shrinkage,

    S = (1 - a) Sigma + a tr(Sigma) / D I,   W = S^-1 mu_c,   b_c = -mu_c . W_c / 2 + log prior_c

Choices: moments are accumulated in float64, so task order does not matter; --normalize 1 uses unit features;
--prior empirical weighs classes by their image counts, uniform does not; the default shrinkage 1e-2 is ours.
--cov class gives each class its own S_c: the score is the log-density of a Gaussian plus the log-prior.
--cov correlation is FeCAM (Goswami et al., NeurIPS 2023, arXiv 2309.14062): S_c is scaled to a diagonal of ones, and
the score is minus the squared Mahalanobis distance, without determinant and prior. FeCAM's two shrinkages are the one
of this file, and its power transform is left out, as on features of a transformer, which may be negative.

Row of docs/cgil.md, by scripts/claims/cgil.yaml, one seed:
    python main.py --model slda --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.functional import normalize

from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.flags import LOOP_FLAGS, boolean, fraction
from utils.free_memory import require


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
        parser.add_argument(
            "--cov",
            choices=["shared", "class", "correlation"],
            default="shared",
            help="covariance of all classes, of each class, or of each class scaled to ones (FeCAM)",
        )
        parser.add_argument("--normalize", type=boolean, default=True, help="unit features")
        return add_vlm_args(parser, names=False)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        dim, rows = self.feature_dim, 1 if args.cov == "shared" else self.num_classes
        require(3 * 8 * rows * dim**2, f"--cov {args.cov}: {rows} covariances", "use --cov shared")
        self.sums = torch.zeros(self.num_classes, dim, dtype=torch.float64)
        self.counts = torch.zeros(self.num_classes, dtype=torch.float64)
        self.second_moment = torch.zeros(rows, dim, dim, dtype=torch.float64)  # sum of f f^T, of all or by class
        self.head = None  # solved after each task, on the device: (W (C, D), b (C,)), by class (means, roots, b)

    def end_task(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        features, labels = self.prepare(features).double().cpu()[labels.cpu() >= 0], labels.cpu()[labels.cpu() >= 0]
        self.sums.index_add_(0, labels, features)
        self.counts += torch.bincount(labels, minlength=self.num_classes)
        if self.args.cov == "shared":
            self.second_moment[0] += features.T @ features
        else:
            for c in labels.unique().tolist():
                self.second_moment[c] += features[labels == c].T @ features[labels == c]
        self.head = tuple(part.float().to(self.device) for part in self.solve())

    def prepare(self, features):
        return normalize(features, dim=1) if self.args.normalize else features

    def solve(self):
        total, dim = self.counts.sum(), self.second_moment.shape[2]
        means = self.sums / self.counts.clamp(min=1)[:, None]
        prior = (self.counts / total).log() if self.args.prior == "empirical" else torch.zeros_like(self.counts)
        if self.args.cov == "shared":
            covariance = (self.second_moment[0] - (self.counts[:, None] * means).T @ means) / total
            weights = means @ torch.linalg.pinv(self.shrunk(covariance), hermitian=True)
            return weights, -0.5 * (means * weights).sum(1) + prior
        n = self.counts.clamp(min=1)[:, None, None]
        covariance = self.shrunk(self.second_moment / n - means[:, :, None] * means[:, None])
        covariance[self.counts == 0] = torch.eye(dim, dtype=torch.float64)  # not seen yet, or without images
        if self.args.cov == "correlation":
            scale = covariance.diagonal(dim1=1, dim2=2).rsqrt()
            covariance *= scale[:, :, None] * scale[:, None]
        root = torch.linalg.cholesky(covariance)
        half_log_det = root.diagonal(dim1=1, dim2=2).log().sum(1)
        eye = torch.eye(dim, dtype=torch.float64).expand_as(root)
        bias = torch.zeros_like(prior) if self.args.cov == "correlation" else prior - half_log_det
        return means, torch.linalg.solve_triangular(root, eye, upper=False), bias

    def shrunk(self, covariance):
        """Covariances (..., D, D) with a share of the scaled identity."""
        a, dim = self.args.shrinkage, covariance.shape[-1]
        size = covariance.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None] / dim
        return (1 - a) * covariance + a * size * torch.eye(dim, dtype=torch.float64)

    def forward(self, x):
        features, seen = self.prepare(self.encode(x)), self.n_seen_classes
        if self.args.cov == "shared":
            weights, bias = self.head
            return (features @ weights.T + bias)[:, :seen]
        means, roots, bias = (part[:seen] for part in self.head)
        white = (features[None] - means[:, None]) @ roots.mT  # (C, B, D)
        factor = 1.0 if self.args.cov == "correlation" else 0.5
        return (bias[:, None] - factor * white.square().sum(2)).T
