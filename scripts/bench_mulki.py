"""A training step of MulKI against a plain fine-tuning step of the same CLIP, alternating, with random weights.

The first task is trained for one step, then steps of the second are timed, where the two teachers differ. `ZSCL` is its
plain form: student and teacher also encode a batch of reference images, against 1,000 cached texts. A step is forward,
backward and AdamW, in processor seconds (on a GPU: wall seconds). The start of a task is what teachers cost once.

    OMP_NUM_THREADS=1 python scripts/bench_mulki.py [--shape SHAPE] [--batch 32] [--classes 40] [--repeats 5]
    OMP_NUM_THREADS=1 python scripts/bench_mulki.py --memory     # peak bytes of each arm, in a process of its own

--shape base is ViT-B/16 (150 million parameters), large ViT-L/14; small is base at a quarter of the width and half the
depth; toy has one layer.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import torch
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from backbone.clip import CLIPBackbone, build_network
from backbone.clip_files import ClipWeights, openai_clip
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples
from models.finetune_clip import FinetuneClip
from models.mulki import MulKI
from utils import cli
from utils.cli import registry
from utils.relations import divergence

# embed, image side, vision layers, width, patch, context, vocabulary, text width, heads, layers
SHAPES = {
    "toy": (64, 32, 1, 64, 16, 77, 49408, 64, 1, 1),
    "small": (128, 112, 6, 192, 16, 77, 49408, 128, 2, 6),
    "base": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "large": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
}
WORDS = ["cat", "dog", "tree", "house", "boat", "fish", "star", "cup"]


class ReferenceTuning(FinetuneClip):
    """ZSCL's step in its plain form, on random reference images."""

    NAME = "bench-reference"

    def begin_task(self, dataset):
        super().begin_task(dataset)
        if not hasattr(self, "teacher"):
            self.teacher = self.frozen_copy()
            self.reference = torch.randn(
                self.args.batch_size, 3, self.net.resolution, self.net.resolution, device=self.device
            )
            self.captions = normalize(torch.randn(1000, self.net.embed_dim, device=self.device), dim=1)

    def penalty(self, pixels, images, names, labels):
        with torch.no_grad():
            wanted = self.scale * self.image_rows(self.teacher, self.reference) @ self.captions.T
        given = self.scale * self.image_rows(self.net, self.reference) @ self.captions.T
        return divergence(wanted, given, 2.0).mean() + divergence(wanted.T, given.T, 2.0).mean()


ARMS = {
    "plain fine-tuning": (FinetuneClip, []),
    "MulKI, teachers' features kept": (MulKI, ["--cache_teacher", "1", "--teacher_dtype", "half", "--avg_freq", "2"]),
    "MulKI, teachers encode each batch": (MulKI, ["--teacher_dtype", "half", "--avg_freq", "2"]),
    "ZSCL, plain form": (ReferenceTuning, []),
}


def stream(classes: int, images: int, side: int) -> type:
    """Two tasks of random images."""

    class Noise(ContinualDataset):
        NAME, SETTING, N_TASKS, N_CLASSES_PER_TASK, SIZE = "bench-noise", "class-il", 2, classes, (side, side)
        CLASS_NAMES = [
            f"{WORDS[c % 8]} {WORDS[c // 8 % 8]}{' ' + WORDS[c // 64 % 8] if c >= 64 else ''}"
            for c in range(2 * classes)
        ]

        def load(self, train):
            labels = torch.arange(max(images, classes) * 2) % (2 * classes)
            draw = torch.Generator().manual_seed(0)
            return ArraySamples(
                torch.randint(0, 256, (len(labels), 3, side, side), dtype=torch.uint8, generator=draw), labels
            )

    return Noise


def random_clip(shape: str, device: str, dtype: torch.dtype = torch.float32) -> CLIPBackbone:
    torch.manual_seed(0)
    net = openai_clip().model.CLIP(*SHAPES[shape])
    heads = SHAPES[shape][3] // 64, SHAPES[shape][8]  # image tower, text tower
    weights = ClipWeights(net.state_dict(), sha256="random", heads=heads)
    return CLIPBackbone(build_network(weights, "random", dtype), weights, "random").to(device).eval()


