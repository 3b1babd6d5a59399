"""Writes the CARD.md of backbone/assets/tiny_clip_cluttered from its configs and from checks of the released weights.

python scripts/tiny_card.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbone.clip import load_clip
from backbone.clip_files import CLUTTERED_DIR
from scripts import tiny_lessons

CHECK_SEED, IMAGES = 5, 1000  # pre-training watches seed 2


@torch.no_grad()
def zero_shot() -> dict[str, float]:
    """Percent of 40 kinds named right from drawings never trained on: amid three shapes, and alone."""
    clip = load_clip("tiny-cluttered")
    out = {}
    for label, (images, names, answers) in tiny_lessons.checks(CHECK_SEED, IMAGES).items():
        keys = normalize(clip.encode_text(clip.tokenize([f"a photo of a {name}." for name in names])), dim=1)
        rows = torch.cat([clip.encode_image(clip.normalize_images(part)) for part in images.split(200)])
        out[label] = 100 * float(((rows @ keys.T).argmax(1).numpy() == answers).mean())
    return out


def size(folder: Path) -> tuple[int, float]:
    """Parameters, and megabytes of the file."""
    tensors = load_file(folder / "model.safetensors")
    return sum(t.numel() for t in tensors.values()), (folder / "model.safetensors").stat().st_size / 1e6


def flags(told: dict) -> str:
    return " ".join(
        f"--{name} {value}" for name, value in told.items() if name not in {"cpu_s", "from_step"} and value is not None
    )


def card() -> str:
    tower, fusion = (
        json.loads((folder / "config.json").read_text()) for folder in (CLUTTERED_DIR, CLUTTERED_DIR / "fusion")
    )
    (n, mb), (m, fusion_mb), found = size(CLUTTERED_DIR), size(CLUTTERED_DIR / "fusion"), zero_shot()
    how, then, scores = tower["training"], fusion["training"], fusion["training"]["check"]
    shape = tower.get("model", tower.get("clip"))
    sizes = (
        f"{shape['image_resolution']} px, patch {shape['vision_patch_size']}, vision {shape['vision_width']} x "
        f"{shape['vision_layers']} layers, text {shape['transformer_width']} x {shape['transformer_layers']} layers"
    )
    second = flags({name: value for name, value in then.items() if name != "check"})
    return f"""# tiny_clip_cluttered

The CLIP of the cluttered world (`datasets/tiny_world/cluttered.py`, stream `mm-tiny`): {n:,} parameters
({sizes}, context {shape["context_length"]}), and in `fusion/` a fusion transformer over
its frozen image and caption tokens ({m:,} parameters). Written by `python scripts/tiny_card.py`. No
third-party image, text or weight was used.

- Tower: `python scripts/train_tiny_clip.py {flags(how)} --out backbone/assets/tiny_clip_cluttered`
  It starts from `tiny_clip`, which the same script trains from nothing (its card has that time), with positions
  interpolated to the larger canvas, and goes on for {how["cpu_s"]:,} CPU-seconds on one thread of an AMD EPYC core.
- Fusion: `python scripts/train_clutter_fusion.py {second} --out backbone/assets/tiny_clip_cluttered/fusion`
  {then["cpu_s"]:,} CPU-seconds. It completes captions (the kind of the object, from the image, the caption or both) and
  tells foreign captions from own ones; no question, no class of a stream.
- Data: data seed 1 for the tower, 3 for the fusion, drawings of seed 0; streams draw from seeds above 1000 and
  drawings of seed 7.
- Weights: fp16, {mb:.1f} and {fusion_mb:.1f} MB; sha256 in the two `config.json`. Another machine's floating point
  gives other, similar weights.

Scores of the released weights, one training seed:

- zero-shot among 40 kinds, {IMAGES:,} images of data seed {CHECK_SEED}, drawings never trained on: amid three shapes
  {found["amid"]:.1f} %, alone {found["alone"]:.1f} %
- fusion, 400 images of data seed 4, with the layer that was thrown away: kind {scores["kind"]} %, whose caption
  {scores["own"]} %

Limits: it knows the 40 kinds, 12 shapes and few hundred words of its world and nothing else. Masks and probes on
`mm-tiny`: `docs/tiny_world.md`. Accuracies say nothing about real CLIP models.
"""


if __name__ == "__main__":
    (CLUTTERED_DIR / "CARD.md").write_text(card())
    print(f"wrote {CLUTTERED_DIR / 'CARD.md'}")
