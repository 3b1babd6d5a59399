"""All that has to be known on a GPU, in at most 8 minutes on one card; bash scripts/gpu_check.sh starts it.

    bash scripts/gpu_check.sh                        # table on stdout, JSON in runs/gpu_check-<time>.json
    bash scripts/gpu_check.sh --only align vae
    bash scripts/gpu_check.sh --device cpu --tiny    # tries the script itself; its figures say nothing

Weights and images are random. Each part has a time limit. A part that fails or takes too long is named with its error
and the rest goes on in a fresh process; the exit code is then 1, and 2 without a CUDA device. Seconds are of the wall
clock, the median over blocks of steps. The share in kernels is the time in which at least one kernel or copy ran, in
profiled steps, over the time of as many steps without the profiler; on a CPU it is that of operators.
"""

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.errors import UserError, disk_errors  # noqa: E402

TOTAL_S = 470  # of all parts together; the rest of 8 minutes is this script's own
START_S = 90  # until a process has imported torch and seen the device


class Plan(NamedTuple):
    """Steps that are not counted, blocks of steps that are timed, and steps under the profiler."""

    warm: int
    blocks: int
    per_block: int
    profiled: int

    @property
    def steps(self) -> int:
        return self.warm + self.blocks * self.per_block + self.profiled


TINY = Plan(1, 2, 1, 1)


