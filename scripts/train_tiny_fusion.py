"""Pre-train the fusion transformer of backbone/assets/tiny_fusion on captions of the picture world that have a blank.

One word of a caption is "X", and the fusion names it from image and caption: "a X fish in the snow" -> red. It never
reads a question, a comparison, a yes or a no, so the skills that the streams of questions ask for are left to them; but
it learns that the words decide what is to be read off the image, since each image comes with two different blanks. The
towers of the tiny CLIP stay frozen; the answer layer is discarded. Images have a data seed and drawings that no stream
uses, and keep the gaps of CLIP's own pre-training. All random numbers follow from the step, so a stopped run continues
from its checkpoint to the same weights.

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
from datasets.tiny_world import world
from datasets.tiny_world.captions import NAMES, PLURALS, article
from datasets.tiny_world.render import render
from datasets.tiny_world.rng import choice, integers, uniform
from datasets.tiny_world.scenes import SCENE_PHRASES, SCENES

TRAIN_SEED, CHECK_SEED, BANK_SEED = 3, 4, 0  # CLIP was trained on data seed 1; streams draw from seeds above 1000
FACTS = {
    "kind": NAMES,
    "colour": world.COLOURS,
    "pattern": world.PATTERNS,
    "scene": SCENES,
    "count": world.COUNTS,
    "relation": world.RELATIONS,
}
VOCABULARY = [(fact, value) for fact, values in FACTS.items() for value in range(len(values))]
TOLD = {  # facts that may be blank by layout
    world.SINGLE: ("kind", "colour", "pattern", "scene"),
    world.COUNT: ("kind", "colour", "count", "count"),
    world.PAIR: ("relation", "kind", "relation", "scene"),
}
LAYOUTS, LAYOUT_SHARES = (world.SINGLE, world.COUNT, world.PAIR), (0.5, 0.2, 0.3)
OPENINGS = ("a photo of", "a picture of", "an image of", "there is", "this is a photo of", "")
BLANK = "X"


def caption(spec: dict, i: int, fact: str, u: np.ndarray) -> tuple[str, int]:
    """A caption of image i whose `fact` is blank, and the value that belongs there; u (6,) settles the wording."""

    def word(name: str, value: str) -> str:
        return BLANK if name == fact else value

    layout, kinds = spec["layout"][i], spec["kind"][i]
    value = int(
        {"kind": kinds[0], "count": spec["count"][i] - 1}.get(fact, spec[fact][i] if fact in spec else 0).flat[0]
    )
    if layout == world.PAIR:
        told = [article(word("kind", NAMES[kinds[0]])), article(NAMES[kinds[1]])]
        turned = u[0] < 0.5  # told from the other object
        relation = int(spec["relation"][i]) ^ turned
        body = f" {word('relation', world.RELATIONS[relation])} ".join(told[::-1] if turned else told)
        value = relation if fact == "relation" else value
    else:
        pattern, colour = world.PATTERNS[spec["pattern"][i, 0]], world.COLOURS[spec["colour"][i, 0]]
        many = spec["count"][i] > 1
        noun = (
            (PLURALS if many else NAMES)[kinds[0]] if fact == "kind" or u[2] < 0.7 else "objects" if many else "object"
        )
        body = word("kind", noun)
        body = f"{word('colour', colour)} {body}" if fact == "colour" or u[0] < 0.4 else body
        body = f"{word('pattern', pattern)} {body}" if fact == "pattern" or u[1] < 0.4 else body
        body = f"{word('count', world.COUNTS[spec['count'][i] - 1])} {body}" if layout == world.COUNT else article(body)
    if fact == "scene":
        body = f"{body} in the {BLANK}"
    elif u[3] < 0.4:
        body = f"{body} {SCENE_PHRASES[spec['scene'][i]]}"
    return f"{OPENINGS[int(u[4] * len(OPENINGS))]} {body}".strip(), value


def blanks(seed: int, index: np.ndarray) -> tuple[torch.Tensor, list[str], torch.Tensor, np.ndarray]:
    """Images, two captions with a blank of each (the first of all images, then the second), what belongs there (rows of
    VOCABULARY), and the facts that are blank."""
    layout = np.array(LAYOUTS)[choice(seed, index // 2, "layout", LAYOUT_SHARES)]
    count = np.where(
        layout == world.COUNT, 1 + integers(seed, index, "asked count", 4), np.where(layout == world.PAIR, 2, 1)
    )
    spec = world.sample(seed, index, BANK_SEED, layout=layout, count=count)
    texts, rows, facts = [], [], []
    first = integers(seed, index, "blank", 4)
    for turn in (0, 1):
        u = np.stack([uniform(seed, index, f"words {turn} {k}") for k in range(6)], axis=1)
        for i in range(len(index)):
            fact = TOLD[layout[i]][(first[i] + turn) % 4]
            text, value = caption(spec, i, fact, u[i])
            texts.append(text)
            rows.append(VOCABULARY.index((fact, value)))
            facts.append(fact)
    return render(spec), texts, torch.tensor(rows), np.array(facts)


def states(
    clip: CLIPBackbone, images: torch.Tensor, texts: list[str]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input of the fusion for the two texts of each image: image tokens, text tokens, and where texts end."""
    tokens = clip.tokenize(texts)
    tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
    with torch.no_grad():
        image = clip.image_tokens(clip.normalize_images(images))
        return torch.cat([image, image]), clip.text_tokens(tokens), question_mask(tokens)


def align(fusion: FusionTransformer, clip: CLIPBackbone) -> None:
    """The input layers start as CLIP's own projections, under which images and words already agree."""
    visual = clip.clip.visual
    with torch.no_grad():
        for (norm, linear), ln, projection in (
            (fusion.image_in, visual.ln_post, visual.proj),
            (fusion.text_in, clip.clip.ln_final, clip.clip.text_projection),
        ):
            norm.load_state_dict(ln.state_dict())
            linear.weight.copy_(projection.T)
            linear.bias.zero_()


@torch.no_grad()
def check(clip: CLIPBackbone, fusion: nn.Module, head: nn.Module, n: int = 400) -> dict[str, float]:
    """Percent of blanks filled correctly by fact, on images of another seed."""
    images, texts, answers, facts = blanks(CHECK_SEED, np.arange(n))
    right = (head(fusion(*states(clip, images, texts))).argmax(1) == answers).numpy()
    return {fact: round(100 * float(right[facts == fact].mean()), 1) for fact in FACTS}


def rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, flat, and from 60 % of the steps on linear to zero."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished weights")
    parser.add_argument("--checkpoint", type=Path, required=True, help="written regularly; resumed from if present")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32, help="images per step, each with two captions")
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
    fusion = FusionTransformer(clip.vision_width, clip.text_width, clip.embed_dim, args.layers, 4)
    align(fusion, clip)
    head = nn.Linear(clip.embed_dim, len(VOCABULARY))
    modules = {"fusion": fusion, "head": head}
    parameters = [*fusion.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=args.lr, weight_decay=0.05, betas=(0.9, 0.98))
    step, cpu_before = load(args.checkpoint, modules, optimiser) if args.checkpoint.exists() else (0, 0.0)
    began = time.monotonic()
    while step < args.steps and time.monotonic() - began < 60 * args.minutes:
        optimiser.param_groups[0]["lr"] = args.lr * rate(step, args.steps)
        images, texts, answers, _ = blanks(TRAIN_SEED, np.arange(step * args.batch, (step + 1) * args.batch))
        loss = cross_entropy(head(fusion(*states(clip, images, texts))), answers)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        if step % 100 == 0 or step == args.steps:
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
