"""APER: each kind of first-task adaptation starts as the frozen network, and prototypes are means of both."""

import pytest
import torch
from torch.nn.functional import normalize

from tests import contract
from utils.errors import UserError


@pytest.fixture(autouse=True)
def toy_streams():
    with contract.toys():
        yield


@pytest.mark.parametrize("pet", ["adapter", "ssf", "vpt-deep", "vpt-shallow"])
def test_the_first_task_trains_and_no_other(pet):
    toy = contract.build("aper", pet=pet, n_epochs=1)
    model, moved = toy.model, []
    for _ in range(2):
        toy.dataset.get_data_loaders()
        model.meta_begin_task(toy.dataset)
        before = [p.detach().clone() for p in model.pet.parameters()]
        model.meta_end_task(toy.dataset)
        moved.append(not all(torch.equal(a, b) for a, b in zip(before, model.pet.parameters(), strict=True)))
        assert model.head is None
    assert moved == [True, False]
    assert model.counts.tolist() == [7, 7, 7, 6, 7, 0, 0, 0, 0]


def test_prototypes_and_cosines_by_hand(monkeypatch):
    toy = contract.build("aper")
    model = toy.model
    torch.manual_seed(0)
    for p in model.pet.parameters():  # as far from the frozen network as no toy training gets
        p.data += 0.2 * torch.randn_like(p)
    monkeypatch.setattr(model, "adapt", lambda dataset: None)
    for _ in range(3):
        toy.dataset.get_data_loaders()
        model.meta_begin_task(toy.dataset)
        model.meta_end_task(toy.dataset)
    model, images = toy.model, contract.images_of(toy)[0][:3]
    with torch.no_grad():
        rows = {5: [], 8: []}
        for x, labels in model.plain_pass(toy.dataset):
            both = torch.cat([model.states(x), model.states(x, edits=model.pet.edits())], 1)
            for c, found in rows.items():
                found.append(both[labels == c])
        test = torch.cat([model.states(images), model.states(images, edits=model.pet.edits())], 1)
    for c, found in rows.items():
        wanted = torch.cosine_similarity(test, torch.cat(found).mean(0)[None], dim=1)
        torch.testing.assert_close(model(images)[:, c], wanted, atol=1e-4, rtol=1e-3)


def test_without_adaptation_it_is_the_nearest_mean_of_raw_features_in_any_order_of_tasks():
    first = contract.run("aper", pet="none")
    order = contract.run("aper", pet="none", custom_class_order="8,7,6,5,4,3,2,1,0")
    images = contract.images_of(first)[0][:5]
    torch.testing.assert_close(first.model(images), order.model(images).flip(1), atol=1e-4, rtol=1e-4)
    model = first.model
    states = model.states(images)
    keys = normalize(model.sums / model.counts[:, None], dim=1)
    torch.testing.assert_close(model(images), normalize(states, dim=1) @ keys.T)
    assert model.sums.shape[1] == model.width


@pytest.mark.parametrize("pet", ["vpt-deep", "vpt-shallow"])
def test_deep_prompts_are_those_of_each_block(pet):
    model = contract.build("aper", pet=pet, vpt_length=2).model
    images = torch.randn(2, 3, 48, 48)
    blocks, prompts = model.net.clip.visual.transformer.resblocks, model.pet[0].detach()
    with torch.no_grad():
        x = model.tower.tokens(images)
        x = torch.cat([x[:, :1], prompts[0].expand(2, -1, -1), x[:, 1:]], 1)
        for n, block in enumerate(blocks):
            if n and pet == "vpt-deep":
                x = torch.cat([x[:, :1], prompts[n].expand(2, -1, -1), x[:, 3:]], 1)
            x = block(x.transpose(0, 1)).transpose(0, 1)
        wanted = model.tower.last_norm(x[:, 0])
    torch.testing.assert_close(model.adapted(images), wanted, atol=1e-4, rtol=1e-3)
    assert len(prompts) == (len(blocks) if pet == "vpt-deep" else 1)


def test_flags_of_another_adaptation_are_refused():
    with pytest.raises(UserError, match="--vpt_length changes nothing with --pet adapter"):
        contract.build("aper", vpt_length=3)
    with pytest.raises(UserError, match="--ffn_num changes nothing with --pet ssf"):
        contract.build("aper", pet="ssf", ffn_num=8)


def test_the_rate_falls_by_a_cosine(monkeypatch):
    rates = []
    toy = contract.build("aper", n_epochs=2, lr=0.4)
    monkeypatch.setattr(type(toy.model), "step", lambda model, loss: rates.append(model.opt.param_groups[0]["lr"]))
    toy.dataset.get_data_loaders()
    toy.model.meta_begin_task(toy.dataset)
    toy.model.end_task(toy.dataset)
    assert sorted(set(rates)) == pytest.approx([0.2, 0.4])
