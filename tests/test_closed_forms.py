"""Closed forms on frozen features against scipy's least squares, loops, one solve, another order of tasks."""

import numpy as np
import pytest
import torch
from scipy.linalg import lstsq
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal
from torch.nn.functional import normalize, one_hot

from backbone.clip_encoder import ClipImageEncoder
from models.ranpac import GRID, predictions
from models.utils.random_features import add_gram, solve_ridge
from tests import contract
from utils.errors import UserError


@pytest.fixture(autouse=True)
def toys():
    with contract.toys():
        yield


def all_of(toy):
    """Raw features (N, D) and labels (N,) of all training images, task by task, in float64."""
    parts = [toy.model.image_features(x.dataset) for x in toy.dataset.all_loaders(toy.model.change_transform)[0]]
    return [(f.double(), y) for f, y in parts]


def joined(toy):
    features, labels = (torch.cat(column) for column in zip(*all_of(toy), strict=True))
    return features, labels


def least_squares(h, y, ridge, weight=None):
    """Ridge regression as the least squares of a taller system, without normal equations."""
    h, y, rows = np.asarray(h), np.asarray(y), np.ones((len(h), 1)) if weight is None else np.sqrt(weight)[:, None]
    below = np.sqrt(ridge) * np.eye(h.shape[1]), np.zeros((h.shape[1], y.shape[1]))
    return lstsq(np.concatenate([rows * h, below[0]]), np.concatenate([rows * y, below[1]]))[0]


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("width", [7, 2500])
def test_blocks_of_a_gram_are_the_whole(width):
    rows = drawn(5, width)
    total = torch.ones(width, width, dtype=torch.float64)
    add_gram(total, rows, -0.5)
    torch.testing.assert_close(total, 1 - 0.5 * rows.T @ rows, atol=1e-12, rtol=0)


def test_ridge_is_least_squares():
    h, y = drawn(30, 8), drawn(30, 3, seed=1)
    expected = least_squares(h, y, 0.3)
    assert np.allclose(solve_ridge(h.T @ h, h.T @ y, 0.3).numpy(), expected, atol=1e-8, rtol=0)


@pytest.mark.parametrize("n", [20, 5])
def test_one_decomposition_serves_every_ridge(n):
    h, y, held = drawn(n, 8), drawn(n, 3, seed=1), drawn(6, 8, seed=2)
    for r, found in zip(GRID[4:], predictions(h, y, held, GRID[4:]), strict=True):
        expected = held.numpy() @ least_squares(h, y, r)
        assert np.allclose(found.numpy(), expected, atol=1e-8, rtol=0), r


def test_the_layers_have_their_distributions():
    layer = contract.build("ranpac", pet="none", rp_size=2000).model.random
    assert abs(float(layer.std()) - 1) < 0.01 and float(layer.abs().max()) > 3
    layer = contract.build("acil", rp_size=2000).model.random
    bound = len(layer) ** -0.5
    assert float(layer.abs().max()) <= bound and abs(float(layer.std()) - bound / 3**0.5) < 0.01 * bound


# acil


@pytest.mark.parametrize("flags", [{}, {"rp_init": "normal"}, {"rp_size": 0}], ids=str)
def test_recursive_is_the_joint_regression(flags):
    toy = contract.run("acil", **flags)
    features, labels = joined(toy)
    h = normalize(features.float(), dim=1)
    h = (h if toy.model.random is None else (h @ toy.model.random).relu()).double().numpy()
    y = np.eye(9)[labels.numpy()]
    assert np.allclose(toy.model.cross.numpy(), least_squares(h, y, 0.1), atol=1e-8)
    assert np.allclose(toy.model.matrix.numpy(), np.linalg.inv(h.T @ h + 0.1 * np.eye(h.shape[1])), atol=1e-8)


