"""The local pool: runs of main.py, some at a time, in one thread that sleeps until one of them ends.

A configuration is locked while it runs; one that another sweep runs is waited for. Of the runs that read one data set,
the first fills the caches: the others wait until it has finished a task. The first signal lets the runs save and end,
the second ends them at once.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.sweeps import ledger, locks
from scripts.sweeps.gpus import Gpus
from scripts.sweeps.plan import Job, Key
from scripts.sweeps.state import Records, State, tasks_of
from utils.cli.registry import ROOT
from utils.errors import UserError, disk_errors
from utils.escape import clean

TICK_S = 1.0  # between looks at what other sweeps do
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
CORES = len(os.sched_getaffinity(0))  # before torch is imported, which may change it
USER_ERROR = 2  # the exit code that another try would give again
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass
class Started:
    """A run that was started."""

    job: Job
    process: subprocess.Popen
    lock: int
    log: Path
    log_begins: int
    gpu: str | None
    begun: float = field(default_factory=time.monotonic)


@dataclass
class Tally:
    """What became of the jobs of a pool."""

    done: list[Job] = field(default_factory=list)
    failed: dict[Key, str] = field(default_factory=dict)  # with the error
    seconds: list[float] = field(default_factory=list)  # of runs that ended well


class Pool:
    def __init__(
        self,
        jobs: Sequence[Job],
        at_once: int,
        gpus: Gpus | None = None,
        retries: int = 0,
        threads: int | None = None,
        told: Callable[[str], None] = print,
        main: Path | None = None,
        cwd: Path | None = None,
        warm: set[tuple[str, str]] | None = None,
    ):
        self.waiting, self.at_once, self.total = list(jobs), at_once, len(jobs)
        self.gpus, self.retries, self.told, self.cwd = gpus, retries, told, cwd
        self.main = main or ROOT / "main.py"
        self.warm = set(warm or ())
        self.running: dict[int, Started] = {}
        self.elsewhere: dict[Key, float] = {}  # when its lock is tried again
        self.tries: dict[Key, int] = {}
        self.tally, self.signal, self.begun = Tally(), 0, time.time()
        self.environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        number = threads or os.environ.get("OMP_NUM_THREADS") or max(1, CORES // at_once)
        self.environment |= {name: str(number) for name in THREADS if threads or name not in os.environ}

    def run(self, draw: Callable[["Pool"], None] = lambda pool: None) -> int:
        """All jobs; 0, 1 if some failed, 128 + signal if it was stopped."""
        warned = False
        with self.signals() as wake:
            try:
                while self.running or (self.waiting and not self.signal):
                    if not self.signal:
                        self.start_what_fits()
                    draw(self)
                    select.select([wake], [], [], TICK_S)
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake, 4096)
                    if self.signal and not warned:
                        warned = True
                        self.told(f"stopping {len(self.running)} runs, which save first; once more ends them at once")
                    self.reap()
            except BaseException:
                self.send(signal.SIGTERM)
                for started in self.running.values():
                    started.process.wait()
                raise
        return 128 + self.signal if self.signal else int(bool(self.tally.failed))

    # starting

    def start_what_fits(self) -> None:
        now, cold = time.monotonic(), self.cold() if len(self.running) < self.at_once else set()
        for job in list(self.waiting):
            if len(self.running) >= self.at_once:
                return
            if self.elsewhere.get(job.key, 0) > now or job.data in cold:
                continue
            lock = locks.take(job)
            state = Records().state(job) if lock is not None else State("running")
            if lock is not None and state.status == "done":
                locks.release(lock)
                self.finish(job, "finished by another process")
            elif lock is None or state.status == "running":
                if lock is not None:
                    locks.release(lock)
                if job.key not in self.elsewhere:
                    self.told(f"{job}: another process runs it; waiting")
                self.elsewhere[job.key] = now + TICK_S
            elif job.key in self.elsewhere and (error := ledger.refused_since(job.results, job.config, self.begun)):
                locks.release(lock)
                self.fail(job, f"failed (2): {error}", error)
            else:
                self.start(job, lock)
                cold |= {job.data} - self.warm

    def cold(self) -> set[tuple[str, str]]:
        """Data sets whose caches a run is filling at the moment."""
        first = {s.job.data: s.job for s in self.running.values() if s.job.data not in self.warm}
        self.warm |= {data for data, job in first.items() if tasks_of(job)}
        return first.keys() - self.warm

    def start(self, job: Job, lock: int) -> None:
        log = job.home / "logs" / f"{job.config[:16]}.log"
        gpu = self.gpus.deal(job.argv, [s.gpu for s in self.running.values()]) if self.gpus else None
        environment = self.environment | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
        command = [sys.executable, str(self.main), *job.argv]
        with disk_errors(log):
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as file:
                begins = file.tell()
                process = subprocess.Popen(  # in a session of its own: Ctrl-C reaches it once, by `send`
                    command,
                    cwd=self.cwd,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock,),
                )
        self.waiting.remove(job)
        self.tries[job.key] = self.tries.get(job.key, 0) + 1
        self.running[process.pid] = Started(job, process, lock, log, begins, gpu)
        if self.signal:  # it came while the process was being started
            process.send_signal(signal.SIGTERM)

    # ending

    def reap(self) -> None:
        for pid, started in list(self.running.items()):
            got, status, usage = os.wait4(pid, os.WNOHANG)
            if got == pid:
                started.process.returncode = os.waitstatus_to_exitcode(status)
                del self.running[pid]
                try:
                    self.ended(started, round(usage.ru_utime + usage.ru_stime, 2))
                finally:
                    locks.release(started.lock)

    def ended(self, started: Started, cpu_s: float) -> None:
        job, code = started.job, started.process.returncode
        seconds = time.monotonic() - started.begun
        error = None if not code else self.last_words(started)
        ledger.add(job.results, {"config": job.config, "cpu_s": cpu_s, "code": code, "error": error, **job.facts})
        if not code:
            self.warm.add(job.data)
            self.tally.seconds.append(seconds)
            self.finish(job, f"{seconds:.0f} s, {cpu_s:.0f} CPU s")
        elif self.signal:
            self.waiting.append(job)
            self.told(f"{job}: stopped; the next call continues it")
        elif code != USER_ERROR and self.tries[job.key] <= self.retries:
            self.waiting.append(job)
            self.told(f"{job}: crashed ({code}): {error}; it is continued later")
        else:
            self.fail(job, f"failed ({code}): {error}", error or "", started.log)

    def finish(self, job: Job, how: str) -> None:
        self.leave(job)
        self.tally.done.append(job)
        self.told(f"[{len(self.tally.done) + len(self.tally.failed)}/{self.total}] {job}: {how}")

    def fail(self, job: Job, how: str, error: str, log: Path | None = None) -> None:
        self.leave(job)
        self.tally.failed[job.key] = error
        where = f" ({log})" if log else ""
        self.told(f"[{len(self.tally.done) + len(self.tally.failed)}/{self.total}] {job}: {how}{where}")

    def leave(self, job: Job) -> None:
        if job in self.waiting:
            self.waiting.remove(job)

    def last_words(self, started: Started) -> str:
        """The last line that a run wrote to its log."""
        with open(started.log, "rb") as file:
            file.seek(max(started.log_begins, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().decode("utf-8", "replace").strip().splitlines()
        return clean(lines[-1] if lines else "it said nothing", 300)

    # signals

    def send(self, number: int) -> None:
        for started in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.process.pid, number) if number == signal.SIGKILL else started.process.send_signal(
                    number
                )

    def stop(self, number: int, frame: object) -> None:
        again, self.signal = bool(self.signal), self.signal or number
        self.send(signal.SIGKILL if again else signal.SIGTERM)

    @contextlib.contextmanager
    def signals(self) -> Iterator[int]:
        """A file that can be read when a run has ended or a signal came; its handlers only while the pool runs."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        before = {s: signal.signal(s, self.stop) for s in STOPS if signal.getsignal(s) != signal.SIG_IGN}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def seconds_left(self) -> float | None:
        """From the runs that ended so far; None before the first one."""
        if not self.tally.seconds:
            return None
        each = sum(self.tally.seconds) / len(self.tally.seconds)
        begun = sum(min(each, time.monotonic() - s.begun) for s in self.running.values())
        return (each * (len(self.waiting) + len(self.running)) - begun) / self.at_once


def run(pool: Pool, draw: Callable[[Pool], None] = lambda pool: None) -> int:
    """A pool to its end; an error of the disk is one line, after its runs have saved."""
    try:
        return pool.run(draw)
    except OSError as error:
        raise UserError(f"the sweep stopped: {error}; repeat the same command to continue") from None
