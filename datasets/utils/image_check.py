"""Are all image files of a stream readable? Asked once before training, in parallel; the answer is remembered."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.conf import warn_once
from utils.errors import UserError

THREADS = 8
TAIL = 64  # bytes at the end of a JPEG that are searched for its end marker
NAMED = 10  # unreadable files named in the error
MEMORY = "readable_images.u64"  # a number for each file, made of its path, size and time
OPAQUE = "opaque_images.u64"


def files_of(samples) -> list[Path]:
    """The image files of a sample list, which may join several lists or repeat a file."""
    if hasattr(samples, "parts"):
        return [path for part in samples.parts for path in files_of(part)]
    return list(getattr(getattr(samples, "distinct", samples), "paths", []))


def check_images(paths: list[Path], cache: Path, progress: bool = True) -> None:
    """UserError that names what cannot be read."""
    bad = [f"{path} ({reason})" for path, reason in unreadable(paths, cache, progress)]
    if bad:
        more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
        raise UserError(
            f"{len(bad)} of {len(set(paths))} images cannot be read: {'; '.join(bad[:NAMED])}{more}: replace or "
            "remove them"
        )


def unreadable(paths: list[Path], cache: Path, progress: bool = True) -> list[tuple[Path, str]]:
    """Files that cannot be read, with the reason."""
    return sift(paths, cache / MEMORY, what_is_wrong, "checking images", progress)


def transparent(paths: list[Path], cache: Path, progress: bool = True) -> list[Path]:
    """Files with transparent parts, by their headers; a JPEG cannot have any."""
    others = [path for path in paths if path.suffix.lower() not in {".jpg", ".jpeg"}]
    return [path for path, _ in sift(others, cache / OPAQUE, what_shows_through, "looking for transparency", progress)]


def sift(
    paths: list[Path], memory: Path, fault: Callable[[Path], str | None], title: str, progress: bool
) -> list[tuple[Path, str]]:
    """Files for which `fault` says something. Those in `memory` with their size and time are not opened."""
    paths = list(dict.fromkeys(paths))
    known = np.fromfile(memory, dtype="<u8") if memory.is_file() else np.empty(0, dtype="<u8")
    keys = np.array([key_of(path) for path in paths], dtype="<u8")
    todo = np.flatnonzero(~np.isin(keys, known))
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda i: fault(paths[i]), todo)
        reasons = list(tqdm(found, title, len(todo), unit="img", delay=2, disable=not progress))
    remember(memory, keys[todo][[reason is None for reason in reasons]])
    return [(paths[i], reason) for i, reason in zip(todo, reasons, strict=True) if reason]


def key_of(path: Path) -> int:
    """64 bits of path, size and time; of the path alone if the file does not exist."""
    try:
        stat = path.stat()
        what = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    except OSError:
        what = f"{path}|missing"
    return int.from_bytes(hashlib.blake2b(what.encode(errors="surrogateescape"), digest_size=8).digest(), "little")


def what_is_wrong(path: Path) -> str | None:
    """The header and the end are checked; all pixels are decoded only if the format does not mark its end."""
    try:
        with Image.open(path) as image:
            if image.format == "PNG":
                image.verify()  # the checksum of each chunk
            elif image.format != "JPEG" or b"\xff\xd9" not in tail(path):
                image.load()
    except FileNotFoundError:
        return "missing"
    except Exception as error:  # Pillow raises classes of many kinds for a file that it cannot read
        return " ".join(str(error).split())[:120] or type(error).__name__
    return None


def what_shows_through(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            return "transparent" if image.has_transparency_data else None
    except Exception:  # unreadable, which is reported elsewhere
        return None


def tail(path: Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL))
        return file.read()


def remember(memory: Path, keys: np.ndarray) -> None:
    """Add to the memory; another process may do the same."""
    if not len(keys):
        return
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with open(memory, "ab") as file:
            file.write(keys.tobytes())
    except OSError as error:
        warn_once(f"cannot write {memory}: {error.strerror}; images are checked again in the next run")