def union_s(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds in which at least one of the spans (start and end in microseconds) runs."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total / 1e6


def busy_s(events: Iterable, cuda: bool) -> float:
    """Seconds in kernels; annotations (an optimizer's step) also lie on the device's time line and are left out."""
    from torch.autograd import DeviceType

    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    own = (e for e in events if e.device_type == kind and not getattr(e, "is_user_annotation", False))
    return union_s((e.time_range.start, e.time_range.end) for e in own)


class Watch:
    """Times steps that somebody else runs: `tick` is called after each, `steps` times in all."""

    def __init__(self, device: str, plan: Plan):
        import torch
        from torch import profiler

        self.cuda, self.plan, self.steps = device == "cuda", plan, plan.steps
        self.done, self.seconds, self.kernels_s, self.mark = 0, [], None, 0.0
        kind = profiler.ProfilerActivity.CUDA if self.cuda else profiler.ProfilerActivity.CPU
        self.profile = profiler.profile(activities=[kind], acc_events=True)
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def clock(self) -> float:
        import torch

        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def tick(self) -> None:
        self.done += 1
        timed = self.done - self.plan.warm
        last = self.plan.blocks * self.plan.per_block
        if timed == 0:
            self.mark = self.clock()
        if 0 < timed <= last and timed % self.plan.per_block == 0:
            now = self.clock()
            self.seconds.append((now - self.mark) / self.plan.per_block)
            self.mark = now
        if timed == last:
            self.profile.start()
        if self.done == self.steps:
            self.clock()
            self.profile.stop()
            self.kernels_s = busy_s(self.profile.events(), self.cuda) / self.plan.profiled

    def run(self, step: Callable[[], object]) -> "Watch":
        for _ in range(self.steps):
            step()
            self.tick()
        return self

    def row(self, what: str, per_step: int, unit: str) -> dict:
        """One line of the table; `per_step` is how many of `unit` a step does."""
        import torch

        from scripts import bench_engine

        if self.done != self.steps:
            raise RuntimeError(f"{what}: {self.done} of {self.steps} steps were run")
        middle = statistics.median(self.seconds)
        # of this row's tensors, or of the process so far
        peak = torch.cuda.max_memory_allocated() if self.cuda else bench_engine.peak_bytes()
        return {
            "what": what,
            "value": per_step / middle,
            "unit": unit,
            "low": per_step / max(self.seconds),
            "high": per_step / min(self.seconds),
            "ms_per_step": 1e3 * middle,
            "kernel_share": self.kernels_s / middle if self.kernels_s else None,
            "peak_mib": peak / 2**20,
        }


def align(args: argparse.Namespace) -> list[dict]:
    """CGIL's alignment: 200 prompts through the text tower of ViT-L/14, 128 features."""
    from scripts import bench_cgil

    classes, width, layers = (4, 64, 1) if args.tiny else (200, 768, 12)
    watch = Watch(args.device, TINY if args.tiny else Plan(5, 5, 10, 5))
    bench = bench_cgil.Bench(classes, width, layers, args.device)
    watch.run(lambda: bench.step(bench.ours))
    return [watch.row(f"CGIL alignment, {classes} classes, text width {width}", 1, "steps/s")]


def extract(args: argparse.Namespace) -> list[dict]:
    """Images that are on the device already through a frozen ViT-L/14, 64 at once."""
    import torch

    from scripts import bench_mulki

    shape, batch = ("toy", 2) if args.tiny else ("large", 64)
    side, rows = bench_mulki.SHAPES[shape][1], []
    for dtype in (torch.float32, torch.bfloat16):
        watch = Watch(args.device, TINY if args.tiny else Plan(2, 5, 2, 2))
        clip = bench_mulki.random_clip(shape, args.device, dtype)
        images = torch.randn(batch, 3, side, side, device=args.device)
        with torch.no_grad():
            watch.run(lambda clip=clip, images=images: clip.encode_image(images))
        rows.append(watch.row(f"frozen CLIP {shape}, {str(dtype)[6:]}, batch {batch}", batch, "images/s"))
    return rows


def replay(method: str, args: argparse.Namespace) -> list[dict]:
    """A run of a replay method on generated images in CIFAR-10's files, with its loader and augmentation."""
    from scripts import bench_engine
    from tests import fabricate
    from utils.engine import training

    watch = Watch(args.device, TINY if args.tiny else Plan(10, 5, 20, 10))
    filters = 4 if args.tiny else 64
    plain_step = training.Fit.step

    def step(*given):
        loss = plain_step(*given)
        watch.tick()
        return loss

    with tempfile.TemporaryDirectory() as folder:
        fabricate.cifar10(folder, *((400, 20) if args.tiny else (20000, 500)), protocol=2)
        limits = ["--fitting_mode", "iters", "--n_iters", str(watch.steps), "--stop_after", "0"]
        more = [*limits, "--device", args.device, "--num_filters", str(filters)]
        argv = bench_engine.run_argv(method, "seq-cifar10", folder, f"{folder}/runs", *more)
        model, dataset, run_args, record, _ = bench_engine.build(argv)
        with mock.patch.object(training.Fit, "step", step), bench_engine.quiet():
            training.train(model, dataset, run_args, record)
    batch = run_args.batch_size
    return [watch.row(f"{method}, resnet18 x{filters}, 32 x 32, batch {batch}", batch, "images/s")]


def mulki(args: argparse.Namespace) -> list[dict]:
    """A step in the second task, where both teachers differ, and one of plain fine-tuning."""
    from scripts import bench_mulki

    shape, batch, classes = ("toy", 4, 2) if args.tiny else ("base", 32, 40)
    sizes = argparse.Namespace(
        shape=shape, batch=batch, classes=classes, device=args.device, half=False, code_optimization=0
    )
    rows = []
    for name in ("plain fine-tuning", "MulKI, teachers encode each batch"):
        with tempfile.TemporaryDirectory() as base:
            watch = Watch(args.device, TINY if args.tiny else Plan(2, 5, 3, 2))
            watch.run(bench_mulki.Arm(name, sizes, base).step)
        rows.append(watch.row(f"{name}, CLIP {shape}, batch {batch}", 1, "steps/s"))
    return rows


def vae(args: argparse.Namespace) -> list[dict]:
    """Fits of a class's VAE, 20 classes together."""
    from scripts import bench_generative

    sizes = dict(classes=2, samples=70, dim=8, hidden_dim=16, latent_dim=4, epochs=2)
    if not args.tiny:
        sizes = dict(classes=20, samples=120, dim=768, hidden_dim=512, latent_dim=256, epochs=50)
    sizes = argparse.Namespace(**sizes, device=args.device)
    watch = Watch(args.device, TINY if args.tiny else Plan(1, 5, 1, 1))
    features = dict(enumerate(bench_generative.random_features(sizes)))
    generator = bench_generative.VAE(sizes.hidden_dim, sizes.latent_dim, n_iters=sizes.epochs)
    watch.run(lambda: generator.fit(features))
    what = f"VAE, {sizes.classes} classes x {sizes.samples} x {sizes.dim}, {sizes.epochs} epochs"
    return [watch.row(what, sizes.classes, "fits/s")]


def marked_tests(args: argparse.Namespace) -> list[dict]:
    """The tests with the mark gpu, from the files that have one; on a CPU they are only collected."""
    files = [str(p) for p in sorted((ROOT / "tests").rglob("test_*.py")) if "@pytest.mark.gpu" in p.read_text()]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", f"--junit-xml={report}", "-p", "no:cacheprovider"]
        command += ["--collect-only"] * (args.device == "cpu")
        done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pytest exited with {done.returncode}: {done.stdout[-3000:]}{done.stderr[-1000:]}")
        if args.device == "cpu":
            return [{"what": "-m gpu tests collected, none run", "value": done.stdout.count("::"), "unit": "tests"}]
        (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    skipped = int(suite.get("skipped"))
    passed = int(suite.get("tests")) - skipped
    if not passed:
        raise RuntimeError(f"all {skipped} tests were skipped")
    return [{"what": f"-m gpu tests passed, {skipped} skipped", "value": passed, "unit": "tests"}]


class Part(NamedTuple):
    limit_s: float
    measure: Callable[[argparse.Namespace], list[dict]]


PARTS = {
    "align": Part(60, align),
    "extract": Part(60, extract),
    "er": Part(45, functools.partial(replay, "er")),
    "derpp": Part(45, functools.partial(replay, "derpp")),
    "mulki": Part(75, mulki),
    "vae": Part(45, vae),
    "tests": Part(180, marked_tests),
}


def machine(args: argparse.Namespace) -> dict:
    """What the figures depend on; refused where the device is absent."""
    import torch

    from utils.engine import provenance

    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"torch {torch.__version__} sees no CUDA device, and nothing was measured; try the script itself with "
            "--device cpu --tiny"
        )
    if args.device == "cpu":
        torch.set_num_threads(1)
    commit, changes = provenance.commit_and_changes()
    return {
        "device": args.device,
        "gpu": provenance.graphics(torch.device(args.device)),
        "torch": torch.__version__,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_convolution": torch.backends.cudnn.allow_tf32,
        "commit": commit,
        "changes": changes,
    }


def work(pipe, prepare: Callable, parts: dict[str, Part], args: argparse.Namespace) -> None:
    """The other process: sends what `prepare` says, then the rows of each part, and ends at the first error."""
    os.setsid()  # so that what a part starts can be ended with it
    for call in (prepare, *(part.measure for part in parts.values())):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                pipe.send({"found": call(args)})
        except (Exception, SystemExit) as error:
            told = f"{type(error).__name__}: {error}"
            refused = call is prepare and isinstance(error, UserError)
            pipe.send({"error": told, "traceback": traceback.format_exc(), "refused": str(error) if refused else ""})
            return


def answer(pipe, process, limit_s: float) -> dict:
    if not pipe.poll(max(0.0, limit_s)):
        return {"error": f"no result within {limit_s:.0f} s"}
    try:
        return pipe.recv()
    except EOFError:
        process.join(5)
        return {"error": f"the process ended with exit code {process.exitcode}"}


def measure_all(parts: dict[str, Part], prepare: Callable, args: argparse.Namespace) -> tuple[dict, dict]:
    """(what `prepare` says, part -> {"found": rows} or {"error": ...}); after an error a fresh process goes on."""
    context, end = multiprocessing.get_context("spawn"), time.monotonic() + TOTAL_S
    facts, results, left = {}, {}, dict(parts)
    while left:
        pipe, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, prepare, left, args))
        process.start()
        theirs.close()
        try:
            ready = answer(pipe, process, min(START_S, end - time.monotonic()))
            if ready.get("refused"):
                raise UserError(ready["refused"])
            if "error" in ready:
                return facts, results | dict.fromkeys(left, ready)
            facts = ready["found"]
            for name in list(left):
                part = left.pop(name)
                results[name] = answer(pipe, process, min(part.limit_s, end - time.monotonic()))
                print(f"{name}: {results[name].get('error', 'done')}", file=sys.stderr, flush=True)
                if "error" in results[name]:
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):  # it has ended, or does not lead a group yet
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
    return facts, results


