"""Images a second of a test set of JPEG files, with and without --image_cache 1, on one core.

`python scripts/bench_loader.py [--images 5000] [--pixels 400]` writes the files to a temporary folder: noise over
smooth colors, quality 90, sides of 400 and 300 pixels by default. The best of three passes counts; the pass that fills
the cache is shown too. Every tensor of the two ways is compared.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets.seq_folder import BICUBIC, MEAN, STD
from datasets.utils.image_cache import ImageCaches
from datasets.utils.loaders import Loader, Split
from datasets.utils.samples import FileSamples
from utils.flags import positive_int

BATCH, PASSES, WANTED = 64, 3, 5.0


def write_images(folder: Path, count: int, pixels: int) -> list[Path]:
    """JPEGs of about the size that photographs of these sides have."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        smooth = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((pixels, pixels * 3 // 4))
        noise = rng.integers(-12, 12, (pixels * 3 // 4, pixels, 3))
        paths.append(folder / f"{number}.jpg")
        Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def seconds_of(loader: Loader) -> float:
    """Of processor time, which excludes waiting for the core."""
    start = time.process_time()
    for _ in loader:
        pass
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive_int, default=5000)
    parser.add_argument("--pixels", type=positive_int, default=400, help="of the longer side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_images(folder, args.images, args.pixels)
        print(f"{args.images} JPEGs of {sum(p.stat().st_size for p in paths) / args.images / 1000:.0f} kB on average")
        samples = FileSamples(paths, torch.zeros(args.images))
        transform = transform_of_folder()
        loaders = []
        for caches in (None, ImageCaches(folder / "image_cache", False)):
            split = Split(samples, torch.arange(args.images), samples.targets, transform, False)
            split.image_caches = caches
            loaders.append(Loader(split, BATCH, ("bench",), False))
        plain, cached = loaders
        without = min(seconds_of(plain) for _ in range(PASSES))
        first = seconds_of(cached)
        kept = min(seconds_of(cached) for _ in range(PASSES))
        equal = all(torch.equal(a, b) for x, y in zip(plain, cached, strict=True) for a, b in zip(x, y, strict=True))
    for what, seconds in (("files", without), ("first pass, which fills the cache", first), ("cache", kept)):
        print(f"{what}: {args.images / seconds:,.0f} images/s ({seconds:.2f} s)")
    print(f"ratio {without / kept:.1f} (wanted {WANTED:g}); tensors {'equal' if equal else 'DIFFERENT'}")
    return 0 if equal and without / kept >= WANTED else 1


def transform_of_folder():
    """The test transform of seq-folder: shorter side 224, central crop, ImageNet's normalization."""
    return T.Compose([T.Resize(224, BICUBIC), T.CenterCrop(224), T.ToTensor(), T.Normalize(MEAN, STD)])


if __name__ == "__main__":
    sys.exit(main())