@pytest.mark.parametrize("after", [1, 2])
def test_air_is_least_squares_with_a_weight_per_class(after):
    toy = contract.run("acil", class_weight="air", stop_after=after)
    features, labels = (torch.cat(c) for c in zip(*all_of(toy)[: after + 1], strict=True))
    h = toy.model.hidden(features.float()).double().numpy()
    counts = np.bincount(labels.numpy())
    weight = 1 / counts * len(counts) / (1 / counts).sum()
    assert weight.sum() == pytest.approx(len(counts)) and len(set(weight.round(6))) > 1
    fit = least_squares(h, np.eye(9)[labels.numpy()], 0.1, weight[labels.numpy()])
    assert np.allclose(toy.model.solved().numpy(), fit, atol=1e-8)


def test_air_with_equal_counts_is_plain_ridge(monkeypatch):
    monkeypatch.setattr(contract, "PER_CLASS", [5] * 9)
    plain, air = contract.run("acil"), contract.run("acil", class_weight="air")
    torch.testing.assert_close(plain.model.solved(), air.model.solved(), atol=1e-8, rtol=0)


CLOSED = ["acil", "ranpac", "rail", "simplecil", "slda"]
FORMS = {
    "acil": [{}, {"class_weight": "air"}],
    "ranpac": [{"pet": "none", "ridge": 0.1}],
    "rail": [{"form": "dual", "rp_size": 0}, {}],
    "simplecil": [{}],
    "slda": [{"cov": "class"}, {"cov": "correlation"}],
}


@pytest.mark.parametrize("name, flags", [(n, f) for n in CLOSED for f in FORMS[n]], ids=str)
def test_order_of_tasks_does_not_matter(name, flags):
    first, second = contract.run(name, **flags), contract.run(name, custom_task_order="2,0,1", **flags)
    place = torch.tensor(second.args.class_order)
    inputs = contract.images_of(first)[0]
    expected, found = contract.logits(first, inputs), contract.logits(second, inputs)
    torch.testing.assert_close(found[:, place], expected, atol=2e-3 * float(expected.abs().max()), rtol=0)


# ranpac


def test_ranpac_without_adapter_is_ridge_on_the_best_of_the_grid():
    toy = contract.run("ranpac", pet="none", stop_after=0)
    (features, labels), model = all_of(toy)[0], toy.model
    h = (features.float() @ model.random).relu().double()
    y = one_hot(labels, 9).double()
    best = model.best_ridge(h, y)
    assert best in GRID and model.n_images == 21
    fit = least_squares(h, y, best)
    assert np.allclose(model.weights.numpy(), fit, atol=1e-4 * np.abs(fit).max())


def test_the_chosen_ridge_has_the_least_error_on_held_images():
    from utils.randomness import generator

    toy = contract.build("ranpac", pet="none")
    h, y = drawn(20, 6), drawn(20, 9, seed=1)
    order = torch.randperm(20, generator=generator(0, "ridge", 0))
    held, rest = order[:4], order[4:]
    fits = {r: least_squares(h[rest], y[rest], r) for r in GRID}
    errors = {r: ((h[held].numpy() @ fit - y[held].numpy()) ** 2).sum() for r, fit in fits.items()}
    assert toy.model.best_ridge(h, y) == min(errors, key=errors.get)
    toy.model.n_images, toy.args.ridge_scale = 48, "images"
    assert toy.model.best_ridge(h, y) == pytest.approx(3 * min(errors, key=errors.get))


def test_the_first_task_adapts_the_tower_and_no_other_does():
    towers = []
    for after in (None, 0, 2):
        toy = contract.build("ranpac") if after is None else contract.run("ranpac", stop_after=after)
        towers.append({k: v.clone() for k, v in toy.model.net.state_dict().items()})
    moved = {k for k, v in towers[0].items() if not torch.equal(v, towers[1][k])}
    assert moved and all(".experts." in k for k in moved)
    assert all(torch.equal(v, towers[2][k]) for k, v in towers[1].items())
    assert toy.model.encoder.key == ClipImageEncoder(toy.model.net).key, "features are those of the adapted tower"
    assert contract.build("ranpac", pet="none").model.encoder.key != toy.model.encoder.key


