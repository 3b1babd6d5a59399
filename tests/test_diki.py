"""DIKI: prefixes by hand, densities against scipy, the weight and task of each image."""

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn
from torch.nn.functional import normalize

from backbone.residual_prefix import ResidualPrefix
from models.diki import log_density
from tests import contract


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@torch.no_grad()
def test_attention_to_a_prefix_head_by_head():
    torch.manual_seed(0)
    attn = nn.MultiheadAttention(8, 2)
    attn.in_proj_bias.copy_(drawn(24, seed=5))
    made, x = ResidualPrefix(attn, 2, 3), drawn(5, 2, 8)
    plain = attn(x, x, x)[0]
    assert torch.equal(made(x, x, x)[0], plain), "values start at zero"
    for task in range(2):
        assert made.keys[task].abs().max() <= 1 and made.keys[task].std() > 0.3
        made.values[task].copy_(drawn(3, 8, seed=task + 1))
    made.task, made.weight = torch.tensor([1, 0]), torch.tensor([0.3, 0.9])
    found = made(x, x, x)[0]
    for b in range(2):
        q = x[:, b] @ attn.in_proj_weight[:8].T + attn.in_proj_bias[:8]
        mixed = torch.zeros(5, 8)
        for head in (slice(0, 4), slice(4, 8)):
            shares = (q[:, head] @ made.keys[1 - b][:, head].T / 2).softmax(1)
            mixed[:, head] = shares @ made.values[1 - b][:, head]
        wanted = plain[:, b] + float(made.weight[b]) * mixed @ attn.out_proj.weight.T
        torch.testing.assert_close(found[:, b], wanted, atol=1e-5, rtol=1e-5)
    made.task, made.weight = 1, 0.3
    torch.testing.assert_close(made(x, x, x)[0][:, 0], found[:, 0])
    made.weight = 0.0
    assert torch.equal(made(x, x, x)[0], plain)


def test_density_is_that_of_scipy():
    rows, means = drawn(4, 5, dtype=torch.float64), drawn(2, 5, seed=1, dtype=torch.float64)
    roots = torch.stack([drawn(5, 5, seed=s, dtype=torch.float64).tril() for s in (2, 3)])
    roots.diagonal(dim1=1, dim2=2).abs_().add_(0.5)
    found = log_density(rows, means, roots)
    for t in range(2):
        expected = multivariate_normal.logpdf(rows.numpy(), means[t].numpy(), (roots[t] @ roots[t].T).numpy())
        torch.testing.assert_close(found[:, t], torch.from_numpy(expected), atol=1e-8, rtol=0)


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        return contract.run("diki", cov_floor=2e-3)


def plain_rows(toy, inputs):
    clip = contract.build("clip").model
    return normalize(clip.net.encode_image(inputs), dim=1)


@torch.no_grad()
def test_task_and_weight_of_each_image(toy):
    model, inputs = toy.model, contract.images_of(toy)[0]
    with contract.toys():
        plain = plain_rows(toy, inputs).double().numpy()
    routes = model.route_images(inputs)
    for i, row in enumerate(plain):
        logs = [
            multivariate_normal.logpdf(row, m.numpy(), (r @ r.T).numpy())
            for m, r in zip(model.means, model.roots, strict=True)
        ]
        weight = float(torch.tensor(max(logs) / 128 - 1).sigmoid())
        prefix = model.seers[0]
        assert int(prefix.task[i]) == logs.index(max(logs)) and float(prefix.weight[i]) == pytest.approx(
            weight, abs=2e-3
        )
        level = int(routes[i]) % 3
        assert int(routes[i]) // 3 == logs.index(max(logs)) and abs(level / 2 - weight) <= 0.251
    assert len(routes.unique()) > 2


@torch.no_grad()
def test_statistics_are_of_the_tasks_own_frozen_features(toy):
    split = toy.dataset.all_loaders(toy.model.change_transform)[0][1].dataset
    images = split.samples.data[split.rows]
    with contract.toys():
        clip = contract.build("clip").model
    rows = normalize(clip.net.encode_image(clip.net.normalize_images(images / 255)), dim=1).double()
    torch.testing.assert_close(toy.model.means[1], rows.mean(0), atol=1e-5, rtol=1e-3)
    cov = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows) + 2e-3 * torch.eye(128)
    root = toy.model.roots[1]
    torch.testing.assert_close(root @ root.T, cov, atol=1e-5, rtol=1e-3)


@torch.no_grad()
def test_keys_of_a_route_are_those_of_its_task_and_weight(toy):
    model = toy.model
    keys = model.all_keys()
    assert len(keys) == 9
    model.set_prefixes(model.readers, 2, 0.5)
    tokens = [model.net.tokenize(t.format("cup")) for t in contract.ToyClasses.TEMPLATES]
    mean = sum(normalize(model.net.encode_text(t), dim=1)[0] for t in tokens)
    torch.testing.assert_close(keys[7, 0], normalize(mean, dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(keys[0], keys[3], atol=1e-6, rtol=0)  # weight 0: the frozen tower, whatever the task
    assert not torch.allclose(keys[2], keys[5], atol=1e-3)


def test_only_the_prefixes_of_the_task_are_trained(toy):
    with contract.toys():
        first = contract.run("diki", cov_floor=2e-3, stop_after=0).model.net.state_dict()
        start = contract.build("diki").model.net.state_dict()
    last = toy.model.net.state_dict()
    early = {k for k, v in first.items() if not torch.equal(v, start[k])}
    assert early and all(k.endswith((".keys.0", ".values.0")) for k in early)
    assert {k.split(".")[1] for k in early} == {"visual", "transformer"}
    late = {k for k, v in last.items() if not torch.equal(v, first[k])}
    assert late and all(k.endswith((".1", ".2")) for k in late)
