"""Processor seconds of a training step on one rank, and of the slower of two ranks.

    OMP_NUM_THREADS=1 python scripts/bench_ranks.py [er] [finetune-clip] [cgil] [--steps 6] [--batch 32]

er: resnet18 on generated CIFAR-10 files, --batch images of the stream and as many replayed. finetune-clip: random
weights in the shape of ViT-B/32, --batch images of 224 pixels. cgil: an alignment step of scripts/bench_cgil.py on
--prompts prompts of ViT-B/32 width. Seconds are of the process's own processor time, which waiting for another rank
does not use; the first two steps are left out. The runs on one and on two ranks follow each other.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main as program
from backbone.clip import CLIPBackbone, build_network
from backbone.clip_files import ClipWeights, openai_clip
from models.utils import vlm_model
from models.utils.continual_model import ContinualModel
from scripts.bench_cgil import Bench
from tests import fabricate
from tests.ranks import on_ranks
from utils import cli, ranks
from utils.ranks.group import Group
from utils.ranks.join import member

WARM = 2  # steps that are not counted


class Enough(Exception):
    """The steps that were asked for are done."""


def base_32(*_args, **_named) -> CLIPBackbone:
    """ViT-B/32 with random weights."""
    torch.manual_seed(0)
    net = openai_clip().model.CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)
    weights = ClipWeights(net.state_dict(), sha256="random", heads=(12, 8))
    return CLIPBackbone(build_network(weights, "random", torch.float32), weights, "random")


def run_steps(argv: list[str], steps: int) -> list[float]:
    """Processor seconds of each step of a run, which ends after them."""
    seconds, observe = [], ContinualModel.meta_observe

    def timed(model, *args, **named):
        began = time.process_time()
        result = observe(model, *args, **named)
        seconds.append(time.process_time() - began)
        if len(seconds) == steps + WARM:
            raise Enough
        return result

    with mock.patch.object(ContinualModel, "meta_observe", timed), mock.patch.object(vlm_model, "load_clip", base_32):
        try:
            program.run(cli.parse(argv))
        except Enough:
            pass
    return seconds[WARM:]


def align_steps(prompts: int, steps: int) -> list[float]:
    bench = Bench(prompts)
    seconds = [
        bench.step(lambda rows: bench.prompts.encode(bench.clip, bench.context(rows), rows)) for _ in range(WARM)
    ]
    return [
        bench.step(lambda rows: bench.prompts.encode(bench.clip, bench.context(rows), rows)) for _ in range(steps)
    ] or seconds


def argv_of(what: str, base: Path, batch: int) -> list[str]:
    shared = f"--device cpu --seed 0 --non_verbose 1 --disable_log 1 --batch_size {batch} --base_path {base}".split()
    if what == "er":
        fabricate.cifar10(base, 4000, 100)
        return [*"--model er --dataset seq-cifar10 --backbone resnet18 --lr 0.03 --buffer_size 200".split(), *shared]
    return [*"--model finetune-clip --dataset seq-cifar10 --clip_backbone random".split(), *shared]


def measure(what: str, args: argparse.Namespace) -> float:
    with tempfile.TemporaryDirectory(prefix="bench_ranks_") as folder:
        argv = None if what == "cgil" else argv_of(what, Path(folder), args.batch)
        if what == "finetune-clip":
            fabricate.cifar10(Path(folder), 4000, 100)

        def work(group: Group) -> tuple[list[float], dict]:
            me = Group(group.rank, group.size)
            with member(me) if group.size > 1 else mock.MagicMock():
                seconds = align_steps(args.prompts, args.steps) if argv is None else run_steps(argv, args.steps)
                return seconds, ranks.sent()

        (one,) = on_ranks(1, work)
        two = on_ranks(2, work)
    alone, slower = statistics.median(one[0]), max(statistics.median(answer[0]) for answer in two)
    sent = two[0][1]
    size = f"{args.prompts} prompts" if argv is None else f"batch {args.batch}"
    print(
        f"{what}, {size}: {alone:.2f} s on one rank, {slower:.2f} s on the slower of two: {alone / slower:.2f} times; "
        f"{sent['gradients'] / max(1, sent['steps']) / 1e6:.1f} MB of gradients in each averaging",
        flush=True,
    )
    return alone / slower


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["er", "finetune-clip", "cgil"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=60)
    args = parser.parse_args()
    for what in args.what:
        measure(what, args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
