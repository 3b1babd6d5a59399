"""Time and memory of the engine against bare PyTorch loops that do the same math, on generated CIFAR-like files.

    python scripts/bench.py --suite engine                          # about 3 minutes on one core
    python scripts/bench.py --suite engine --sections step --wide 0  # only steps, only with the narrow network

Both sides of a ratio alternate in one process; the median of the paired ratios counts. Peak memory is measured in one
process per side.
"""

import argparse
import contextlib
import copy
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision  # noqa: F401  (a run imports it, and so would any bare loop for its transforms)

from scripts import bench_bare
from scripts.bench_bare import ALPHA, BATCH, BETA, BUFFER, EVAL_BATCH, LR
from scripts.bench_common import Row, in_child, quiet
from utils.flags import positive_int

MIB = 2**20
ENOUGH_PAIRS = 20  # fewer cannot distinguish 3 percent from noise


class Interleaved:
    """The engine's train loader; after each batch that the engine has worked through, the bare loop takes the same one.

    Seconds between two batches are the engine's: reading, step, and all that the loop does around it.
    """

    def __init__(self, loader, bare: bench_bare.Replay, model):
        self.loader, self.bare, self.model = loader, bare, model
        self.engine_s, self.bare_s = [], []
        self.bare_random = None

    def __getattr__(self, name: str):
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int, start: int = 0):
        from utils.randomness import generator

        order, split = self.loader.order(("epoch", epoch)).split(BATCH), self.loader.dataset
        numbers = torch.rand(len(split), 3, generator=generator(*self.loader.key, "epoch", epoch, "augment"))
        mark = time.process_time()
        for positions, batch in zip(order, self.loader.epoch(epoch, start), strict=True):
            if self.bare_random is None:
                self.bare_random = np.random.get_state(), torch.get_rng_state()
            yield batch
            self.engine_s.append(time.process_time() - mark)
            self.take_turn(split.rows, positions, numbers)
            mark = time.process_time()

    def take_turn(self, rows, positions, numbers) -> None:
        """The bare step, under global random states of its own."""
        engine = np.random.get_state(), torch.get_rng_state()
        np.random.set_state(self.bare_random[0])
        torch.set_rng_state(self.bare_random[1])
        mark = time.process_time()
        self.bare.step(rows[positions], numbers[positions])
        self.bare_s.append(time.process_time() - mark)
        self.bare_random = np.random.get_state(), torch.get_rng_state()
        np.random.set_state(engine[0])
        torch.set_rng_state(engine[1])
        for ours, bare in zip(self.model.net.parameters(), self.bare.net.parameters(), strict=True):
            if not torch.equal(ours, bare):
                sys.exit(f"{self.bare.method}: after step {len(self.bare_s)} the weights of the two sides differ")


def step_rows(args: argparse.Namespace) -> list[Row]:
    """Engine step over bare step, for er and derpp; a step after which the weights differ stops the bench."""
    rows = []
    for filters, pairs in ((8, args.pairs), (64, args.wide)):
        for method in ("er", "derpp") if pairs else ():
            size = ["--num_filters", str(filters)]
            engine, bare, ratio = timed_steps(method, "seq-cifar10", pairs, args, *size)
            note = f"{1e3 * engine:.1f} against {1e3 * bare:.1f} ms, {pairs} pairs"
            bound = 1.03 if pairs >= ENOUGH_PAIRS else None
            rows.append(Row(f"{method} step, resnet18 x{filters}", ratio, "x", bound, note))
    for method in ("er", "derpp"):
        engine, bare, _ = timed_steps(method, "seq-mnist", 8 * args.pairs, args)
        note = f"{1e3 * engine:.2f} against {1e3 * bare:.2f} ms: what a step costs without the network"
        rows.append(Row(f"{method} step, mnistmlp, engine minus bare", 1e3 * (engine - bare), "ms", None, note))
    return rows


