"""ACIL: recursive ridge regression on random features of frozen CLIP, equal to the joint one; AIR weighs the classes.

Zhuang et al., NeurIPS 2022, arXiv 2205.14922; class weights of AIR: Fang et al., 2024, arXiv 2408.10349.

    h(x) = relu(W_r f(x)), W_r fixed and random                                                  -> `hidden`
    R <- R - R H^T (I + H R H^T)^-1 H R,   W <- W + R H^T (Y - H W) with the new R, from R = I / ridge   -> `absorb`
    AIR      W = (sum_c w_c A_c + ridge I)^-1 sum_c w_c h_c y_c^T, w_c proportional to 1 / n_c, sum C    -> `end_task`
             A_c = sum of h h^T over the n_c images of a class

Choices: the frozen tower stands in for the backbone that the paper trains on its first task. Every class arrives in
one task, so AIR keeps one sum of A_c / n_c in place of a matrix per class: a common factor of the weights is a factor
of the ridge (tests compare). Features are of unit length and sums in float64. The width is the released 8,192; W_r is
uniform as torch initializes a linear layer (--rp_init normal: N(0, 1)), without intercept, drawn by the seed.

No table has a row of it; on the picture world:
    python main.py --model acil --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch

from models.utils.random_features import RandomFeatures, add_gram, solve_ridge
from models.utils.vlm_model import add_vlm_args
from utils.flags import LOOP_FLAGS, natural, positive


class Acil(RandomFeatures):
    NAME = "acil"
    COMPATIBILITY = ["class-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")
    TOY_ARGS = {"rp_size": 32}

    @staticmethod
    def get_parser(parser):
        add = add_vlm_args(parser, names=False).add_argument
        add("--rp_size", type=natural, default=8192, help="width of the random layer, 0 for none")
        add("--rp_init", choices=["uniform", "normal"], default="uniform", help="distribution of the random layer")
        add("--ridge", type=positive, default=0.1, help="ridge penalty gamma")
        add("--class_weight", choices=["none", "air"], default="none", help="air: every class counts the same")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        width = self.draw_layer(args.rp_size, args.rp_init)
        air = args.class_weight == "air"
        start = torch.zeros(width, dtype=torch.float64) if air else torch.full((width,), 1 / args.ridge).double()
        self.matrix = start.diag()  # R (M, M), of AIR the sum of A_c / n_c
        self.cross = torch.zeros(width, self.num_classes, dtype=torch.float64)  # W, of AIR the sum of h y^T / n_c
        self.counts = torch.zeros(self.num_classes, dtype=torch.float64)
        self.weights = torch.zeros(width, self.num_classes, device=self.device)  # W on the device

    def end_task(self, dataset):
        features, labels = self.labeled(dataset)
        self.counts += torch.bincount(labels.cpu(), minlength=self.num_classes)
        for h, y in self.hidden_parts(features, labels):
            if self.args.class_weight == "air":
                shares = 1 / (y @ self.counts)[:, None].sqrt()
                add_gram(self.matrix, h * shares)
                self.cross.addmm_((h * shares).T, y * shares)
            else:
                self.absorb(h, y)
        self.weights = self.solved().float().contiguous().to(self.device)

    def absorb(self, h, y):
        """R and W of all images, from those before h (B, M) and y (B, C)."""
        spread = h @ self.matrix  # H R
        root = torch.linalg.cholesky(torch.eye(len(h), dtype=h.dtype) + spread @ h.T)
        half = torch.linalg.solve_triangular(root, spread, upper=False)  # (B, M)
        wrong = torch.linalg.solve_triangular(root, y - h @ self.cross, upper=False)
        add_gram(self.matrix, half, -1.0)
        self.cross.addmm_(half.T, wrong)

    def solved(self):
        """W (M, C) in float64."""
        if self.args.class_weight == "none":
            return self.cross
        seen = self.counts[self.counts > 0]
        return solve_ridge(self.matrix, self.cross, self.args.ridge * float((1 / seen).sum()) / len(seen))

    def forward(self, x):
        return (self.hidden(self.encode(x)) @ self.weights)[:, : self.n_seen_classes]
