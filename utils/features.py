"""FeatureStore: outputs of a frozen encoder, computed once and reused by every class order, seed, split and method.

A store has one table per (encoder, samples). A table is a list of segments: arrays of records (row number, features) in
the order in which they were computed. On disk a segment is one file named by the checksum of its bytes, written to a
temporary name and renamed, so readers see all of it or nothing, and writers do not interfere.
"""

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils import json_text, ranks
from utils.content import stat_of, unchanged_since
from utils.errors import UserError, disk_errors

FULL, HALF = "<f4", "<f2"  # numpy types of stored numbers
BATCH_SIZE = 64  # images per call of an encoder without its own batch size
SEGMENT_BYTES = 2**28  # a segment is closed at this size ...
SEGMENT_S = 60.0  # ... or after this time, so that interrupted encoding loses at most a minute
SHARED_BYTES = 2**26  # encoded by all ranks together before rank 0 writes them
MAX_SMALL_SEGMENTS = 32  # if there are more segments below SEGMENT_BYTES, they are merged
VERIFIED = 1e-2  # cached features may differ by this fraction of their norm: batches and devices round differently
READ = "read.json"  # of a table: when each segment was found sound, and its file's size, inode and times then
STALE_S = 3600.0  # temporary files older than this were left by a killed process


def checksum(records: np.ndarray) -> str:
    """The name of a segment."""
    return hashlib.blake2b(records.view(np.uint8).reshape(-1), digest_size=16).hexdigest()


