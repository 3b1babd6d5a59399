"""Speed and memory of masked exemplars: a step at 25 % of the patches against all, decoding, bytes in memory.

    python scripts/bench.py --suite masking [--layers 12] [--batch 4] [--vilt]

The image tower has the shape of ViT-B/16 (width 768, 12 heads, 196 patches of 16 pixels) and random weights.
--vilt: only the step of ViLT-B/32 with adapters instead (144 patches of 32 pixels and 20 words).
"""

import argparse

import torch

from backbone.clip import run_tower
from backbone.clip_files import openai_clip
from scripts.bench_common import Row, in_turn, medians
from utils.flags import positive_int
from utils.memory.records import RecordMemory, full_tokens, select, to_bytes

WIDTH, CELLS, PATCH, WORDS, REPEATS = 768, 196, 3 * 16 * 16, 24, 3


def step_times(layers: int, batch: int) -> list[float]:
    """One forward and backward of the tower on all patches and the class token, and on every fourth."""
    tower = openai_clip().model.Transformer(WIDTH, layers, 12)

    images = {"full": torch.randn(batch, 1 + CELLS, WIDTH), "quarter": torch.randn(batch, 1 + CELLS // 4, WIDTH)}

    def step(x: torch.Tensor) -> None:
        run_tower(tower.resblocks, x, seen=torch.ones(x.shape[:2], dtype=torch.bool))[0].sum().backward()

    return medians(in_turn({k: lambda x=x: step(x) for k, x in images.items()}, REPEATS))


def vilt_step_times(batch: int) -> list[float]:
    """One forward and backward of ViLT-B/32 with scale-and-shift adapters on all patches, and on every fourth."""
    from transformers import ViltConfig, ViltModel

    from backbone.vilt import ViltBackbone, ViltNet

    words = argparse.Namespace(start=101, sep=102, end=30522)
    net = ViltNet(ViltBackbone(ViltModel(ViltConfig()).eval(), words, "ViLT-B/32"), 200)
    ids = torch.randint(1000, 30000, (batch, 20))
    ids[:, 0], ids[:, -1] = words.start, words.end
    full = full_tokens(torch.randint(0, 256, (batch, net.cells, net.patch_width), dtype=torch.uint8), ids)
    quarter = select(full, torch.arange(net.cells).expand(batch, -1) % 4 == 0, full.word_seen)
    parts = {"full": full, "quarter": quarter}
    return medians(in_turn({k: lambda part=part: net(part).sum().backward() for k, part in parts.items()}, REPEATS))


def records(n: int, share: float) -> tuple[RecordMemory, int]:
    """Memory with n masked exemplars, and the sum of their bytes."""
    draw = torch.Generator().manual_seed(0)
    patches = torch.randint(0, 256, (n, CELLS, PATCH), generator=draw, dtype=torch.uint8)
    ids = torch.randint(1, 49000, (n, WORDS), generator=draw)
    ids[:, -1] = 49407
    tokens = full_tokens(patches, ids)
    kept = select(tokens, torch.rand(n, CELLS, generator=draw) < share, torch.rand(n, WORDS, generator=draw) < 0.5)
    made = [to_bytes(kept.rows(i), 0, CELLS, "masked") for i in range(n)]
    memory = RecordMemory(PATCH)
    memory.add(made)
    return memory, sum(map(len, made))


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--layers", type=positive_int, default=12)
    parser.add_argument("--batch", type=positive_int, default=4)
    parser.add_argument("--vilt", action="store_true", help="only the step of ViLT-B/32")


def rows(args: argparse.Namespace) -> list[Row]:
    full, quarter = vilt_step_times(args.batch) if args.vilt else step_times(args.layers, args.batch)
    note = f"{quarter:.2f} against {full:.2f} s, batch {args.batch}"
    if args.vilt:
        return [Row("step of ViLT-B/32 with 36 patches over 144", quarter / full, "x", None, note)]
    memory, claimed = records(256, 0.25)
    parts = torch.arange(256).split(64)
    (taken,) = medians(in_turn({"decode": lambda: [memory.decode(part) for part in parts]}, REPEATS))
    size = f"of {claimed / 256 / 1024:.1f} KiB, {256 / taken:,.0f} a second"
    return [
        Row(f"step with 49 patches over 196, {args.layers} layers", quarter / full, "x", None, note),
        Row("decoding of an exemplar", 1e3 * taken / 256, "ms", None, size),
        Row("bytes in memory over bytes of records", memory.nbytes / claimed, "x", None, f"{claimed:,} of records"),
    ]
