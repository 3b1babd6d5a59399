"""The record of a run: one folder per run, one JSON object per line, each line on disk before the run goes on."""

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from utils import json_text, to_parsable_obj
from utils.engine.record_schema import wrong_line
from utils.engine.sinks import Sinks
from utils.errors import UserError, disk_errors
from utils.escape import on_figure

SCHEMA = 1  # of the lines of record.jsonl
FREE_FLOOR_BYTES = 64 * 2**20  # less free space than this refuses a run before it starts
PROBE_BYTES = 64 * 2**10
LOCK_PATIENCE_S = 2.0  # a reader that checks the status holds the lock briefly
HASH_DIGITS = 12  # of the configuration hash, in the name of the run's folder

# Arguments that do not change results: two runs that differ only in these are the same configuration.
VOLATILE = {
    "autosave": "seconds between saves",
    "checkpoint_path": "where checkpoints are saved",
    "ckpt_name": "their names",
    "savecheck": "which are saved",
    "resume": "whether an unfinished run is looked for",
    "distributed": "how many processes share the work; the scores are equal up to rounding",
    "rank_timeout": "how long they wait for each other",
    "save_after_interrupt": "whether Ctrl-C saves",
    "max_memory_gb": "what sizes are refused",
    "features": "where cached features live; the scores are equal",
    "help": "prints text",
    "list": "prints text",
    "show_config": "prints text",
    "disable_log": "whether a record is written",
    "non_verbose": "progress bars",
    "notes": "free text",
    "csv": "where scores also go",
    "tensorboard": "where scores also go",
    "wandb": "where scores also go",
    "wandb_entity": "whose they are there",
    "wandb_project": "what they belong to there",
    "wandb_name": "what the run is called there",
    "plugins": "where files come from; plugin_files names those that run, with their sha256",
    "image_cache": "where decoded images come from; their pixels are equal",
    "num_workers": "processes that read images; order and augmentation do not depend on them",
    "results_path": "where records go",
}
VOLATILE_PREFIX = "conf_"  # host, time stamp, job number: facts about the process, added at run time


def config_hash(args: Mapping) -> str:
    """sha256 of the effective arguments as canonical JSON, without the VOLATILE ones.

    Of `device` only the kind counts (cuda:1 and 0 are both cuda): a run may resume on another GPU of the machine.
    """
    kept = {k: v for k, v in args.items() if k not in VOLATILE and not k.startswith(VOLATILE_PREFIX)}
    if kept.get("device") is not None:
        kind = str(kept["device"]).split(":")[0]
        kept["device"] = "cuda" if kind.isdigit() else kind
    return hashlib.sha256(
        json.dumps(to_parsable_obj(kept, _jsonable), sort_keys=True, allow_nan=False).encode()
    ).hexdigest()


def _jsonable(value: Any, name: str) -> Any:
    """A value as stored in the record: paths, devices and dtypes as text; a float that is not finite becomes None."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike) or type(value).__module__ == "torch":
        return str(value)
    raise TypeError(f"{name} is of type {type(value).__name__}, which a record cannot hold")


def _close_all(held: set[int]) -> None:
    for fd in held:
        os.close(fd)


@functools.cache
def _locks() -> set[int]:
    """Open lock files of this process. A forked child closes its copies, or it would keep a dead parent's locks."""
    held: set[int] = set()
    os.register_at_fork(after_in_child=functools.partial(_close_all, held))
    return held