class Table:
    """The known rows of one (encoder, samples): where each one is. `folder` None keeps the segments in memory.

    A file is hashed when it is first opened, and again if it may have changed since; always without `trust`.
    """

    def __init__(self, n_rows: int, dim: int, folder: Path | None, precision: str = FULL, trust: bool = True):
        self.trust = trust
        self.record = np.dtype([("row", "<i8"), ("x", precision, (dim,))])
        self.folder = folder
        self.segments: dict[str, np.ndarray] = {}  # name -> records; insertion order is the segment number
        self.segment_of = np.full(n_rows, -1, dtype=np.int32)  # -1: not known yet
        self.place_of = np.zeros(n_rows, dtype=np.int64)
        self.earlier = np.zeros(n_rows, dtype=bool)  # computed by another run or process
        self.served = np.zeros(n_rows, dtype=bool)  # requested by this process
        self.asked = np.zeros(n_rows, dtype=bool)  # rows that this run has requested
        self.before = self.asked.copy()  # ... up to the checkpoint it resumes from
        self.free = np.zeros(n_rows, dtype=bool)  # rows that existed before it, or that others encoded meanwhile
        self.refresh()

    def refresh(self) -> None:
        """Open the segments that other processes or earlier runs have written to the folder."""
        if self.folder is None or not self.folder.is_dir():
            return
        unknown, readings = self.segment_of < 0, self._readings() if self.trust else {}
        before = dict(readings)
        for path in sorted(self.folder.iterdir()):
            try:
                if path.name.startswith("tmp-") and time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()
                elif path.suffix == ".rows" and path.stem not in self.segments:
                    self._open(path, readings)
            except FileNotFoundError:  # merged by another process after the listing: its rows are simply not known here
                continue
            except OSError as error:
                warnings.warn(
                    f"features in {path} cannot be read ({error.strerror}); they are recomputed", stacklevel=2
                )
        if readings != before:
            self._note(readings)
        self.free |= unknown & (self.segment_of >= 0) & ~self.asked
        self._merge()

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Features (len(rows), D) of known rows, in the requested order."""
        out = np.empty((len(rows), *self.record["x"].shape), dtype=self.record["x"].base)
        segment_of, place_of = self.segment_of[rows], self.place_of[rows]
        arrays = list(self.segments.values())
        for number in np.unique(segment_of):
            here = np.flatnonzero(segment_of == number)
            out[here] = arrays[number]["x"][place_of[here]]
        return out

    def append(self, rows: np.ndarray, features: np.ndarray) -> None:
        """Add unknown rows: to disk first, then to this process's table."""
        records = np.empty(len(rows), dtype=self.record)
        records["row"], records["x"] = rows, features
        self._add(*self._write(records))
        self._merge()

    def _add(self, name: str, records: np.ndarray) -> None:
        self.segment_of[records["row"]] = len(self.segments)
        self.place_of[records["row"]] = np.arange(len(records))
        self.segments[name] = records

    def _write(self, records: np.ndarray) -> tuple[str, np.ndarray]:
        """Name and records of a new segment; on disk the records come back as a memory map."""
        data = records.view(np.uint8).reshape(-1)
        name = checksum(records)
        if self.folder is None:
            return name, records
        path, temporary = self.folder / f"{name}.rows", self.folder / f"tmp-{name}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            mapped = np.memmap(temporary, dtype=self.record, mode="r")  # survives a merge by another process
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):  # a folder above it may be a file
                temporary.unlink(missing_ok=True)
            raise UserError(
                f"cannot write features to {self.folder}: {error.strerror}; free space there, choose another folder, "
                "or run with --features ram"
            ) from None
        return name, mapped

    def _open(self, path: Path, readings: dict) -> None:
        """Map one file; a damaged one is reported in a warning and removed, so its rows are recomputed."""
        stat, taken = stat_of(path), time.time_ns()
        if stat[0] and stat[0] % self.record.itemsize == 0:
            records = np.memmap(path, dtype=self.record, mode="r")
            known = unchanged_since(stat, readings.get(path.stem))
            if self._rows_exist(records) and (known or self._sound(records, path.stem)):
                if not known:
                    readings[path.stem] = [*stat, taken]
                self.earlier[records["row"][self.segment_of[records["row"]] < 0]] = True
                self._add(path.stem, records)
                return
        warnings.warn(f"features in {path} are damaged; they are removed and recomputed", stacklevel=2)
        path.unlink(missing_ok=True)

    def _readings(self) -> dict[str, list]:
        """When each segment was found sound; {} if the list cannot be read."""
        try:
            found = json_text.parse((self.folder / READ).read_bytes())
        except (OSError, json.JSONDecodeError):
            return {}
        fits = isinstance(found, dict) and all(isinstance(entry, list) and len(entry) == 5 for entry in found.values())
        return found if fits and all(type(n) is int for entry in found.values() for n in entry) else {}

    def _note(self, readings: dict[str, list]) -> None:
        """Replace the list of readings; if that fails, segments are hashed again next time."""
        temporary = self.folder / f"tmp-{READ}-{os.getpid()}"
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps({name: readings[name] for name in self.segments if name in readings}))
            os.replace(temporary, self.folder / READ)

    def _rows_exist(self, records: np.ndarray) -> bool:
        """Whether the records are of existing rows, each once."""
        rows = records["row"]
        inside = 0 <= rows.min() and rows.max() < len(self.segment_of)
        return bool(inside and len(np.unique(rows)) == len(rows))

    @staticmethod
    def _sound(records: np.ndarray, name: str) -> bool:
        """Whether the records are those that were written, with finite numbers."""
        return checksum(records) == name and bool(np.isfinite(records["x"]).all())

    def drop(self) -> None:
        """Forget all segments, and remove their files."""
        for name in self.segments if self.folder is not None else ():
            (self.folder / f"{name}.rows").unlink(missing_ok=True)
        self.segments = {}
        self.segment_of[:] = -1
        self.earlier[:] = self.free[:] = False

    def serve(self, rows: np.ndarray) -> int:
        """Mark rows as requested; returns how many of them are new and from an earlier run."""
        fresh = np.unique(rows[~self.served[rows] & self.earlier[rows]])
        self.served[rows] = True
        return len(fresh)

    def _merge(self) -> None:
        """Join many small segments into one, left by callers that request a few rows at a time."""
        small = [name for name, records in self.segments.items() if records.nbytes < SEGMENT_BYTES]
        if len(small) <= MAX_SMALL_SEGMENTS:
            return
        joined = np.concatenate([self.segments[name] for name in small])
        joined = joined[np.unique(joined["row"], return_index=True)[1]]
        merged = self._write(joined)
        kept = [(name, records) for name, records in self.segments.items() if name not in small]
        self.segments = {}
        for name, records in [*kept, merged]:
            self._add(name, records)
        if self.folder is not None:
            for name in set(small) - {merged[0]}:
                (self.folder / f"{name}.rows").unlink(missing_ok=True)