class Arm:
    """A model in its second task; `step` times one training step."""

    def __init__(self, name: str, args, base: str):
        method, flags = ARMS[name]
        half = "bf16" if args.half or args.device == "cuda" else "fp32"  # half precision is slow on most CPUs
        dataset_class = stream(args.classes, args.batch, SHAPES[args.shape][1])
        with (
            mock.patch.dict(registry._registered["dataset"], {"bench-noise": dataset_class}),
            mock.patch.dict(registry._registered["model"], {method.NAME: method}),
            mock.patch("models.utils.vlm_model.load_clip", lambda *_: random_clip(args.shape, args.device)),
        ):
            argv = [
                "--model",
                method.NAME,
                "--dataset",
                "bench-noise",
                "--seed",
                "0",
                "--batch_size",
                str(args.batch),
                "--n_epochs",
                "1",
                "--device",
                args.device,
                "--base_path",
                base,
                "--features",
                "off",
                "--non_verbose",
                "1",
                "-O",
                str(args.code_optimization),
                *[half if f == "half" else f for f in flags],
            ]
            parsed = cli.parse(argv).args
            self.dataset = dataset_class(parsed)
            self.model = method(None, self.dataset.get_loss(), parsed, None, self.dataset).to(args.device)
        self.cuda, self.autocast = args.device == "cuda", args.code_optimization >= 2
        for task in range(2):
            self.dataset.get_data_loaders()
            self.model.train()
            began = self.clock()
            self.model.meta_begin_task(self.dataset)
            self.begin_s = self.clock() - began
            self.batch = [t.to(self.model.device) for t in next(iter(self.dataset.train_loader))]
            if task == 0:
                self.step()
                self.model.meta_end_task(self.dataset)

    def clock(self) -> float:
        if not self.cuda:
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def step(self) -> float:
        began = self.clock()
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast):
            inputs, labels, plain, *rest = self.batch
            self.model.meta_observe(inputs, labels.long(), plain, **({"position": rest[0]} if rest else {}))
        return self.clock() - began


def times(args, base: str) -> None:
    arms = {name: Arm(name, args, base) for name in ARMS}
    for arm in arms.values():
        arm.step()
    found = {name: [] for name in arms}
    for _ in range(args.repeats):
        for name, arm in arms.items():
            found[name].append(arm.step())
    plain = statistics.median(found["plain fine-tuning"])
    print(
        f"{args.shape}, batch {args.batch}, {args.classes} classes, {args.device}, "
        f"median of {args.repeats}, alternating"
    )
    print("| arm | ms per step | times plain | start of a task, ms |\n|---|---|---|---|")
    for name, values in found.items():
        print(
            f"| {name} | {1e3 * statistics.median(values):.0f} | {statistics.median(values) / plain:.2f} "
            f"| {1e3 * arms[name].begin_s:.0f} |"
        )


def memory(args) -> None:
    """Peak of each arm beyond what the process held before its network, in bytes and in sizes of the weights."""
    size = 4 * sum(p.numel() for p in random_clip(args.shape, "cpu").parameters())
    print(f"weights {size / 2**20:.0f} MiB\n| arm | peak beyond start, MiB | in weights |\n|---|---|---|")
    for name in ARMS:
        argv = [
            sys.executable,
            __file__,
            "--one",
            name,
            "--shape",
            args.shape,
            "--batch",
            str(args.batch),
            "--classes",
            str(args.classes),
            "--device",
            args.device,
            "-O",
            str(args.code_optimization),
        ]
        argv += ["--half"] * args.half
        peak = int(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
        print(f"| {name} | {peak / 2**20:.0f} | {peak / size:.2f} |")


def peak_of(args, base: str) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arm = Arm(args.one, args, base)
    for _ in range(3):
        arm.step()
    if args.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-O", "--code_optimization", type=int, default=0)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--half", action="store_true", help="bf16 teachers also on the CPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        if args.one:
            print(peak_of(args, base))
        else:
            memory(args) if args.memory else times(args, base)


if __name__ == "__main__":
    main()
