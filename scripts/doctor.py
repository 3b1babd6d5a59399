"""What is on this machine: every data set and weight file, where it goes, how to get it; Python, torch, disk, threads.

`python scripts/doctor.py` shows one table. `python scripts/doctor.py seq-cifar100 ViT-B/16` reads these in full, every
image's header and end included; exit code 2 and one line each if something is wrong with one of them.
"""

import argparse
import difflib
import inspect
import os
import platform
import shutil
import sys
import warnings
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from backbone import clip_files
from backbone.hub import HUB_NAMES
from datasets import get_dataset, get_dataset_class, get_dataset_names
from datasets.utils.fetch import AbsentFiles
from datasets.utils.sources import Source
from scripts.prepare_data import interrupted
from utils.errors import UserError

FINE = {"present", "generated", "your own"}


@dataclass
class Found:
    """The state of one data set or weight file: present, incomplete, corrupt, absent, generated or your own."""

    name: str
    state: str
    place: str = "-"
    size: str = "-"
    how: str = "-"
    problem: str = ""

    @property
    def line(self) -> str:
        return f"{self.name}: {self.state}{': ' * bool(self.problem)}{self.problem}"


def needs_path(cls: type) -> bool:
    """Whether a flag names the files."""
    return any(p.default is p.empty and n not in {"self", "args"} for n, p in inspect.signature(cls).parameters.items())


def look_at_dataset(name: str, base: Path, thorough: bool = False) -> Found:
    cls = get_dataset_class(name)
    sources = tuple(dict.fromkeys(cls.FILES))
    if needs_path(cls):
        return Found(name, "your own", "where its flag says")
    if not sources:
        return Found(name, "generated", str(base / "tiny_world"))
    missing = [place for source in sources for place in source.missing(base)]
    size = f"{len(sources)} sets" if len(sources) > 2 else "; ".join(s.amount for s in sources)
    found = Found(name, "present", place_of(sources), size, how_of(name, sources, base))
    half = [path for source in sources for path in interrupted(source, base)]
    if half:
        found.state, found.problem = "incomplete", f"fetching {half[0]} was interrupted; {found.how}"
    elif not any(source.started(base) for source in sources):
        found.state, found.problem = "absent", f"nothing of {found.place} is in {base}; {found.how}"
    elif missing:
        found.state, found.problem = "incomplete", f"{base / missing[0].split('|')[0]} does not exist; {found.how}"
    else:
        found.state, found.problem = state_of_content(name, base, thorough)
    return found


def state_of_content(name: str, base: Path, thorough: bool) -> tuple[str, str]:
    """What the stream's own reader says; `thorough` opens every image too."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            dataset = get_dataset(Namespace(dataset=name, base_path=str(base), seed=0, non_verbose=True))
            count = sum(len(dataset.samples(part)) for part in (True, False))
            dataset.get_class_names()
            if thorough:
                dataset.check_samples()
        except AbsentFiles as error:
            return "incomplete", str(error)
        except UserError as error:
            return "incomplete" if "does not exist" in str(error) else "corrupt", str(error)
    published = getattr(dataset, "N_IMAGES", None)
    if published and count < published:
        return "incomplete", f"{count:,} of {published:,} images are there; unpack the archives again"
    if changed := [str(w.message) for w in told if "other than the published" in str(w.message)]:
        return "corrupt", changed[0]
    return "present", ""


def place_of(sources: tuple[Source, ...]) -> str:
    firsts = [place.split("|")[0] for source in sources for place in source.places]
    return firsts[0] if len(firsts) == 1 else f"{firsts[0]}, ..."


def how_of(name: str, sources: tuple[Source, ...], base: Path) -> str:
    by_hand = [s.by_hand.format(base=base) for s in sources if s.by_hand and s.missing(base)]
    command = f"python scripts/prepare_data.py {name} --base_path {base}"
    if any(s.archives for s in sources):
        return command + f" (then {len(by_hand)} by hand)" * bool(by_hand)
    return by_hand[0] if by_hand else command


def look_at_clip(name: str, base: Path) -> Found:
    """One of OpenAI's files; its checksum is computed."""
    url, sha256 = clip_files.published()[name]
    places = [folder / url.split("/")[-1] for folder in (clip_files.CACHE_DIR.expanduser(), base / "clip")]
    path = next((path for path in places if path.is_file()), places[0])
    found = Found(name, "present", str(path), size_of(path), f"--clip_download 1, or put {url} there")
    if not path.is_file():
        found.state, found.problem = "absent", f"{path} does not exist; {found.how}"
    elif clip_files.sha256_file(path) != sha256:
        found.state, found.problem = "corrupt", f"{path} does not have sha256 {sha256}; delete it and fetch it again"
    return found


