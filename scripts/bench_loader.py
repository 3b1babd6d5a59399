"""Images a second of a test set of JPEG files, with and without --image_cache 1, on one core.

`python scripts/bench.py --suite io [--images 5000] [--pixels 400]` writes the files to a temporary folder: noise over
smooth colors, quality 90, sides of 400 and 300 pixels by default. Batches of both ways are read in turn and compared;
the pass that fills the cache is shown too.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T

from datasets.seq_folder import BICUBIC, MEAN, STD
from datasets.utils.image_cache import ImageCaches
from datasets.utils.loaders import Loader, Split
from datasets.utils.samples import FileSamples
from scripts.bench_common import Row
from utils.flags import positive_int

BATCH = 64


def write_images(folder: Path, count: int, pixels: int) -> list[Path]:
    """JPEGs of about the size that photographs of these sides have."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        smooth = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((pixels, pixels * 3 // 4))
        noise = rng.integers(-12, 12, (pixels * 3 // 4, pixels, 3))
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def timed(batches: Iterator) -> Iterator[tuple[tuple, float]]:
    """Each batch with the processor time that it took, which excludes waiting for the core."""
    while True:
        start = time.process_time()
        batch = next(batches, None)
        if batch is None:
            return
        yield batch, time.process_time() - start


def both(plain: Loader, cached: Loader) -> tuple[float, float, bool]:
    """Seconds of a pass of each, batch by batch in turn, and whether all tensors are equal."""
    without = kept = 0.0
    equal = True
    for (one, seconds), (other, fewer) in zip(timed(iter(plain)), timed(iter(cached)), strict=True):
        without, kept = without + seconds, kept + fewer
        equal &= all(map(torch.equal, one, other))
    return without, kept, equal


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=positive_int, default=5000)
    parser.add_argument("--pixels", type=positive_int, default=400, help="of the longer side")
    parser.add_argument("--passes", type=positive_int, default=1, help="the fastest of these counts")


def rows(args: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, args.images, args.pixels)
        size = sum(p.stat().st_size for p in paths) / args.images / 1000
        samples = FileSamples(paths, torch.zeros(args.images))
        transform = transform_of_folder()
        loaders = []
        for caches in (None, ImageCaches(folder / "image_cache", False)):
            split = Split(samples, torch.arange(args.images), samples.targets, transform, False)
            split.image_caches = caches
            loaders.append(Loader(split, BATCH, ("bench",), False))
        plain, cached = loaders
        first = sum(seconds for _, seconds in timed(iter(cached)))
        passes = [both(plain, cached) for _ in range(args.passes)]
    without, kept, equal = min(p[0] for p in passes), min(p[1] for p in passes), all(p[2] for p in passes)
    if not equal:
        raise SystemExit("io: images from the cache differ from those of the files")
    note = f"{args.images:,} JPEGs of {size:.0f} kB on average"
    read = {"from files": without, "first pass, which fills the cache": first, "from the cache": kept}
    found = [
        Row(f"image {way}", 1e3 * taken / args.images, "ms", None, f"{args.images / taken:,.0f} images/s; {note}")
        for way, taken in read.items()
    ]
    return [*found, Row("from the cache over from files", kept / without, "x", 0.2, "all tensors are equal")]


def transform_of_folder():
    """The test transform of seq-folder: shorter side 224, central crop, ImageNet's normalization."""
    return T.Compose([T.Resize(224, BICUBIC), T.CenterCrop(224), T.ToTensor(), T.Normalize(MEAN, STD)])
