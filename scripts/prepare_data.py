"""Download the files of a dataset: `python scripts/prepare_data.py seq-cifar10 --base_path ./data/`.

What there is to fetch is declared in FILES of the dataset's class. A download that broke off is continued; archives are
kept, so that a second call fetches nothing. What has no public host is named, with exit code 2.
"""

import argparse
import contextlib
import fcntl
import gzip
import hashlib
import lzma
import shutil
import stat
import struct
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import get_dataset_class, get_dataset_names
from datasets.utils.sources import Source

MOST_UNPACKED, RATIO = 2**30, 100  # an archive may unpack to 1 GiB and a hundred times its own size
PACKED = (".zip", ".tar", ".tgz", ".gz")
PIECE = 2**20
BEGUN = "begun"
DAMAGED = (  # zipfile and tarfile let errors through in names and heads that are damaged
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    struct.error,
)


def checksum_of(path: Path, kind: str = "md5") -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()


def kind_of(checksum: str) -> str:
    return "sha256" if len(checksum) == 64 else "md5"


@contextlib.contextmanager
def only_one(base_path: Path, name: str) -> Iterator[None]:
    """No other process fetches files of that name meanwhile."""
    base_path.mkdir(parents=True, exist_ok=True)
    with open(base_path / f".{name}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another process is fetching {base_path / name}; wait until it is done") from None
        yield


def fetch(url: str, checksum: str | None, folder: Path) -> Path:
    """Download one file into `folder`, under a temporary name until it is complete and its checksum is the published
    one (md5, or sha256).

    If none is published, the md5 of the download is kept beside it, so that a file damaged later is fetched again.
    """
    path = folder / url.split("/")[-1]
    noted = path.with_name(path.name + ".md5")
    wanted = checksum or (noted.read_text().strip() if noted.is_file() else None)
    if path.is_file() and (wanted is None or wanted == checksum_of(path, kind_of(wanted))):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    download(url, part)
    refuse_page(url, part)
    kind = kind_of(checksum) if checksum else "md5"
    found = checksum_of(part, kind)
    if checksum not in (None, found):
        part.unlink()
        raise OSError(f"{url} has {kind} {found}, but {checksum} is published; run the command again")
    if checksum is None:
        print(f"warning: no checksum is published for {url}; this file has md5 {found}", file=sys.stderr)
        noted.write_text(f"{found}\n")
    return part.replace(path)


def refuse_page(url: str, part: Path) -> None:
    """Hosts that limit downloads, or moved, answer with a page where a file was asked for."""
    with part.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        part.unlink()
        raise OSError(
            f"{url} answers with a web page, not with the file: the host may have moved it or limit downloads; open "
            f"the address in a browser and save the file as {part.with_suffix('')}"
        )


class SameScheme(urllib.request.HTTPRedirectHandler):
    """A download over https stays there."""

    def redirect_request(self, request, answer, code, message, headers, target):
        if request.type == "https" and not target.startswith("https:"):
            raise OSError(f"{request.full_url} redirects to {target}, which is not encrypted; fetch it by hand")
        return super().redirect_request(request, answer, code, message, headers, target)


def download(url: str, part: Path) -> None:
    """Download the whole file; a partial download is continued if the server supports it."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.build_opener(SameScheme).open(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the partial file is not the beginning of this one
            part.unlink()
            return download(url, part)
        raise
    with answer:
        goes_on = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not goes_on:
            have = 0
        length = int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(part.parent).free
        if length > free:
            raise OSError(f"{url} has {length} more bytes, but only {free} are free in {part.parent}")
        bar = tqdm(initial=have, total=have + length or None, unit="B", unit_scale=True, desc=part.stem, delay=2)
        with part.open("ab" if goes_on else "wb") as file, bar:
            while piece := answer.read(PIECE):
                file.write(piece)
                bar.update(len(piece))
    if length and part.stat().st_size != have + length:
        raise OSError(
            f"{url} stopped at {part.stat().st_size} of {have + length} bytes; "
            "run the command again to continue from there"
        )


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip, .tar, .tgz or .gz, up to a size limit for its length that fits the disk. A member that is a link
    or points outside `folder` is an error; an archive that cannot be read is removed, so that it is fetched again."""
    free = shutil.disk_usage(archive.parent).free
    room = {"bytes": min(MOST_UNPACKED + RATIO * archive.stat().st_size, free)}

    def check(name: str, size: int, special: bool) -> None:
        if name.startswith(("/", "\\")) or ".." in Path(name.replace("\\", "/")).parts or name[1:2] == ":":
            raise OSError(f"{archive} contains {name!r}, which is outside {folder}; unpacking stopped")
        if special:
            raise OSError(f"{archive} contains {name!r}, which is not a regular file; unpacking stopped")
        room["bytes"] -= size
        if room["bytes"] < 0:
            raise OSError(
                f"{archive} unpacks to more than its {archive.stat().st_size} bytes or the {free} free bytes "
                "on the disk allow"
            )

    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                members = file.infolist()
                for member in members:
                    check(member.filename, member.file_size, stat.S_ISLNK(member.external_attr >> 16))
                file.extractall(folder, members)
            return
        if archive.suffix == ".gz" and not archive.stem.endswith(".tar"):
            gunzip(archive, folder / archive.stem, lambda size: check(archive.stem, size, False))
            return
        with tarfile.open(archive) as file:
            for member in file:  # one at a time: the member list of an archive bomb is as long as its content
                check(member.name, member.size, not (member.isfile() or member.isdir()))
                file.extract(member, folder, filter="data")
        if archive.suffix == ".tar" and not ends_in_zeros(archive):
            raise tarfile.ReadError("its end is missing")
    except DAMAGED as error:
        archive.unlink()
        archive.with_name(archive.name + ".md5").unlink(missing_ok=True)
        raise OSError(
            f"{archive} is damaged ({' '.join(str(error).split())[:160]}) and was removed; "
            "run the command again to fetch it"
        ) from None


