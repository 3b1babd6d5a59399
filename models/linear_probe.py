"""Logistic regression on frozen CLIP features, on each task in turn; with --joint 1 the upper bound of frozen features.

Minimizes C * sum CE + |W|^2 / 2 by L-BFGS (bias not penalized), warm-started from the previous task. Without --joint
it shows how much a linear head alone forgets when the encoder is frozen.

Choices: unit features (--normalize 1) and C = 10 are ours; for raw features of norm r the equal C is 10 / r^2.
Of images with texts it sees both and their product, or with --probe_input one of them: what each one alone achieves.

Row of docs/cgil.md, by scripts/claims/cgil.yaml, one seed:
    python main.py --model linear-probe --joint 1 --dataset seq-tiny --permute_classes 1 --seed 1992 \
        --picture_seed 1992
"""

import torch
from torch.nn.functional import cross_entropy, normalize

from models.utils.vlm_model import VLMModel, add_vlm_args
from utils.errors import UserError
from utils.flags import LOOP_FLAGS, boolean, positive, positive_int


class LinearProbe(VLMModel):
    NAME = "linear-probe"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    trains_in_loop = False
    IDLE_FLAGS = dict.fromkeys(LOOP_FLAGS, "")
    TOY_ARGS = {"probe_iters": 3}  # a small run in which every flag matters
    FUSES_TEXT = True
    NOT_TRIED = {"probe_input": "needs a stream with texts that CLIP reads; tests/test_vlm_models.py"}

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--C", type=positive, default=10.0, help="inverse weight of the L2 penalty")
        parser.add_argument("--normalize", type=boolean, default=True, help="unit features")
        parser.add_argument("--probe_iters", type=positive_int, default=500, help="maximum L-BFGS iterations")
        parser.add_argument(
            "--probe_input", choices=["both", "image", "text"], help="input where images have texts (default: both)"
        )
        return add_vlm_args(parser, names=False)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.probe_input and not self.dataset.HAS_TEXT:
            raise UserError(
                f"--probe_input {args.probe_input}: {self.dataset.NAME} has only images; leave the flag out"
            )
        self.looks_at = args.probe_input or self.looks_at
        self.weight = torch.zeros(self.num_classes, self.feature_dim, device=self.device)
        self.bias = torch.zeros(self.num_classes, device=self.device)

    def prepare(self, features):
        return normalize(features, dim=1) if self.args.normalize else features

    def end_task(self, dataset):
        features, labels = self.image_features(dataset.train_loader.dataset)
        features, labels = self.prepare(features)[labels >= 0], labels[labels >= 0]
        self.weight, self.bias = fit_logistic(
            features, labels, self.weight, self.bias, self.args.C, self.args.probe_iters
        )

    def forward(self, x):
        return (self.prepare(self.encode(x)) @ self.weight.T + self.bias)[:, : self.n_seen_classes]


def fit_logistic(features, labels, weight, bias, C, iterations):
    """The minimizer of C * sum CE + |W|^2 / 2, from a starting point; in float64."""
    features = features.double()
    weight, bias = (t.detach().double().requires_grad_() for t in (weight, bias))
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-6,
        tolerance_change=1e-10,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    scale = 1.0 / max(len(features), 1)  # the same minimizer, better conditioned

    def closure():
        solver.zero_grad()
        loss = scale * (
            C * cross_entropy(features @ weight.T + bias, labels, reduction="sum") + 0.5 * weight.square().sum()
        )
        loss.backward()
        return loss

    solver.step(closure)
    return weight.detach().float(), bias.detach().float()
