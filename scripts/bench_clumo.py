"""Cost of CluMo: clustering of a task, and a training step with and without prompts, at the sizes of ViT-B/32 and B/16.

Tokens are random, as if read from the cache; times are medians of alternating steps.

    python scripts/bench.py --suite clumo [--repeats 5] [--batch 8]
"""

import argparse
import time

import torch
from torch.nn.functional import cross_entropy

from backbone.fusion import FRESH, FusionTransformer
from scripts.bench_common import Row, in_turn, medians
from utils.flags import positive_int
from utils.kmeans import inertia, minibatch_kmeans

TEXT_TOKENS, TEXT_WIDTH, ANSWERS = 16, 512, 1000


def clustering(n: int = 20_000, d: int = 512, k: int = 9) -> Row:
    """Processor seconds of stage 1 for one modality."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    began = time.process_time()
    centres = minibatch_kmeans(x, k, torch.Generator().manual_seed(0))
    spent = time.process_time() - began
    note = f"inertia {inertia(x, centres):.1f}"
    return Row(f"k-means of {n:,} features of {d} numbers, {k} keys", spent, "s", 1.0, note)


def steps(image_tokens: int, batch: int, repeats: int, fusion_trains: bool) -> Row:
    """Ratio of a step with 10 + 10 prompt tokens to the same step without."""
    torch.manual_seed(0)
    fusion = FusionTransformer(768, TEXT_WIDTH, **FRESH).requires_grad_(fusion_trains)
    head = torch.nn.Linear(fusion.width, ANSWERS)
    prompts = torch.nn.Parameter(0.1 * torch.randn(20, fusion.width))
    trained = [p for p in (*fusion.parameters(), *head.parameters(), prompts) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    image, text = torch.randn(batch, image_tokens, 768), torch.randn(batch, TEXT_TOKENS, TEXT_WIDTH)
    seen, labels = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool), torch.arange(batch) % ANSWERS

    def step(own) -> None:
        optimizer.zero_grad()
        loss = cross_entropy(head(fusion(image, text, seen, own)), labels)
        loss.backward()
        optimizer.step()

    forms = {"with": lambda: step(prompts.expand(batch, -1, -1)), "without": lambda: step(None)}
    own, plain = medians(in_turn(forms, repeats))
    what = "fusion and head" if fusion_trains else "prompts and head (without prompts: the head alone)"
    name = f"step with prompts over without, {image_tokens} image tokens, batch {batch}, training {what}"
    return Row(name, own / plain, "x", 1.2 if fusion_trains else None, f"{own:.3f} against {plain:.3f} s")


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--batch", type=positive_int, default=8)


def rows(args: argparse.Namespace) -> list[Row]:
    found = [steps(tokens, args.batch, args.repeats, trains) for trains in (True, False) for tokens in (50, 197)]
    return [clustering(), *found]
