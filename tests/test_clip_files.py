"""Where CLIP weights come from: every format through one path, and one line for every unusable file."""

import json
import pickle
import sys

import clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from backbone import clip_files
from backbone.clip import load_clip, network_sizes
from backbone.clip_encoder import ClipImageEncoder
from backbone.clip_files import sha256_file
from tests.clip_weights import SIZES, TEXTS, Archive, openai_state, random_clip, write_tiny
from utils.errors import UserError


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


def test_tiny_is_a_folder_with_its_own_vocabulary(tmp_path, monkeypatch):
    net, tokenizer = write_tiny(tmp_path)
    monkeypatch.setattr(clip_files, "TINY_DIR", tmp_path)
    backbone = load_clip("tiny")
    tokens = backbone.tokenize(["a photo of a fish.", "xyz"])
    assert torch.equal(tokens, tokenizer.tokenize(["a photo of a fish.", "xyz"], 20))
    torch.testing.assert_close(backbone.encode_text(tokens), net.encode_text(tokens), rtol=1e-5, atol=1e-5)
    assert backbone.preprocess(Image.new("L", (50, 40), 255)).unique().tolist() == [2.0]
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(UserError, match=f"embeds {net.vocab_size} tokens.*OpenAI.*49408"):
        load_clip("tiny")
    write_tiny(tmp_path, vocab_size=600)
    with pytest.raises(UserError, match="embeds 600 tokens"):
        load_clip("tiny")


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
        with pytest.raises(UserError, match="damaged or a different file: sha256"):
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
    (tmp_path / "users.pt").write_text("root:x:0:0:root\n")  # a memo of an empty pickle stack
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"x": Bomb(tmp_path / "harm")}, tmp_path / "bomb.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "harm")))
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.ones(3)}, tmp_path / "other.pt")
    state = openai_state(random_clip(transformer_layers=1))
    torch.save({k: v for k, v in state.items() if "ln_final.bias" not in k}, tmp_path / "incomplete.pt")
    wanted = {
        "short.pt": "damaged",
        "short.safetensors": "damaged",
        "text.pt": "damaged",
        "users.pt": "damaged",
        "empty.pt": "damaged",
        "bomb.pt": "more than tensors",
        "old.pt": "more than tensors",
        "list.pt": "not a state dict",
        "other.pt": "does not contain a CLIP",
        "incomplete.pt": "ln_final.bias",
        "absent.pt": "neither a file nor a known name",
    }
    for name, words in wanted.items():
        with pytest.raises(UserError, match=words) as caught:
            load_clip(str(tmp_path / name))
        assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_archives_with_code_are_opened_only_when_published(files):
    with pytest.raises(UserError, match="contains code.*safetensors"):
        load_clip(str(files / "archive.pt"))


def test_folder_with_other_weights_than_its_config(files, tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_bytes((files / "folder" / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"sha256": "0" * 64}))
    with pytest.raises(UserError, match="sha256 is .*, expected 0000"):
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
