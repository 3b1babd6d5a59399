"""Where the numbers of a run come from: command, code, changes of the checkout, packages, graphics card."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import inspect
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from utils.cli import registry
from utils.content import file_digest
from utils.errors import disk_errors
from utils.settings import option

PATCH = "changes.patch"  # in the run's folder
MOST_BYTES = 2**20  # of a file or a patch that is kept


def command(argv: list[str], seed: int | None) -> str:
    """What to paste for the same numbers: the arguments as given, and the seed that was drawn if none was."""
    given = any(word.split("=")[0] in {"--seed", "-seed"} for word in argv)
    return shlex.join(["python", "main.py", *argv, *([] if given or seed is None else ["--seed", str(seed)])])


def code_files(**parts: object) -> dict[str, dict[str, str]]:
    """File and sha256 of the source of each part: the method, the data set."""
    found = {}
    for name, part in parts.items():
        try:
            path = Path(inspect.getfile(type(part))).resolve()
            where = path.relative_to(registry.ROOT) if registry.ROOT in path.parents else path
            found[name] = {"file": str(where), "sha256": file_digest(path).hex()}
        except (TypeError, OSError):  # a class made in a notebook has no file
            found[name] = {"file": type(part).__module__, "sha256": ""}
    return found


def git(*words: str) -> str | None:
    """What git says about this checkout; None if there is no git or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(registry.ROOT), *words], capture_output=True, timeout=10, errors="replace", text=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in {0, 1} and not done.stderr.startswith("fatal") else None


def commit_and_changes() -> tuple[str | None, list[str]]:
    """The commit, with a + if any file differs from it or is not tracked, and the lines that say which."""
    head, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=all")
    if not head or status is None:
        return None, []
    changed = status.splitlines()
    return head.strip() + "+" * bool(changed), changed


def patch(changed: list[str]) -> str:
    """A diff that makes the working tree from the commit, files that are not tracked included."""
    if not changed:
        return ""
    new = [line[3:].strip('"') for line in changed if line.startswith("??")]
    times = tuple(_state(registry.ROOT / line[3:].strip('"')) for line in changed)
    return _patch(tuple(new), times)


def _state(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
        return stat.st_mtime_ns, stat.st_size
    except OSError:
        return 0, 0


@functools.lru_cache(maxsize=2)
def _patch(new: tuple[str, ...], state: tuple) -> str:
    parts = [git("diff", "HEAD") or ""]
    for name in new:
        path = registry.ROOT / name
        if path.is_file() and path.stat().st_size <= MOST_BYTES:
            parts.append(git("diff", "--no-index", "--", "/dev/null", name) or "")
    text = "".join(parts)
    return text if len(text) <= MOST_BYTES else text[:MOST_BYTES] + "\n(the rest is left out)\n"


@functools.cache
def packages() -> list[str]:
    """name==version of all that is installed."""
    found = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions() if dist.metadata}
    return [f"{name}=={version}" for name, version in sorted(found.items(), key=lambda pair: str(pair[0]).lower())]


def graphics(device: torch.device) -> dict[str, str] | None:
    """Name of the GPU and version of its driver; None without one."""
    if device.type != "cuda":
        return None
    place = Path("/proc/driver/nvidia/version")
    words = place.read_text().split() if place.is_file() else []
    driver = next((word for word in words if word.replace(".", "").isdigit() and "." in word), "unknown")
    return {"name": torch.cuda.get_device_name(device), "driver": driver, "cuda": str(torch.version.cuda)}


def facts(argv: list[str], args: Namespace, **parts: Any) -> dict[str, Any]:
    """For the first line of a record."""
    head, changed = commit_and_changes()
    text = patch(changed)
    return {
        "argv": argv,
        "command": command(argv, option(args, "seed")),
        "git_commit": head,
        "git_changes": changed,
        "patch_sha256": hashlib.sha256(text.encode()).hexdigest() if text else None,
        "code": code_files(**parts),
        "packages": packages(),
        "gpu": graphics(parts["model"].device),
    }


def keep_patch(folder: Path) -> None:
    """Beside the record, where the checkout differs from its commit."""
    text = patch(commit_and_changes()[1])
    if text:
        with disk_errors(folder):
            (folder / PATCH).write_text(text, encoding="utf-8", errors="replace")
