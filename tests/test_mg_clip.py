"""MG-CLIP: adapters of keys and values, the rule of epochs, the visual head and the mixture of scores by hand."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from backbone.key_value_lora import KeyValueLora, add_key_value_lora
from models.mg_clip import mean_of_wrong
from tests import contract


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_keys_and_values_alone_are_adapted():
    torch.manual_seed(0)
    adapter, weight = KeyValueLora(4, 2, 6.0), drawn(12, 4)
    assert torch.equal(adapter(weight), weight)
    adapter.B.copy_(drawn(2, 4, 2, seed=1))
    found = adapter(weight)
    assert torch.equal(found[:4], weight[:4])
    for n, rows in enumerate((slice(4, 8), slice(8, 12))):
        torch.testing.assert_close(found[rows], weight[rows] + 3 * adapter.B[n] @ adapter.A[n])


def test_only_adapters_have_gradient():
    block = nn.Module()
    block.attn = nn.MultiheadAttention(8, 2).requires_grad_(False)
    add_key_value_lora([block], 2, 2.0)
    x = drawn(3, 1, 8)
    block.attn(x, x, x)[0].square().sum().backward()
    moved = {n for n, p in block.attn.named_parameters() if p.grad is not None}
    assert moved == {"parametrizations.in_proj_weight.0.A", "parametrizations.in_proj_weight.0.B"}


def test_mean_of_wrong_pairs_by_loops():
    scores, labels = drawn(4, 3), torch.tensor([2, 0, 0, 1])
    each = [float(scores[i, c]) for i in range(4) for c in range(3) if c != labels[i]]
    assert float(mean_of_wrong(scores, labels)) == pytest.approx(sum(each) / 8)


@pytest.fixture(scope="module")
def toy():
    with contract.toys():
        return contract.run("mg-clip", stop_after=1)


@pytest.mark.parametrize("change, epochs", [(1e-9, 1), (1e9, 3), (0.0, 3)])
def test_the_rule_ends_training_in_every_task(change, epochs, monkeypatch):
    from models.mg_clip import MgClip

    steps = []
    real = MgClip.step
    monkeypatch.setattr(MgClip, "step", lambda self, *a: steps.append(self.current_task) or real(self, *a))
    with contract.toys():
        model = contract.run("mg-clip", stop_after=1, gap_change=change, n_epochs=3, batch_size=30).model
    assert steps == [0] * epochs + [1] * epochs
    assert model.epochs == (1 if epochs == 1 else None)


@torch.no_grad()
def test_scores_are_a_mixture(toy):
    model, inputs = toy.model, contract.images_of(toy)[0][:5]
    features = normalize(model.net.encode_image(inputs), dim=1)
    tokens = model.net.tokenize([f"a photo of a {name}." for name in contract.NAMES[:5]])
    texts = normalize(model.net.encode_text(tokens), dim=1)
    names = (model.net.logit_scale * features @ texts.T).softmax(1)
    visual = (5 * features @ normalize(model.V[:5], dim=1).T).softmax(1)
    torch.testing.assert_close(model(inputs).exp(), (names + 4 * visual) / 5, atol=1e-5, rtol=1e-4)


def test_old_rows_of_the_head_do_not_move(toy):
    with contract.toys():
        first = contract.run("mg-clip", stop_after=0).model
        decayed = contract.run("mg-clip", stop_after=1, optim_wd=0.5).model
        decayed_first = contract.run("mg-clip", stop_after=0, optim_wd=0.5).model
    assert torch.equal(first.V[:3], toy.model.V[:3]) and not first.V[3:].any() and toy.model.V[3:5].any()
    assert torch.equal(decayed.V[:3], decayed_first.V[:3])


def test_new_rows_start_at_means_of_adapted_features():
    with contract.toys():
        toy = contract.run("mg-clip", stop_after=0, visual_epochs=0)
    rows, labels = toy.model.adapted(toy.model.loader_of(toy.dataset))
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    for c in range(3):
        torch.testing.assert_close(toy.model.V[c].detach(), rows[labels == c].mean(0), atol=1e-5, rtol=1e-4)


def test_the_rate_is_a_cosine_to_a_hundredth(toy):
    model = toy.model
    for done, share in ((0.0, 1.0), (0.5, 0.505), (1.0, 0.01), (1 / 3, 0.01 + 0.99 * (1 + math.cos(math.pi / 3)) / 2)):
        model.set_rate(0.2, done)
        assert model.opt.param_groups[0]["lr"] == pytest.approx(0.2 * share)


def test_at_first_it_is_zero_shot_clip():
    with contract.toys():
        toy, clip = contract.build("mg-clip"), contract.build("clip").model
    x = torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(toy.model.net.encode_image(x), clip.net.encode_image(x))
        torch.testing.assert_close(toy.model.net.encode_text(toy.model.tokens), clip.net.encode_text(toy.model.tokens))
