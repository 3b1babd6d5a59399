"""The door to CLIP: every format through one path, token features and shortcuts against the library's own encoders."""

import argparse
import copy
import json
import pickle
import sys
from types import SimpleNamespace

import clip
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from backbone import clip_files
from backbone.clip import ClipImageEncoder, add_clip_args, causal_mask, load_clip, network_sizes
from backbone.clip_files import sha256_file
from utils.errors import UserError
from utils.features import FeatureStore

SIZES = {
    "embed_dim": 48, "image_resolution": 32, "vision_layers": 2, "vision_width": 128, "vision_patch_size": 8,
    "context_length": 20, "vocab_size": 49408, "transformer_width": 64, "transformer_heads": 1, "transformer_layers": 3,
}  # fmt: skip
TEXTS = ["a photo of a cat.", "dog", "X X X a very long name of some striped fish"]


def random_clip(**changes):
    """A network of the library with random weights, none of them trivial, rounded to fp16 as OpenAI's are."""
    torch.manual_seed(0)
    net = clip.model.CLIP(**(SIZES | changes)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            parameter.copy_(parameter.half().float())
    return net


def openai_state(net):
    """The state dict as OpenAI stores it: half precision, and three scalars that are not weights."""
    state = {k: v.half() if v.is_floating_point() else v for k, v in net.state_dict().items()}
    extra = {"input_resolution": net.visual.input_resolution, "context_length": net.context_length}
    return state | {k: torch.tensor(v) for k, v in (extra | {"vocab_size": net.vocab_size}).items()}


class Archive(nn.Module):
    """Carries a nested state dict through torch.jit.save."""

    def __init__(self, state):
        super().__init__()
        for key, value in state.items():
            module, (*path, leaf) = self, key.split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_buffer(leaf, value)


@pytest.fixture(scope="module")
def net():
    return random_clip()


@pytest.fixture(scope="module")
def files(net, tmp_path_factory):
    """The same weights in each format that the door takes."""
    root, state = tmp_path_factory.mktemp("weights"), openai_state(net)
    torch.save(state, root / "openai.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, root / "wrapped.pt")
    save_file(state, root / "flat.safetensors")
    torch.jit.script(Archive(state)).save(str(root / "archive.pt"))
    (root / "folder").mkdir()
    save_file(state, root / "folder" / "model.safetensors")
    config = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3], "activation": "quickgelu"}
    config["sha256"] = sha256_file(root / "folder" / "model.safetensors")
    (root / "folder" / "config.json").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def backbone(files):
    return load_clip(str(files / "openai.pt"))


@pytest.fixture(scope="module")
def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def publish(monkeypatch, path, name="ViT-B/32", file="ViT-B-32.pt"):
    """Make OpenAI's table list this file's checksum under `name`."""
    monkeypatch.setitem(clip.clip._MODELS, name, f"https://example.invalid/{sha256_file(path)}/{file}")