def test_ridge_is_auto_or_a_number():
    with pytest.raises(UserError, match="--ridge"):
        contract.build("ranpac", ridge="best")


# rail --form dual


@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_dual_against_scipy(kernel):
    toy = contract.run("rail", form="dual", kernel=kernel, kernel_gamma=0.7)
    features, labels = joined(toy)
    x, y = normalize(features.float(), dim=1).double().numpy(), np.eye(9)[labels.numpy()]
    test = x[::3]
    between = np.exp(-0.7 * cdist(test, x, "sqeuclidean")) if kernel == "rbf" else test @ x.T
    within = np.exp(-0.7 * cdist(x, x, "sqeuclidean")) if kernel == "rbf" else x @ x.T
    expected = between @ np.linalg.solve(within + 0.001 * np.eye(len(x)), y)
    found = toy.model.kernel(torch.from_numpy(test), toy.model.kept.double()) @ toy.model.weights.double()
    assert np.allclose(found.numpy(), expected, atol=1e-3)
    assert np.allclose(toy.model.kept.numpy(), x) and toy.model.stored_bytes()["kept"] == 4 * x.size


def test_the_rbf_kernel_of_unit_rows():
    from models.rail import kernel

    a, b = normalize(drawn(4, 5), dim=1), normalize(drawn(3, 5, seed=1), dim=1)
    assert np.allclose(kernel(a, b, "rbf", 0.7).numpy(), np.exp(-0.7 * cdist(a, b, "sqeuclidean")), atol=1e-8)


def test_the_dual_with_a_linear_kernel_is_the_primal_without_random_layer():
    dual = contract.run("rail", form="dual", kernel="linear", ridge=0.2)
    primal = contract.run("rail", rp_size=0, ridge=0.2)
    torch.testing.assert_close(contract.logits(dual), contract.logits(primal), atol=1e-4, rtol=1e-3)


# simplecil, slda


def test_simplecil_averages_raw_features():
    toy = contract.run("simplecil", text_weight=0)
    features, labels = joined(toy)
    means = np.stack([features.numpy()[labels == c].mean(0) for c in range(9)])
    keys = means / np.linalg.norm(means, axis=1, keepdims=True)
    assert np.allclose(toy.model.keys().numpy(), keys, atol=1e-5)
    assert not torch.allclose(
        contract.run("ncm", text_weight=0).model.keys().double(), torch.from_numpy(keys), atol=1e-5
    )


def shrunk(covariance):
    return 0.7 * covariance + 0.3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


@pytest.mark.parametrize("prior", ["empirical", "uniform"])
@pytest.mark.parametrize("cov", ["class", "correlation"])
def test_a_covariance_per_class_against_scipy(cov, prior):
    toy = contract.run("slda", cov=cov, shrinkage=0.3, prior=prior)
    features, labels = joined(toy)
    f, labels = normalize(features.float(), dim=1).double().numpy(), labels.numpy()
    inputs = contract.images_of(toy)[0]
    found, x = contract.logits(toy), normalize(toy.model.encode(inputs), dim=1).double().detach().numpy()
    for c in range(9):
        own = f[labels == c]
        mean, s = own.mean(0), shrunk(np.cov(own.T, bias=True))
        share = np.log(len(own) / len(f)) if prior == "empirical" else 0
        if cov == "correlation":
            s = s / np.sqrt(np.outer(np.diag(s), np.diag(s)))
            expected = np.array([-((row - mean) @ np.linalg.solve(s, row - mean)) for row in x])
        else:
            constant = len(mean) / 2 * np.log(2 * np.pi)  # which all classes share
            expected = multivariate_normal.logpdf(x, mean, s) + constant + share
        assert np.allclose(found[:, c].double().numpy(), expected, rtol=1e-3, atol=1e-2), c