def timed_steps(method: str, stream: str, pairs: int, args: argparse.Namespace, *more: str) -> tuple[float, ...]:
    """Median seconds of an engine step and of a bare step in the first task of a run, and their median ratio."""
    from utils.engine.training import train

    skip = 2  # the first step has no memory yet, the second is the first to read it
    limits = ["--fitting_mode", "iters", "--n_iters", str(pairs + skip + 1), "--stop_after", "0"]
    model, dataset, run_args, record, twin = build(run_argv(method, stream, args.small, args.runs, *limits, *more))
    found, get_loaders = [], dataset.get_data_loaders

    def interleaved_loaders():
        train_loader, test_loader = get_loaders()
        samples = dataset.samples(True)
        bare = bench_bare.Replay(method, twin, samples.data, samples.targets)
        dataset.train_loader = Interleaved(train_loader, bare, model)
        found.append(dataset.train_loader)
        return dataset.train_loader, test_loader

    dataset.get_data_loaders = interleaved_loaders
    with quiet():
        train(model, dataset, run_args, record)
    (loader,) = found
    times = list(zip(loader.engine_s, loader.bare_s, strict=True))[skip:]
    engine, bare = (statistics.median(side) for side in zip(*times, strict=True))
    return engine, bare, statistics.median(e / b for e, b in times)


def run_argv(method: str, dataset: str, data: str, runs: str, *more: str) -> list[str]:
    replay = {"er": ["--buffer_size", str(BUFFER)], "sgd": []}
    replay["derpp"] = [*replay["er"], "--alpha", str(ALPHA), "--beta", str(BETA)]
    return [
        "--model",
        method,
        "--dataset",
        dataset,
        "--base_path",
        data,
        "--results_path",
        runs,
        *([] if "--device" in more else ["--device", "cpu"]),
        "--lr",
        str(LR),
        "--batch_size",
        str(BATCH),
        "--seed",
        "0",
        *replay[method],
        *more,
    ]


def build(argv: list[str]) -> tuple:
    """Model, dataset, arguments and record of a run, as main.py makes them, and a copy of the network."""
    from backbone import get_backbone
    from datasets import get_dataset
    from models import get_model
    from utils import cli
    from utils.engine import launch

    parsed = cli.parse(argv)
    args = parsed.args
    requested = launch.fill_in(args)
    launch.set_up(args, None)
    dataset = get_dataset(args)
    launch.check_against_dataset(args, dataset)
    builds_own = getattr(parsed.model_class, "BUILDS_OWN_NET", False)
    net = get_backbone(args) if args.backbone and not builds_own else None
    twin = copy.deepcopy(net)
    model = get_model(args, net, dataset.get_loss(), dataset.get_transform(), dataset)
    first_line = launch.start_line(args, requested, dataset, model, parsed.argv)
    return model, dataset, args, launch.open_record(args, requested, None, first_line, model), twin


def memory_rows(args: argparse.Namespace) -> list[Row]:
    """Peak resident memory of a seq-cifar10 run with all 60,000 images over that of the bare loop."""
    rows = []
    for filters, tasks in [(8, 2)] + ([(8, 5), (64, 1)] if args.full else []):
        size = ["--num_filters", str(filters), "--stop_after", str(tasks - 1)]
        argv = run_argv("er", "seq-cifar10", args.large, args.runs, "--fitting_mode", "iters", "--n_iters", "5", *size)
        engine = in_child("bench_engine", "memory", *argv)["peak"]
        bare = in_child("bench_engine", "bare_memory", args.large, filters, tasks)["peak"]
        note = f"{engine / MIB:.0f} against {bare / MIB:.0f} MiB"
        rows.append(Row(f"peak memory, {tasks} task(s), resnet18 x{filters}", engine / bare, "x", 1.2, note))
    return rows


def child_memory(argv: list[str]) -> dict:
    import main

    with quiet():
        code = main.main(argv)
    return {"peak": peak_bytes()} if code == 0 else sys.exit(f"main.py {' '.join(argv)} exited with {code}")


