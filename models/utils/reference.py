"""Reference images and texts for distillation on data outside the tasks: a folder, the picture world, or noise."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from backbone.clip import BICUBIC, CLIPBackbone
from datasets.utils.image_files import open_image
from models.utils.clip_distillation import random_sentences
from utils.errors import UserError
from utils.randomness import generator

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
SYNTHETIC_LENGTH = 10  # tokens of a random sentence


class ReadsReference:
    """A method with reference data: `pictures` bytes (N, 3, R, R) and `sentences` token ids (K, L), or None."""

    pictures: Tensor | None
    sentences: Tensor | None

    def reference_sha256(self) -> str | None:
        held = [t for t in (self.pictures, self.sentences) if t is not None]
        digest = hashlib.sha256()
        for tensor in held:
            digest.update(f"{tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest() if held else None


def reference_data(source: str, net: CLIPBackbone, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """At most n images (N, 3, R, R) as bytes and the token ids (K, L) of as many texts; drawn by the seed.

    `source` is `tiny` (what the embedded CLIP was pre-trained on), `synthetic` (noise with the spectrum of photographs,
    and random sentences), or a folder with images anywhere below it and captions.txt, one text per line.
    """
    if source == "tiny":
        return _picture_world(net, n)
    if source == "synthetic":
        sentences = random_sentences(net, n, SYNTHETIC_LENGTH, seed, "reference texts")
        return noise_pictures(n, net.resolution, generator(seed, "reference pictures")), sentences
    return _folder(Path(source).expanduser(), net, n, seed)


def _picture_world(net: CLIPBackbone, n: int) -> tuple[Tensor, Tensor]:
    import numpy as np

    from datasets.tiny_world import captions, world
    from datasets.tiny_world.render import render

    found = world.sample(1, np.arange(n))  # 1: the seed of pre-training
    texts = list(dict.fromkeys(captions.captions(found)))
    return _fit(render(found), net.resolution), net.tokenize(texts)


def noise_pictures(n: int, size: int, draw: torch.Generator) -> Tensor:
    """Bytes (n, 3, size, size): Gaussian noise whose amplitude falls as 1 / frequency, as that of photographs does."""
    frequency = torch.fft.fftfreq(size)[:, None].square() + torch.fft.rfftfreq(size).square()
    waves = torch.fft.rfft2(torch.randn(n, 3, size, size, generator=draw)) / frequency.sqrt().clamp(min=1 / size)
    images = torch.fft.irfft2(waves, s=(size, size))
    images = (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), keepdim=True)
    return (128 + 55 * images).clamp(0, 255).byte()


def _fit(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    return F.center_crop(F.resize(images, [size], interpolation=BICUBIC, antialias=True), [size, size])


def _folder(root: Path, net: CLIPBackbone, n: int, seed: int) -> tuple[Tensor, Tensor]:
    captions = root / "captions.txt"
    if not captions.is_file():
        raise UserError(
            f"--reference {root}: {captions} does not exist; put images below {root} and one text per line "
            "into that file, or choose tiny or synthetic"
        )
    try:
        lines = captions.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"--reference {root}: {captions} cannot be read ({error}); save it as UTF-8 text") from None
    texts = list(dict.fromkeys(t.strip() for t in lines if t.strip()))
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not texts or not paths:
        raise UserError(f"--reference {root} holds {len(paths)} images and {len(texts)} texts; it needs both")
    kept, spoken = (
        torch.randperm(len(v), generator=generator(seed, "reference", k))[:n].sort().values.tolist()
        for k, v in enumerate((paths, texts))
    )
    images = torch.cat([_fit(_read(paths[k]), net.resolution) for k in kept])
    return images, net.tokenize([texts[k] for k in spoken])


def _read(path: Path) -> Tensor:
    return F.pil_to_tensor(open_image(path))[None]
