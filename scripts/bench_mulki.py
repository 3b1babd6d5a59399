"""A training step of MulKI against a plain fine-tuning step of the same CLIP, alternating, with random weights.

The first task is trained for one step, then steps of the second are timed, where the two teachers differ. `ZSCL` is its
plain form: student and teacher also encode a batch of reference images, against 1,000 cached texts. A step is forward,
backward and AdamW, in processor seconds (on a GPU: wall seconds). The start of a task is what teachers cost once.

    python scripts/bench.py --suite mulki [--shape small|base] [--batch 32] [--classes 40] [--repeats 5]
    python scripts/bench.py --suite mulki --memory     # peak bytes of each arm, in a process of its own

--shape base is ViT-B/16 (150 million parameters), large ViT-L/14; small is base at a quarter of the width and half the
depth; toy has one layer.
"""

import argparse
import json
import resource
import tempfile
from unittest import mock

import torch
from torch.nn.functional import normalize

from backbone.clip import CLIPBackbone, build_network
from backbone.clip_files import ClipWeights, openai_clip
from models.finetune_clip import FinetuneClip
from models.mulki import MulKI
from scripts import bench_noise
from scripts.bench_common import Row, clock, in_child, medians
from utils import cli, json_text
from utils.cli import registry
from utils.flags import positive_int
from utils.relations import divergence

# embed, image side, vision layers, width, patch, context, vocabulary, text width, heads, layers
SHAPES = {
    "toy": (64, 32, 1, 64, 16, 77, 49408, 64, 1, 1),
    "small": (128, 112, 6, 192, 16, 77, 49408, 128, 2, 6),
    "base": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "large": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
}


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
LIMITS = {"MulKI, teachers' features kept": 1.01, "MulKI, teachers encode each batch": 1.3}
OF_AN_ARM = ("shape", "batch", "classes", "device", "code_optimization", "half")


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
        dataset_class = bench_noise.stream(2, args.classes, args.batch, SHAPES[args.shape][1])
        with (
            bench_noise.known(dataset_class),
            mock.patch.dict(registry._registered["model"], {method.NAME: method}),
            mock.patch("models.utils.vlm_model.load_clip", lambda *_: random_clip(args.shape, args.device)),
        ):
            argv = [
                "--model",
                method.NAME,
                "--dataset",
                bench_noise.STREAM,
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
        self.device, self.autocast = args.device, args.code_optimization >= 2
        for task in range(2):
            self.dataset.get_data_loaders()
            self.model.train()
            began = clock(self.device)
            self.model.meta_begin_task(self.dataset)
            self.begin_s = clock(self.device) - began
            self.batch = [t.to(self.model.device) for t in next(iter(self.dataset.train_loader))]
            if task == 0:
                self.step()
                self.model.meta_end_task(self.dataset)

    def step(self) -> float:
        began = clock(self.device)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.autocast):
            inputs, labels, plain, *rest = self.batch
            self.model.meta_observe(inputs, labels.long(), plain, **({"position": rest[0]} if rest else {}))
        return clock(self.device) - began


def times(args, base: str) -> list[Row]:
    arms = {name: Arm(name, args, base) for name in ARMS}
    for arm in arms.values():
        arm.step()
    found = {name: [] for name in arms}
    for _ in range(args.repeats):
        for name, arm in arms.items():
            found[name].append(arm.step())
    plain, *_ = each = medians(found)
    rows = []
    for name, taken in zip(arms, each, strict=True):
        note = f"{1e3 * taken:.0f} ms; start of a task {1e3 * arms[name].begin_s:.0f} ms"
        rows.append(Row(f"step over plain fine-tuning: {name}", taken / plain, "x", LIMITS.get(name), note))
    return rows


def memory(args) -> list[Row]:
    """Peak of each arm beyond what the process held before its network, in sizes of the weights."""
    size = 4 * sum(p.numel() for p in random_clip(args.shape, "cpu").parameters())
    rows = []
    for name in ARMS:
        peak = in_child("bench_mulki", "peak", name, json.dumps({flag: getattr(args, flag) for flag in OF_AN_ARM}))[
            "peak"
        ]
        note = f"{peak / 2**20:.0f} MiB beyond start; weights {size / 2**20:.0f} MiB"
        rows.append(Row(f"peak memory over the weights: {name}", peak / size, "x", None, note))
    return rows


def child_peak(argv: list[str]) -> dict:
    name, args = argv[0], argparse.Namespace(**json_text.parse(argv[1]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as base:
        arm = Arm(name, args, base)
        for _ in range(3):
            arm.step()
    if args.device == "cuda":
        return {"peak": torch.cuda.max_memory_allocated()}
    return {"peak": 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}


CHILDREN = {"peak": child_peak}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--batch", type=positive_int, default=32)
    parser.add_argument("--classes", type=positive_int, default=40)
    parser.add_argument("--repeats", type=positive_int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-O", "--code_optimization", type=int, default=0)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--half", action="store_true", help="bf16 teachers also on the CPU")


def rows(args: argparse.Namespace) -> list[Row]:
    if args.memory:
        return memory(args)
    with tempfile.TemporaryDirectory() as base:
        return times(args, base)
