"""Speed and memory of masked exemplars: a step at 25 % of the patches against all, decoding, bytes in memory.

    OMP_NUM_THREADS=1 python scripts/bench_exemplar_masking.py [--layers 12] [--batch 4] [--vilt]

The image tower has the shape of ViT-B/16 (width 768, 12 heads, 196 patches of 16 pixels) and random weights.
--vilt: only the step of ViLT-B/32 with adapters instead (144 patches of 32 pixels and 20 words).
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbone.clip_files import openai_clip
from backbone.multimodal import run
from utils.memory.records import RecordMemory, full_tokens, select, to_bytes

WIDTH, CELLS, PATCH, WORDS = 768, 196, 3 * 16 * 16, 24


def seconds(step, repeats: int = 3) -> float:
    """Median of the repeats, after one that is not counted."""
    step()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def step_time(layers: int, batch: int, patches: int) -> float:
    """One forward and backward of the tower on so many patches and the class token."""
    tower = openai_clip().model.Transformer(WIDTH, layers, 12)
    x = torch.randn(batch, 1 + patches, WIDTH)
    padding = torch.zeros(batch, 1 + patches, dtype=torch.bool)
    return seconds(lambda: run(tower.resblocks, x, padding, None, False)[0].sum().backward())


def vilt_step_times(batch: int) -> tuple[float, float]:
    """One forward and backward of ViLT-B/32 with scale-and-shift adapters on all patches, and on every fourth."""
    from transformers import ViltConfig, ViltModel

    from backbone.vilt import ViltBackbone, ViltNet

    words = argparse.Namespace(start=101, sep=102, end=30522)
    net = ViltNet(ViltBackbone(ViltModel(ViltConfig()).eval(), words, "ViLT-B/32"), 200)
    ids = torch.randint(1000, 30000, (batch, 20))
    ids[:, 0], ids[:, -1] = words.start, words.end
    full = full_tokens(torch.randint(0, 256, (batch, net.cells, net.patch_width), dtype=torch.uint8), ids)
    quarter = select(full, torch.arange(net.cells).expand(batch, -1) % 4 == 0, full.word_seen)
    return tuple(seconds(lambda part=part: net(part).sum().backward()) for part in (full, quarter))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--vilt", action="store_true")
    args = parser.parse_args()
    if args.vilt:
        full, quarter = vilt_step_times(args.batch)
        print(
            f"step of ViLT-B/32, batch {args.batch}: {full:.2f} s with 144 patches, {quarter:.2f} s with 36: "
            f"{quarter / full:.2f}x"
        )
        return
    full, quarter = (step_time(args.layers, args.batch, n) for n in (CELLS, CELLS // 4))
    print(
        f"step, batch {args.batch}, {args.layers} layers: {full:.2f} s with 196 patches, {quarter:.2f} s with 49: "
        f"{quarter / full:.2f}x"
    )
    memory, claimed = records(256, 0.25)
    rows = torch.arange(256)
    taken = seconds(lambda: [memory.decode(part) for part in rows.split(64)])
    print(f"decode: {256 / taken:.0f} exemplars/s of {claimed / 256 / 1024:.1f} KiB")
    print(f"memory: {memory.nbytes} bytes for records of {claimed}: {memory.nbytes / claimed:.4f}x")


if __name__ == "__main__":
    main()
