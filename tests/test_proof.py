"""PROOF: sums of projections, the contrast and the attention by hand; what is old does not move."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from models.utils.projections import SummedLinear, paired_contrast
from tests import contract


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("init", ["identity", "linear"])
@torch.no_grad()
def test_maps_are_summed(init):
    torch.manual_seed(0)
    total, x, parts = SummedLinear(5, init), drawn(3, 5), []
    if init == "identity":
        assert torch.equal(total(x), x)
    for _ in range(3):
        total.newest.weight += drawn(5, 5, seed=7)
        total.newest.bias += 0.3
        parts.append((total.newest.weight.clone(), total.newest.bias.clone()))
        torch.testing.assert_close(total(x), sum(x @ w.T + b for w, b in parts), atol=1e-5, rtol=1e-5)
        total.grow()
    if init == "identity":
        assert not total.newest.weight.any() and not total.newest.bias.any()
    else:
        assert 0 < total.newest.weight.abs().max() <= 5**-0.5
    assert not total.weight.requires_grad


def test_contrast_by_loops():
    images, texts = (normalize(drawn(4, 5, seed=s), dim=1) for s in (0, 1))
    labels = torch.tensor([2, 0, 2, 1])
    logits, losses = 7.0 * images @ texts.T, []
    for table in (logits, logits.T):
        for i in range(4):
            partners = [j for j in range(4) if labels[j] == labels[i]]
            losses.append(-np.mean([float(table[i].log_softmax(0)[j]) for j in partners]))
    found = paired_contrast(images, texts, labels, torch.tensor(7.0))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        made = contract.run("proof", stop_after=1)
    return made


@torch.no_grad()
def test_attention_of_one_image_by_hand(toy):
    model, image = toy.model, drawn(1, 128)
    names, means = drawn(5, 128, seed=1), drawn(5, 128, seed=2)
    tokens = torch.cat([image, names, means, model.past, model.context])
    assert len(tokens) == 1 + 5 + 5 + 2 * 3
    w, b = model.attention.in_proj_weight, model.attention.in_proj_bias
    q, k, v = (tokens @ w[n * 128 : (n + 1) * 128].T + b[n * 128 : (n + 1) * 128] for n in range(3))
    mixed = (q @ k.T / 128**0.5).softmax(1) @ v
    mixed = mixed @ model.attention.out_proj.weight.T + model.attention.out_proj.bias
    out = tokens + mixed
    out = (out - out.mean(1, keepdim=True)) / (out.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    out = normalize(out * model.norm.weight + model.norm.bias, dim=1)
    found = model.fused(image, names, means)
    for part, wanted in zip(found, (out[0], out[1:6], out[6:11]), strict=True):
        torch.testing.assert_close(part[0], wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_loss_and_scores_by_hand(toy):
    model, x, y = toy.model, normalize(drawn(4, 128), dim=1), torch.tensor([0, 4, 2, 4])
    images, names, means = model.seer(x), model.reader(model.texts[:5]), model.seer(model.means[:5])
    fused = [model.fused(image[None], names, means) for image in images]
    scale = float(model.net.logit_scale)
    by_name = torch.stack([scale * f[1][0] @ f[0][0] for f in fused])
    by_mean = torch.stack([scale * f[2][0] @ f[0][0] for f in fused])
    unit, texts = normalize(images, dim=1), normalize(names, dim=1)
    expected = cross_entropy(by_name, y) + cross_entropy(by_mean, y)
    expected = expected + paired_contrast(unit, texts[y], y, torch.tensor(scale))
    assert float(model.loss_of(x, y, None, 0)) == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(model(3 * x), by_name + by_mean + scale * unit @ texts.T, atol=1e-2, rtol=1e-3)


def test_memory_holds_herded_features_of_every_class(toy):
    model = toy.model
    assert model.memory_labels.tolist() == [c for c in range(5) for _ in range(3)]
    features, labels = toy.model.labeled(toy.dataset)
    own = normalize(features[labels == 3], dim=1)
    first = own[(own - own.mean(0)).norm(dim=1).argmin()]
    torch.testing.assert_close(model.memory[9], first)
    torch.testing.assert_close(model.means[3], own.mean(0), atol=1e-5, rtol=1e-4)
    assert not model.means[5:].any()


def test_old_projections_and_contexts_do_not_move():
    with contract.toys():
        first = contract.run("proof", stop_after=0).model
        second = contract.run("proof", stop_after=1).model
    for old, new in ((first.seer, second.seer), (first.reader, second.reader)):
        assert torch.equal(old.newest.weight, new.weight) and torch.equal(old.newest.bias, new.bias)
        assert new.newest.weight.any(), "the newest is trained"
    assert torch.equal(second.past, first.context) and not torch.equal(second.context, first.context)


@torch.no_grad()
def test_the_first_map_starts_at_zero_shot_clip():
    with contract.toys():
        toy = contract.build("proof")
    model, x = toy.model, drawn(3, 128)
    images, names, _ = model.projected(x)
    assert torch.equal(images, x) and torch.equal(names, model.texts[: model.n_seen_classes])
