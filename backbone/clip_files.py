"""Sources of CLIP weights: files, folders, OpenAI's names and open_clip, all read into one ClipWeights.

Nothing in a weight file is executed: safetensors and `torch.load(weights_only=True)` give tensors only, and a
TorchScript archive, which contains code, is opened only if its sha256 is one that OpenAI published.
"""

import hashlib
import importlib
import json
import pickle
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from utils import json_text
from utils.errors import UserError

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
TINY_DIR = Path(__file__).parent / "assets" / "tiny_clip"
CLUTTERED_DIR = Path(__file__).parent / "assets" / "tiny_clip_cluttered"
CACHE_DIR = Path("~/.cache/clip")  # the folder that openai-clip itself uses
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # scalars that OpenAI's archives contain


@dataclass
class ClipWeights:
    """A state dict with OpenAI's key names, and what cannot be read off its shapes."""

    state: dict[str, Tensor]
    sha256: str
    activation: str = "quickgelu"
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    heads: tuple[int, int] | None = None  # (vision, text); None: width // 64 as in all of OpenAI's
    vocab: Path | None = None  # vocabulary file of the tiny tokenizer; None: OpenAI's own


def openai_clip() -> ModuleType:
    """OpenAI's package `clip`, or a one-line error on what is installed instead."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pkg_resources.*")  # it imports a deprecated module
            clip = importlib.import_module("clip")
    except ImportError as error:
        if "pkg_resources" in str(error):
            raise UserError(
                "openai-clip imports pkg_resources, which setuptools 81 dropped: pip install 'setuptools<81'"
            ) from None
        if error.name == "clip":
            raise UserError("OpenAI's CLIP is not installed: pip install openai-clip 'setuptools<81'") from None
        raise UserError(
            f"the package 'clip' cannot be imported ({error}): pip install openai-clip 'setuptools<81'"
        ) from None
    if not (hasattr(clip, "tokenize") and hasattr(clip, "model")):
        raise UserError(
            f"the installed package 'clip' ({getattr(clip, '__file__', None)}) is the clipboard tool, not OpenAI's: "
            "pip uninstall -y clip && pip install openai-clip 'setuptools<81'"
        )
    return clip


def published() -> dict[str, tuple[str, str]]:
    """OpenAI name -> (URL, sha256); the checksum is the URL's second-last part."""
    return {name: (url, url.split("/")[-2]) for name, url in openai_clip().clip._MODELS.items()}


def sha256_file(path: Path) -> str:
    """Checksum of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sha256_state(state: dict[str, Tensor]) -> str:
    """Checksum of names, types, shapes and values, independent of the file."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def embedded(name: str) -> Path | None:
    """The folder of a CLIP that is part of the repository."""
    return {"tiny": TINY_DIR, "tiny-cluttered": CLUTTERED_DIR}.get(name)


def find_weights(name: str, base_path: str | Path | None = None, download: bool = False) -> ClipWeights:
    """The weights named by a `--clip_backbone` value."""
    if folder := embedded(name):
        return read_folder(folder)
    if name.startswith("open_clip:"):
        return read_open_clip(name.removeprefix("open_clip:"), download)
    table = published()
    if name in table:
        return read_openai(name, *table[name], base_path, download)
    path = Path(name).expanduser()
    if path.is_dir():
        return read_folder(path)
    if path.is_file():
        return read_file(path)
    raise UserError(
        f"--clip_backbone {name}: neither a file nor a known name; choose {', '.join(table)}, "
        "open_clip:<arch>/<tag>, a path, tiny or tiny-cluttered"
    )


def read_openai(name: str, url: str, sha256: str, base_path: str | Path | None, download: bool) -> ClipWeights:
    """One of OpenAI's files, found in clip's cache or under `<base_path>/clip`, with its checksum verified."""
    file_name = url.split("/")[-1]
    places = [CACHE_DIR.expanduser()] + ([Path(base_path).expanduser() / "clip"] if base_path else [])
    for path in (place / file_name for place in places):
        if path.is_file():
            return read_file(path, want_sha256=sha256)
    if not download:
        raise UserError(
            f"no weights for {name}: put {file_name} (sha256 {sha256}, from {url}) into "
            f"{' or '.join(map(str, places))}, or add --clip_download 1; to run without weights, use "
            "--clip_backbone tiny"
        )
    try:
        path = Path(openai_clip().clip._download(url, str(places[0])))
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot download {url}: {error}; download it manually into {places[0]}") from None
    return read_file(path, want_sha256=sha256)


def read_file(path: Path, want_sha256: str | None = None) -> ClipWeights:
    """A safetensors file, a state dict saved by torch, or a TorchScript archive that OpenAI published."""
    sha256 = sha256_file(path)
    if want_sha256 not in (None, sha256):
        raise UserError(
            f"{path} is damaged or a different file: sha256 is {sha256}, expected {want_sha256}; delete "
            "it and download it again"
        )
    if path.suffix == ".safetensors":
        return read_safetensors(path, sha256)
    if is_torchscript(path):
        if sha256 not in {known for _, known in published().values()}:
            raise UserError(
                f"{path} is a TorchScript archive, which contains code, and OpenAI did not publish it; "
                "save its state dict as safetensors and pass that file"
            )
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    else:
        state = read_torch(path)
    return ClipWeights(state, sha256)