class RunRecord:
    """The folder of one run and its record.jsonl. Reading needs nothing; the first write takes the folder's lock,
    which is held until `close` or the end of the process, so that others can tell a live run from a dead one."""

    def __init__(self, folder: str | os.PathLike, config: str | None = None):
        self.folder = Path(folder)
        self.path = self.folder / "record.jsonl"
        self.config_hash = config
        self._lock: int | None = None
        self._begun = False  # a line was written by this process
        self.sinks: Sinks | None = None  # see every line once it is on disk

    def start(self, row: dict) -> None:
        """The run's arguments, versions and data. The schema number and the configuration hash are added."""
        self._write({"type": "start", "schema": SCHEMA, "config_hash": self.config_hash, **row})

    def task(self, row: dict) -> None:
        """Scores and costs of one task."""
        self._write({"type": "task", **row})

    def epoch(self, row: dict) -> None:
        """Scores within a task, with --eval_epochs."""
        self._write({"type": "epoch", **row})

    def features(self, row: dict) -> None:
        """How many images of a task had features from earlier runs."""
        self._write({"type": "features", **row})

    def warning(self, text: str) -> None:
        self._write({"type": "warning", "text": text})

    def end(self, row: dict) -> None:
        """The last line; `row["status"]` is done, interrupted or failed."""
        if row.get("status") not in {"done", "interrupted", "failed"}:
            raise ValueError(f"status of a run is done, interrupted or failed, not {row.get('status')!r}")
        self._write({"type": "end", **row})

    def rows(self) -> list[dict]:
        return read_record(self.path)

    @property
    def size(self) -> int:
        """Bytes written so far: a checkpoint stores this for `truncate`."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def status(self) -> str:
        """running: a live process holds the lock. Else the status in the last line; interrupted without an `end`."""
        if self.is_locked():
            return "running"
        rows = self.rows()
        return rows[-1]["status"] if rows and rows[-1]["type"] == "end" else "interrupted"

    def is_locked(self) -> bool:
        """Whether a live process is writing."""
        return self._lock is not None or self._locked_elsewhere()

    def lock(self) -> None:
        """Become the writer. Drops a line that a killed writer left unfinished."""
        if self._lock is not None:
            return
        with disk_errors(self.folder):
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        give_up = time.monotonic() + LOCK_PATIENCE_S
        while not _try_lock(fd, fcntl.LOCK_EX):
            if time.monotonic() > give_up:
                os.close(fd)
                raise UserError(f"run {self.folder} is being written by another process; wait for it or stop it")
            time.sleep(0.01)
        self._lock = fd
        _locks().add(fd)
        self.truncate(self.size)

    def close(self) -> None:
        """Close the sinks and release the lock."""
        if self.sinks is not None:
            self.sinks.close()
            self.sinks = None
        if self._lock is not None:
            _locks().discard(self._lock)
            os.close(self._lock)
            self._lock = None

    def truncate(self, n_bytes: int) -> None:
        """Keep the whole lines among the first `n_bytes`: a resume drops what came after its checkpoint."""
        self.lock()
        if n_bytes > self.size:
            raise UserError(f"{self.path} is shorter than its checkpoint says; delete the folder to start over")
        if not self.path.exists():
            return
        with disk_errors(self.path), open(self.path, "rb+") as file:
            file.truncate(file.read(n_bytes).rfind(b"\n") + 1)
            os.fsync(file.fileno())

    def _write(self, row: dict) -> None:
        row = to_parsable_obj(row, _jsonable, "row")
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        self.lock()
        new = 0 if self._begun else os.O_CREAT  # in a removed folder, later lines alone would look like a record
        with disk_errors(self.path):
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | new, 0o644)
            try:
                before = os.fstat(fd).st_size
                if os.write(fd, line) < len(line):  # the disk accepted only a part
                    os.ftruncate(fd, before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(fd)
                self._begun = True
            finally:
                os.close(fd)
        if self.sinks is not None:
            self.sinks.row(row)

    def _locked_elsewhere(self) -> bool:
        try:
            fd = os.open(self.folder / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def read_record(path: str | os.PathLike) -> list[dict]:
    """The lines of a record.jsonl; [] if there is none. A last line cut off by a crash is skipped."""
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"cannot read {path}: it is not a file; delete its folder")
        text = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; fix that or delete its folder") from None
    rows = []
    for number, line in enumerate(text[: text.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            row = json_text.parse(line, strict=True)
        except json.JSONDecodeError:
            raise UserError(f"line {number} of {path} is not JSON; restore the file or delete its folder") from None
        if told := wrong_line(row):
            raise UserError(
                f"line {number} of {path} is not a record entry; restore the file or delete its folder ({told})"
            )
        rows.append(row)
    return rows


def seed_of(record: RunRecord) -> int:
    """The given or drawn seed of a run."""
    args = record.rows()[0].get("args")
    if not isinstance(args, dict) or not isinstance(args.get("seed"), int):
        raise UserError(
            f"the first line of {record.path} does not contain a seed; restore the file or delete its folder"
        )
    return int(args["seed"])


def open_run(results_path: str | os.PathLike, dataset: str, model: str, config: Mapping) -> RunRecord:
    """Make `<results_path>/<dataset>/<model>/<run id>/` and lock it.

    Run id: UTC time, start of the configuration hash, process id and random digits; unique to this run.
    """
    full_hash = config_hash(config)
    parent = Path(results_path) / dataset / model
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")
    folder = parent / f"{now}_{full_hash[:HASH_DIGITS]}_{os.getpid()}-{secrets.token_hex(3)}"
    with disk_errors(folder):
        parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir()
    record = RunRecord(folder, full_hash)
    record.lock()
    return record


def find_run(results_path: str | os.PathLike, dataset: str, model: str, config: str) -> RunRecord | None:
    """The newest run whose configuration hash is `config`; ask its `.status`. None if there is none."""
    parent = Path(results_path) / dataset / model
    for folder in sorted(parent.glob(f"*_{config[:HASH_DIGITS]}_*"), reverse=True):
        record = RunRecord(folder, config)
        rows = record.rows()
        if not rows or rows[0].get("config_hash") == config:
            return record
    return None


def check_writable(path: str | os.PathLike, flag: str = "--results_path") -> None:
    """Refuse a path of `flag` that cannot be written or is nearly full, before training; leaves no files."""
    path = Path(path).absolute()
    place = next(p for p in (path, *path.parents) if p.exists())  # folders below it are made later
    if not place.is_dir():
        raise UserError(f"{place} is not a folder; choose another {flag}")
    with disk_errors(place, f"choose another {flag}"), tempfile.TemporaryFile(dir=place, buffering=0) as file:
        if file.write(bytes(PROBE_BYTES)) < PROBE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
        disk = os.statvfs(place)
    free = disk.f_bavail * disk.f_frsize
    if free < FREE_FLOOR_BYTES:
        raise UserError(
            f"only {free / 2**20:.0f} MiB are free at {place}, but a run needs {FREE_FLOOR_BYTES / 2**20:.0f}; "
            f"free some space or choose another {flag}"
        )


def format_table(rows: Sequence[Sequence]) -> str:
    """Aligned text: the first row is the header, numbers are right-aligned with two decimals, NaN and None a dash."""

    def text(cell: object) -> str:
        if cell is None or (isinstance(cell, float) and math.isnan(cell)):
            return "-"
        return f"{cell:.2f}" if isinstance(cell, float) else str(cell)

    cells = [[text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [all(v is None or isinstance(v, (int, float)) for v in column) for column in zip(*rows[1:], strict=True)]
    numeric = numeric or [False] * len(widths)
    lines = [
        "  ".join(
            c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def plot_matrix(R: ArrayLike, path: str | os.PathLike, title: str) -> None:
    """PNG heat map of a score matrix in percent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and needed only here
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    draw_matrix(figure, R, title)
    FigureCanvasAgg(figure).print_png(os.fspath(path))


def draw_matrix(figure: Any, R: ArrayLike, title: str) -> None:
    """One annotated cell per (trained task, test set); NaN is white."""
    R = np.asarray(R, dtype=np.float64)
    n_rows, n_columns = R.shape
    side = 0.55 if n_columns > 9 else 0.75  # inches per cell
    figure.set_size_inches(max(3.6, side * n_columns + 1.8), max(2.6, side * n_rows + 1.2))
    axes = figure.add_subplot()
    image = axes.imshow(R, cmap="viridis", vmin=0, vmax=100)
    figure.colorbar(image, ax=axes, label="%", fraction=0.05)
    for t, j in zip(*np.nonzero(~np.isnan(R)), strict=True):
        colour = "white" if R[t, j] < 60 else "black"
        axes.text(j, t, f"{R[t, j]:.1f}", ha="center", va="center", color=colour, fontsize=8 if n_columns > 9 else 9)
    axes.set_xticks(range(n_columns), [str(j + 1) for j in range(n_columns)])
    axes.set_yticks(range(n_rows), [str(t + 1) for t in range(n_rows)])
    axes.set(xlabel="test set of task", ylabel="after training task", title=on_figure(title))
