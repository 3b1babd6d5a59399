"""Generated streams kept on disk: one safetensors file each, named by what made it, replaced atomically."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from utils import json_text
from utils.errors import UserError


def sources_digest(package: Path) -> str:
    """sha256 of a package's source files: so that changed drawing code never uses images of the old code."""
    digest = hashlib.sha256()
    for path in sorted(package.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def tensors_digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy())
    return digest.hexdigest()


def cached_stream(folder: Path, name: str, key: str, build: Callable[[], tuple[dict, dict]]) -> tuple[dict, dict]:
    """(tensors, plain values) from `build`, or from an earlier call with the same key; a damaged file is regenerated.

    Processes that build the same stream at the same time write the same bytes; the last rename wins.
    """
    path = Path(folder) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {k: file.get_tensor(k) for k in file.keys()}
        if tensors_digest(tensors) == metadata["digest"]:
            return tensors, json_text.parse(metadata["values"])
    except (FileNotFoundError, SafetensorError, OSError, KeyError, TypeError, ValueError):
        pass
    tensors, values = build()
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, {"digest": tensors_digest(tensors), "values": json.dumps(values)})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):  # a parent folder may be a file
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error}; free some space or choose another --base_path") from None
    return tensors, values
