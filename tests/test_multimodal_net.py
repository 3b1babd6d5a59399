"""The two towers on kept patches and words, scale-and-shift adapters, and augmentation of exemplars."""

import copy

import torch

from backbone.adapters import add_ssf, count, layers_of
from backbone.clip import load_clip
from tests.multimodal_toys import CELLS, batch, draw, net, some
from utils.memory import token_augment
from utils.memory.records import (
    select,
)


def test_a_patch_alone_is_the_convolution_at_its_cell_and_all_patches_are_the_picture():
    images, tokens = batch()
    pixels = net().clip.normalize_images(images)
    conv = net().clip.clip.visual.conv1(pixels).flatten(2).transpose(1, 2)
    torch.testing.assert_close(net().embed_patches(tokens.patches), conv, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        image, _, _ = net().image_states(tokens)
        text, _ = net().text_states(tokens)
        torch.testing.assert_close(image, net().clip.image_tokens(pixels), atol=1e-4, rtol=1e-4)
        expected = net().clip.text_tokens(tokens.ids)
        torch.testing.assert_close(text[tokens.word_seen], expected[tokens.word_seen], atol=1e-4, rtol=1e-4)
        whole = select(tokens, tokens.seen, tokens.word_seen)
        torch.testing.assert_close(net().features(whole), net().features(tokens), atol=1e-5, rtol=1e-5)


def test_what_is_dropped_and_what_is_padding_changes_nothing():
    _, tokens = batch()
    patches, words = some(tokens)
    with torch.no_grad():
        expected = net().features(select(tokens, patches, words))
        other = tokens._replace(patches=torch.where(patches[..., None], tokens.patches, 255 - tokens.patches))
        other = other._replace(ids=torch.where(words, tokens.ids, 5))
        assert torch.equal(net().features(select(other, patches, words)), expected)
        alone = torch.cat(
            [
                net().features(
                    select(*(t.rows([i]) if hasattr(t, "rows") else t[[i]] for t in (tokens, patches, words)))
                )
                for i in range(3)
            ]
        )
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(net().attend(tokens)[0], net().features(tokens), atol=1e-5, rtol=1e-5)


def test_attention_sums_to_one_and_gives_padding_none():
    _, tokens = batch()
    cut = select(tokens, *some(tokens))
    _, found = net().attend(cut)
    assert (found.image[~cut.seen] == 0).all() and (found.text[~cut.word_seen] == 0).all()
    both = torch.cat([found.image, found.text], dim=1).sum(1)
    assert (both < 1).all() and (both > 0.5).all(), "the rest goes to the two class tokens"
    tower = net().attend(cut, source="tower")[1]
    torch.testing.assert_close(tower.image.sum(1), torch.ones(3))


def test_ssf_scales_and_shifts_what_a_layer_gives_and_only_it_is_trained():
    clip = load_clip("tiny")
    x = torch.randn(2, 3, 48, 48, generator=draw(3))
    with torch.no_grad():
        plain = clip.image_tokens(x)
        layer = copy.deepcopy(clip.clip.visual.transformer.resblocks[0].mlp.c_fc)
        add_ssf(clip.clip, layers_of(clip.clip))
        assert {n.rpartition(".")[2] for n, p in clip.named_parameters() if p.requires_grad} == {"gamma", "beta"}
        assert (clip.image_tokens(x) - plain).abs().max() > 1e-3
        adapted = clip.clip.visual.transformer.resblocks[0].mlp.c_fc
        gamma, beta = adapted.parametrizations.weight[0].gamma, adapted.parametrizations.bias[0].beta
        rows = torch.randn(5, layer.in_features, generator=draw(4))
        torch.testing.assert_close(adapted(rows), gamma * layer(rows) + beta, atol=1e-5, rtol=1e-5)


def test_ssf_of_a_base_transformer_counts_205824():
    width = 768
    block = {
        "ln_1": torch.nn.LayerNorm(width),
        "qkv": torch.nn.Linear(width, 3 * width),
        "out": torch.nn.Linear(width, width),
        "ln_2": torch.nn.LayerNorm(width),
        "fc1": torch.nn.Linear(width, 4 * width),
        "fc2": torch.nn.Linear(4 * width, width),
    }
    layers = {"patch": torch.nn.Conv2d(3, width, 32, 32, bias=False), "norm": torch.nn.LayerNorm(width)}
    with torch.device("meta"):
        tower = torch.nn.ModuleDict(
            layers | {f"{n}{i}": type(m)(*sizes(m)) for i in range(12) for n, m in block.items()}
        )
    add_ssf(tower.to_empty(device="cpu"), layers_of(tower))
    assert count(tower) == 205824


def sizes(layer: torch.nn.Module) -> tuple:
    return (layer.in_features, layer.out_features) if isinstance(layer, torch.nn.Linear) else (layer.normalized_shape,)


def test_partners_are_others_of_the_class():
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    for seed in range(20):
        found = token_augment.partners(labels, torch.arange(6), draw(seed))
        assert torch.equal(labels[found], labels) and found[5] == 5 and (found[:5] != torch.arange(5)).all()


def test_swap_takes_the_text_and_mix_both():
    _, tokens = batch(3)
    own = select(tokens, *some(tokens))
    other = select(tokens.rows([1, 2, 0]), *some(tokens.rows([1, 2, 0]), seed=5))
    use = torch.tensor([True, False, True])
    swapped = token_augment.swap(own, other, use)
    assert torch.equal(swapped.patches, own.patches)
    for i in range(3):
        wanted = other if use[i] else own
        assert torch.equal(swapped.ids[i, swapped.word_seen[i]], wanted.ids[i, wanted.word_seen[i]])
    mixed = token_augment.mix_patches(own, other, use, longest=32)
    for i in range(3):
        cells = set(own.places[i, own.seen[i]].tolist()) | (
            set(other.places[i, other.seen[i]].tolist()) if use[i] else set()
        )
        assert set(mixed.places[i, mixed.seen[i]].tolist()) == cells and int(mixed.seen[i].sum()) == len(cells)
        words = mixed.ids[i, mixed.word_seen[i]]
        assert words[0] == tokens.ids.max() - 1 and words[-1] == tokens.ids.max(), "start and end of text"
        assert len(words) == int(own.word_seen[i].sum()) + (int(other.word_seen[i].sum()) - 2 if use[i] else 0)
    assert int(token_augment.mix_patches(own, other, use, longest=6).word_seen.sum(1).max()) <= 6


def test_background_fills_empty_cells_and_token_drop_only_drops():
    _, tokens = batch(3)
    own = select(tokens, *some(tokens))
    lent = 255 - tokens.patches
    spare = torch.rand(3, CELLS, generator=draw(8)) < 0.5
    filled = token_augment.background(own, lent, spare, torch.tensor([True, True, False]))
    taken = [set(own.places[i, own.seen[i]].tolist()) for i in range(3)]
    for i in range(3):
        cells = taken[i] | (set(spare[i].nonzero().flatten().tolist()) if i < 2 else set())
        assert set(filled.places[i, filled.seen[i]].tolist()) == cells
        for patch, place in zip(
            filled.patches[i, filled.seen[i]], filled.places[i, filled.seen[i]].tolist(), strict=True
        ):
            assert torch.equal(patch, (tokens.patches if place in taken[i] else lent)[i, place])
    fewer = token_augment.token_drop(own, 0.5, draw(9))
    assert 0 < int(fewer.seen.sum()) < int(own.seen.sum()) and (fewer.word_seen.sum(1) >= 2).all()