def child_bare_memory(argv: list[str]) -> dict:
    from backbone.resnet import resnet18

    data, filters, tasks = argv
    bench_bare.live(Path(data) / "CIFAR10" / "cifar-10-batches-py", resnet18(10, int(filters)), int(tasks))
    return {"peak": peak_bytes()}


def peak_bytes() -> int:
    """Highest resident memory of this process since it began (Linux counts rusage across exec, so not that)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def evaluation_rows(args: argparse.Namespace) -> list[Row]:
    """Evaluation over bare evaluation; the bench stops if a test image takes a second pass at a task boundary."""
    from utils.engine.evaluate import evaluate_tasks
    from utils.engine.training import train
    from utils.passes import eval_batch_size

    model, dataset, run_args, record, twin = build(
        run_argv(
            "sgd", "seq-cifar10", args.small, args.runs, *"--fitting_mode iters --n_iters 1 --num_filters 8".split()
        )
    )
    with quiet():
        train(model, dataset, run_args, record)
    sizes = [len(loader.dataset) for loader in dataset.test_loaders]
    needed = sum(sum(sizes[: t + 1]) for t in range(len(sizes)))
    evaluated = model.image_forwards - BATCH * dataset.N_TASKS
    if evaluated != needed:
        sys.exit(f"evaluation: {evaluated} images went through the network, one pass per task boundary is {needed}")
    samples = dataset.samples(False)
    bare = bench_bare.Replay("sgd", model.net, samples.data, samples.targets)
    rows, seconds = [loader.dataset.rows for loader in dataset.test_loaders], []
    batch = eval_batch_size(dataset.test_loaders[0], run_args)
    for _ in range(args.repeats + 1):
        marks = [time.process_time()]
        ours = evaluate_tasks(model, dataset, dict(enumerate(dataset.test_loaders)))
        marks.append(time.process_time())
        theirs = bench_bare.evaluate(bare, samples.data, rows, samples.targets)
        marks.append(time.process_time())
        seconds.append((marks[1] - marks[0], marks[2] - marks[1]))
        if [(s.class_il, s.task_il) for s in ours.values()] != theirs:
            sys.exit("evaluation: the two sides count different hits")
    engine, plain = (sum(sizes) / statistics.median(side) for side in zip(*seconds[1:], strict=True))
    note = f"{engine:.0f} against {plain:.0f} images/s, batches of {batch} and {EVAL_BATCH}"
    ratio = statistics.median(a / b for a, b in seconds[1:])
    return [Row(f"evaluation, resnet18 x8, {needed} images for {needed} forwards", ratio, "x", 1.1, note)]


CHILDREN = {"memory": child_memory, "bare_memory": child_bare_memory}
SECTIONS = {"step": step_rows, "memory": memory_rows, "evaluation": evaluation_rows}


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--pairs", type=int, default=30, help="pairs of steps with resnet18 of width 8")
    parser.add_argument("--wide", type=int, default=2, help="pairs of steps with the full resnet18; limit from 20 on")
    parser.add_argument("--repeats", type=positive_int, default=3, help="of an evaluation")
    parser.add_argument("--full", action="store_true", help="memory also over all tasks, and with the full resnet18")


def rows(args: argparse.Namespace) -> list[Row]:
    with generated_files(large="memory" in args.sections) as folders:
        return [row for name in args.sections for row in SECTIONS[name](argparse.Namespace(**vars(args), **folders))]


@contextlib.contextmanager
def generated_files(large: bool) -> Iterator[dict[str, str]]:
    """Folders with CIFAR-10 and MNIST in the published formats: `small`, `large` (all 60,000 images), `runs`."""
    from tests import fabricate

    warnings.filterwarnings("ignore", message=".*files other than the published")  # made up, as they are
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: f"{folder}/{name}" for name in ("small", "large", "runs")}
        fabricate.mnist(folders["small"], 20000, 500)
        fabricate.cifar10(folders["small"], 20000, 2000, protocol=2)
        if large:
            fabricate.cifar10(folders["large"], 50000, 10000, protocol=2)
        yield folders
