"""Train the fusion of the cluttered world's CLIP on images with captions, from nothing; the towers are frozen.

It completes captions: which kind of object is meant, where the image, the caption or both tell, and whether the caption
belongs to the image at all. No class of a stream, no question. All random numbers follow from the step.

python scripts/train_clutter_fusion.py --out backbone/assets/tiny_clip_cluttered/fusion
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbone.clip import CLIPBackbone, load_clip
from backbone.fusion import FusionTransformer, question_mask
from datasets.tiny_world import cluttered
from datasets.tiny_world.captions import NAMES
from datasets.tiny_world.rng import integers, uniform

TRAIN_SEED, CHECK_SEED = 3, 4  # CLIP was trained on data seed 1; streams draw from seeds above 1000
TOLD, FOREIGN = 0.5, 0.25  # captions that name the object; captions of another image


def lesson(seed: int, index: np.ndarray) -> tuple[torch.Tensor, list[str], torch.Tensor, torch.Tensor]:
    """Images, captions, kinds (-1: nothing tells) and whether each caption is the image's own."""
    spec = cluttered.pre_training(seed, index)
    own = uniform(seed, index, "own") >= FOREIGN
    told = uniform(seed, index, "caption tells") < TOLD
    named = np.where(told, spec["kind"][:, 0], -1)  # an object that is told of need not be shown
    captions = cluttered.captions(spec, named, 2 + integers(seed, index, "extra", 2))
    texts = [captions[i if right else i - 1] for i, right in enumerate(own)]
    kinds = np.where(own & (told | spec["shown"]), spec["kind"][:, 0], -1)
    return cluttered.pictures(spec), texts, torch.from_numpy(kinds), torch.from_numpy(own.astype(np.int64))


def states(clip: CLIPBackbone, images: torch.Tensor, texts: list[str]) -> tuple[torch.Tensor, ...]:
    """Input of the fusion: image tokens, words, and where captions end."""
    tokens = clip.tokenize(texts)
    tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
    with torch.no_grad():
        return clip.image_tokens(clip.normalize_images(images)), clip.text_tokens(tokens), question_mask(tokens)


@torch.no_grad()
def check(clip: CLIPBackbone, fusion: nn.Module, head: nn.Module, n: int = 400) -> dict[str, float]:
    """Percent right on images of another seed: the kind, where something tells, and whose caption it is."""
    images, texts, kinds, own = lesson(CHECK_SEED, np.arange(n))
    logits = head(fusion(*states(clip, images, texts)))
    kind, match = logits[:, : len(NAMES)].argmax(1) == kinds, logits[:, len(NAMES) :].argmax(1) == own
    return {
        "kind": round(100 * float(kind[kinds >= 0].float().mean()), 1),
        "own": round(100 * float(match.float().mean()), 1),
    }


def rate(step: int, steps: int) -> float:
    """Warm-up over 50 steps, flat, and from 60 % of the steps on linear to zero."""
    return min(1.0, (step + 1) / 50, (steps - step) / (0.4 * steps))


def export(out: Path, clip: CLIPBackbone, fusion: FusionTransformer, told: dict) -> None:
    """The shipped files: fp16 weights and the sizes, with the checksum of the CLIP they belong to."""
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    save_file({k: v.detach().half().contiguous() for k, v in fusion.state_dict().items()}, weights)
    weights.chmod(0o644)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    config = {"sizes": fusion.sizes, "clip_sha256": clip.sha256, "sha256": digest, "training": told}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished weights")
    parser.add_argument("--clip", default="tiny-cluttered")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--products", choices=("fp32", "bf16"), default="fp32", help="bf16: on cores with AVX-512 bf16")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = load_clip(args.clip).requires_grad_(False)
    fusion = FusionTransformer(clip.vision_width, clip.text_width, 128, args.layers, 4)
    head = nn.Linear(128, len(NAMES) + 2)
    parameters = [*fusion.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98))
    for step in range(args.steps):
        optimizer.param_groups[0]["lr"] = args.lr * rate(step, args.steps)
        images, texts, kinds, own = lesson(TRAIN_SEED, np.arange(step * args.batch, (step + 1) * args.batch))
        with torch.autocast("cpu", torch.bfloat16, enabled=args.products == "bf16"):
            logits = head(fusion(*states(clip, images, texts))).float()
        loss = cross_entropy(logits[:, : len(NAMES)], kinds, ignore_index=-1)
        loss = loss + cross_entropy(logits[:, len(NAMES) :], own)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0 or step + 1 == args.steps:
            told = check(clip, fusion, head)
            print(f"step {step + 1} loss {float(loss.detach()):.3f} cpu_s {time.process_time():.0f} {told}", flush=True)
    given = {name: value for name, value in vars(args).items() if name not in {"out", "clip"}}
    export(args.out, clip, fusion, given | {"cpu_s": round(time.process_time()), "check": told})
    print(f"wrote {args.out}: {sum(p.numel() for p in fusion.parameters())} parameters")


if __name__ == "__main__":
    main()
