"""One alignment step of CGIL against the plain 77-token form, alternating, at ViT-B/32 text width with random weights.

The plain form puts every prompt through all 77 positions of CLIP's own text tower. Prompts are as long as on
ImageNet-R: with the two context tokens 6.6 tokens on average and 9 at most. A step is forward, backward and AdamW on a
batch of 128 features.

    OMP_NUM_THREADS=1 python scripts/bench_cgil.py [--classes 40] [--repeats 3] [--check]
    OMP_NUM_THREADS=1 python scripts/bench_cgil.py --memory 50 100 200   # our step alone: seconds and memory
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbone.clip import CLIPBackbone, build_network
from backbone.clip_files import ClipWeights, openai_clip
from backbone.prompts import ContextNet, NamePrompts, chunked_backward

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


def compare(args) -> float:
    """Ratio of the seconds of the plain step to ours."""
    bench = Bench(args.classes)
    tokens = bench.clip.tokenize([f"X X {name}." for name in bench.names])
    rows = torch.arange(args.classes)

    def plain(rows):
        return plain_keys(bench.clip, tokens, bench.context())

    bench.step(bench.ours)  # warm up
    times = {"plain": [], "ours": []}
    for _ in range(args.repeats):
        times["plain"].append(bench.step(plain))
        times["ours"].append(bench.step(bench.ours))
    with torch.no_grad():
        difference = plain(rows) - bench.ours(rows)
    seconds, own = (statistics.median(times[k]) for k in ("plain", "ours"))
    lengths = bench.prompts.eot + 1
    print(
        f"{args.classes} prompts, {lengths.float().mean():.1f} tokens on average, {int(lengths.max())} at most; "
        f"largest difference of a key {difference.abs().max():.1e}"
    )
    print(f"plain {seconds:.2f} s, ours {own:.3f} s of processor time per step: ratio {seconds / own:.1f} (target: 10)")
    return seconds / own


def own_step(classes: int, chunk: int, repeats: int) -> None:
    """In a process of its own: time of our step, and growth of peak memory since before the first step."""
    bench = Bench(classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = statistics.median([bench.step(bench.ours, chunk) for _ in range(repeats + 1)][1:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{classes} classes, --align_chunk {chunk}: {seconds:.2f} s, {1e3 * seconds / classes:.1f} ms per prompt, "
        f"{(peak - before) / 2**20:.2f} GiB more than before the first step",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit 1 if the ratio is below 10")
    parser.add_argument(
        "--memory", type=int, nargs="+", help="numbers of classes at which our step is timed and its memory measured"
    )
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 50], help="values of --align_chunk for --memory")
    parser.add_argument("--own", type=int, nargs=2, help=argparse.SUPPRESS)  # the child of --memory: classes and chunk
    args = parser.parse_args()
    if args.own:
        own_step(*args.own, args.repeats)
    elif args.memory:
        for classes in args.memory:
            for chunk in args.chunks:
                subprocess.run(
                    [sys.executable, __file__, "--own", str(classes), str(chunk), "--repeats", str(args.repeats)],
                    check=True,
                )
    else:
        ratio = compare(args)
        return int(args.check and ratio < 10)
    return 0


if __name__ == "__main__":
    sys.exit(main())
