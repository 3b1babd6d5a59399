"""RAIL: ridge regression on random features or kernels of frozen CLIP, fused with zero-shot scores for known classes.

Xu et al., NeurIPS 2024, arXiv 2406.18868.

    h(x) = relu(W_r f(x)), W_r fixed and random                                                  -> `hidden`
    primal   W = (sum h h^T + ridge I)^-1 sum h y^T, exactly the joint solution whatever the order   -> `end_task`
    dual     alpha = (K + ridge I)^-1 Y over all images so far, score k(x, .) alpha                  -> `end_task`
    z = softmax(zero-shot scores) over all names; if its best name has been trained, z <- (1 - fusion) z + fusion score
                                                                                                  -> `future_forward`
Choices: the paper updates the inverse batch by batch; here the two sums are kept and solved after each task, which is
the same matrix (tests compare) and a quarter of the work. Sums are in float64. --rp_size 0 is the regression without a
random layer; the default is the paper's 15,000, or the number of training images of the stream, if that is less: more
random features do not raise the rank of the sums. W_r is uniform as torch initializes a linear layer, without
intercept, and drawn by the seed, not stored. --form dual keeps the unit features of every training image (counted in
stored_bytes); its ridge is the released 0.001 where the primal's is 0.1.

No table has a row of it; on the picture world:
    python main.py --model rail --dataset seq-tiny --permute_classes 1 --seed 1992 --picture_seed 1992
"""

import torch
from torch.nn.functional import normalize, one_hot

from models.utils.random_features import RandomFeatures, add_gram, solve_ridge
from models.utils.vlm_model import add_vlm_args
from utils.flags import LOOP_FLAGS, fraction, natural, positive
from utils.free_memory import require

MOST_FEATURES = 15_000
RIDGE = {"primal": 0.1, "dual": 0.001}


def kernel(a, b, kind, gamma):
    """(N, K) of unit rows a (N, D) and b (K, D): their products, or exp(-gamma |a - b|^2)."""
    products = a @ b.T
    return products if kind == "linear" else (-gamma * (2 - 2 * products)).exp()


class Rail(RandomFeatures):
    NAME = "rail"
    COMPATIBILITY = ["class-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")
    TOY_ARGS = {"rp_size": 32}
    NOT_TRIED = dict.fromkeys(("kernel", "kernel_gamma"), "only --form dual has one; tests/test_closed_forms.py")

    @staticmethod
    def get_parser(parser):
        add = add_vlm_args(parser).add_argument
        add(
            "--rp_size",
            type=natural,
            help="width of the random layer, 0 for none (default: 15,000, or as many as training images)",
        )
        add("--form", choices=["primal", "dual"], default="primal", help="sums of features, or kernels of all images")
        add("--kernel", choices=["rbf", "linear"], default="rbf", help="kernel of --form dual")
        add("--kernel_gamma", type=positive, default=0.1, help="gamma of the rbf kernel")
        add("--ridge", type=positive, help="ridge penalty lambda (default: 0.1, or 0.001 with --form dual)")
        add("--fusion", type=fraction, default=0.8, help="weight of the regression where the top class is trained")
        add("--test_templates", choices=["all", "first"], default="all", help="templates averaged per class key")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        templates = self.class_templates(every=args.test_templates == "all")
        self.keys = self.text_features(self.dataset.get_class_names(), templates)  # (C, D)
        self.ridge = RIDGE[args.form] if args.ridge is None else args.ridge
        self.kept = torch.zeros(0, self.feature_dim, device=self.device)  # unit features of all images, of the dual
        self.targets = torch.zeros(0, self.num_classes, dtype=torch.float64)
        self.gram = self.cross = None  # sum of h h^T (M, M), of h y^T (M, C), of the primal
        width = 0
        if args.form == "primal":
            if args.rp_size is None:
                args.rp_size = min(MOST_FEATURES, self.dataset.count(True) or MOST_FEATURES)
            width = self.draw_layer(args.rp_size, "uniform")
            self.gram = torch.zeros(width, width, dtype=torch.float64)
            self.cross = torch.zeros(width, self.num_classes, dtype=torch.float64)
        self.weights = torch.zeros(width, self.num_classes, device=self.device)  # W, or alpha

    def end_task(self, dataset):
        features, labels = self.labeled(dataset)
        if self.args.form == "dual":
            self.kept = torch.cat([self.kept, normalize(features, dim=1)])
            require(3 * 8 * len(self.kept) ** 2, "--form dual: the kernels of all images", "use --form primal")
            self.targets = torch.cat([self.targets, one_hot(labels.cpu(), self.num_classes).double()])
            rows = self.kept.cpu().double()
            solved = solve_ridge(self.kernel(rows, rows), self.targets, self.ridge)
        else:
            for h, y in self.hidden_parts(features, labels):
                add_gram(self.gram, h)
                self.cross.addmm_(h.T, y)
            solved = solve_ridge(self.gram, self.cross, self.ridge)
        self.weights = solved.float().contiguous().to(self.device)

    def kernel(self, a, b):
        return kernel(a, b, self.args.kernel, self.args.kernel_gamma)

    def scores(self, features):
        """The regression's (B, C) for raw features (B, D)."""
        dual = self.args.form == "dual"
        return (self.kernel(normalize(features, dim=1), self.kept) if dual else self.hidden(features)) @ self.weights

    def future_forward(self, x):
        features = self.encode(x)
        scores = self.logits(features, self.keys).softmax(1)  # (B, C)
        known = scores.argmax(1, keepdim=True) < self.n_seen_classes
        fused = (1 - self.args.fusion) * scores + self.args.fusion * self.scores(features)
        return torch.where(known, fused, scores)

    def forward(self, x):
        return self.future_forward(x)[:, : self.n_seen_classes]
