"""Pre-train the small CLIP of backbone/assets/tiny_clip on the procedural picture world from scratch.

python scripts/train_tiny_clip.py --out backbone/assets/tiny_clip            # the shipped weights, CPU
python scripts/train_tiny_clip.py --world cluttered --steps STEPS --out backbone/assets/tiny_clip_cluttered
python scripts/train_tiny_clip.py --size nano --steps 600 --out /tmp/nano    # a toy in a minute or two
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbone.tiny_tokenizer import TinyTokenizer, build_pieces
from datasets.tiny_world import captions as words
from datasets.tiny_world import world
from datasets.tiny_world.render import render
from scripts import tiny_lessons
from scripts.tiny_training import build_optimisers, load_checkpoint, save_checkpoint

MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)
TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "an image of a {}.")
CONTEXT = 32
TRAIN_SEED, CHECK_SEED = 1, 2
HOW = ("out", "checkpoint", "save_every", "check_every", "threads", "device")  # flags that do not change the weights
SIZES = {
    "wide": dict(embed_dim=128, vision_layers=4, vision_width=192, transformer_width=128, transformer_layers=2),
    "small": dict(embed_dim=128, vision_layers=4, vision_width=128, transformer_width=128, transformer_layers=2),
    "nano": dict(embed_dim=64, vision_layers=2, vision_width=64, transformer_width=64, transformer_layers=1),
}
HEADS = {  # auxiliary targets read off the class token: classes and weight
    "kind": (len(words.NAMES), 1.0),
    "first": (len(words.NAMES), 0.5),
    "second": (len(words.NAMES), 0.5),
    "axis": (2, 0.2),
    "pattern": (len(world.PATTERNS), 0.5),
    "colour": (len(world.COLOURS), 0.4),
    "count": (4, 0.2),
    "scene": (8, 0.1),
    "style": (world.N_TRAINED_STYLES, 0.1),
}


def build_model(size: str, vocab_size: int, side: int = 48, context: int = CONTEXT) -> tuple[nn.Module, dict]:
    from clip.model import CLIP

    shape = dict(SIZES[size], image_resolution=side, vision_patch_size=8, context_length=context, vocab_size=vocab_size)
    shape["transformer_heads"] = max(shape["transformer_width"] // 64, 1)
    model = CLIP(**shape).float()
    with torch.no_grad():
        model.logit_scale.fill_(math.log(10))
    return model, shape


def encoder(blocks: nn.Sequential, x: torch.Tensor, read: torch.Tensor, causal: bool) -> torch.Tensor:
    """The blocks of clip.model on x (B, L, D), giving only the output at position `read` (B,): the last block then
    needs one query and one MLP row per item. Same function as the module's own forward, a quarter cheaper."""
    n, length, width = x.shape
    mask = torch.full((length, length), -math.inf, device=x.device).triu_(1) if causal else None
    rows = torch.arange(n, device=x.device)
    for depth, block in enumerate(blocks):
        last = depth == len(blocks) - 1
        attn, heads = block.attn, block.attn.num_heads
        h = block.ln_1(x)
        if last:
            x = x[rows, read][:, None]
            w_q, w_kv = attn.in_proj_weight.split([width, 2 * width])
            b_q, b_kv = attn.in_proj_bias.split([width, 2 * width])
            q = F.linear(h[rows, read][:, None], w_q, b_q)
            k, v = F.linear(h, w_kv, b_kv).chunk(2, -1)
        else:
            q, k, v = F.linear(h, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
        q, k, v = (t.view(n, -1, heads, width // heads).transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
        if mask is not None:
            scores = scores + (mask[read][:, None, None] if last else mask)
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, -1, width)
        x = x + attn.out_proj(out)
        # QuickGELU z * sigmoid(1.702 z) as one fused silu
        h = F.silu(1.702 * block.mlp.c_fc(block.ln_2(x))) / 1.702
        x = x + block.mlp.c_proj(h)
    return x[:, 0]


def image_features(model: nn.Module, images: torch.Tensor, keep: torch.Tensor | None = None) -> tuple:
    """Class-token state (B, D) and embedding (B, E); `keep` (B, k) names the patches to look at, all if None."""
    tower = model.visual
    x = tower.conv1(images).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]
    if keep is not None:
        x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
    first = (tower.class_embedding + tower.positional_embedding[0]).expand(len(x), 1, -1)
    x = tower.ln_pre(torch.cat([first, x], 1))
    state = tower.ln_post(encoder(tower.transformer.resblocks, x, x.new_zeros(len(x), dtype=torch.long), False))
    return state, state @ tower.proj


def text_features(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Embeddings (B, E). Trimming to the longest text is exact because attention is causal."""
    read = tokens.argmax(1)
    tokens = tokens[:, : int((tokens != 0).sum(1).max())]
    x = model.token_embedding(tokens) + model.positional_embedding[: tokens.shape[1]]
    return model.ln_final(encoder(model.transformer.resblocks, x, read, True)) @ model.text_projection


def normalise(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (MEAN, STD))
    return (images.float() / 255 - mean) / std


def targets(spec: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Auxiliary labels; -1 where an image has no such thing."""
    layout, count = spec["layout"], spec["count"]
    one_kind = (layout == world.SINGLE) | (layout == world.COUNT)
    pair, rows = layout == world.PAIR, np.arange(len(layout))
    near = spec["relation"] % 2  # which of the two objects is the left or upper one
    columns = {
        "kind": np.where(one_kind, spec["kind"][:, 0], -1),
        "first": np.where(pair, spec["kind"][rows, near], -1),
        "second": np.where(pair, spec["kind"][rows, 1 - near], -1),
        "axis": np.where(pair, spec["relation"] // 2, -1),
        "pattern": np.where(one_kind, spec["pattern"][:, 0], -1),
        "colour": np.where(one_kind, spec["colour"][:, 0], -1),
        "count": np.where(one_kind, count - 1, -1),
        "scene": np.where(layout == world.TEXTURE, -1, spec["scene"]),
        "style": spec["style"],
    }
    return {name: torch.from_numpy(column.astype(np.int64)) for name, column in columns.items()}


def contrastive(image: torch.Tensor, text: torch.Tensor, tokens: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss; images with the same caption share the target evenly."""
    logits = scale.exp().clamp(max=100) * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, then flat, then linear to zero. A run can thus be stopped before the fall and resumed
    with another length: the steps so far are the same."""
    return min(1.0, (step + 1) / 100, (steps - step) / (steps - fall(steps)))


def fall(steps: int) -> int:
    """The step at which the learning rate starts to fall, and the batch doubles."""
    return round(0.7 * steps)


def batch_indices(step: int, steps: int, batch: int) -> np.ndarray:
    """Which images of the endless world make up a batch: half a batch before the fall, a whole one after."""
    early = min(step, fall(steps))
    start = early * (batch // 2) + (step - early) * batch
    return np.arange(start, start + (batch // 2 if step < fall(steps) else batch))


def checks(seed: int, n: int, strength: float) -> dict[str, tuple]:
    """Images, names and answers: the 60 never-captioned pairs (flat and stitched) and the 40 kinds."""
    pairs = world.held_out_patterns()
    pick = np.arange(n) % len(pairs)
    names = [f"{world.PATTERNS[p]} {words.NAMES[k]}" for k, p in pairs]
    out = {}
    for label, style, texts, truth in (
        ("pairs", 0, names, pick),
        ("stitched", 8, names, pick),
        ("kinds", 0, words.NAMES, pairs[pick, 0]),
    ):
        spec = world.sample(
            seed,
            np.arange(n),
            bank_seed=seed,
            layout=world.SINGLE,
            style=style,
            kind=pairs[pick, 0],
            pattern=pairs[pick, 1],
        )
        out[label] = render(spec, strength=strength), texts, truth
    return out


@torch.no_grad()
def check(
    model: nn.Module, tokenizer: TinyTokenizer, n: int = 480, strength: float = 0.5, cluttered: bool = False
) -> dict[str, float]:
    """Zero-shot accuracy in percent on the world's checks."""
    out, device = {}, model.logit_scale.device
    sets = tiny_lessons.checks(CHECK_SEED, n) if cluttered else checks(CHECK_SEED, n, strength)
    for label, (pictures, texts, truth) in sets.items():
        pictures = normalise(pictures.to(device))
        image = torch.cat([image_features(model, part)[1] for part in pictures.split(128)])
        text = sum(
            F.normalize(
                text_features(model, tokenizer.tokenize([t.format(x) for x in texts], CONTEXT).to(device)), dim=1
            )
            for t in TEMPLATES
        )
        guess = (F.normalize(image, dim=1) @ F.normalize(text, dim=1).T).argmax(1).cpu().numpy()
        out[label] = 100 * float((guess == truth).mean())
    return out


def vocabulary() -> list[str]:
    """Pieces of everything that pre-training may say, and of the words that streams and usual templates need."""
    texts = [*words.NAMES, *words.PLURALS, *world.COLOURS, *world.PATTERNS, *world.TEXTURES, *world.STYLES, "digit"]
    texts += ["zero one two three four five six seven eight nine yes no photo picture image a an the of many itap art"]
    texts += words.captions(world.sample(TRAIN_SEED, np.arange(40_000)))
    return build_pieces(texts)


def export(out: Path, model: nn.Module, shape: dict, tokenizer: TinyTokenizer, told: dict) -> None:
    """The shipped files: fp16 weights with OpenAI's key names, config, vocabulary."""
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "model.safetensors"
    save_file({k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}, weights)
    weights.chmod(0o644)
    tokenizer.save(out / "vocab.json")
    config = {
        "clip": shape,
        "activation": "quickgelu",
        "image_mean": MEAN,
        "image_std": STD,
        "templates": TEMPLATES,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "training": told,
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the finished weights")
    parser.add_argument(
        "--world", choices=("plain", "cluttered"), default="plain", help="cluttered: scripts/tiny_lessons.py"
    )
    parser.add_argument("--init", type=Path, help="folder of a finished CLIP of the same widths to start from")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--steps", type=int, default=4800)
    parser.add_argument(
        "--batch", type=int, default=128, help="images per step, half of it before the learning rate falls"
    )
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--matrices", choices=("muon", "adamw"), default="muon", help="optimizer of block matrices")
    parser.add_argument("--keep", type=float, default=0.5, help="share of patches seen, except in the last steps")
    parser.add_argument(
        "--device",
        default="cpu",
        help="GPU recipe, not run: --device cuda --size wide --steps 40000 --batch 512 --keep 1",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--products", choices=("fp32", "bf16"), default="fp32", help="bf16: on cores with AVX-512 bf16")
    parser.add_argument("--checkpoint", type=Path, help="written every --save_every steps; resumed from if present")
    parser.add_argument("--save_every", type=int, default=200)
    parser.add_argument("--check_every", type=int, default=200)
    parser.add_argument("--init_seed", type=int, default=0)
    return parser.parse_args(argv)


def loss_of(model, heads, tokenizer, args, step: int) -> torch.Tensor:
    """Total loss on the step-th batch; all its random numbers follow from the step."""
    index = batch_indices(step, args.steps, args.batch)
    if args.world == "cluttered":
        images, texts, labels = tiny_lessons.lesson(TRAIN_SEED, index, step)
    else:
        spec = world.sample(TRAIN_SEED, index)
        images, texts, labels = render(spec), words.captions(spec), targets(spec)
    images = normalise(images.to(args.device))
    tokens = tokenizer.tokenize(texts, lesson_of(args)[1]).to(args.device)
    keep = None
    if args.keep < 1 and step < 0.85 * args.steps:
        n = model.visual.positional_embedding.shape[0] - 1
        noise = torch.rand(len(images), n, generator=torch.Generator().manual_seed(step))
        keep = noise.argsort(1)[:, : round(args.keep * n)].to(args.device)
    state, image = image_features(model, images, keep)
    text = text_features(model, tokens)
    total = contrastive(image, text, tokens, model.logit_scale)
    weights = lesson_of(args)[2]
    for name, label in labels.items():
        label = label.to(args.device)
        picked = (label >= 0).sum().clamp(min=1)
        read = text if name in tiny_lessons.TEXT_HEADS else state
        loss = F.cross_entropy(heads[name](read), label, ignore_index=-1, reduction="sum") / picked
        total = total + weights[name][1] * loss
    return total


def lesson_of(args: argparse.Namespace) -> tuple[int, int, dict[str, tuple[int, float]]]:
    """Side of the images, context length and auxiliary heads of the world."""
    lessons = tiny_lessons
    if args.world == "cluttered":
        return lessons.SIDE, lessons.CONTEXT, lessons.HEADS | lessons.TEXT_HEADS
    return 48, CONTEXT, HEADS


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.init_seed)
    side, context, aux = lesson_of(args)
    cluttered = args.world == "cluttered"
    tokenizer = TinyTokenizer(tiny_lessons.vocabulary(TRAIN_SEED) if cluttered else vocabulary())
    model, shape = build_model(args.size, tokenizer.vocab_size, side, context)
    width = {name: shape["embed_dim"] for name in tiny_lessons.TEXT_HEADS}
    heads = nn.ModuleDict({k: nn.Linear(width.get(k, shape["vision_width"]), n) for k, (n, _) in aux.items()})
    if args.init:
        tiny_lessons.start_from(args.init, model, tokenizer)
    model.to(args.device), heads.to(args.device)
    dtype = torch.bfloat16 if args.products == "bf16" else torch.float32
    optimisers = build_optimisers(model, heads, args.lr, args.matrices, dtype)
    parameters = [*model.parameters(), *heads.parameters()]
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {tokenizer.vocab_size} token ids, fp32")
    start = 0
    if args.checkpoint and args.checkpoint.exists():
        start = load_checkpoint(args.checkpoint, model, heads, optimisers)
        print(f"resumed at step {start}")
    began, cpu = time.time(), time.process_time()
    bar = tqdm(range(start, args.steps), initial=start, total=args.steps, mininterval=10)
    for step in bar:
        for group in (g for o in optimisers for g in o.param_groups):
            group["lr"] = args.lr * rate(step, args.steps)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.products == "bf16"):
            loss = loss_of(model, heads, tokenizer, args, step)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in optimisers:
            optimiser.step()
        done = step + 1
        if args.checkpoint and (done % args.save_every == 0 or done == args.steps):
            save_checkpoint(args.checkpoint, model, heads, optimisers, done)
        if done % args.check_every == 0 or done == args.steps:
            scores = {k: round(v, 1) for k, v in check(model, tokenizer, cluttered=cluttered).items()}
            bar.write(
                f"step {done} loss {float(loss.detach()):.3f} wall_s {time.time() - began:.0f} "
                f"cpu_s {time.process_time() - cpu:.0f} {scores}"
            )
    told = {name: str(v) if isinstance(v, Path) else v for name, v in vars(args).items() if name not in HOW}
    export(args.out, model, shape, tokenizer, told | {"cpu_s": round(time.process_time()), "from_step": start})
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
