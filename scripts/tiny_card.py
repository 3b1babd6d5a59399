"""Writes the CARD.md of backbone/assets/tiny_clip_cluttered from its configs and from checks of the released weights.

python scripts/tiny_card.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbone.clip import load_clip
from backbone.clip_files import CLUTTERED_DIR
from scripts import tiny_lessons
from utils import json_text

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


def tower() -> str:
    """The image and text towers: how they were trained, and what they name right."""
    told, (n, mb), found = (
        json_text.parse((CLUTTERED_DIR / "config.json").read_text()),
        size(CLUTTERED_DIR),
        zero_shot(),
    )
    shape, how = told["model"] if "model" in told else told["clip"], told["training"]
    towers = f"{shape['image_resolution']} px, patch {shape['vision_patch_size']}, vision {shape['vision_width']} x "
    towers += (
        f"{shape['vision_layers']} layers, text {shape['transformer_width']} x {shape['transformer_layers']} layers"
    )
    return f"""# tiny_clip_cluttered

The CLIP of the cluttered world (`datasets/tiny_world/cluttered.py`, stream `mm-tiny`): {n:,} parameters
({towers}, context {shape["context_length"]}). Written by `python scripts/tiny_card.py`.
No third-party image, text or weight was used.

- Command, with `--out backbone/assets/tiny_clip_cluttered`: `python scripts/train_tiny_clip.py {flags(how)}`
- It starts from `tiny_clip`, which the same script trains from nothing (its card has that time), with positions
  interpolated to the larger canvas, and goes on for {how["cpu_s"]:,} CPU-seconds on one thread of an AMD EPYC core.
- Data: data seed 1, drawings of seed 0; streams draw from seeds above 1000 and drawings of seed 7.
- Weights: fp16, {mb:.1f} MB; sha256 in `config.json`. Another machine's floating point gives other, similar weights.
- Zero-shot among 40 kinds, {IMAGES:,} images of data seed {CHECK_SEED}, drawings never trained on: amid three shapes
  {found["amid"]:.1f} %, alone {found["alone"]:.1f} %.
"""


def fusion() -> str:
    """The fusion transformer in fusion/, if there is one."""
    folder = CLUTTERED_DIR / "fusion"
    if not (folder / "config.json").is_file():
        return "There is no fusion transformer for it: `--fusion_weights auto` gives random ones.\n"
    (n, mb), how = size(folder), json_text.parse((folder / "config.json").read_text())["training"]
    command = flags({name: value for name, value in how.items() if name != "check"})
    return f"""`fusion/` has a fusion transformer over its frozen tokens: {n:,} parameters, {mb:.1f} MB.

- Command: `python scripts/train_clutter_fusion.py {command} --out backbone/assets/tiny_clip_cluttered/fusion`,
  {how["cpu_s"]:,} CPU-seconds, data seed 3.
- It completes captions (the kind of the object, from the image, the caption or both) and tells foreign captions from
  own ones; no question, no class of a stream. With the layer that was thrown away, on 400 images of data seed 4: kind
  {how["check"]["kind"]} %, own or foreign {how["check"]["own"]} %.
"""


LIMITS = """Limits: it knows 40 kinds, 12 shapes and few hundred words of its world and no others; one training seed.
Masks and probes on `mm-tiny`: `docs/tiny_world.md`. Accuracies say nothing about real CLIP models.
"""


if __name__ == "__main__":
    (CLUTTERED_DIR / "CARD.md").write_text("\n".join([tower(), fusion(), LIMITS]))
    print(f"wrote {CLUTTERED_DIR / 'CARD.md'}")
