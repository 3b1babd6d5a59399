"""Projections against a general solver; per-sample squared gradients against an explicit loop in double precision."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize
from torch import nn

from utils.gradients import add_pull, flat, get_grads, gradient, project_cone, project_one, set_grads, trained
from utils.pair import Pair
from utils.per_sample import SquaredGradients, add_products


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# projections


@pytest.mark.parametrize("seed", range(5))
def test_projection_on_one_constraint(seed):
    g, r = draw(9, seed=seed), draw(9, seed=seed + 100)
    if torch.dot(g, r) > 0:
        r = -r
    x = project_one(g, r)
    assert abs(torch.dot(x, r)) < 1e-12 and torch.equal(project_one(g, -r), g)
    assert torch.allclose(project_cone(g, r[None]), x)
    found = minimize(
        lambda x: ((x - g.numpy()) ** 2).sum(),
        np.zeros(9),
        constraints=[{"type": "ineq", "fun": lambda x: x @ r.numpy()}],
    )
    np.testing.assert_allclose(x, found.x, atol=1e-5)


def test_projection_with_a_zero_reference_is_the_gradient():
    g = draw(4)
    assert torch.equal(project_one(g, torch.zeros(4, dtype=torch.float64)), g)
    assert torch.equal(project_cone(g, torch.zeros(2, 4, dtype=torch.float64)), g)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(4))
def test_cone_projection_equals_a_quadratic_program(seed, margin):
    g, G = draw(8, seed=seed), draw(4, 8, seed=seed + 10)
    x = project_cone(g, G, margin)
    assert (G @ x > -1e-9).all()
    dual = minimize(
        lambda v: ((g.numpy() + v @ G.numpy()) ** 2).sum(),
        np.full(4, margin + 1),
        bounds=[(margin, None)] * 4,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    np.testing.assert_allclose(x, g.numpy() + dual.x @ G.numpy(), atol=1e-5)
    if margin == 0:
        primal = minimize(
            lambda x: ((x - g.numpy()) ** 2).sum(),
            np.zeros(8),
            constraints=[{"type": "ineq", "fun": lambda x: G.numpy() @ x}],
        )
        np.testing.assert_allclose(x, primal.x, atol=1e-4)


def test_cone_projection_of_one_constraint_in_closed_form():
    g, r = draw(6), draw(6, seed=1)
    v = max(0.5, -float(torch.dot(g, r) / torch.dot(r, r)))
    assert torch.allclose(project_cone(g, r[None], 0.5), g + v * r)


def test_cone_projection_with_constraints_that_depend_on_each_other():
    g, G = draw(7), draw(2, 7, seed=3)
    G = torch.cat([G, G[:1] + G[1:], 2 * G[:1]])
    x = project_cone(g, G)
    assert (G @ x > -1e-9).all() and torch.allclose(x, project_cone(g, G[:2]))


def test_vectors_go_in_and_come_out():
    net = nn.Linear(3, 2).double()
    parameters = list(net.parameters())
    g = gradient(net(draw(4, 3)).square().sum(), parameters)
    net(draw(4, 3)).square().sum().backward()
    assert torch.allclose(get_grads(parameters), g)
    set_grads(parameters, 2 * g)
    assert torch.allclose(net.weight.grad.flatten(), 2 * g[:6])
    parameters[1].grad = None
    assert torch.equal(get_grads(parameters)[6:], torch.zeros(2, dtype=torch.float64))
    net.weight.requires_grad_(False)
    assert trained(net) == [net.bias]


def test_pull_is_the_gradient_of_its_penalty():
    net = nn.Linear(3, 2).double()
    parameters, anchor, weight = list(net.parameters()), draw(8), draw(8, seed=1).abs()
    penalty = add_pull(parameters, anchor, weight, 3.0)
    theta = flat(parameters).requires_grad_()
    expected = 3.0 * (weight * (theta - anchor) ** 2).sum()
    assert torch.allclose(penalty, expected)
    pull = get_grads(parameters)
    assert torch.allclose(pull, torch.autograd.grad(expected, theta)[0])
    set_grads(parameters, draw(8, seed=2))
    add_pull(parameters, anchor, weight, 3.0)
    assert torch.allclose(get_grads(parameters), pull + draw(8, seed=2)), "beside the gradient that is there"


# per-sample squared gradients


class Positions(nn.Module):
    """Linear and LayerNorm on a sequence, then the mean."""

    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.down(self.up(self.norm(x)).tanh().mean(1))


class Attention(nn.Module):
    """Attention over positions that come first, and parameters of its own: nothing that a rule covers."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(draw(4, 6))
        self.attention, self.head = nn.MultiheadAttention(6, 2), nn.Linear(6, 3)

    def forward(self, x):  # (B, 4, 6)
        x = (x + self.place).transpose(0, 1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(0))


class Words(nn.Module):
    """Token ids, with repetitions, beside an image."""

    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(7, 4), nn.Linear(4 + 12, 3)

    def forward(self, x):
        return self.head(torch.cat([self.words(x.text).sum(1), x.image.flatten(1)], dim=1))


def pictures():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.LayerNorm(12),
        nn.Linear(12, 5),
        nn.BatchNorm1d(5),
    )


