"""CLIPBackbone and its feature encoder: token features and shortcuts against the library's own encoders."""

import argparse
import copy
from types import SimpleNamespace

import clip
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from backbone.clip import add_clip_args, causal_mask, load_clip
from backbone.clip_encoder import ClipImageEncoder
from tests.clip_weights import TEXTS, openai_state, random_clip
from utils.errors import UserError
from utils.features import FeatureStore


@pytest.fixture(scope="module")
def net():
    return random_clip()


@pytest.fixture(scope="module")
def weights(net, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "openai.pt"
    torch.save(openai_state(net), path)
    return str(path)


@pytest.fixture(scope="module")
def backbone(weights):
    return load_clip(weights)


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_image_tokens_agree_with_encode_image(backbone, images):
    tokens, maps = backbone.image_tokens(images, return_attention=True)
    assert tokens.shape == (3, 17, 128) and [m.shape for m in maps] == [(3, 2, 17, 17)] * 2
    torch.testing.assert_close(backbone.project_image(tokens[:, 0]), backbone.encode_image(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.image_tokens(images), tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.stack(maps).sum(-1), torch.ones(2, 3, 2, 17))


def test_attention_is_softmax_of_the_scaled_products(backbone, images):
    """The first layer's maps from the projection weights, written out."""
    _, maps = backbone.image_tokens(images, return_attention=True)
    visual = backbone.clip.visual
    block = visual.transformer.resblocks[0]
    x = nn.functional.conv2d(images, visual.conv1.weight, stride=8).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(3, 1, 128), x], 1) + visual.positional_embedding
    q, k, _ = block.attn.in_proj_weight.chunk(3)
    bq, bk, _ = block.attn.in_proj_bias.chunk(3)
    h = block.ln_1(visual.ln_pre(x))
    q, k = ((h @ w.T + b).unflatten(-1, (2, 64)).transpose(1, 2) for w, b in ((q, bq), (k, bk)))
    torch.testing.assert_close(maps[0], (q @ k.mT / 8).softmax(-1), rtol=1e-4, atol=1e-6)


def test_text_tokens_agree_with_encode_text(backbone):
    tokens = backbone.tokenize(TEXTS)
    hidden, maps = backbone.text_tokens(tokens, return_attention=True)
    assert hidden.shape == (3, 20, 64) and [m.shape for m in maps] == [(3, 1, 20, 20)] * 3
    ends = hidden[torch.arange(3), tokens.argmax(1)]
    torch.testing.assert_close(backbone.project_text(ends), backbone.encode_text(tokens), rtol=0, atol=1e-5)
    assert torch.stack(maps).masked_select(causal_mask(20).isinf()).abs().max() == 0


def full_text(net, embeds, eot):
    """The library's own text forward on given embeddings: all rows, all blocks, then the row at the end of text."""
    x = net.transformer((embeds + net.positional_embedding).transpose(0, 1)).transpose(0, 1)
    return net.ln_final(x)[torch.arange(len(x)), eot] @ net.text_projection


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-13), (torch.float32, 3e-6)])
@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_cropped_and_chunked_prompts_equal_the_full_forward(backbone, net, monkeypatch, chunk, dtype, tolerance):
    """The same function, outputs and gradients: in double precision nothing but the last digits differs."""
    monkeypatch.setattr(clip.model.LayerNorm, "forward", nn.LayerNorm.forward)  # the library's own rounds to single
    backbone, net = copy.deepcopy(backbone).to(dtype), copy.deepcopy(net).to(dtype)
    tokens = backbone.tokenize(TEXTS)
    eot = tokens.argmax(1)
    embeds = backbone.token_embeddings(tokens).detach()
    weights = torch.randn(3, 48, generator=torch.Generator().manual_seed(2), dtype=dtype)
    full, cut = embeds.clone().requires_grad_(), embeds.clone().requires_grad_()
    expected = full_text(net, full, eot)
    got = backbone.encode_embeddings(cut[:, : int(eot.max()) + 1], eot, chunk)
    (expected * weights).sum().backward()
    (got * weights).sum().backward()
    for ours, theirs in ((got, expected), (cut.grad, full.grad)):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
    assert all(cut.grad[i, e + 1 :].abs().max() == 0 for i, e in enumerate(eot))


def test_prompts_longer_than_the_context_are_refused(backbone):
    with pytest.raises(UserError, match="21 tokens exceeds CLIP's context of 20"):
        backbone.encode_embeddings(torch.zeros(1, 21, 64), torch.tensor([20]))
    with pytest.raises(UserError, match="too long for context length 20"):
        backbone.tokenize("word " * 30)


