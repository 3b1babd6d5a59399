"""What --probe measures besides the stream: test sets of other streams, and folders of images with captions.

Words of --probe, separated by commas:
- the name of a stream: zero-shot accuracy on its test set among all its names, by its first sentence;
- a folder with captions.csv (image,caption), captions.jsonl ({"image": .., "captions": [..]}) or a dataset_*.json of
  Karpathy and Fei-Fei (its split "test"): retrieval both ways, the first five captions of an image;
- tiny: names of seq-tiny in a style that the stream does not use, and captions of the picture world; offline.
"""

from __future__ import annotations

import csv
import inspect
import re
import warnings
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from datasets.utils.loaders import Loader, Split
from datasets.utils.samples import ArraySamples, FileSamples, Samples
from utils import json_text
from utils.cli import registry
from utils.errors import UserError, shown
from utils.settings import option

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset

MOST_CAPTIONS = 5  # of an image, as in the retrieval tests of Flickr30k and COCO
TINY_IMAGES = 400  # of the picture world, before those whose text is a question are left out
TINY_SEED = 977  # far from the seeds of pre-training and of the streams
STYLES = ("blurred", "noisy", "warped", "stitched")  # of the picture world, never seen in pre-training


@dataclass
class Probe:
    """Images with class names, or with captions: `owner` is the image of each caption."""

    name: str
    loader: Loader
    names: list[str] | None = None
    templates: list[list[str]] | None = None
    captions: list[str] | None = None
    owner: torch.Tensor | None = None


def make_probes(stream: ContinualDataset) -> list[Probe]:
    """The probes of --probe, in its order; nothing that the stream trains on is read."""
    words = [word.strip() for word in str(option(stream.args, "probe", "")).split(",") if word.strip()]
    probes = [probe for word in words for probe in _probes_of(word, stream)]
    if not probes:
        raise UserError("--probe is empty: name streams, folders with captions, or tiny, separated by commas")
    names = [probe.name for probe in probes]
    double = [name for name in names if names.count(name) > 1]
    if double:
        raise UserError(f"--probe: two probes are called {double[0]}: rename a folder or leave one out")
    for probe in probes:
        _tell_shared_names(probe, stream)
    return probes


def _probes_of(word: str, stream: ContinualDataset) -> list[Probe]:
    if word == "tiny":
        style = next(style for style in STYLES if style != getattr(stream, "style", None))
        return [_of_stream("tiny", "seq-tiny", stream.args, style=style), _tiny_captions(stream.args)]
    if registry.exists("dataset", word):
        return [_of_stream(key_of(word), word, stream.args)]
    folder = Path(word).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"--probe {shown(word)}: neither a stream (--list datasets) nor a folder with captions, nor tiny"
        )
    return [_of_folder(folder, stream.args)]


def key_of(word: str) -> str:
    """A probe's name in the keys of the record."""
    return re.sub(r"[^a-z0-9]+", "_", word.lower()).strip("_") or "folder"


def _loader(samples: Samples, targets: torch.Tensor, args: Namespace, name: str) -> Loader:
    split = Split(samples, torch.arange(len(targets)), targets, None, False)
    return Loader(split, 64, ("probe", name), False, False, option(args, "num_workers", 0))


def _of_stream(key: str, name: str, args: Namespace, **own: object) -> Probe:
    """The test set of a stream with its own defaults, all its names at once."""
    shared = {flag: getattr(args, flag, None) for flag in ("base_path", "device", "features", "clip_backbone", "seed")}
    cls = registry.load("dataset", name)
    needed = [p.name for p in list(inspect.signature(cls).parameters.values())[1:] if p.default is p.empty]
    if needed:
        raise UserError(f"--probe {name}: that stream needs --{needed[0]}, which a probe cannot have; choose another")
    probe = cls(Namespace(**shared), **own).complete()
    if probe.VQA or not hasattr(type(probe), "load") or type(probe).N_TASKS == 1:
        raise UserError(f"--probe {name}: that stream does not have a test set of images with class names")
    samples = probe.samples(False)
    names, templates = probe.get_class_names(), [sentences[:1] for sentences in probe.class_templates()]
    return Probe(key, _loader(samples, samples.targets, args, key), names, templates)


