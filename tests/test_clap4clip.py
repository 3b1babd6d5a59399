"""CLAP4CLIP: heads, draws and the attention to the image by hand; every image on its own; old heads stay."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cross_entropy, layer_norm, normalize, softplus

from tests import contract


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        made = contract.run("clap4clip", stop_after=1)
    return made


@torch.no_grad()
def test_heads_begin_at_the_second_moments_of_texts_and_of_their_variances():
    with contract.toys():
        model = contract.build("clap4clip").model
    templates = contract.ToyClasses.TEMPLATES
    each = [
        model.text_features(contract.NAMES, [[t] for _ in contract.NAMES for t in [template]]) for template in templates
    ]
    torch.testing.assert_close(model.spread, ((each[0] - each[1]) / 2).square(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(model.texts, normalize(each[0] + each[1], dim=1), atol=1e-5, rtol=1e-4)
    model._n_past_classes, model._n_seen_classes = 0, 3
    model.new_heads()
    wanted = sum(torch.outer(t, t) for t in model.texts[:3]) / 128
    torch.testing.assert_close(model.mu[0].weight, wanted, atol=1e-6, rtol=1e-4)
    wanted = sum(torch.outer(v, v) for v in model.spread[:3]) / 128
    torch.testing.assert_close(model.sigma[0].weight, wanted, atol=1e-7, rtol=1e-4)
    mu, sigma = model.normals()
    torch.testing.assert_close(mu, torch.stack([model.mu[0].weight @ t for t in model.texts[:3]]), atol=1e-6, rtol=1e-4)
    assert float(sigma.mean()) == pytest.approx(0.999 * 0.2 + 0.001, rel=1e-2)


@torch.no_grad()
def test_each_class_has_the_head_of_its_task(toy):
    model = toy.model
    mu, sigma = model.normals()
    assert len(model.mu) == 2 and len(mu) == 5
    for c, task in ((0, 0), (2, 0), (3, 1), (4, 1)):
        torch.testing.assert_close(mu[c], model.mu[task](model.texts[c]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(sigma[c], 0.999 * softplus(model.sigma[task](model.texts[c])) + 0.001)


@torch.no_grad()
def test_attention_to_one_image_by_hand(toy):
    """Names attend to each other, then to the one token of the image, whose share is 1."""
    model, image = toy.model, drawn(1, 128)
    guide, names = model.guide.eval(), model.texts[:5]

    def attended(attention, query, memory):
        w, b = attention.in_proj_weight, attention.in_proj_bias
        q, k, v = (
            rows @ w[n * 128 : (n + 1) * 128].T + b[n * 128 : (n + 1) * 128]
            for n, rows in enumerate((query, memory, memory))
        )
        return attention.out_proj((q @ k.T / 128**0.5).softmax(1) @ v)

    def normed(norm, x):
        return layer_norm(x, (128,), norm.weight, norm.bias)

    x = names + attended(guide.self_attn, normed(guide.norm1, names), normed(guide.norm1, names))
    x = x + attended(guide.multihead_attn, normed(guide.norm2, x), image)
    hidden = guide.linear1(normed(guide.norm3, x))
    x = x + guide.linear2(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))
    torch.testing.assert_close(model.guided(image)[0], x, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_loss_by_hand(toy, monkeypatch):
    model, x, y = toy.model, normalize(drawn(4, 128), dim=1), torch.tensor([0, 4, 2, 4])
    model.guide.eval()
    noise, scale, texts = drawn(2, 5, 128, seed=3), float(model.net.logit_scale), model.texts[:5]
    monkeypatch.setattr(torch, "randn", lambda *shape: noise)
    found = float(model.loss_of(x, y, None, 0))
    mu, sigma = model.normals()
    logits = torch.zeros(4, 5)
    for s in range(2):
        for i in range(4):
            for c in range(5):
                key = texts[c] + model.guided(x[i : i + 1])[0, c] + mu[c] + sigma[c] * noise[s, c]
                logits[i, c] += scale * float(key @ x[i]) / 2
    kl = kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)).sum(1).mean()
    named = torch.stack(
        [normalize(texts[c] + mu[c] + sigma[c] * noise[s, c], dim=0) for s in range(2) for c in range(5)]
    )
    lasp = cross_entropy(scale * named @ texts.T, torch.arange(10) % 5)
    expected = cross_entropy(logits, y) + 0.1 * kl + 15 * lasp
    assert found == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_answers_have_no_noise_and_do_not_depend_on_the_batch(toy):
    model, x = toy.model, drawn(3, 128)
    whole = model(3 * x)
    torch.testing.assert_close(model(3 * x), whole)
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x]), whole, atol=1e-3, rtol=1e-3)
    mu, unit = model.normals()[0], normalize(x, dim=1)
    keys = model.texts[:5] + torch.cat([model.guided(row[None]) for row in unit]) + mu
    wanted = float(model.net.logit_scale) * torch.einsum("bcd,bd->bc", keys, unit)
    torch.testing.assert_close(whole, wanted, atol=1e-3, rtol=1e-3)


def test_old_heads_stay_and_the_memory_is_trained_again():
    with contract.toys():
        first = contract.run("clap4clip", stop_after=0).model
        second = contract.run("clap4clip", stop_after=1).model
        once = contract.run("clap4clip", stop_after=0, balanced_epochs=0).model
    for old, new in ((first.mu, second.mu), (first.sigma, second.sigma)):
        assert torch.equal(old[0].weight, new[0].weight) and torch.equal(old[0].bias, new[0].bias)
        assert new[1].bias.any() and new[1].weight.requires_grad and not new[0].weight.requires_grad
    assert not torch.equal(first.mu[0].bias, once.mu[0].bias)
    assert not torch.equal(first.guide.linear1.weight, second.guide.linear1.weight)
    assert second.memory_labels.tolist() == [c for c in range(5) for _ in range(3)]
    torch.testing.assert_close(second.memory.norm(dim=1), torch.ones(15))
