"""DIKI: per task key-value prefixes in both towers of a frozen CLIP, added with a softmax of their own and a weight.

Tang et al., ECCV 2024, arXiv 2407.05342. The prefixes are those of `backbone/residual_prefix.py`.

    training  the task's prefixes with weight 1, cross-entropy over its names (--label_space)
    end       mean and covariance of the task's unit frozen image features                         -> `remember`
    test      the task with the largest log-density of the image; weight = sigmoid(log-density / D - 1), so that an
              image of no task gets nearly zero-shot CLIP                                          -> `route_images`

Choices: each image has its own task and weight (the released code takes the majority of a test batch, and its mean
weight for texts). Texts are encoded per task at --weight_levels weights from 0 to 1, and an image is compared with
those nearest to its weight; its own tower takes the weight itself. Statistics are taken after training, which does not
change them, and --cov_floor is the released 1e-7 on the diagonal: more where a task has fewer images than dimensions.
The last epoch is kept, where the released code keeps the best on validation images.

No table has a row of it; on the picture world:
    python main.py --model diki --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import math

import torch

from backbone.clip import is_vit
from backbone.residual_prefix import add_residual_prefixes
from models.utils.clip_tuning import add_tuning_args
from models.utils.routed_tuning import RoutedTuning
from utils.errors import UserError
from utils.flags import number, positive, positive_int


def log_density(rows, means, roots):
    """(B, T) of rows (B, D) under Gaussians with means (T, D) and covariances L L^T, L (T, D, D)."""
    white = torch.linalg.solve_triangular(roots, (rows[None] - means[:, None]).mT, upper=False)  # (T, D, B)
    half_log_det = roots.diagonal(dim1=1, dim2=2).log().sum(1)
    constant = rows.shape[1] / 2 * math.log(2 * math.pi)
    return (-0.5 * white.square().sum(1) - half_log_det[:, None] - constant).T


class Diki(RoutedTuning):
    NAME = "diki"
    TOY_ARGS = {
        "lr": 0.5,
        "prefix_length": 2,
        "cov_floor": 1e-3,
        "n_epochs": 1,
        "weight_levels": 3,
        "prefix_layers": 1,
        "batch_size": 4,
    }

    @staticmethod
    def get_parser(parser):
        add_tuning_args(parser, label_smoothing=0.0).set_defaults(optimizer="sgd", lr=5.0, warmup=0.0)
        parser.set_defaults(n_epochs=10, batch_size=128)
        add = parser.add_argument
        add("--prefix_length", type=positive_int, default=8, help="prefix tokens per layer")
        add("--prefix_layers", type=positive_int, default=8, help="first layers of each tower that have prefixes")
        add("--cov_floor", type=positive, default=1e-7, help="added to the variances of a task's features")
        add("--weight_levels", type=number(int, 2), default=5, help="weights at which texts are encoded")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if not is_vit(self.net.clip):
            raise UserError(f"diki needs transformer blocks; {self.net.name} has a ResNet: choose a ViT CLIP")
        self.net.requires_grad_(False)
        towers = self.net.clip.visual.transformer, self.net.clip.transformer
        self.seers, self.readers = (
            add_residual_prefixes(tower.resblocks[: args.prefix_layers], self.n_tasks, args.prefix_length)
            for tower in towers
        )
        dim = self.net.embed_dim
        self.means = torch.zeros(0, dim, dtype=torch.float64, device=self.device)
        self.roots = torch.zeros(0, dim, dim, dtype=torch.float64, device=self.device)  # Cholesky factors

    def begin_task(self, dataset):
        super().begin_task(dataset)
        for prefix in (*self.seers, *self.readers):
            for owner, pair in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                for part in pair:
                    part.requires_grad_(owner == self.current_task)
        self.opt = self.get_optimizer()

    def set_prefixes(self, layers, task, weight):
        for prefix in layers:
            prefix.task, prefix.weight = task, weight

    def step(self, inputs, labels, **extras):
        self.set_prefixes((*self.seers, *self.readers), self.current_task, 1.0)
        return super().step(inputs, labels, **extras)

    def end_task(self, dataset):
        super().end_task(dataset)
        self.remember(self.plain_task(dataset).double())

    def remember(self, rows):
        """Mean and covariance of unit rows (N, D)."""
        cov = torch.cov(rows.T, correction=0)
        cov.diagonal().add_(self.args.cov_floor)
        self.means = torch.cat([self.means, rows.mean(0)[None]])
        self.roots = torch.cat([self.roots, torch.linalg.cholesky(cov)[None]])

    # test: a route is a task and a level of the weight

    def routes(self):
        return max(1, len(self.means)) * self.args.weight_levels

    def route_images(self, pixels):
        plain = self.plain_rows(pixels)
        if not len(self.means):  # before the first task has ended
            self.set_prefixes(self.seers, 0, 1.0)
            return torch.full((len(plain),), self.args.weight_levels - 1, device=plain.device)
        density, task = log_density(plain.double(), self.means, self.roots).max(1)
        weight = (density / plain.shape[1] - 1).sigmoid().float()
        self.set_prefixes(self.seers, task, weight)
        return task * self.args.weight_levels + (weight * (self.args.weight_levels - 1)).round().long()

    def route_texts(self, route):
        task, level = divmod(route, self.args.weight_levels)
        self.set_prefixes(self.readers, task, level / (self.args.weight_levels - 1))

    def switch_off(self):
        self.set_prefixes(self.seers, 0, 0.0)