def _retrieval(name: str, samples: Samples, captions: list[list[str]], args: Namespace) -> Probe:
    first = [given[:MOST_CAPTIONS] for given in captions]
    owner = torch.tensor([image for image, given in enumerate(first) for _ in given])
    loader = _loader(samples, torch.arange(len(captions)), args, name)
    return Probe(name, loader, captions=[text for given in first for text in given], owner=owner)


def _tiny_captions(args: Namespace) -> Probe:
    from datasets.tiny_world import captions, render, streams, world
    from datasets.utils import tiny_streams

    def build():
        spec = world.sample(TINY_SEED, streams.np.arange(TINY_IMAGES), streams.BANK_SEED)
        texts = captions.captions(spec)
        told = [row for row, text in enumerate(texts) if "?" not in text]
        return {"images": render.render(spec)[told]}, {"captions": [texts[row] for row in told]}

    tensors, values = tiny_streams.drawn(args, "probe-captions", False, (TINY_SEED, TINY_IMAGES), build)
    samples = ArraySamples(tensors["images"], torch.zeros(len(tensors["images"])))
    return _retrieval("tiny_captions", samples, [[text] for text in values["captions"]], args)


def _of_folder(folder: Path, args: Namespace) -> Probe:
    """Images of a folder with the captions that a file in it gives them."""
    sources = [folder / "captions.jsonl", folder / "captions.csv", *sorted(folder.glob("dataset_*.json"))]
    source = next((path for path in sources if path.is_file()), None)
    if source is None:
        raise UserError(f"--probe {folder}: it has no captions.jsonl, captions.csv or dataset_*.json; put one there")
    try:
        told = {".jsonl": _lines, ".csv": _rows, ".json": _split}[source.suffix](source)
    except (ValueError, KeyError, TypeError, AttributeError, csv.Error, OSError) as error:
        raise UserError(f"--probe: {source} is not a list of images with captions ({error}): fix that file") from None
    captions: dict[str, list[str]] = {}
    for image, texts in told:
        captions.setdefault(image, []).extend(text.strip() for text in texts if text.strip())
    missing = [image for image in captions if not (folder / image).is_file() or ".." in Path(image).parts]
    mute = [image for image, texts in captions.items() if not texts]
    if missing or mute or not captions:
        what = (
            f"image {missing[0]} does not exist"
            if missing
            else f"image {mute[0]} has no caption"
            if mute
            else "it is empty"
        )
        raise UserError(f"--probe: {source}: {what}; fix that file")
    samples = FileSamples([folder / image for image in captions], torch.zeros(len(captions)))
    return _retrieval(key_of(folder.resolve().name), samples, list(captions.values()), args)


def _lines(source: Path) -> list[tuple[str, list[str]]]:
    rows = [json_text.parse(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(str(row["image"]), [str(text) for text in row["captions"]]) for row in rows]


def _rows(source: Path) -> list[tuple[str, list[str]]]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        return [(row["image"].strip(), [row["caption"]]) for row in csv.DictReader(file, strict=True)]


def _split(source: Path) -> list[tuple[str, list[str]]]:
    images = json_text.parse(source.read_text(encoding="utf-8"))["images"]
    return [
        (
            f"{row['filepath']}/{row['filename']}" if row.get("filepath") else row["filename"],
            [s["raw"] for s in row["sentences"]],
        )
        for row in images
        if row["split"] == "test"
    ]


def _tell_shared_names(probe: Probe, stream: ContinualDataset) -> None:
    """A probe whose names are trained is no held-out one."""
    if probe.names is None:
        return
    shared = sorted(set(probe.names) & set(stream.get_class_names()))
    if shared:
        warnings.warn(
            f"probe {probe.name}: {len(shared)} of its {len(set(probe.names))} names are classes of {stream.NAME} "
            f"({', '.join(shared[:3])}{', ...' * (len(shared) > 3)}): it is held out in images, not in names",
            stacklevel=2,
        )