class FeatureStore:
    """Features of images by a frozen encoder, looked up by row.

    samples: any object with `fingerprint` (str), `__len__` and `images(rows) -> uint8 tensor (B, C, H, W) or list of
    PIL images`. encoder: `key` (str: weights, layer, preprocessing, precision), `dim`, `deterministic`,
    `encoder(images) -> (B, dim)` and optionally `batch_size` and `precision` (the numpy type of stored numbers). Modes:
    "disk" (under root, shared by runs), "verify" (the same, but features of earlier runs are recomputed and compared),
    "ram" (this object's life), "off" (computed at each call). Request many rows at once: one call is one segment.
    """

    def __init__(self, root: str | Path | None, mode: str = "disk", progress: bool = True) -> None:
        if mode not in ("disk", "verify", "ram", "off"):
            raise UserError(f"unknown feature mode '{mode}': use disk, verify, ram or off")
        if mode in ("disk", "verify") and root is None:
            raise UserError("features on disk need a folder: specify one, or use --features ram")
        self.root, self.mode = (Path(root).expanduser() if root is not None else None), mode
        self.progress = progress
        self.not_kept = 0  # images that went through an encoder for one call alone
        self.reused = 0  # images whose features are from an earlier run
        self.tables: dict[str, Table] = {}
        self.ledger: Path | None = None
        self.asked_before: dict[str, bytes] = {}  # by table: requested rows of tables that are not open yet

    @property
    def forwards(self) -> int:
        """Images encoded since the run began or the checkpoint it resumed from, also those that a process
        killed after that checkpoint has left on disk."""
        return self.not_kept + sum(int((t.asked & ~t.free & ~t.before).sum()) for t in self.tables.values())

    def keep_ledger(self, folder: Path) -> None:
        """Store in `folder` which rows of each table existed before this run, so that a process that resumes it
        counts what the uninterrupted run would have counted."""
        self.ledger = folder
        for key, table in self.tables.items():
            self._note(key, table)

    def asked(self) -> dict[str, bytes]:
        """Rows of each table that this run has requested, as packed bits."""
        return self.asked_before | {key: np.packbits(table.asked).tobytes() for key, table in self.tables.items()}

    def load_asked(self, state: dict[str, bytes]) -> None:
        """The inverse of `asked`."""
        self.asked_before = dict(state)
        for key, table in self.tables.items():
            table.before = unpacked(state.get(key, b""), len(table.asked))
            table.asked = table.before.copy()

    def _note(self, key: str, table: Table) -> None:
        """Read `free` from the ledger, or write it there if this run does not have an entry for the table yet."""
        if self.ledger is None or self.mode not in ("disk", "verify"):
            return
        path = self.ledger / f"{key[:32]}.known"
        with disk_errors(path, "save to another folder"):
            if path.exists():
                table.free = unpacked(path.read_bytes(), len(table.free))
                return
            self.ledger.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            temporary.write_bytes(np.packbits(table.free).tobytes())
            os.replace(temporary, path)

    def rows(self, samples, rows: Tensor, encoder, desc: str = "features") -> Tensor:
        """Features (len(rows), D) on the CPU, fp32 or the encoder's `precision`, in the requested order; what
        is not known yet is computed and kept."""
        if not encoder.deterministic:
            raise UserError("features of a random transform or of a tower in training mode cannot be cached: freeze it")
        wanted = np.asarray(rows.cpu(), dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(samples):
            raise IndexError(f"rows {wanted.min()}..{wanted.max()} requested of {len(samples)} samples")
        if hasattr(samples, "distinct"):  # several samples show one image
            wanted, samples = samples.place.numpy()[wanted], samples.distinct
        precision = getattr(encoder, "precision", FULL)
        table = (
            Table(len(samples), encoder.dim, None, precision) if self.mode == "off" else self._table(samples, encoder)
        )
        if len(self._missing(table, wanted)):
            table.refresh()
        if self.mode == "verify" and table.earlier[wanted].any():
            self._verify(table, samples, np.unique(wanted[table.earlier[wanted]]), encoder)
        table.asked[wanted] = True
        if self.mode == "off":
            self.not_kept += int(table.asked.sum())
        missing = ranks.union(self._missing(table, wanted))  # another run may add rows between the looks of two ranks
        if len(missing):
            self._compute(table, samples, missing, encoder, desc)
        self.reused += table.serve(wanted)
        return torch.from_numpy(table.gather(wanted))

    def _table(self, samples, encoder) -> Table:
        precision = getattr(encoder, "precision", FULL)
        wide = "" if precision == FULL else f"\n{precision}"
        if hasattr(getattr(encoder, "net", getattr(encoder, "backbone", None)), "bf16_products"):
            wide += "\nbf16 products"
        key = hashlib.sha256(f"{encoder.key}\n{encoder.dim}\n{samples.fingerprint}{wide}".encode()).hexdigest()
        if key not in self.tables:
            folder = self.root / key[:32] if self.mode in ("disk", "verify") else None
            table = self.tables[key] = Table(len(samples), encoder.dim, folder, precision, self.mode != "verify")
            self._note(key, table)
            table.before = unpacked(self.asked_before.get(key, b""), len(samples))
            table.asked = table.before.copy()
        return self.tables[key]

    def _verify(self, table: Table, samples, rows: np.ndarray, encoder) -> None:
        """Recompute rows of earlier runs; if one differs, the whole table is dropped."""
        again = Table(len(samples), encoder.dim, None, getattr(encoder, "precision", "<f4"))
        self._compute(again, samples, rows, encoder, "verifying features")
        kept, new = (t.gather(rows).astype(np.float64).reshape(len(rows), -1) for t in (table, again))
        wrong = np.linalg.norm(kept - new, axis=1) > VERIFIED * np.linalg.norm(new, axis=1)
        table.earlier[rows] = table.free[rows] = False
        if wrong.any():
            folder, n = table.folder, int(wrong.sum())
            warnings.warn(
                f"features of {n} images in {folder} do not match the images; they are removed and recomputed",
                stacklevel=2,
            )
            table.drop()
            table.append(rows, again.gather(rows))

    @staticmethod
    def _missing(table: Table, wanted: np.ndarray) -> np.ndarray:
        """Distinct rows that are not in the table, ascending: the order of the files."""
        return np.unique(wanted[table.segment_of[wanted] < 0])

    def _compute(self, table: Table, samples, missing: np.ndarray, encoder, desc: str) -> None:
        """Encode rows and add them to the table; of several ranks each encodes a part of every piece."""
        if ranks.size() == 1:
            return self._encode(table, samples, missing, encoder, desc)
        size = max(1, SHARED_BYTES // table.record.itemsize)
        for piece in np.split(missing, range(size, len(missing), size)):
            part, mine = Table(len(samples), encoder.dim, None, table.record["x"].base.str), ranks.share(piece)
            with ranks.alone():
                self._encode(part, samples, mine, encoder, desc)
            features = ranks.gathered(torch.from_numpy(part.gather(mine)), len(piece))
            new = table.segment_of[piece] < 0  # on this rank: another run may have added rows for some
            if ranks.rank() == 0 or table.folder is None:
                table.append(piece[new], features.numpy()[new])
            ranks.barrier()
            if ranks.rank() and table.folder is not None:
                for _ in range(3):  # another rank may merge files while this one opens them
                    table.refresh()
                if (table.segment_of[piece] < 0).any():
                    raise UserError(
                        f"{table.folder} is not the folder that rank 0 writes to: put --base_path on a disk that all "
                        "machines share, or use --features ram"
                    )

    def _encode(self, table: Table, samples, missing: np.ndarray, encoder, desc: str) -> None:
        """Encode rows in batches; the next batch is read while the current one is encoded."""
        size = getattr(encoder, "batch_size", BATCH_SIZE)
        batches = np.split(missing, range(size, len(missing), size)) if len(missing) else []
        done: list[tuple[np.ndarray, np.ndarray]] = []
        started = time.monotonic()
        bar = tqdm(total=len(missing), desc=desc, unit="img", delay=2, disable=not self.progress)
        with bar, ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(samples.images, torch.from_numpy(batches[0])) if batches else None
            for number, batch in enumerate(batches):
                images = ahead.result()
                if number + 1 < len(batches):
                    ahead = reader.submit(samples.images, torch.from_numpy(batches[number + 1]))
                with np.errstate(over="ignore"):  # what is too large for the precision is reported below
                    features = np.asarray(encoder(images).float().cpu()).astype(table.record["x"].base, copy=False)
                if not np.isfinite(features).all():
                    raise UserError(
                        "the encoder returned features that are not finite; use a wider type (--clip_dtype fp32)"
                    )
                done.append((batch, features))
                full = sum(kept.nbytes for _, kept in done) >= SEGMENT_BYTES or time.monotonic() - started > SEGMENT_S
                if full or number + 1 == len(batches):
                    table.append(*map(np.concatenate, zip(*done, strict=True)))
                    done, started = [], time.monotonic()
                bar.update(len(batch))


def unpacked(bits: bytes, n: int) -> np.ndarray:
    """The first `n` of packed bits; missing ones are off."""
    packed = np.frombuffer(bits.ljust(-(-n // 8), b"\0"), dtype=np.uint8)
    return np.unpackbits(packed, count=n).astype(bool)


class Sources:
    """Sample lists by number, so that a row of any is given by two integers; not part of a method's state."""

    def __init__(self) -> None:
        self.known: list[tuple] = []  # (sample list, what is stored with it)

    def number(self, samples, make: Callable) -> int:
        """The number of a sample list; a new one gets the next, and `make()` is stored with it."""
        for number, (known, _) in enumerate(self.known):
            if known is samples:
                return number
        self.known.append((samples, make()))
        return len(self.known) - 1

    def __getitem__(self, number: int):
        return self.known[number][1]
