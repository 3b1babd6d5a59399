"""Pre-train the fusion transformer of backbone/assets/tiny_fusion on questions about the procedural picture world.

The towers of the tiny CLIP stay frozen; the answer layer is discarded. Images have a data seed and
drawings that no stream uses, and keep the gaps of CLIP's own pre-training. All random numbers follow from the step, so
a stopped run continues from its checkpoint to the same weights.

python scripts/train_tiny_fusion.py --out backbone/assets/tiny_fusion --checkpoint /tmp/fusion.ckpt
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbone.clip import CLIPBackbone, load_clip
from backbone.fusion import FusionTransformer, question_mask
from datasets.tiny_world import captions as words
from datasets.tiny_world import world
from datasets.tiny_world.render import render
from datasets.tiny_world.rng import integers, uniform
from datasets.utils.tiny_questions import ANSWERS

TRAIN_SEED, CHECK_SEED, BANK_SEED = 3, 4, 0  # CLIP was trained on data seed 1; streams draw from seeds above 1000
VOCABULARY = list(dict.fromkeys(answer for kind in words.QUESTION_KINDS for answer in ANSWERS[kind]))
LAYOUTS = {"count": world.COUNT, "relation": world.PAIR}


def questions(seed: int, index: np.ndarray) -> tuple[torch.Tensor, list[str], torch.Tensor, np.ndarray]:
    """Images, one question each, answers, and kinds of question; kinds by turns, answers even within a kind."""
    kinds = np.array(words.QUESTION_KINDS)[index // 2 % len(words.QUESTION_KINDS)]  # twins ask the same kind
    layout = np.array([LAYOUTS.get(kind, world.SINGLE) for kind in kinds])
    layout[(kinds == "logic") & (uniform(seed, index // 2, "logic layout") < 0.5)] = world.PAIR
    count = np.where(layout == world.COUNT, 1 + integers(seed, index, "asked count", 4), 1)
    count = np.where(layout == world.PAIR, 2, count)
    spec = world.sample(seed, index, BANK_SEED, layout=layout, count=count)
    u = uniform(seed, index, "asked")
    asked = [words.ask(spec, i, kind, u[i]) for i, kind in enumerate(kinds)]
    answers = torch.tensor([VOCABULARY.index(answer) for _, answer in asked])
    return render(spec), [question for question, _ in asked], answers, kinds


def states(
    clip: CLIPBackbone, images: torch.Tensor, asked: list[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input of the fusion: image tokens, question tokens, and where questions end."""
    tokens = clip.tokenize(asked)
    tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
    with torch.no_grad():
        return clip.image_tokens(clip.normalize_images(images)), clip.text_tokens(tokens), question_mask(tokens)


@torch.no_grad()
def check(clip: CLIPBackbone, fusion: nn.Module, head: nn.Module, n: int = 600) -> dict[str, float]:
    """Percent of correct answers by kind, on images of another seed."""
    images, asked, answers, kinds = questions(CHECK_SEED, np.arange(n))
    right = (head(fusion(*states(clip, images, asked))).argmax(1) == answers).numpy()
    return {kind: round(100 * float(right[kinds == kind].mean()), 1) for kind in words.QUESTION_KINDS}


def rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, flat, and from 60 % of the steps on linear to zero."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished weights")
    parser.add_argument("--checkpoint", type=Path, required=True, help="written regularly; resumed from if present")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after this time; the same command continues")
    return parser.parse_args(argv)


def save(path: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, step: int, cpu_s: float) -> None:
    tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    for i, p in enumerate(optimiser.param_groups[0]["params"]):
        tensors |= {f"opt.{i}.{k}": torch.as_tensor(v) for k, v in optimiser.state[p].items()}
    temporary = path.with_suffix(".tmp")
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    save_file(tensors, temporary, metadata={"step": str(step), "cpu_s": str(cpu_s)})
    os.replace(temporary, path)


def load(path: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer) -> tuple[int, float]:
    with safe_open(path, "pt") as file:
        step, cpu_s = int(file.metadata()["step"]), float(file.metadata()["cpu_s"])
    tensors = load_file(path)
    for name, module in modules.items():
        module.load_state_dict({k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")})
    for i, p in enumerate(optimiser.param_groups[0]["params"]):
        prefix = f"opt.{i}."
        optimiser.state[p] = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return step, cpu_s


def export(out: Path, clip: CLIPBackbone, fusion: FusionTransformer) -> None:
    """The shipped files: fp16 weights and the sizes, with the checksum of the CLIP they belong to."""
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    save_file({k: v.detach().half().contiguous() for k, v in fusion.state_dict().items()}, weights)
    weights.chmod(0o644)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    config = {"sizes": fusion.sizes, "clip_sha256": clip.sha256, "sha256": digest}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clip = load_clip("tiny").requires_grad_(False)
    fusion = FusionTransformer(clip.vision_width, clip.text_width, 128, args.layers, 4)
    head = nn.Linear(128, len(VOCABULARY))
    modules = {"fusion": fusion, "head": head}
    parameters = [*fusion.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98))
    step, cpu_before = load(args.checkpoint, modules, optimiser) if args.checkpoint.exists() else (0, 0.0)
    began = time.monotonic()
    while step < args.steps and time.monotonic() - began < 60 * args.minutes:
        optimiser.param_groups[0]["lr"] = args.lr * rate(step, args.steps)
        images, asked, answers, _ = questions(TRAIN_SEED, np.arange(step * args.batch, (step + 1) * args.batch))
        loss = cross_entropy(head(fusion(*states(clip, images, asked))), answers)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        if step % 200 == 0 or step == args.steps:
            cpu_s = cpu_before + time.process_time()
            print(
                f"step {step} loss {float(loss.detach()):.3f} cpu_s {cpu_s:.0f} {check(clip, fusion, head)}", flush=True
            )
    save(args.checkpoint, modules, optimiser, step, cpu_before + time.process_time())
    if step == args.steps:
        export(args.out, clip, fusion)
        print(f"wrote {args.out}: {sum(p.numel() for p in fusion.parameters())} parameters")


if __name__ == "__main__":
    main()
