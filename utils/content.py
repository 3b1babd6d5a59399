"""Checksums of files: sha256 of their bytes. Earlier digests are trusted only if a file cannot have changed since."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils import json_text

RECENT_NS = 2 * 10**9  # a file changed so shortly before it was read may have changed again within one clock tick
READERS = 8  # files read at once


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def file_digest(path: str | os.PathLike) -> bytes:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.digest()


def content_digests(paths: Sequence[Path], folder: Path | None = None, trust_times: bool = True) -> np.ndarray:
    """(N, 32) bytes: the sha256 of every file.

    `folder` caches them for the next call with the same paths. A cached one replaces reading only if size, inode and
    both times of the file are unchanged, and those times were not recent when it was read; `trust_times` False
    reads every file. OSError names a missing file.
    """
    names = "\n".join(map(os.fspath, paths)).encode(errors="surrogateescape")
    index = None if folder is None else folder / f"{digest_of(names)[:16].hex()}.json"
    kept = _read_index(index, len(paths)) if trust_times else [None] * len(paths)
    stats = [stat_of(path) for path in paths]
    stale = [k for k, (stat, entry) in enumerate(zip(stats, kept, strict=True)) if not unchanged_since(stat, entry)]
    taken = time.time_ns()
    with ThreadPoolExecutor(READERS) as readers:
        found = readers.map(lambda k: file_digest(paths[k]), stale)
        for k, digest in zip(stale, tqdm(found, desc="checksums", total=len(stale), unit="file", delay=5), strict=True):
            kept[k] = [*stats[k], taken, digest.hex()]
    if index is not None and stale:
        _write_index(index, kept)
    joined = "".join(entry[-1] for entry in kept)
    return np.frombuffer(bytes.fromhex(joined), dtype=np.uint8).reshape(len(paths), 32)


def stat_of(path: Path) -> list[int]:
    """What changes when a file is written: ctime (the second time) even if a program resets mtime."""
    stat = os.stat(path)
    return [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def unchanged_since(stat: list[int], entry: list | None) -> bool:
    """Whether a file is as it was when `entry` was made: its `stat_of` then, and the time of reading."""
    return entry is not None and entry[:4] == stat and max(stat[2:]) + RECENT_NS < entry[4]


def _read_index(index: Path | None, count: int) -> list:
    """Entries [size, inode, two times, time of reading, digest] in the order of the paths; None for missing ones."""
    nothing = [None] * count
    if index is None:
        return nothing
    try:
        entries = json_text.parse(index.read_bytes())
    except (OSError, json.JSONDecodeError):
        return nothing
    whole = isinstance(entries, list) and len(entries) == count and all(map(_well_formed, entries))
    return entries if whole else nothing


def _well_formed(entry) -> bool:
    if not isinstance(entry, list) or len(entry) != 6 or not all(type(n) is int for n in entry[:5]):
        return False
    return isinstance(entry[5], str) and len(entry[5]) == 64 and set(entry[5]) <= set("0123456789abcdef")


def _write_index(index: Path, entries: list) -> None:
    """Replace the index; if that fails, files are read again next time."""
    temporary = index.with_name(f"{index.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        try:
            index.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entries))
            os.replace(temporary, index)
        finally:
            temporary.unlink(missing_ok=True)
