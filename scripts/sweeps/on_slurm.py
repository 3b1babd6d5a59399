"""One sbatch array for a grid: task n runs line n of a file of commands (scripts/sweeps/one.sh).

Preemption and a time limit send TERM a minute before the end: the run saves, is queued again and continues. A node that
is lost is Slurm's to notice; it queues the task again. What is finished is read from the records, never from squeue.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.sweeps import locks
from scripts.sweeps.plan import Job
from utils.cli.registry import ROOT
from utils.errors import UserError, disk_errors

OPTIONS = {
    "account": "who pays",
    "partition": "the queue",
    "time": "limit of one start of a run, for example 4:00:00; longer runs continue in the next",
    "gres": "devices of a run, for example gpu:1",
}
ONE = Path(__file__).resolve().parent / "one.sh"
WARN_S = 60  # between TERM and the end: time to save


def line_of(job: Job) -> str:
    """A line of the file of commands."""
    log = job.home / "logs" / f"{job.config[:16]}.log"
    places = [Path.cwd(), locks.path_of(job).absolute(), log.absolute()]
    return shlex.join([*map(str, places), sys.executable, str(ROOT / "main.py"), *job.argv])


def script_of(commands: Path, number: int, args: argparse.Namespace) -> str:
    """The text of the sbatch script."""
    at_once = f"%{args.jobs}" if args.jobs else ""
    options = [
        f"--job-name=sweep-{commands.parent.name}",
        f"--array=1-{number}{at_once}",
        "--requeue",
        f"--signal=B:TERM@{WARN_S}",
        "--open-mode=append",
        f"--output={shlex.quote(str(commands.parent / '%a.out'))}",
        *(f"--{name}={shlex.quote(value)}" for name in OPTIONS if (value := getattr(args, name)) is not None),
        *([] if args.sbatch is None else shlex.split(args.sbatch)),
    ]
    lines = ["#!/usr/bin/env bash", *(f"#SBATCH {option}" for option in options)]
    lines.append('export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}" OMP_WAIT_POLICY=PASSIVE')
    lines.append(f'exec bash {shlex.quote(str(ONE))} {shlex.quote(str(commands))} "$SLURM_ARRAY_TASK_ID"')
    return "\n".join(lines) + "\n"


def submit(jobs: Sequence[Job], args: argparse.Namespace) -> int:
    """Write the commands and the script, and give it to sbatch."""
    if shutil.which("sbatch") is None:
        raise UserError("--on slurm needs Slurm's sbatch on this machine; --on local runs the grid here")
    commands = write_commands(jobs, args.grid, "slurm")
    script = commands.parent / "sweep.sbatch"
    with disk_errors(script):
        script.write_text(script_of(commands, len(jobs), args))
    done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise UserError("\n".join(f"sbatch {script}: {line}" for line in told[:5]))
    print(f"{len(jobs)} runs are queued as array {done.stdout.strip().split(';')[0]}: {script}")
    print(f"python scripts/sweep.py status {shlex.quote(args.grid)} shows how far they are")
    return 0


def write_commands(jobs: Sequence[Job], grid: str, place: str) -> Path:
    """The file of commands of one submission, in a folder of its own."""
    folder = (jobs[0].home / place / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(grid).stem}").absolute()
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "commands").write_text("".join(f"{line_of(job)}\n" for job in jobs))
    return folder / "commands"