def is_torchscript(path: Path) -> bool:
    """Whether a zip archive has the constants record that only torch.jit.save writes."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(entry.endswith("/constants.pkl") for entry in archive.namelist())


def read_torch(path: Path) -> dict[str, Tensor]:
    """A state dict written by torch.save, bare or under 'state_dict', with or without DataParallel's prefix."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged or contains more than tensors, which is not loaded; save its state dict as safetensors"
        ) from None
    except Exception as error:  # torch's unpickler raises many classes for other files
        problem = " ".join(str(error).split())[:200] or "it is empty"
        raise UserError(f"cannot read {path}: {problem}; the file is damaged, download it again") from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a state dict: expected a mapping of names to tensors")
    return {key.removeprefix("module."): value for key, value in state.items()}


def read_safetensors(path: Path, sha256: str) -> ClipWeights:
    """Tensors, and `activation` from the file's metadata if given."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            state = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {path}: {error}; the file is damaged, download it again") from None
    return ClipWeights(state, sha256, activation=metadata.get("activation", "quickgelu"))


def read_folder(folder: Path) -> ClipWeights:
    """model.safetensors + config.json (+ vocab.json): the layout of the embedded tiny CLIP."""
    for name in ("model.safetensors", "config.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; a CLIP folder contains model.safetensors and config.json")
    try:
        config = json_text.parse((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{folder / 'config.json'} is not valid JSON: {error}; download the folder again") from None
    missing = {"image_mean", "image_std", "activation", "sha256"} - set(config)
    if missing:
        raise UserError(f"{folder / 'config.json'} lacks {', '.join(sorted(missing))}; download the folder again")
    weights = read_file(folder / "model.safetensors", want_sha256=config["sha256"])
    weights.activation = config["activation"]
    weights.mean, weights.std = tuple(config["image_mean"]), tuple(config["image_std"])
    weights.vocab = folder / "vocab.json" if (folder / "vocab.json").is_file() else None
    return weights


def read_open_clip(spec: str, download: bool) -> ClipWeights:
    """A model of the optional package open_clip, if it has OpenAI's layout (its class CLIP)."""
    try:
        import open_clip
    except ImportError:
        raise UserError("open_clip: names need an additional package: pip install open_clip_torch") from None
    arch, _, tag = spec.rpartition("/")
    if not open_clip.is_pretrained_cfg(arch, tag):
        tags = open_clip.list_pretrained_tags_by_model(arch)
        hint = (
            f"its tags: {', '.join(tags)}"
            if tags
            else "write open_clip:<arch>/<tag>, such as ViT-B-32/laion2b_s34b_b79k"
        )
        raise UserError(f"open_clip does not have weights '{tag}' for '{arch}'; {hint}")
    config = open_clip.get_pretrained_cfg(arch, tag)
    if not download and not open_clip_cached(config):
        raise UserError(
            f"no weights for open_clip:{spec} in the local cache (source: "
            f"{config.get('hf_hub') or config.get('url')}); "
            "add --clip_download 1, or run without weights: --clip_backbone tiny"
        )
    return from_open_clip(open_clip.create_model(arch, pretrained=tag))


def open_clip_cached(config: dict) -> bool:
    """Whether the file that open_clip would download for this entry is already on disk."""
    if not config.get("hf_hub"):
        return (CACHE_DIR.expanduser() / config["url"].split("/")[-1]).is_file()
    from huggingface_hub import try_to_load_from_cache

    repo, _, file = config["hf_hub"].rpartition("/")
    names = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    return any(isinstance(try_to_load_from_cache(repo, name), str) for name in names)


def from_open_clip(model: torch.nn.Module) -> ClipWeights:
    """ClipWeights of an open_clip model; its class CLIP uses OpenAI's key names."""
    if not hasattr(model, "transformer") or not hasattr(model, "token_embedding"):
        raise UserError(
            f"open_clip's {type(model).__name__} does not have the layout of OpenAI's CLIP; choose another arch"
        )
    text = model.transformer.resblocks[0]
    vision = model.visual.transformer.resblocks[0] if hasattr(model.visual, "transformer") else None
    state = model.state_dict()
    return ClipWeights(
        state,
        sha256_state(state),
        activation="quickgelu" if type(text.mlp.gelu).__name__ == "QuickGELU" else "gelu",
        mean=tuple(getattr(model.visual, "image_mean", None) or OPENAI_MEAN),
        std=tuple(getattr(model.visual, "image_std", None) or OPENAI_STD),
        heads=(vision.attn.num_heads if vision else 0, text.attn.num_heads),
    )
