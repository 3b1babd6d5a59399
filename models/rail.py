"""RAIL, primal form: ridge regression on random features of frozen CLIP, fused with zero-shot scores for known classes.

Xu et al., NeurIPS 2024, arXiv 2406.18868.

    h(x) = relu(W_r f(x)), W_r fixed and random                                                  -> `hidden`
    W = (sum h h^T + ridge I)^-1 sum h y^T, exactly the joint solution whatever the order         -> `end_task`
    z = softmax(zero-shot scores) over all names; if its best name has been trained, z <- (1 - fusion) z + fusion h W
                                                                                                  -> `future_forward`
Choices: the paper updates the inverse batch by batch; here the two sums are kept and solved after each task, which is
the same matrix (tests compare) and a quarter of the work. Sums are in float64. --rp_size 0 is the regression without a
random layer; the default is the paper's 15,000, or the number of training images of the stream, if that is less: more
random features do not raise the rank of the sums. W_r is uniform as torch initializes a linear layer, without
intercept, and drawn by the seed, not stored.

No table has a row of it; on the picture world:
    python main.py --model rail --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.functional import normalize, one_hot

from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.flags import LOOP_FLAGS, fraction, natural, positive
from utils.free_memory import require
from utils.randomness import generator

MOST_FEATURES = 15_000
ROWS = 1024  # images whose random features are summed at once


class Rail(VLMModel):
    NAME = "rail"
    COMPATIBILITY = ["class-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")
    TOY_ARGS = {"rp_size": 32}

    @staticmethod
    def get_parser(parser):
        add = add_vlm_args(parser, default="ViT-B/16").add_argument
        add(
            "--rp_size",
            type=natural,
            help="width of the random layer, 0 for none (default: 15,000, or as many as training images)",
        )
        add("--ridge", type=positive, default=0.1, help="ridge penalty lambda")
        add("--fusion", type=fraction, default=0.8, help="weight of the regression where the top class is trained")
        add("--test_templates", choices=["all", "first"], default="all", help="templates averaged per class key")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        templates = self.class_templates(every=args.test_templates == "all")
        self.keys = self.text_features(self.dataset.get_class_names(), templates)  # (C, D)
        if args.rp_size is None:
            args.rp_size = min(MOST_FEATURES, self.dataset.count(True) or MOST_FEATURES)
        width, bound = args.rp_size or self.feature_dim, self.feature_dim**-0.5
        require(3 * 8 * width**2, f"--rp_size {width}: the sums, their damped copy and its factor", "lower it")
        self.random = None  # W_r^T (D, M)
        if args.rp_size:
            drawn = torch.rand(self.feature_dim, width, generator=generator(args.seed, "random layer"))
            self.random = ((2 * drawn - 1) * bound).to(self.device)
        self.gram = torch.zeros(width, width, dtype=torch.float64)  # sum of h h^T
        self.cross = torch.zeros(width, self.num_classes, dtype=torch.float64)  # sum of h y^T
        self.weights = torch.zeros(width, self.num_classes, device=self.device)  # W

    def hidden(self, features):
        """Random features (B, M) of raw image features (B, D)."""
        features = normalize(features, dim=1)
        return features if self.random is None else (features @ self.random).relu()

    def end_task(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        features, labels = features[labels >= 0], labels[labels >= 0].cpu()
        for part, own in zip(features.split(ROWS), labels.split(ROWS), strict=True):
            h = self.hidden(part).cpu().double()
            self.gram.addmm_(h.T, h)
            self.cross.addmm_(h.T, one_hot(own, self.num_classes).double())
        damped = self.gram + self.args.ridge * torch.eye(len(self.gram), dtype=torch.float64)
        solved = torch.cholesky_solve(self.cross, torch.linalg.cholesky(damped))
        self.weights = solved.float().contiguous().to(self.device)

    def future_forward(self, x):
        features = self.encode(x)
        scores = self.logits(features, self.keys).softmax(1)  # (B, C)
        known = scores.argmax(1, keepdim=True) < self.n_seen_classes
        fused = (1 - self.args.fusion) * scores + self.args.fusion * (self.hidden(features) @ self.weights)
        return torch.where(known, fused, scores)

    def forward(self, x):
        return self.future_forward(x)[:, : self.n_seen_classes]
