"""One alignment step of CGIL against the plain 77-token form, alternating, at ViT-B/32 text width with random weights.

The plain form puts every prompt through all 77 positions of CLIP's own text tower. Prompts are as long as on
ImageNet-R: with the two context tokens 6.6 tokens on average and 9 at most. A step is forward, backward and AdamW on a
batch of 128 features. Usage: OMP_NUM_THREADS=1 python scripts/bench_cgil.py [--classes 40] [--repeats 3] [--check]
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbone.clip import CLIPBackbone, build_network  # noqa: E402
from backbone.clip_files import ClipWeights, openai_clip  # noqa: E402
from backbone.prompts import ContextNet, NamePrompts  # noqa: E402

# single-token words of CLIP's vocabulary; a name of k words makes a prompt of k + 5 tokens (start, X, X, ".", end)
WORDS = ["cat", "dog", "tree", "house"]
LENGTHS = [1, 1, 1, 1, 1, 2, 2, 2, 3, 4]  # mean 1.8 words, hence 6.8 tokens


def random_clip() -> CLIPBackbone:
    """OpenAI's ViT-B/32 text tower with random weights, and an image tower too small to matter."""
    torch.manual_seed(0)
    net = openai_clip().model.CLIP(512, 32, 1, 64, 32, 77, 49408, 512, 8, 12)
    weights = ClipWeights(net.state_dict(), sha256="random", heads=(1, 8))
    return CLIPBackbone(build_network(weights, "random", torch.float32), weights, "random").eval().requires_grad_(False)


def plain_keys(clip: CLIPBackbone, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """All 77 positions through the library's own transformer."""
    net = clip.clip
    embeds = net.token_embedding(tokens)
    embeds = torch.cat([embeds[:, :1], context, embeds[:, 1 + context.shape[1] :]], dim=1)
    x = net.transformer((embeds + net.positional_embedding).permute(1, 0, 2)).permute(1, 0, 2)
    return net.ln_final(x)[torch.arange(len(x)), tokens.argmax(1)] @ net.text_projection


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit 1 if the ratio is below 10")
    args = parser.parse_args()
    clip = random_clip()
    names = [" ".join(WORDS[: LENGTHS[c % len(LENGTHS)]]) for c in range(args.classes)]
    prompts = NamePrompts(clip, names, 2)
    tokens = clip.tokenize([f"X X {name}." for name in names])
    rows, written = torch.arange(args.classes), torch.randn(args.classes, 512)
    V, g = torch.nn.Parameter(0.02 * torch.randn(args.classes, 1, 512)), ContextNet(512, 512)
    optimizer = torch.optim.AdamW([V, *g.parameters()], lr=1e-4, weight_decay=0.0, fused=True)
    x, y = normalize(torch.randn(128, 512), dim=1), torch.arange(128) % args.classes

    def step(encode) -> float:
        began = time.process_time()
        optimizer.zero_grad()
        keys = encode(torch.cat([V, g(written)[:, None]], dim=1))
        loss = cross_entropy(100 * x @ normalize(keys, dim=1).T, y)
        loss.backward()
        optimizer.step()
        return time.process_time() - began

    def ours(context):
        return prompts.encode(clip, context, rows)

    step(ours)  # warm up
    times = {"plain": [], "ours": []}
    for _ in range(args.repeats):
        times["plain"].append(step(lambda context: plain_keys(clip, tokens, context)))
        times["ours"].append(step(ours))
    with torch.no_grad():
        context = torch.cat([V, g(written)[:, None]], dim=1)
        difference = plain_keys(clip, tokens, context) - ours(context)
    plain, own = (statistics.median(times[k]) for k in ("plain", "ours"))
    lengths = prompts.eot + 1
    print(f"{args.classes} prompts, {lengths.float().mean():.1f} tokens on average, {int(lengths.max())} at most; "
          f"largest difference of a key {difference.abs().max():.1e}")
    print(f"plain {plain:.2f} s, ours {own:.3f} s of processor time a step: ratio {plain / own:.1f} (wanted: 10)")
    return int(args.check and plain / own < 10)


if __name__ == "__main__":
    sys.exit(main())
