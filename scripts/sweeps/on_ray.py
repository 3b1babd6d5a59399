"""A grid as tasks of a Ray cluster that is there: for several machines without a scheduler, and otherwise not needed.

A task runs one line of a file of commands (scripts/sweeps/one.sh) in the folder where the sweep was started, on
whichever node has room; that folder and the results are on a file system that all nodes share. When a node is lost, Ray
starts its tasks elsewhere and the runs continue from their checkpoints.
"""

import argparse
import importlib
import importlib.util
import os
import signal
from collections.abc import Sequence
from typing import Any

from scripts.sweeps.grid import flags_of
from scripts.sweeps.on_slurm import ONE, write_commands
from scripts.sweeps.plan import Job
from utils.errors import UserError

USER_ERROR = 2
LOST_NODES = 20  # how often Ray starts a task again because its node is gone


def connected() -> Any:
    """The package, connected to the cluster of $RAY_ADDRESS or of this machine."""
    if importlib.util.find_spec("ray") is None:
        raise UserError("--on ray needs the package ray: pip install ray")
    ray = importlib.import_module("ray")
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"no Ray cluster ({told}): start one with `ray start --head` or set RAY_ADDRESS; --on local runs here"
        ) from None
    return ray


def task() -> Any:
    """The function that a worker runs; it holds all that it needs, since a worker does not import this file."""

    def one_run(one: str, commands: str, number: int) -> tuple[int, str]:
        import subprocess

        process = subprocess.Popen(["bash", one, commands, str(number)], stderr=subprocess.PIPE, text=True)
        try:
            told = process.communicate()[1]
        except KeyboardInterrupt:  # the task was cancelled: the run saves
            process.terminate()
            told = process.communicate()[1]
        return process.returncode, (told.strip().splitlines() or ["it said nothing"])[-1][:300]

    return one_run


def needs(ray: Any, job: Job, args: argparse.Namespace) -> dict[str, float]:
    """CPUs and GPUs of a run."""
    there = ray.cluster_resources()
    on_cpu = dict(flags_of(job.argv)).get("device") == "cpu"
    number = args.num_gpus if args.num_gpus is not None else float(there.get("GPU", 0) >= 1 and not on_cpu)
    wanted = {"num_cpus": 1.0 if args.num_cpus is None else args.num_cpus, "num_gpus": number}
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        if wanted[name] > there.get(kind, 0):
            raise UserError(f"a run needs {wanted[name]:g} {kind}s; the Ray cluster has {there.get(kind, 0):g} in all")
    return wanted


def run(waiting: Sequence[Job], jobs: Sequence[Job], args: argparse.Namespace) -> int:
    """All runs; 0, 1 if some failed, 128 + signal if it was stopped."""
    ray = connected()
    stopped: list[int] = []
    before = {
        s: signal.signal(s, lambda number, frame: stopped.append(number)) for s in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        return watched(ray, waiting, args, stopped)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ray.shutdown()


def watched(ray: Any, waiting: Sequence[Job], args: argparse.Namespace, stopped: list[int]) -> int:
    commands = write_commands(waiting, args.grid, "ray")
    remote = ray.remote(max_retries=LOST_NODES)(task())
    tries, retries = dict.fromkeys(range(len(waiting)), 0), 1 if args.retries is None else args.retries

    def start(number: int) -> Any:
        tries[number] += 1
        return remote.options(**needs(ray, waiting[number], args)).remote(str(ONE), str(commands), number + 1)

    running = {start(number): number for number in tries}
    print(f"{len(waiting)} runs are tasks of the Ray cluster; logs are in {waiting[0].home / 'logs'}", flush=True)
    ended, failed, cancelled = 0, 0, False
    while running:
        if stopped and not cancelled:
            cancelled = True
            for reference in running:
                ray.cancel(reference)
        ready, _ = ray.wait(list(running), timeout=1.0)
        for reference in ready:
            number = running.pop(reference)
            try:
                code, told = ray.get(reference)
            except Exception as error:  # Ray's own: the task was cancelled before it began, or its nodes were lost
                code, told = 1, " ".join(str(error).split())[:300]
            if not stopped and code not in (0, USER_ERROR) and tries[number] <= retries:
                print(f"{waiting[number]}: crashed ({code}): {told}; it is continued later", flush=True)
                running[start(number)] = number
                continue
            ended, failed = ended + 1, failed + bool(code)
            print(
                f"[{ended}/{len(waiting)}] {waiting[number]}: {f'failed ({code}): {told}' if code else 'done'}",
                flush=True,
            )
    return 128 + stopped[0] if stopped else int(failed > 0)
