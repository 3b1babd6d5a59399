"""How much of the picture world's objects and nouns ExemplarMasking keeps, with the shipped networks, untrained."""

import numpy as np
import pytest
import torch

from backbone.clip import load_clip
from backbone.fusion import make_fusion
from backbone.multimodal import MultimodalNet
from datasets.tiny_world import world
from datasets.tiny_world.render import render
from datasets.tiny_world.streams import BANK_SEED, NAMES
from tests.multimodal_toys import CELLS, SIDE, memory_args
from utils.memory.exemplar_memory import ExemplarMemory
from utils.memory.records import full_tokens, patchify, special

N = 120


@pytest.fixture(scope="module")
def scene():
    """Tokens and attention of single objects, which cells show them (B, 36), and which words name them (B, m)."""
    kind = np.arange(N) % 20
    spec = world.sample(5, np.arange(N), BANK_SEED, layout=world.SINGLE, style=0, scale=0.7, kind=kind)
    pictures, without = render(spec), render(spec | {"count": np.zeros_like(spec["count"])})
    shown = patchify((pictures != without).to(torch.uint8), SIDE).float().mean(2) > 0.2
    clip = load_clip("tiny")
    ids = clip.tokenize([f"a photo of a striped red {NAMES[k]} in the sea." for k in kind])
    net = MultimodalNet(clip, make_fusion(clip, "auto"), 4, tune="none").eval()
    tokens = full_tokens(patchify(pictures, SIDE), ids)
    with torch.no_grad():
        _, attention = net.attend(tokens, "mean", "mean", "mean")
    named = torch.isin(ids, clip.tokenize(list(NAMES))[:, 1]) & tokens.word_seen
    return tokens, attention, shown, named


def test_patches_of_the_object_are_kept_twice_as_often_as_all(scene):
    tokens, attention, shown, _ = scene
    patches, _ = ExemplarMemory(memory_args(), 192, CELLS).masks(attention, tokens)
    lift = patches[shown].float().mean() / patches.float().mean()
    assert lift >= 2, f"{lift:.2f}; no mask can have more than {1 / patches.float().mean():.2f}"
    chance, _ = ExemplarMemory(memory_args(mask_rule="random"), 192, CELLS).masks(attention, tokens)
    assert chance[shown].float().mean() / chance.float().mean() < 1.1


def test_nouns_are_kept_more_often_than_words_and_union_keeps_more_of_the_scene(scene):
    tokens, attention, _, named = scene
    own = tokens.word_seen & ~special(tokens)
    kept = {}
    for rule in ("union", "class_only"):
        _, words = ExemplarMemory(memory_args(text_rule=rule), 192, CELLS).masks(attention, tokens)
        assert words[special(tokens) & tokens.word_seen].all(), "start and end are always kept"
        assert words[named].float().mean() > 1.5 * words[own].float().mean()
        kept[rule] = words[own & ~named].float().mean()
    assert int(named.sum()) >= N and kept["union"] > kept["class_only"]
