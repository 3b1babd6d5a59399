"""CODA-Prompt: weights and prefixes by loops, Gram-Schmidt, what a task may change."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from backbone.cosine import attended_cosines
from backbone.prompted_vit import PromptedTimm
from models import coda_prompt
from models.utils import prompt_model
from tests import contract
from tests.test_prompt_baselines import begun, loss_of_a_batch
from utils.errors import UserError


@pytest.fixture(autouse=True)
def toy_streams(monkeypatch):
    monkeypatch.setattr(contract.ToyPairs, "HAS_TEXT", True)
    with contract.toys():
        yield


def test_weights_are_cosines_of_the_attended_query():
    torch.manual_seed(0)
    query, keys, attentions = torch.randn(3, 5), torch.randn(2, 4, 5), torch.randn(2, 4, 5)
    found = attended_cosines(query, attentions, keys)
    for b, layer, m in [(0, 0, 0), (2, 1, 3), (1, 0, 2)]:
        wanted = torch.cosine_similarity(query[b] * attentions[layer, m], keys[layer, m], dim=0)
        torch.testing.assert_close(found[b, layer, m], wanted)
    plain = torch.cosine_similarity(query[:, None], keys[1][None], dim=2)
    torch.testing.assert_close(attended_cosines(query, torch.ones_like(keys), keys)[:, 1], plain)


def test_a_prefix_is_the_weighted_sum_of_components_keys_first():
    model = begun("coda-prompt", tasks=2).model
    query = torch.randn(3, model.query_dim)
    prompts, keys, attentions = model.components()
    assert prompts.shape[1] == 4  # two of each task so far, none of the third
    found = model.prefixes(query, prompts, keys, attentions)
    last = max(found)
    alpha = attended_cosines(query, attentions, keys)[1, last]
    wanted = sum(a * p for a, p in zip(alpha, prompts[last], strict=True)).view(4, model.width)
    torch.testing.assert_close(found[last][1, 0], wanted[:2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[last][1, 1], wanted[2:], atol=1e-5, rtol=1e-4)
    assert sorted(found) == list(range(min(5, model.n_layers)))


def test_new_components_are_orthonormal_to_each_other_and_to_trained_ones():
    toy = begun("coda-prompt")
    model = toy.model
    with torch.no_grad():
        for kept in (model.prompts, model.keys, model.attentions):
            kept[0].mul_(3.0).add_(0.1)  # trained: no longer orthonormal
    model.meta_end_task(toy.dataset)
    toy.dataset.get_data_loaders()
    model.meta_begin_task(toy.dataset)
    for kept in (model.prompts, model.keys, model.attentions):
        old, new = kept
        eye = torch.eye(new.shape[1]).expand(len(new), -1, -1)
        torch.testing.assert_close(new @ new.mT, eye, atol=1e-5, rtol=0)
        assert (new @ old.mT).abs().max() < 1e-5


def test_a_task_trains_its_own_components():
    toy = begun("coda-prompt", tasks=2, optim_wd=0.1)
    model = toy.model
    before = [[p.detach().clone() for p in kept] for kept in (model.prompts, model.keys, model.attentions)]
    tower = [p.detach().clone() for p in model.net.clip.parameters()]
    loss_of_a_batch(toy)
    for kept, (old, new) in zip((model.prompts, model.keys, model.attentions), before, strict=True):
        assert torch.equal(kept[0], old) and not torch.equal(kept[1], new)
    assert all(torch.equal(a, b) for a, b in zip(tower, model.net.clip.parameters(), strict=True))


def test_the_penalty_by_hand_and_in_the_loss():
    rows = torch.tensor([[[1.0, 0.0], [2.0, 0.0]]])  # products [[1, 2], [2, 4]], less the identity [[0, 2], [2, 3]]
    assert float(coda_prompt.penalty(rows)) == pytest.approx((0 + 4 + 4 + 9) / 4)
    losses = {}
    for mu in (0.0, 2.0):
        toy = begun("coda-prompt", tasks=2, ortho_mu=mu)
        with torch.no_grad():
            toy.model.keys[1].mul_(2.0)
        batch = next(iter(toy.dataset.train_loader))
        losses[mu] = float(toy.model.observe(*batch[:3], query=batch[3]))
        keys = torch.cat(list(begun("coda-prompt", tasks=2).model.keys), 1)
    keys = torch.cat([keys[:, :2], 2 * keys[:, 2:]], 1)
    wanted = 2.0 * ((keys @ keys.mT - torch.eye(4)) ** 2).mean()
    assert losses[2.0] - losses[0.0] == pytest.approx(float(wanted.detach()), rel=1e-4)


def test_on_questions_and_on_a_vit_of_timm(monkeypatch):
    assert contract.run("coda-prompt", "toy-pairs").model.uses == "fused"

    def made(which, pretrained):
        net = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=6, num_heads=3, num_classes=0)
        return PromptedTimm(net, which)

    monkeypatch.setattr(prompt_model, "prompted_timm", made)
    toy = contract.run("coda-prompt", "toy-class-il", vit="timm:toy")
    assert contract.logits(toy).isfinite().all() and toy.model.prompts[0].shape == (5, 2, 4 * 12)


@pytest.mark.parametrize("flags", [{"pool_size": 2}, {"pool_size": 4000}, {"prompt_len": 3}])
def test_sizes_that_cannot_be(flags):
    with pytest.raises(UserError, match="--pool_size" if "pool_size" in flags else "--prompt_len"):
        contract.build("coda-prompt", **flags)
