"""One alignment step of CGIL against the plain 77-token form, alternating, at ViT-B/32 text width with random weights.

The plain form puts every prompt through all 77 positions of CLIP's own text tower. Prompts are as long as on
ImageNet-R: with the two context tokens 6.6 tokens on average and 9 at most. A step is forward, backward and AdamW on a
batch of 128 features.

    python scripts/bench.py --suite cgil [--classes 40] [--repeats 3]
    python scripts/bench.py --suite cgil --memory 50 100 200   # our step alone: seconds and memory
"""

import argparse
import resource
import statistics
import time

import torch
from torch.nn.functional import cross_entropy, normalize

from backbone.clip import CLIPBackbone, build_network
from backbone.clip_files import ClipWeights, openai_clip
from backbone.prompts import ContextNet, NamePrompts, chunked_backward
from scripts.bench_common import Row, in_child, medians
from utils.flags import positive_int

# single-token words of CLIP's vocabulary; a name of k words makes a prompt of k + 5 tokens (start, X, X, ".", end)
WORDS = ["cat", "dog", "tree", "house"]
LENGTHS = [1, 1, 1, 1, 1, 2, 2, 2, 3, 4]  # mean 1.8 words, hence 6.8 tokens


def random_clip(width: int = 512, layers: int = 12) -> CLIPBackbone:
    """An OpenAI text tower (that of ViT-B/32) with random weights, and an image tower too small to matter."""
    torch.manual_seed(0)
    net = openai_clip().model.CLIP(width, 32, 1, 64, 32, 77, 49408, width, width // 64, layers)
    weights = ClipWeights(net.state_dict(), sha256="random", heads=(1, width // 64))
    return CLIPBackbone(build_network(weights, "random", torch.float32), weights, "random").eval().requires_grad_(False)


def plain_keys(clip: CLIPBackbone, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """All 77 positions through the library's own transformer."""
    net = clip.clip
    embeds = net.token_embedding(tokens)
    embeds = torch.cat([embeds[:, :1], context, embeds[:, 1 + context.shape[1] :]], dim=1)
    x = net.transformer((embeds + net.positional_embedding).permute(1, 0, 2)).permute(1, 0, 2)
    return net.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ net.text_projection


class Bench:
    """Prompts, parameters and a batch of one size; `step` times forward, backward and the optimizer."""

    def __init__(self, classes: int, width: int = 512, layers: int = 12, device: str = "cpu"):
        self.clip = random_clip(width, layers).to(device)
        self.names = [" ".join(WORDS[: LENGTHS[c % len(LENGTHS)]]) for c in range(classes)]
        self.prompts = NamePrompts(self.clip, self.names, 2).to(device)
        self.written = torch.randn(classes, width).to(device)
        self.V = torch.nn.Parameter((0.02 * torch.randn(classes, 1, width)).to(device))
        self.g = ContextNet(width, width).to(device)
        self.optimizer = torch.optim.AdamW([self.V, *self.g.parameters()], lr=1e-4, weight_decay=0.0, fused=True)
        self.x = normalize(torch.randn(128, width), dim=1).to(device)
        self.y = (torch.arange(128) % classes).to(device)

    def context(self, rows=slice(None)) -> torch.Tensor:
        return torch.cat([self.V[rows], self.g(self.written[rows])[:, None]], dim=1)

    def ours(self, rows: torch.Tensor) -> torch.Tensor:
        return self.prompts.encode(self.clip, self.context(rows), rows)

    def step(self, encode, chunk: int = 0) -> float:
        began = time.process_time()
        self.optimizer.zero_grad()
        chunked_backward(
            lambda rows: normalize(encode(rows), dim=1),
            len(self.names),
            chunk,
            lambda keys: cross_entropy(100 * self.x @ keys.T, self.y),
        )
        self.optimizer.step()
        return time.process_time() - began


def compare(classes: int, repeats: int) -> list[Row]:
    """Our step over the plain step."""
    bench = Bench(classes)
    tokens = bench.clip.tokenize([f"X X {name}." for name in bench.names])
    rows = torch.arange(classes)

    def plain(rows):
        return plain_keys(bench.clip, tokens, bench.context())

    bench.step(bench.ours)  # warm up
    times = {"ours": [], "plain": []}
    for _ in range(repeats):
        times["plain"].append(bench.step(plain))
        times["ours"].append(bench.step(bench.ours))
    with torch.no_grad():
        difference = (plain(rows) - bench.ours(rows)).abs().max()
    own, seconds = medians(times)
    tokens = bench.prompts.eot + 1
    note = (
        f"{own:.3f} against {seconds:.2f} s; {tokens.float().mean():.1f} tokens on average, {int(tokens.max())} at most"
    )
    return [
        Row(f"alignment step over all 77 positions, {classes} classes", own / seconds, "x", 0.1, note),
        Row("largest difference of a key", float(difference), ""),
    ]


def child_own(argv: list[str]) -> dict:
    """In a process of its own: time of our step, and growth of peak memory since before the first step."""
    classes, chunk, repeats = map(int, argv)
    bench = Bench(classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = statistics.median([bench.step(bench.ours, chunk) for _ in range(repeats + 1)][1:])
    return {"seconds": taken, "gib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20}


CHILDREN = {"own": child_own}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--classes", type=positive_int, default=40)
    parser.add_argument("--repeats", type=positive_int, default=3)
    parser.add_argument(
        "--memory", type=int, nargs="+", help="numbers of classes at which our step is timed and its memory measured"
    )
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 50], help="values of --align_chunk for --memory")


def rows(args: argparse.Namespace) -> list[Row]:
    if not args.memory:
        return compare(args.classes, args.repeats)
    found = []
    for classes in args.memory:
        for chunk in args.chunks:
            own = in_child("bench_cgil", "own", classes, chunk, args.repeats)
            name = f"alignment step, {classes} classes, --align_chunk {chunk}"
            found.append(Row(name, own["seconds"], "s", None, f"{1e3 * own['seconds'] / classes:.1f} ms a prompt"))
            found.append(Row(f"{name}: memory", own["gib"], "GiB", None, "more than before the first step"))
    return found
