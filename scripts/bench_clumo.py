"""Cost of CluMo: clustering of a task, and a training step with and without prompts, at the sizes of ViT-B/32 and B/16.

Tokens are random, as if read from the cache. Times are processor seconds of one thread, medians of alternating steps.
Usage: OMP_NUM_THREADS=1 python scripts/bench_clumo.py [--repeats 5] [--batch 8] [--check]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbone.fusion import FRESH, FusionTransformer
from utils.kmeans import inertia, minibatch_kmeans

TEXT_TOKENS, TEXT_WIDTH, ANSWERS = 16, 512, 1000


def clustering(n: int = 20_000, d: int = 512, k: int = 9) -> float:
    """Processor seconds of stage 1 for one modality."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    began = time.process_time()
    centres = minibatch_kmeans(x, k, torch.Generator().manual_seed(0))
    spent = time.process_time() - began
    print(f"k-means of {n} features of {d} numbers, {k} keys: {spent:.3f} s (inertia {inertia(x, centres):.1f})")
    return spent


def steps(image_tokens: int, batch: int, repeats: int, fusion_trains: bool) -> float:
    """Ratio of a step with 10 + 10 prompt tokens to the same step without."""
    torch.manual_seed(0)
    fusion = FusionTransformer(768, TEXT_WIDTH, **FRESH).requires_grad_(fusion_trains)
    head = torch.nn.Linear(fusion.width, ANSWERS)
    prompts = torch.nn.Parameter(0.1 * torch.randn(20, fusion.width))
    trained = [p for p in (*fusion.parameters(), *head.parameters(), prompts) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    image, text = torch.randn(batch, image_tokens, 768), torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH)
    seen, labels = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool), torch.arange(batch) % ANSWERS

    def step(own) -> float:
        began = time.process_time()
        optimizer.zero_grad()
        loss = cross_entropy(head(fusion(image, text, seen, own)), labels)
        loss.backward()
        optimizer.step()
        return time.process_time() - began

    step(prompts.expand(batch, -1, -1))
    times = {"with": [], "without": []}
    for _ in range(repeats):
        times["with"].append(step(prompts.expand(batch, -1, -1)))
        times["without"].append(step(None))
    own, plain = (statistics.median(times[k]) for k in ("with", "without"))
    what = "fusion and head" if fusion_trains else "prompts and head (without prompts: the head alone)"
    print(
        f"{image_tokens} image tokens, batch {batch}, training {what}: {own:.3f} s against {plain:.3f} s, "
        f"ratio {own / plain:.2f}"
    )
    return own / plain


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 if clustering takes a second or the ratio exceeds 1.2"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    spent = clustering()
    ratios = [steps(tokens, args.batch, args.repeats, trains) for trains in (True, False) for tokens in (50, 197)]
    return int(args.check and (spent > 1.0 or max(ratios[:2]) > 1.2))


if __name__ == "__main__":
    sys.exit(main())