def table(results: dict) -> str:
    """The rows of all parts, and errors in their place."""
    lines = [f"{'':62s} {'per second':>11s} {'':8s} {'ms a step':>10s} {'in kernels':>10s} {'peak MiB':>9s}"]
    for name, result in results.items():
        if "error" in result:
            lines.append(f"FAILED {name}: {' '.join(result['error'].split())[:300]}")
        for row in result.get("found", []):
            line = f"{row['what']:62s} {row['value']:11.2f} {row['unit']:8s}"
            if "ms_per_step" in row:
                share = "-" if row["kernel_share"] is None else f"{row['kernel_share']:.2f}"
                line += f" {row['ms_per_step']:10.2f} {share:>10s} {row['peak_mib']:9.0f}"
            lines.append(line)
    return "\n".join(lines)


def complete(result: dict) -> dict:
    """Rows in which the profiler saw no kernel are kept, but the part has failed."""
    blind = [row["what"] for row in result.get("found", []) if row.get("kernel_share", 1) is None]
    return result | {"error": f"the profiler saw no kernel: {'; '.join(blind)}"} if blind else result


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes that say nothing about speed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--json", type=Path, default=Path(f"runs/gpu_check-{time.strftime('%Y%m%d-%H%M%S')}.json"))
    args = parser.parse_args(argv)
    begun = time.monotonic()
    try:
        if args.device == "cpu" and not args.tiny:
            raise UserError("--device cpu only tries the script itself: add --tiny")
        if args.json.exists():
            raise UserError(f"{args.json} exists; choose another --json")
        with disk_errors(args.json, "choose another --json"):
            args.json.parent.mkdir(parents=True, exist_ok=True)
        facts, results = measure_all({name: PARTS[name] for name in PARTS if name in args.only}, machine, args)
    except UserError as error:
        print(f"gpu_check: {error}", file=sys.stderr)
        return 2
    results = {name: complete(result) for name, result in results.items()}
    command = shlex.join(["bash", "scripts/gpu_check.sh", *(sys.argv[1:] if argv is None else argv)])
    facts |= {"command": command, "tiny": args.tiny, "seconds": round(time.monotonic() - begun, 1)}
    card = facts["gpu"]["name"] + ", driver " + facts["gpu"]["driver"] if facts.get("gpu") else args.device
    print(f"{card}, torch {facts.get('torch')}, commit {facts.get('commit')}, {facts['seconds']} s; {args.json}")
    print(table(results), flush=True)
    args.json.write_text(json.dumps({"machine": facts, "parts": results}, indent=1) + "\n")
    return int(any("error" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
