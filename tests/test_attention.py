"""Attention of every network against softmax(Q K^T / sqrt(d)) by loops over samples, heads and rows."""

from functools import partial

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from backbone import blip, vilt
from backbone.attention import attend, run
from backbone.clip import causal_mask, clip_block, load_clip, patch_tokens
from backbone.clip_visual import patch_attention, word_attention
from backbone.fusion import Block
from backbone.hub_flags import load_hub
from backbone.prompted_vit import PromptedClip, PromptedTimm
from tests import multimodal_toys, tiny_hub

NETWORKS = ("image tower", "text tower", "prompted CLIP", "prompted timm", "fusion", "vilt", "blip")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def looped(q, k, v, heads, may_look):
    """Mixed rows (B, R, W) and shares (B, heads, R, S); may_look (B, R, S)."""
    width = q.shape[2] // heads
    mixed, shares = torch.zeros_like(q), torch.zeros(len(q), heads, q.shape[1], k.shape[1])
    for sample in range(len(q)):
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            for row in range(q.shape[1]):
                scores = [float(q[sample, row, own] @ key[own]) / width**0.5 for key in k[sample]]
                weights = [
                    torch.tensor(s).exp() if ok else torch.tensor(0.0)
                    for s, ok in zip(scores, may_look[sample, row], strict=True)
                ]
                shares[sample, head, row] = torch.stack(weights) / sum(weights)
                mixed[sample, row, own] = shares[sample, head, row] @ v[sample][:, own]
    return mixed, shares


def linears(h, weight, bias):
    """Queries, keys and values of a joint layer, one at a time."""
    return [h @ w.T + (0 if bias is None else b) for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True)]


def case(name: str):
    """A block, input x (2, 5, W), what is seen, Q, K and V of x, heads, and what follows attention."""
    seen = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    if name in ("image tower", "text tower", "prompted CLIP"):
        clip = load_clip("tiny").clip
        block = (clip.transformer if name == "text tower" else clip.visual.transformer).resblocks[1]
        x, attn = draw(2, 5, block.attn.embed_dim), block.attn
        mask = causal_mask(5) if name == "text tower" else None
        given = (
            partial(clip_block, block, mask) if name != "prompted CLIP" else PromptedClip(load_clip("tiny")).parts(1)
        )
        qkv = linears(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
        return given, x, None if mask is not None else seen, qkv, attn.num_heads, attn.out_proj
    if name == "prompted timm":
        torch.manual_seed(0)
        net = VisionTransformer(img_size=8, patch_size=4, embed_dim=12, depth=2, num_heads=3, num_classes=0)
        block, x = net.blocks[1], draw(2, 5, 12)
        nn.init.normal_(block.attn.qkv.weight, std=0.3)  # as drawn, all columns would look alike
        qkv = linears(block.norm1(x), block.attn.qkv.weight, block.attn.qkv.bias)
        return PromptedTimm(net, "toy").parts(1), x, seen, qkv, 3, block.attn.proj
    if name == "fusion":
        torch.manual_seed(0)
        block, x = Block(12, 3), draw(2, 5, 12)
        return block, x, seen, linears(block.ln_1(x), block.qkv.weight, block.qkv.bias), 3, block.out
    pytest.importorskip("transformers")
    net = load_hub(tiny_hub.flags(name))
    layer, x = net.layers[1], draw(2, 5, 16)
    own = layer.attention.attention if name == "vilt" else layer.attention.self
    h = layer.layernorm_before(x) if name == "vilt" else x
    qkv = [h @ part.weight.T + part.bias for part in (own.query, own.key, own.value)]
    out = (lambda mixed: layer.attention.output.dense(mixed)) if name == "vilt" else None
    return (vilt if name == "vilt" else blip).blocks(net.layers)[1], x, seen, qkv, 2, out


def called(name: str, block, x, seen, **how):
    """CLIP's towers run with the rows of the sequence first."""
    if not name.endswith("tower"):
        return block(x, seen, **how)
    found, shares = block(x.transpose(0, 1), seen, **how)
    return found.transpose(0, 1), shares


def sight(name: str, seen) -> torch.Tensor:
    """(2, 5, 5): what a row may look at."""
    every = torch.ones(2, 5, 5, dtype=torch.bool)
    return every.tril() if name == "text tower" else every & seen[:, None]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_attention_given_is_the_softmax_of_the_scores(name):
    block, x, seen, (q, k, v), heads, _ = case(name)
    _, shares = called(name, block, x, seen, attention=True)
    _, wanted = looped(q, k, v, heads, sight(name, seen))
    torch.testing.assert_close(shares, wanted, atol=1e-5, rtol=1e-4)
    assert (wanted.amax(3) - wanted.amin(3)).min() > 1e-3, "rows tell columns apart"


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_looking_at_attention_changes_no_output(name):
    block, x, seen, *_ = case(name)
    plain, nothing = called(name, block, x, seen)
    shown, _ = called(name, block, x, seen, attention=True)
    assert nothing is None
    torch.testing.assert_close(shown, plain, atol=1e-6, rtol=1e-5)
    if not name.endswith("tower"):  # CLIP's own module mixes from its map where it gives one
        assert torch.equal(shown, plain)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "blip"])
@torch.no_grad()
def test_a_block_adds_what_the_shares_mix(name):
    """The sum after attention, found by taking the second half of the block away."""
    block, x, seen, (q, k, v), heads, out = case(name)
    mixed, _ = looped(q, k, v, heads, sight(name, seen))
    wanted = x + out(mixed)
    if name.endswith("tower"):
        net = load_clip("tiny").clip
        inner = (net.transformer if name == "text tower" else net.visual.transformer).resblocks[1]
        wanted = wanted + inner.mlp(inner.ln_2(wanted))
    elif name == "fusion":
        wanted = wanted + block.mlp(block.ln_2(wanted))
    else:
        wanted = block.rest(wanted)
    torch.testing.assert_close(called(name, block, x, seen)[0], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in NETWORKS if not n.endswith("tower")])