def ends_in_zeros(archive: Path) -> bool:
    """Whether a plain tar ends with its two empty blocks; one that is cut between two members reads without error."""
    with archive.open("rb") as file:
        file.seek(max(0, archive.stat().st_size - 1024))
        return not any(file.read())


def gunzip(archive: Path, path: Path, count) -> None:
    """One packed file; `count` refuses when it becomes too long."""
    part = path.with_name(path.name + ".part")
    try:
        with gzip.open(archive) as source, part.open("wb") as file:
            while piece := source.read(PIECE):
                count(len(piece))
                file.write(piece)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def mark_of(archive: Path) -> Path:
    return archive.with_name(archive.name + ".unpacked")


def files_of(source: Source, base_path: Path) -> list[Path]:
    """Where its archives are put."""
    return [base_path / archive.folder / archive.url.split("/")[-1] for archive in source.archives]


def interrupted(source: Source, base_path: Path) -> list[Path]:
    """Archives whose download or unpacking was not finished."""

    def half(archive: Path) -> bool:
        mark = mark_of(archive)
        return archive.with_name(archive.name + ".part").is_file() or (mark.is_file() and mark.read_text() == BEGUN)

    return [archive for archive in files_of(source, base_path) if half(archive)]


def unpack_once(archive: Path, folder: Path, again: bool = False) -> None:
    """Unpack, and the archives of archives; a mark beside the file says whether that was finished."""
    mark, state = mark_of(archive), archive.stat()
    if not again and mark.is_file() and mark.read_text() == f"{state.st_size} {state.st_mtime_ns}":
        return
    mark.write_text(BEGUN)
    inner: list[Path] = []
    if archive.suffix == ".zip":
        with contextlib.suppress(*DAMAGED), zipfile.ZipFile(archive) as file:
            inner = [folder / name for name in file.namelist() if name.endswith((".tar.gz", ".tgz", ".tar"))]
    unpack(archive, folder)
    for path in inner:
        unpack(path, folder)
    mark.write_text(f"{state.st_size} {state.st_mtime_ns}")


def prepare_source(source: Source, base_path: Path) -> None:
    """Fetch, check and unpack what has a host. Files put there by hand, without an archive, are left as they are."""
    kept = any(path.is_file() for path in files_of(source, base_path))
    if not source.missing(base_path) and not kept and not interrupted(source, base_path):
        return
    with only_one(base_path, source.places[0].split("|")[0].split("/")[0]):
        for archive in source.archives:
            folder = base_path / archive.folder
            path = fetch(archive.url, archive.checksum, folder)
            if path.suffix in PACKED:
                unpack_once(path, folder, again=bool(source.missing(base_path)))


def prepare(dataset: str, base_path: Path) -> Path:
    """Everything that a stream reads; OSError names what must be put there by hand."""
    sources = get_dataset_class(dataset).FILES
    for source in sources:
        prepare_source(source, base_path)
    by_hand = [s.by_hand.format(base=base_path) for s in sources if s.by_hand and s.missing(base_path)]
    if by_hand:
        raise OSError(f"this must be done by hand: {'; '.join(dict.fromkeys(by_hand))}")
    return base_path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=lambda name: name.replace("_", "-"), choices=get_dataset_names())
    parser.add_argument("--base_path", type=Path, default=Path("./data/"))
    args = parser.parse_args()
    if not get_dataset_class(args.dataset).FILES:
        print(f"{args.dataset}: nothing to fetch")
        return 0
    try:
        root = prepare(args.dataset, args.base_path)
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:  # no network, a full disk, or a checksum that differs
        print(f"error: {args.dataset} could not be fetched: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{args.dataset}: ready under {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