def test_replaced_submodules_are_used_by_every_path(backbone, images):
    """An adapter in place of a block's MLP changes tokens and pooled features alike."""

    class Scaled(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 1.5 * self.inner(x)

    changed, tokens = copy.deepcopy(backbone), backbone.tokenize(TEXTS)
    for tower in (changed.clip.visual.transformer, changed.clip.transformer):
        tower.resblocks[-1].mlp = Scaled(tower.resblocks[-1].mlp)
    pooled = changed.encode_image(images)
    assert (pooled - backbone.encode_image(images)).abs().max() > 1e-3
    torch.testing.assert_close(changed.project_image(changed.image_tokens(images)[:, 0]), pooled, rtol=0, atol=1e-5)
    ends = changed.text_tokens(tokens)[torch.arange(3), tokens.argmax(1)]
    torch.testing.assert_close(changed.project_text(ends), changed.encode_text(tokens), rtol=0, atol=1e-5)
    assert (changed.encode_text(tokens) - backbone.encode_text(tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype, tolerance", [("bf16", 0.05), ("fp16", 0.01)])
def test_narrow_types(weights, backbone, images, dtype, tolerance):
    narrow, tokens = load_clip(weights, dtype=dtype), backbone.tokenize(TEXTS)
    assert narrow.encode_image(images).dtype == narrow.dtype != torch.float32
    for name, x in (("encode_image", images), ("encode_text", tokens), ("image_tokens", images)):
        ours, exact = getattr(narrow, name)(x).float(), getattr(backbone, name)(x)
        assert (ours - exact).norm() < tolerance * exact.norm()
    with pytest.raises(UserError, match="fp32, fp16, bf16"):
        load_clip(weights, dtype="fp8")


def picture(height, width):
    """A smooth image with an edge, as PIL."""
    y, x = np.mgrid[:height, :width]
    channels = [128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 255.0 * (x > width // 3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (20, 30), (41, 32)])
def test_batched_preprocessing_equals_pil(backbone, size):
    image = picture(*size)
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    exact = backbone.preprocess(image)[None]
    one_level = 1 / 255 / min(backbone.std)
    bound = 1e-6 if size == (32, 32) else 1.01 * one_level  # resizing rounds to whole gray levels
    assert (backbone.normalize_images(batch) - exact).abs().max() <= bound
    bound = 1e-6 if size == (32, 32) else 2.01 * one_level
    assert (backbone.normalize_images(batch / 255) - exact).abs().max() <= bound
    grey = backbone.normalize_images(batch[:, :1])
    torch.testing.assert_close(grey, backbone.normalize_images(batch[:, :1].expand(-1, 3, -1, -1)))


def test_encoder_serves_the_store(backbone, tmp_path):
    raw = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))

    class Samples:
        fingerprint = "six"

        def __len__(self):
            return 6

        def images(self, rows):
            return raw[rows]

    rows = torch.tensor([4, 0, 4])
    with torch.no_grad():
        x = backbone.normalize_images(raw[rows])
        expected = {"pooled": backbone.encode_image(x), "tokens": backbone.image_tokens(x)}
    for layer, wanted in expected.items():
        encoder, store = ClipImageEncoder(backbone, layer), FeatureStore(tmp_path)
        got = store.rows(Samples(), rows, encoder)
        assert got.shape == (3, encoder.dim) and store.forwards == 2
        torch.testing.assert_close(got.view(3, *encoder.shape), wanted, rtol=0, atol=1e-5)
    assert len(list(tmp_path.iterdir())) == 2
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in raw[rows]]
    torch.testing.assert_close(ClipImageEncoder(backbone)(pictures), expected["pooled"], rtol=0, atol=1e-5)


def test_a_tuned_tower_has_its_own_key(backbone):
    tuned = copy.deepcopy(backbone)
    encoder = ClipImageEncoder(tuned)
    assert encoder.key == ClipImageEncoder(backbone).key
    assert encoder.key != ClipImageEncoder(backbone, "tokens").key
    optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
    tuned.encode_image(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    with pytest.raises(UserError, match="trained after"):
        encoder(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert ClipImageEncoder(tuned).key != encoder.key
    with pytest.raises(UserError, match="pooled, unprojected, tokens, early"):
        ClipImageEncoder(backbone, "middle")


def test_flags():
    parser = argparse.ArgumentParser()
    add_clip_args(parser, default="tiny")
    expected = SimpleNamespace(clip_backbone="tiny", clip_dtype="fp32", clip_download=0)
    assert vars(parser.parse_args([])) == vars(expected)
    assert parser.parse_args(["--clip_backbone", "ViT-B/16", "--clip_download", "1"]).clip_download == 1
