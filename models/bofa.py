"""BOFA: CLIP's own image projection is fine-tuned where old tasks have no energy; names mixed with class means.

Li et al., AAAI 2026, arXiv 2511.11421. z is what CLIP's image projection W_0 reads.

    task     stage 1: all of W from W_0, cross-entropy of exp(logit_scale) cos(W z, key) over the seen classes
             stage 2, not in the first task: W = W_0 + A B, A the --null_dim eigenvectors of the mean second moment of
             old tasks' z with the smallest eigenvalues, B from A^T (W - W_0)                             -> `narrow`
    test     the mean of all tasks' W;  (1 - stat) exp(logit_scale) cos(W z, key) + stat (Gaussian score of unit z)
    keys     share cos-unit W_0 mean_c + (1 - share) t_c, scaled to unit length; the share by a grid of 21 on the first
             task's training images                                                                  -> `choose_share`

Choices: each task starts at W_0 (in the released code at the last task's W, whose change is not confined). The released
local head on z shares no weight with W, so it is left out. The released grid weighs the text by what is then used for
the image; here one share is both. The Gaussian has one covariance over all tasks (released: precisions are merged).

No table has a row of it; on the picture world:
    python main.py --model bofa --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from models.utils.unprojected import SharedGaussian, Unprojected
from models.utils.vlm_model import add_vlm_args
from utils.class_means import class_means
from utils.errors import UserError
from utils.flags import fraction, natural, positive, positive_int

GRID = 21


class Bofa(Unprojected):
    NAME = "bofa"
    COMPATIBILITY = ["class-il", "task-il"]
    EVERY_CLASS = True
    TOY_ARGS = {"clip_backbone": "tiny", "stat": 0.5, "null_lr": 0.01, "null_dim": 8}
    NOT_TRIED = {"key_share": "the toy's grid may choose the same; tests/test_bofa.py"}

    @staticmethod
    def get_parser(parser):
        parser.set_defaults(lr=0.05, optim_mom=0.9, optim_wd=0.05, n_epochs=15, batch_size=128, lr_scheduler="cosine")
        add = add_vlm_args(parser).add_argument
        add("--null_dim", type=positive_int, default=64, help="directions in which later tasks may change W")
        add("--null_epochs", type=natural, default=2, help="epochs of stage 2")
        add("--null_lr", type=positive, default=1e-3, help="learning rate of stage 2")
        add("--stat", type=fraction, default=0.1, help="weight of the Gaussian score")
        add("--key_share", type=fraction, help="weight of the class mean in a key (default: by the grid)")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        width, dim = self.projection.shape
        if args.null_dim > width:
            raise UserError(f"--null_dim {args.null_dim} is more than the {width} directions of this CLIP's tower")
        self.texts = self.text_features(self.dataset.get_class_names())  # (C, D)
        self.means = torch.zeros(self.num_classes, width, device=self.device)  # of z
        self.gaussian = SharedGaussian(self.num_classes, width)
        self.head = torch.zeros(self.num_classes, width, device=self.device), self.texts.new_zeros(self.num_classes)
        self.moment = torch.zeros(width, width, device=self.device)  # mean over tasks of the mean of z z^T
        self.share = args.key_share
        self.full = nn.Parameter(self.projection.clone())  # W of stage 1, (V, D)
        self.basis = torch.zeros(width, args.null_dim, device=self.device)  # A
        self.low = nn.Parameter(torch.zeros(args.null_dim, dim, device=self.device))  # B
        self.mean_weight = self.projection.clone()
        self.opt = self.get_optimizer()

    def get_parameters(self):
        return [self.full] if hasattr(self, "full") else []

    def end_task(self, dataset):
        z, labels = self.labeled(dataset)
        if not self.work_done:
            self.begin(z, labels)
        self.train_on("projection", z, labels, lambda x, y, rows, n: self.loss_of(x @ self.full, y))
        weight = self.full
        if self.current_task:
            if "null space" not in self.work_done:
                self.narrow()
            low, epochs = [self.low], self.args.null_epochs
            self.train_on("null space", z, labels, self.loss_of_low, epochs, low, self.args.null_lr)
            weight = self.projection + self.basis @ self.low
        self.mean_weight = torch.lerp(self.mean_weight, weight.detach(), 1 / (self.current_task + 1))
        self.moment = torch.lerp(self.moment, z.T @ z / len(z), 1 / (self.current_task + 1))

    @torch.no_grad()
    def begin(self, z, labels):
        """Means, Gaussian and share; W starts at CLIP's."""
        first, end = self.n_past_classes, self.n_seen_classes
        self.means[first:end] = class_means(z[None], labels, self.num_classes)[0, first:end]
        self.gaussian.add(z, labels)
        self.head = tuple(part.float().to(self.device) for part in self.gaussian.solve())
        self.full.copy_(self.projection)
        if self.share is None:
            self.share = self.choose_share(z, labels)

    def choose_share(self, z, labels):
        """The share of 0, 0.05 ... 1 whose keys name most images right; the least of equal ones."""
        shares = torch.linspace(0, 1, GRID).tolist()
        right = [(self.logits(z @ self.projection, self.keys(s)).argmax(1) == labels).sum() for s in shares]
        return shares[int(torch.stack(right).argmax())]

    @torch.no_grad()
    def narrow(self):
        """A, and B from the change of stage 1."""
        _, vectors = torch.linalg.eigh(self.moment.double())  # eigenvalues rise
        self.basis = vectors[:, : self.args.null_dim].to(self.moment.dtype)
        self.low.copy_(self.basis.T @ (self.full - self.projection))

    def keys(self, share):
        """Unit keys (S, D) of the seen classes."""
        seen = self.n_seen_classes
        images = normalize(self.means[:seen] @ self.projection, dim=1)
        return normalize(share * images + (1 - share) * self.texts[:seen], dim=1)

    def loss_of(self, features, y):
        return cross_entropy(self.logits(features, self.keys(self.share)), y)

    def loss_of_low(self, x, y, rows, number):
        return self.loss_of(x @ self.projection + x @ self.basis @ self.low, y)

    def forward(self, x):
        z, seen, stat = self.encode(x), self.n_seen_classes, self.args.stat
        weights, bias = self.head
        gaussian = normalize(z, dim=1) @ weights[:seen].T + bias[:seen]
        share = self.share or 0.0  # before the first task's means: the names
        return (1 - stat) * self.logits(z @ self.mean_weight, self.keys(share)) + stat * gaussian
