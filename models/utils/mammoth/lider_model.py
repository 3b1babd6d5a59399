"""LiderOptimizer: a method whose layers' Lipschitz constants are kept low or close to learned budgets.

Lipschitz-driven rehearsal, Bonicelli et al., NeurIPS 2022, arXiv 2210.06443. Of two successive feature maps of a batch,
F and F' (B, D) and (B, D'), with rows of unit length,

    M = F^T F' / B,    lambda = largest singular value of M^T M        -> `lipschitz`
    minimization: mean lambda_k over the layers      budget: mean |lambda_k - act(c_k)|, c_k learned

Choices [only names and defaults of the flags are documented]: lambda is found by power iteration on the (B, B) matrix
(F F^T)(F' F'^T) / B^2, which has the same leading eigenvalue; --grad_iter_step is the iteration from which gradients
pass, counted from the end where negative; --headless_init_act is act; init_net sets c_k so that the first batch of the
task meets its budgets. Both losses come without their weight, which the method multiplies in.
"""

import torch
from torch import nn
from torch.nn.functional import leaky_relu, normalize, relu

from models.utils.continual_model import ContinualModel
from utils.errors import UserError
from utils.flags import non_negative

ITERATIONS = 10
ACTIVATIONS = {"relu": relu, "lrelu": leaky_relu}


def add_lipschitz_args(parser) -> None:
    """The flags of LiDER."""
    group = parser.add_argument_group("Lipschitz regularisation")
    group.add_argument(
        "--alpha_lip_lambda", type=non_negative, default=0, help="weight of the layers' Lipschitz constants"
    )
    group.add_argument(
        "--beta_lip_lambda", type=non_negative, default=0, help="weight of their distance to the budgets"
    )
    group.add_argument("--headless_init_act", choices=list(ACTIVATIONS), default="relu", help="keeps budgets positive")
    group.add_argument("--grad_iter_step", type=int, default=-2, help="power iteration from which gradients pass")


def lipschitz(before: torch.Tensor, after: torch.Tensor, grad_from: int = -2) -> torch.Tensor:
    """The largest eigenvalue of M^T M, for feature maps (B, ...) on both sides of a layer."""
    grams = [rows @ rows.T / len(rows) for rows in (normalize(f.flatten(1), dim=1) for f in (before, after))]  # (B, B)
    product = grams[0] @ grams[1]
    grad_from = grad_from + ITERATIONS if grad_from < 0 else grad_from
    vector = product.new_ones(len(product)) / len(product) ** 0.5
    for step in range(ITERATIONS):
        with torch.set_grad_enabled(torch.is_grad_enabled() and step >= grad_from):
            vector = normalize(product @ vector, dim=0)
    # of a non-symmetric matrix: the quotient with the left vector grams[1] v, for which it is symmetric
    left = grams[1] @ vector
    return left @ (product @ vector) / (left @ vector).clamp(min=1e-12)


class LiderOptimizer(ContinualModel):
    """`features` below: the input and the maps of net(x, returnt="full"), in order."""

    def constants(self, features: list[torch.Tensor]) -> torch.Tensor:
        """(layers,)"""
        if len(features) < 2:
            raise UserError("the Lipschitz losses need the input and at least one feature map: net(x, returnt='full')")
        pairs = zip(features[:-1], features[1:], strict=True)
        return torch.stack([lipschitz(a, b, self.args.grad_iter_step) for a, b in pairs])

    def init_net(self, dataset) -> None:
        """Put the budgets `net.lip_coeffs` (layers,) among the network's parameters; call it before the first step."""
        inputs = next(iter(dataset.train_loader))[0].to(self.device)
        training = self.net.training
        self.net.eval()
        with torch.no_grad():
            features = [inputs, *self.net(inputs, returnt="full")[1]]
            found = self.constants(features)
        self.net.train(training)
        self.net.lip_coeffs = nn.Parameter(found)
        self.opt = self.get_optimizer()

    def minimization_lip_loss(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.constants(features).mean()

    def dynamic_budget_lip_loss(self, features: list[torch.Tensor]) -> torch.Tensor:
        if not hasattr(self.net, "lip_coeffs"):
            raise UserError("call init_net(dataset) before the Lipschitz budgets are used")
        budgets = ACTIVATIONS[self.args.headless_init_act](self.net.lip_coeffs)
        return (self.constants(features) - budgets).abs().mean()