@torch.no_grad()
def test_fewer_rows_and_prefixes(name):
    """The first rows alone equal those of all; a prefix is keys and values in front, seen by all rows of its sample."""
    block, x, seen, (q, k, v), heads, _ = case(name)
    prefix = draw(2, 2, 3, x.shape[2], seed=1)
    whole, shares = block(x, seen, prefix=prefix, attention=True)
    torch.testing.assert_close(block(x, seen, rows=2, prefix=prefix)[0], whole[:, :2], atol=1e-5, rtol=1e-5)
    longer = torch.cat([prefix[:, 0], k], 1), torch.cat([prefix[:, 1], v], 1)
    front = torch.ones(2, 5, 3, dtype=torch.bool)
    mixed, wanted = looped(q, *longer, heads, torch.cat([front, sight(name, seen)], dim=2))
    torch.testing.assert_close(shares, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(attend(q, k, v, heads, seen, prefix), mixed, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(block(x, seen)[0], whole, atol=1e-3)


def test_run_gives_prefixes_by_number_and_rows_to_the_last():
    calls = []

    def block(number, x, seen, **how):
        calls.append((number, how))
        return x + number, f"map {number}"

    x, maps = run([partial(block, n) for n in range(3)], 0, "seen", rows=2, prefixes={1: "p"}, attention=True)
    assert x == 3 and maps == ["map 0", "map 1", "map 2"]
    assert calls == [
        (0, {"attention": True}),
        (1, {"attention": True, "prefix": "p"}),
        (2, {"attention": True, "rows": 2}),
    ]
    assert run([partial(block, 1)], 0) == (1, [])


@torch.no_grad()
def test_attention_of_the_towers_is_the_mean_of_all_blocks_and_heads():
    clip = load_clip("tiny")
    x = patch_tokens(clip.clip.visual, draw(2, 3, 48, 48))
    every, total = torch.ones(2, x.shape[1], x.shape[1], dtype=torch.bool), 0
    for block in clip.clip.visual.transformer.resblocks:
        q, k, v = linears(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
        total = total + looped(q[:, :1], k, v, block.attn.num_heads, every[:, :1])[1].mean(1)[:, 0]
        x = block(x.transpose(0, 1)).transpose(0, 1)
    wanted = total / len(clip.clip.visual.transformer.resblocks)
    torch.testing.assert_close(
        patch_attention(clip.clip.visual, draw(2, 3, 48, 48)), wanted[:, 1:], atol=1e-5, rtol=1e-4
    )
    ids = clip.tokenize(["a fish", "a photo of a striped fish"])[:, :9]
    words = word_attention(clip, ids)
    torch.testing.assert_close(words.sum(1), torch.ones(2))
    assert (words[torch.arange(9) > ids.argmax(1, keepdim=True)] == 0).all(), "the end of text looks at no padding"


@torch.no_grad()
def test_attention_of_the_fusion_in_the_multimodal_network():
    net, (_, tokens) = multimodal_toys.net(), multimodal_toys.batch()
    image, _, seen = net.image_states(tokens)
    text, _ = net.text_states(tokens)
    fusion, n = net.fusion, tokens.patches.shape[1]
    parts = fusion.image_in(image) + fusion.kinds[1], fusion.text_in(text) + fusion.kinds[2]
    x = torch.cat([fusion.cls.expand(3, 1, -1), *parts], dim=1)
    real = torch.cat([torch.ones(3, 1).bool(), seen, tokens.word_seen], dim=1)
    for block in fusion.blocks[:-1]:
        x, _ = block(x, real)
    q, k, v = linears(fusion.blocks[-1].ln_1(x), fusion.blocks[-1].qkv.weight, fusion.blocks[-1].qkv.bias)
    rows = torch.tensor([0, 2, 1 + n, x.shape[1] - 1])  # class token, first patch, last patch, last word
    _, wanted = looped(q[:, rows], k, v, fusion.blocks[-1].heads, real[:, None].expand(-1, 4, -1))
    wanted = wanted.mean(1)
    features, found = net.attend(tokens)
    torch.testing.assert_close(found.image, wanted[:, 0, 2 : 2 + n], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.text, wanted[:, 0, 2 + n :], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.i2t[:, [0, -1]], wanted[:, 1:3, 2 + n :], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.t2i[:, -1], wanted[:, 3, 2 : 2 + n], atol=1e-5, rtol=1e-4)
    assert torch.equal(features, net.features(tokens)), "the pass that shows attention is not another pass"


@torch.no_grad()
def test_a_replaced_module_of_a_clip_block_is_the_one_that_runs():
    """Methods replace `attn` by adapters: the towers run through them."""

    class Doubled(nn.Module):
        def forward(self, h, *_, **how):
            return 2 * h, None

    clip = load_clip("tiny")
    blocks = clip.clip.visual.transformer.resblocks
    before, pixels = clip.image_tokens(draw(2, 3, 48, 48)), draw(2, 3, 48, 48)
    blocks[0].attn = Doubled()
    x = patch_tokens(clip.clip.visual, pixels)
    x = x + 2 * blocks[0].ln_1(x)
    x = x + blocks[0].mlp(blocks[0].ln_2(x))
    for block in blocks[1:]:
        x = block(x.transpose(0, 1)).transpose(0, 1)
    torch.testing.assert_close(clip.image_tokens(pixels), x, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(before, x, atol=1e-2)
