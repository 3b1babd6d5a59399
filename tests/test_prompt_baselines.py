"""L2P, DualPrompt and S-Prompts: prompts inside three networks, which are chosen, which are trained."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import normalize

from backbone.clip import load_clip
from backbone.fusion import UNSEEN
from backbone.prompted_vit import PromptedClip, PromptedTimm
from models.utils import prompt_model
from tests import contract
from utils.errors import UserError

NAMES = ["l2p", "dualprompt", "s-prompts"]


@pytest.fixture(autouse=True)
def toy_streams(monkeypatch):
    monkeypatch.setattr(contract.ToyPairs, "HAS_TEXT", True)
    with contract.toys():
        yield


def begun(name: str, stream: str = "toy-class-il", tasks: int = 1, **flags) -> contract.Toy:
    toy = contract.build(name, stream, **flags)
    for task in range(tasks):
        toy.dataset.get_data_loaders()
        toy.model.meta_begin_task(toy.dataset)
        if task + 1 < tasks:
            toy.model.meta_end_task(toy.dataset)
    return toy


def loss_of_a_batch(toy: contract.Toy, batch: tuple | None = None) -> None:
    inputs, labels, not_aug, *extras = batch or next(iter(toy.dataset.train_loader))
    named = dict(zip(toy.dataset.train_loader.dataset.extra_return_fields, extras, strict=True))
    toy.model.meta_observe(inputs, labels, not_aug, epoch=0, **named)


# networks


@pytest.fixture
def vit() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=3, num_heads=3, num_classes=0).eval()


def test_without_prompts_the_networks_are_as_they_were(vit):
    torch.manual_seed(1)
    clip, x = load_clip("tiny"), torch.randn(3, 3, 48, 48)
    torch.testing.assert_close(
        PromptedClip(clip)(x) @ clip.clip.visual.proj, clip.encode_image(x), atol=1e-4, rtol=1e-4
    )
    y = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(PromptedTimm(vit, "toy")(y), vit.forward_features(y)[:, 0], atol=1e-5, rtol=1e-5)


def test_prompts_in_a_vit_are_tokens_behind_the_class_token(vit):
    x, prompts = torch.randn(2, 3, 8, 8), torch.randn(2, 4, 12)
    cls, states = PromptedTimm(vit, "toy")(x, prompts, prompt_states=True)
    tokens = vit._pos_embed(vit.patch_embed(x))
    whole = vit.norm(vit.blocks(torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)))
    torch.testing.assert_close(cls, whole[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states, whole[:, 1:5], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_vit_of_timm_serves_pictures_but_not_questions(name, vit, monkeypatch):
    asked = []

    def made(which, pretrained):
        asked.append(pretrained)
        return PromptedTimm(
            VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=3, num_heads=3, num_classes=0), which
        )

    monkeypatch.setattr(prompt_model, "prompted_timm", made)
    toy = contract.run(name, "toy-class-il", vit="timm:toy")
    assert contract.logits(toy).isfinite().all() and toy.model.net.n_layers == 3
    contract.build(name, "toy-class-il", vit="timm:toy", vit_pretrained=0)
    assert asked == [True, False]
    with pytest.raises(UserError, match="--vit reads only images"):
        contract.build(name, "toy-pairs", vit="timm:toy")
    with pytest.raises(UserError, match="not a plain vision transformer"):
        PromptedTimm(nn.Linear(2, 2), "resnet")


# choice and training


def test_l2p_chooses_the_keys_of_largest_cosine_whatever_their_order():
    model = begun("l2p", pool_size_l2p=6, top_k=3).model
    query = normalize(torch.randn(5, model.query_dim), dim=1)
    cosines, chosen = model.choose(query)
    every = torch.stack([torch.cosine_similarity(query, key.expand_as(query), dim=1) for key in model.keys], dim=1)
    assert torch.equal(chosen, every.argsort(dim=1, descending=True)[:, :3])
    torch.testing.assert_close(cosines, every.gather(1, chosen))
    images = torch.randn(5, 3, 48, 48)
    before, order = model.answers(images, query), torch.randperm(6)
    with torch.no_grad():
        model.keys.copy_(model.keys[order].clone())
        model.pool.copy_(model.pool[order].clone())
    torch.testing.assert_close(model.answers(images, query), before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stream", ["toy-class-il", "toy-pairs"])
def test_l2p_moves_chosen_rows_only(stream):
    toy = begun("l2p", stream, pool_size_l2p=8, top_k=1, tasks=2, optimizer="sgd", batch_size=2)
    model, pool, keys = toy.model, toy.model.pool.detach().clone(), toy.model.keys.detach().clone()
    frozen = [p.detach().clone() for p in model.net.parameters()]
    batch = next(iter(toy.dataset.train_loader))
    chosen = model.choose(model.prepare(batch[0], *batch[3:])[1])[1].unique()
    loss_of_a_batch(toy, batch)
    moved = (model.pool != pool).flatten(1).any(1), (model.keys != keys).any(1)
    for rows in moved:
        assert 0 < len(chosen) < 8 and torch.equal(rows.nonzero().flatten(), chosen)
    assert all(torch.equal(a, b) for a, b in zip(frozen, model.net.parameters(), strict=True))


def test_dualprompt_trains_the_slot_of_its_task():
    toy = begun("dualprompt", tasks=2)
    model = toy.model
    assert torch.equal(model.e[1], model.e[0]) and not torch.equal(model.keys[1], model.keys[0])
    before, keys = model.e.detach().clone(), model.keys.detach().clone()
    loss_of_a_batch(toy)
    assert [not torch.equal(model.e[t], before[t]) for t in range(3)] == [False, True, False]
    assert [not torch.equal(model.keys[t], keys[t]) for t in range(3)] == [False, True, False]


def test_dualprompt_looks_at_keys_of_tasks_seen_only():
    toy = contract.run("dualprompt")
    model = toy.model
    images, query = contract.images_of(toy)[0][:4], normalize(torch.randn(4, model.query_dim), dim=1)
    with torch.no_grad():
        model.keys.copy_(torch.eye(3, model.query_dim))
        query = normalize(model.keys[[0, 1, 1, 2]] + 0.01, dim=1)
    by_key = model.answers(images, query)
    slots = torch.tensor([0, 1, 1, 2])
    wanted = model.head(model.body(images, prefixes=model.prefixes(slots)))
    torch.testing.assert_close(by_key[:, model.head.answers], wanted)
    with pytest.raises(UserError, match="--size 2"):
        contract.build("dualprompt", size=2)
    with pytest.raises(UserError, match="prefix layer 7: the network has"):
        contract.build("dualprompt", e_prompt_layer_idx=7)


def test_s_prompts_route_by_centre_and_keep_old_tasks():
    toy = begun("s-prompts", tasks=2)
    model = toy.model
    kept = [model.prompts[0].detach().clone(), model.heads[0].detach().clone(), model.centres.clone()]
    loss_of_a_batch(toy)
    assert (
        torch.equal(model.prompts[0], kept[0])
        and torch.equal(model.heads[0], kept[1])
        and torch.equal(model.centres, kept[2])
    )
    images = torch.randn(2, 3, 48, 48)
    out = model.answers(images, model.centres[[0, 1], [1, 0]])  # one at a center of each task
    assert (out[0, :3] > UNSEEN).all() and (out[0, 3:] == UNSEEN).all()
    assert (out[1, 3:5] > UNSEEN).all() and (out[1, [0, 1, 2, 5, 6, 7, 8]] == UNSEEN).all()


@pytest.mark.parametrize("name", NAMES)
def test_on_questions_the_flags_of_the_fusion_act_and_a_query_can_hold_both(name):
    base = contract.run(name, "toy-pairs")
    assert base.model.uses == "fused" and base.model.query_dim == 128
    seen = {str(base.losses)}
    changes = (
        {"fusion_width": 8},
        {"fusion_layers": 3},
        {"fusion_heads": 4},
        {"fusion_train": "never"},
        {"query": "both"},
        {"key_feature": "mean"},
    )
    for change in changes if name == "l2p" else changes[3:5]:  # l2p represents all three, which share the sizes
        toy = contract.run(name, "toy-pairs", **change)
        evidence = str(toy.losses)
        if name == "s-prompts" and set(change) <= {"query", "key_feature"}:  # there it only routes
            evidence = str(toy.model.centres)
        assert evidence not in seen, change
        seen.add(evidence)
    assert contract.run(name, "toy-pairs", query="both").model.query_dim == 256


def test_pictures_are_encoded_once_for_queries():
    toy = begun("l2p", features="ram")
    n = len(toy.dataset.train_loader.dataset)
    assert toy.model.store.forwards == n
    for _ in range(2):
        loss_of_a_batch(toy)
    assert toy.model.store.forwards == n


@pytest.mark.parametrize("name", NAMES)
def test_a_query_of_both_needs_questions(name):
    with pytest.raises(UserError, match="--query both is for images with questions"):
        contract.build(name, query="both")
