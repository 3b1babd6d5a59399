"""Shared by methods on what CLIP's image projection reads: cached rows of the tower's width, and a shared Gaussian."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from backbone.clip import is_vit
from backbone.clip_encoder import ClipImageEncoder
from models.utils.feature_training import FeatureTraining
from utils.errors import UserError


class Unprojected(FeatureTraining):
    """`encode` and `image_features` give rows (B, V) in front of the projection; `projection` (V, D) maps them."""

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if not is_vit(self.net.clip):
            raise UserError(f"{self.NAME} needs CLIP's image projection; {self.net.name} has a ResNet: choose a ViT")
        self.encoder = ClipImageEncoder(self.net, "unprojected")

    @property
    def feature_dim(self) -> int:
        return self.net.vision_width

    @property
    def projection(self) -> Tensor:
        return self.net.clip.visual.proj.float()

    def encode(self, x):
        images = getattr(x, "image", x)
        if images.dim() == 2:
            return images
        self.forward_counter.add(images)
        return self.net.encode_unprojected(images).float()


class SharedGaussian(nn.Module):
    """One covariance for all classes, of unit rows; precision V ((N - 1) S + tr(S) I)^-1, S the pooled covariance.

    The estimate of Wang et al., ICLR 2024, arXiv 2402.04087. Sums are in float64 and on the CPU.
    """

    def __init__(self, classes: int, dim: int):
        super().__init__()
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("sums", torch.zeros(classes, dim, dtype=torch.float64))
        self.register_buffer("moment", torch.zeros(dim, dim, dtype=torch.float64))

    def add(self, rows: Tensor, labels: Tensor) -> None:
        """Rows (N, V) of any length and their classes (N,)."""
        rows, labels = normalize(rows, dim=1).cpu().double(), labels.cpu()
        self.counts += torch.bincount(labels, minlength=len(self.counts))
        self.sums.index_add_(0, labels, rows)
        self.moment += rows.T @ rows

    def solve(self) -> tuple[Tensor, Tensor]:
        """W (C, V) and b (C,) in float64: the score of a unit row z is W z + b, the prior uniform."""
        total, dim = self.counts.sum(), len(self.moment)
        means = self.sums / self.counts.clamp(min=1)[:, None]
        cov = (self.moment - (self.counts[:, None] * means).T @ means) / (total - 1)
        damped = (total - 1) * cov + cov.trace() * torch.eye(dim, dtype=torch.float64)
        weights = dim * means @ torch.linalg.pinv(damped, hermitian=True)
        return weights, -0.5 * (means * weights).sum(1)