def look_at_hub(name: str, repository: str, how: str) -> Found:
    """Weights that huggingface_hub keeps in its own folder."""
    from huggingface_hub import constants, try_to_load_from_cache

    folder = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}"
    found = Found(name, "present", str(folder), how=how)
    files = [try_to_load_from_cache(repository, file) for file in ("model.safetensors", "pytorch_model.bin")]
    path = next((Path(file) for file in files if isinstance(file, str)), None)
    if path is None:
        found.state, found.problem = "absent", f"no weights of {repository} in {constants.HF_HUB_CACHE}; {how}"
    else:
        found.size = size_of(path)
    return found


def look_at_timm(name: str) -> Found:
    import timm

    model = name.removeprefix("timm:")
    if not timm.is_model(model):
        return Found(name, "absent", problem=f"timm does not have a model {model}")
    config = timm.get_pretrained_cfg(model)
    return look_at_hub(name, config.hf_hub_id or model, f"a run with --backbone {name} downloads it")


def size_of(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.0f} MB" if path.is_file() else "-"


def weights() -> list[str]:
    """Names of weights: those of CLIP, ViLT and BLIP, and the default networks of the data sets."""
    defaults = {str(get_dataset_class(name).DEFAULTS.get("backbone")) for name in get_dataset_names()}
    return ["tiny", *clip_files.published(), *HUB_NAMES, *sorted(d for d in defaults if d.startswith("timm:"))]


def look_at_weights(name: str, base: Path) -> Found:
    if name == "tiny":
        return Found(name, "present", str(clip_files.TINY_DIR), size_of(clip_files.TINY_DIR / "model.safetensors"))
    if name in HUB_NAMES:
        return look_at_hub(name, HUB_NAMES[name], "--clip_download 1")
    return look_at_timm(name) if name.startswith("timm:") else look_at_clip(name, base)


def look_at(name: str, base: Path) -> Found:
    """A data set or weights by name; other weights are read as --clip_backbone reads them."""
    key = name.lower().replace("_", "-")
    if key in get_dataset_names():
        return look_at_dataset(key, base, thorough=True)
    if name in weights() or name.startswith("timm:"):
        return look_at_weights(name, base)
    if name.startswith("open_clip:") or Path(name).expanduser().exists():
        try:
            clip_files.find_weights(name, base)
        except UserError as error:
            return Found(name, "corrupt" if Path(name).expanduser().exists() else "absent", problem=str(error))
        return Found(name, "present")
    known = {other.lower(): other for other in [*get_dataset_names(), *weights()]}
    close = ", ".join(known[match] for match in difflib.get_close_matches(name.lower(), known, 3, 0.5))
    return Found(name, "unknown", problem=f"neither a data set nor weights; closest: {close or 'none'}")


def machine(base: Path) -> list[tuple[str, str]]:
    cuda = "none"
    if torch.cuda.is_available():
        cuda = f"{torch.version.cuda}, " + ", ".join(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    above = next(folder for folder in (base, *base.absolute().parents) if folder.exists())
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        ("Python", platform.python_version()),
        ("torch", torch.__version__),
        ("CUDA", cuda),
        ("threads", f"{torch.get_num_threads()} of torch, {cpus} processors"),
        ("disk", f"{shutil.disk_usage(above).free / 1e9:,.1f} GB free for {base}"),
    ]


def table(rows: list[Found]) -> str:
    head = ("name", "state", "where", "size", "how to get it")
    cells = [head, *((r.name, r.state, r.place, r.size, "-" if r.state in FINE else r.how) for r in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(4)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[4]]) for row in cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="data sets and weights to read in full; without any: all, in short")
    parser.add_argument("--base_path", type=Path, default=Path("./data/"))
    args = parser.parse_args()
    base = args.base_path.expanduser()
    print("\n".join(f"{name:8} {value}" for name, value in machine(base)))
    if not args.names:
        rows = [look_at_dataset(name, base) for name in sorted(get_dataset_names())]
        print(table([*rows, *(look_at_weights(name, base) for name in weights())]))
        return 0
    rows = [look_at(name, base) for name in args.names]
    print(table(rows))
    wrong = [row for row in rows if row.state not in FINE]
    for row in wrong:
        print(" ".join(row.line.split()), file=sys.stderr)
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