@pytest.mark.parametrize("name", ["openai.pt", "wrapped.pt", "flat.safetensors", "archive.pt", "folder"])
def test_every_format_gives_the_same_network(files, net, images, monkeypatch, name):
    publish(monkeypatch, files / "archive.pt")
    torch.manual_seed(5)
    drawn = torch.random.get_rng_state()
    backbone = load_clip(str(files / name))
    assert torch.equal(drawn, torch.random.get_rng_state())
    assert network_sizes(net.state_dict()) == SIZES
    assert {k: v.dtype for k, v in backbone.clip.named_parameters()} == dict.fromkeys(net.state_dict(), torch.float32)
    assert all(p.requires_grad for p in backbone.parameters()) and not backbone.training
    tokens = clip.tokenize(TEXTS, 20)
    torch.testing.assert_close(backbone.encode_image(images), net.encode_image(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.encode_text(tokens), net.encode_text(tokens), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.logit_scale, net.logit_scale.exp())
    got = (backbone.resolution, backbone.context_length, backbone.embed_dim, backbone.text_width)
    assert got + (backbone.vision_width, backbone.n_image_tokens) == (32, 20, 48, 64, 128, 17)
    weights = files / name / "model.safetensors" if name == "folder" else files / name
    assert backbone.sha256 == sha256_file(weights)


def test_resnet_tower(tmp_path):
    net = random_clip(vision_layers=(1, 2, 1, 1), vision_width=8, vision_patch_size=None, image_resolution=64)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.fill_(2.0)
    torch.save(openai_state(net), tmp_path / "rn.pt")
    backbone = load_clip(str(tmp_path / "rn.pt"))
    images, tokens = torch.randn(2, 3, 64, 64), clip.tokenize(TEXTS, 20)
    torch.testing.assert_close(backbone.encode_image(images), net.encode_image(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backbone.encode_text(tokens), net.encode_text(tokens), rtol=1e-5, atol=1e-5)
    assert (backbone.vision_width, backbone.n_image_tokens, backbone.resolution) == (8, 0, 64)
    for call in (lambda: backbone.image_tokens(images), lambda: ClipImageEncoder(backbone, "tokens")):
        with pytest.raises(UserError, match="ResNet.*choose a ViT"):
            call()
    assert ClipImageEncoder(backbone)(images.clamp(0, 1)).shape == (2, 48)
    assert ClipImageEncoder(backbone).deterministic
    assert not ClipImageEncoder(backbone.train()).deterministic  # batch statistics


def test_openai_names_are_found_in_both_places(files, net, images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    publish(monkeypatch, files / "archive.pt")
    for place in (tmp_path / "data" / "clip", tmp_path / "home" / ".cache" / "clip"):
        place.mkdir(parents=True)
        (place / "ViT-B-32.pt").write_bytes((files / "archive.pt").read_bytes())
        backbone = load_clip("ViT-B/32", base_path=tmp_path / "data")
        torch.testing.assert_close(backbone.encode_image(images), net.encode_image(images), rtol=1e-5, atol=1e-5)
        (place / "ViT-B-32.pt").write_bytes((files / "openai.pt").read_bytes())
        with pytest.raises(UserError, match="damaged or another file: sha256"):
            load_clip("ViT-B/32", base_path=tmp_path / "data")


def test_absent_weights_say_what_is_wanted_and_download_only_on_demand(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []
    monkeypatch.setattr(clip.clip, "_download", lambda url, root: asked.append((url, root)) or "nowhere")
    with pytest.raises(UserError) as caught:
        load_clip("ViT-L/14", base_path=tmp_path / "data")
    message = str(caught.value)
    sha = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
    for part in ("ViT-L-14.pt", sha, f"{tmp_path}/.cache/clip", f"{tmp_path}/data/clip", "--clip_backbone tiny"):
        assert part in message
    assert "\n" not in message and not asked
    with pytest.raises(OSError):
        load_clip("ViT-L/14", download=True)
    assert [(url.split("/")[-1], root) for url, root in asked] == [("ViT-L-14.pt", f"{tmp_path}/.cache/clip")]


def truncated(path, source):
    path.write_bytes(source.read_bytes()[:-5000])


class Bomb:
    """Unpickling this would make the file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_bad_files_are_refused_in_one_line(files, tmp_path):
    truncated(tmp_path / "short.pt", files / "openai.pt")
    truncated(tmp_path / "short.safetensors", files / "flat.safetensors")
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"x": Bomb(tmp_path / "harm")}, tmp_path / "bomb.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "harm")))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pt")
    state = openai_state(random_clip(transformer_layers=1))
    torch.save({k: v for k, v in state.items() if "ln_final.bias" not in k}, tmp_path / "incomplete.pt")
    wanted = {
        "short.pt": "damaged", "short.safetensors": "damaged", "text.pt": "damaged", "empty.pt": "damaged",
        "bomb.pt": "more than tensors", "old.pt": "more than tensors", "list.pt": "not a state dict",
        "other.pt": "does not hold a CLIP", "incomplete.pt": "ln_final.bias", "absent.pt": "neither a file nor a known name",
    }  # fmt: skip
    for name, words in wanted.items():
        with pytest.raises(UserError, match=words) as caught:
            load_clip(str(tmp_path / name))
        assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_archives_with_code_are_opened_only_when_published(files):
    with pytest.raises(UserError, match="holds code.*safetensors"):
        load_clip(str(files / "archive.pt"))


def test_folder_with_other_weights_than_its_config(files, tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((files / "folder" / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="sha256 is .*, wanted 0000"):
        load_clip(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"sha256": config["sha256"]}))
    with pytest.raises(UserError, match="lacks activation, image_mean, image_std"):
        load_clip(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config | {"activation": "tanh"}))
    with pytest.raises(UserError, match="activation 'tanh'"):
        load_clip(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match="config.json is missing"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(
    "source, words",
    [
        ("def copy(text): ...", "clipboard tool.*pip uninstall -y clip && pip install openai-clip"),
        ("import some_absent_module", "cannot be imported.*pip install openai-clip"),
        ("raise ModuleNotFoundError(\"No module named 'pkg_resources'\")", "pip install 'setuptools<81'"),
    ],
)
def test_another_clip_package(tmp_path, monkeypatch, source, words):
    (tmp_path / "clip.py").write_text(source)
    for name in [name for name in sys.modules if name == "clip" or name.startswith("clip.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=words):
        load_clip("ViT-B/32")
    sys.modules.pop("clip", None)


def test_no_clip_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "clip", None)
    with pytest.raises(UserError, match="pip install openai-clip"):
        load_clip("ViT-B/32")


def test_open_clip_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(UserError, match="pip install open_clip_torch"):
        load_clip("open_clip:ViT-B-32/laion2b_s34b_b79k")


@pytest.mark.parametrize("quick", [True, False])
def test_open_clip_layout(monkeypatch, images, quick):
    """With the optional package: a model with other head widths and either activation agrees with open_clip itself."""
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32}
    text = {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}
    theirs = open_clip.model.CLIP(48, vision, text, quick_gelu=quick).eval()
    monkeypatch.setattr(open_clip, "create_model", lambda arch, pretrained: theirs)
    monkeypatch.setattr(clip_files, "open_clip_cached", lambda config: True)
    ours = load_clip("open_clip:ViT-B-32/laion2b_s34b_b79k")
    tokens = clip.tokenize(TEXTS, 20)
    assert ours.activation == ("quickgelu" if quick else "gelu")
    torch.testing.assert_close(ours.encode_image(images), theirs.encode_image(images), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.encode_text(tokens), theirs.encode_text(tokens), rtol=1e-5, atol=1e-5)


def test_image_tokens_agree_with_encode_image(backbone, images):
    tokens, attention = backbone.image_tokens(images, return_attention=True)
    assert tokens.shape == (3, 17, 128) and attention.shape == (3, 2, 2, 17, 17)
    torch.testing.assert_close(backbone.project_image(tokens[:, 0]), backbone.encode_image(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.image_tokens(images), tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 2, 2, 17))


def test_attention_is_softmax_of_the_scaled_products(backbone, images):
    """The first layer's maps from the projection weights, written out."""
    _, attention = backbone.image_tokens(images, return_attention=True)
    visual = backbone.clip.visual
    block = visual.transformer.resblocks[0]
    x = nn.functional.conv2d(images, visual.conv1.weight, stride=8).flatten(2).mT
    x = torch.cat([visual.class_embedding.expand(3, 1, 128), x], 1) + visual.positional_embedding
    q, k, _ = block.attn.in_proj_weight.chunk(3)
    bq, bk, _ = block.attn.in_proj_bias.chunk(3)
    h = block.ln_1(visual.ln_pre(x))
    q, k = ((h @ w.T + b).unflatten(-1, (2, 64)).transpose(1, 2) for w, b in ((q, bq), (k, bk)))
    torch.testing.assert_close(attention[:, 0], (q @ k.mT / 8).softmax(-1), rtol=1e-4, atol=1e-6)


def test_text_tokens_agree_with_encode_text(backbone):
    tokens = backbone.tokenize(TEXTS)
    hidden, attention = backbone.text_tokens(tokens, return_attention=True)
    assert hidden.shape == (3, 20, 64) and attention.shape == (3, 3, 1, 20, 20)
    ends = hidden[torch.arange(3), tokens.argmax(1)]
    torch.testing.assert_close(backbone.project_text(ends), backbone.encode_text(tokens), rtol=0, atol=1e-5)
    assert attention.masked_select(causal_mask(20).isinf()).abs().max() == 0


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
def test_narrow_types(files, backbone, images, dtype, tolerance):
    narrow, tokens = load_clip(str(files / "openai.pt"), dtype=dtype), backbone.tokenize(TEXTS)
    assert narrow.encode_image(images).dtype == narrow.dtype != torch.float32
    for name, x in (("encode_image", images), ("encode_text", tokens), ("image_tokens", images)):
        ours, exact = getattr(narrow, name)(x).float(), getattr(backbone, name)(x)
        assert (ours - exact).norm() < tolerance * exact.norm()
    with pytest.raises(UserError, match="fp32, fp16, bf16"):
        load_clip(str(files / "openai.pt"), dtype="fp8")


def picture(height, width):
    """A smooth picture with an edge, as PIL."""
    y, x = np.mgrid[:height, :width]
    channels = [128 + 100 * np.sin(x / 9), 128 + 100 * np.cos(y / 7), 255.0 * (x > width // 3)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (20, 30), (41, 32)])
def test_batched_preprocessing_equals_pil(backbone, size):
    image = picture(*size)
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    exact = backbone.preprocess(image)[None]
    one_level = 1 / 255 / min(backbone.std)
    bound = 1e-6 if size == (32, 32) else 1.01 * one_level  # resizing rounds to whole grey levels
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
    with pytest.raises(UserError, match="pooled or tokens"):
        ClipImageEncoder(backbone, "middle")


def test_flags():
    parser = argparse.ArgumentParser()
    add_clip_args(parser, default="tiny")
    expected = SimpleNamespace(clip_backbone="tiny", clip_dtype="fp32", clip_download=0)
    assert vars(parser.parse_args([])) == vars(expected)
    assert parser.parse_args(["--clip_backbone", "ViT-B/16", "--clip_download", "1"]).clip_download == 1
