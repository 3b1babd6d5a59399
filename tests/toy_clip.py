"""A CLIP small enough for hundreds of runs: random weights, 24-pixel images, two layers, the words of the tiny CLIP."""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from clip.model import CLIP
from safetensors.torch import save_file

from backbone.clip_files import TINY_DIR, sha256_file

SHAPE = {"embed_dim": 32, "image_resolution": 24, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 8}
TEXT = {"context_length": 32, "vocab_size": 698, "transformer_width": 64, "transformer_heads": 1}


@functools.cache
def holder() -> tempfile.TemporaryDirectory:
    """The folder of its files, written once a process."""
    kept = tempfile.TemporaryDirectory(prefix="toy_clip_")
    folder = Path(kept.name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = CLIP(**SHAPE, **TEXT, transformer_layers=2)
        net.visual.ln_post.weight.data.exp_().mul_(torch.randn(64).exp())  # features of unequal length
        net.visual.ln_post.bias.data.normal_()
        state = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    config = json.loads((TINY_DIR / "config.json").read_text())
    config |= {"model": {**SHAPE, **TEXT, "transformer_layers": 2}, "sha256": sha256_file(folder / "model.safetensors")}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TINY_DIR / "vocab.json", folder)
    return kept


def toy_clip() -> str:
    """The value of --clip_backbone."""
    return holder().name