def dilated():
    return nn.Sequential(nn.Conv2d(2, 4, 2, dilation=2, padding=(1, 0)), nn.Flatten(), nn.Linear(80, 3))


def grouped():
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(64, 3))


NETS = {
    "pictures": (pictures, (2, 6, 6), "layers"),
    "dilated": (dilated, (2, 5, 6), "layers"),
    "grouped": (grouped, (2, 6, 6), "vmap"),
    "positions": (Positions, (7, 5), "layers"),
    "attention": (Attention, (4, 6), "vmap"),
    "words": (Words, None, "layers"),
}


def setup(name, n=9):
    torch.manual_seed(0)
    make, shape, form = NETS[name]
    net = make().double()
    x = Pair(draw(n, 3, 2, 2), torch.randint(0, 7, (n, 5))) if shape is None else draw(n, *shape)
    net.train()(x)  # BatchNorm gets statistics that are not 0 and 1
    return net.eval(), x, torch.arange(n) % 3, form


def nll(outputs, labels):
    return F.cross_entropy(outputs, labels, reduction="none")


def explicit(net, x, y):
    total = torch.zeros(sum(p.numel() for p in net.parameters() if p.requires_grad), dtype=torch.float64)
    for i in range(len(y)):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        total += torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad]) ** 2
    net.zero_grad()
    return total


@pytest.mark.parametrize("form", ["loop", "vmap", "layers", None])
@pytest.mark.parametrize("name", NETS)
def test_squares_are_those_of_single_samples(name, form):
    net, x, y, fitting = setup(name)
    if form == "layers" and fitting != "layers":
        pytest.skip("no rule for a part of it")
    squares = SquaredGradients(net, nll, form)
    squares.add(x[:4], y[:4])
    squares.add(x[4:], y[4:])
    torch.testing.assert_close(squares.flat(), explicit(net, x, y), rtol=1e-9, atol=1e-15)
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert form is not None or squares.form == fitting


def test_frozen_parameters_are_left_out():
    net, x, y, _ = setup("pictures")
    net[0].weight.requires_grad_(False)
    net[7].bias.requires_grad_(False)
    squares = SquaredGradients(net, nll)
    squares.add(x, y)
    torch.testing.assert_close(squares.flat(), explicit(net, x, y), rtol=1e-9, atol=1e-15)
    assert squares.form == "layers" and not net[0].weight.requires_grad


def test_a_layer_used_twice_has_no_rule():
    layer = nn.Linear(4, 4).double()
    net, x, y = nn.Sequential(layer, nn.Tanh(), layer), draw(5, 4), torch.arange(5) % 3
    squares = SquaredGradients(net, nll)
    squares.add(x, y)
    assert squares.form == "loop"
    torch.testing.assert_close(squares.flat(), explicit(net, x, y))


def test_a_net_that_decides_by_its_data_goes_through_the_loop():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4, dtype=torch.float64))

        def forward(self, x):
            return self.scale * x if float(x.sum()) > 0 else x - self.scale

    net, x, y = Decides(), draw(6, 4), torch.arange(6) % 3
    squares = SquaredGradients(net, nll)
    squares.add(x, y)
    assert squares.form == "loop"
    torch.testing.assert_close(squares.flat(), explicit(net, x, y))


def test_a_large_net_is_not_vectorised(monkeypatch):
    net, x, y, _ = setup("attention")
    monkeypatch.setattr("utils.per_sample.VMAP_PAYS", 10**9)
    squares = SquaredGradients(net, nll)
    squares.add(x, y)
    assert squares.form == "loop"


def test_linear_softmax_net_in_closed_form():
    net, x, y = nn.Linear(4, 3).double(), draw(20, 4), torch.arange(20) % 3
    squares = SquaredGradients(net, nll)
    squares.add(x, y)
    wrong = (net(x).softmax(1) - F.one_hot(y, 3)).detach()
    torch.testing.assert_close(squares.total["weight"], wrong.square().T @ x.square())


def test_an_input_changed_in_place_is_refused():
    class Changes(nn.Sequential):
        def forward(self, x):
            h = self[0](x).relu()
            out = self[1](h)
            h.mul_(2)
            return out + h.mean()

    net = Changes(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    with pytest.raises(RuntimeError, match="in place"):
        SquaredGradients(net, nll).add(draw(4, 3), torch.arange(4) % 3)


@pytest.mark.parametrize("name", ["pictures", "dilated"])
@pytest.mark.parametrize("large", [1, 10**6])
def test_both_ways_through_a_convolution(name, large, monkeypatch):
    monkeypatch.setattr("utils.per_sample.LARGE_MAP", large)
    net, x, y, _ = setup(name)
    squares = SquaredGradients(net, nll, "layers")
    squares.add(x, y)
    torch.testing.assert_close(squares.flat(), explicit(net, x, y), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("piece", [1, 6, 30, 10**6])
def test_products_in_pieces_of_any_size(piece, monkeypatch):
    monkeypatch.setattr("utils.per_sample.PIECE", {True: piece})
    left, right, total = draw(5, 4, 3), draw(5, 3, 7, seed=1), draw(4, 7, seed=2)
    expected = total + (left @ right).square().sum(0)
    add_products(total, left, right)
    torch.testing.assert_close(total, expected)
