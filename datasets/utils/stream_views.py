"""How a stream shows its images and names, where flags replace what its file declares."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path
from typing import TYPE_CHECKING

from torchvision import transforms as T

from utils.errors import UserError
from utils.flags import sentence
from utils.settings import option

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset

BICUBIC = T.InterpolationMode.BICUBIC
MARGIN = 256 / 224  # of the shorter side to the part that is cut out


def resize_to(kind: str, size: tuple[int, int]) -> list:
    """Steps from an image of any size to `size`, without augmentation."""
    if kind == "squash":
        return [T.Resize(tuple(size), BICUBIC)]
    shorter = min(size) if kind == "shorter" else round(min(size) * MARGIN)
    return [T.Resize(shorter, BICUBIC), T.CenterCrop(tuple(size))]


def apply_views(stream: ContinualDataset) -> None:
    """--image_transform, --templates and --underscores, on this instance alone."""
    args = stream.args
    if kind := option(args, "image_transform"):
        _set_transforms(stream, kind)
    if templates := templates_of(option(args, "templates") or []):
        stream.get_prompt_templates = lambda: list(templates)
        stream.class_templates = lambda: [list(templates)] * stream.N_CLASSES
    if option(args, "underscores"):
        spoken = stream.get_class_names
        stream.get_class_names = lambda: [name.replace(" ", "_") for name in spoken()]


def templates_of(given: list[str]) -> list[str]:
    """Sentences around a class name; a file stands for its lines."""
    found = []
    for text in given:
        lines = [text]
        if "{}" not in text:
            try:
                lines = Path(text).expanduser().read_text(encoding="utf-8-sig").splitlines()
            except (OSError, ValueError) as error:
                raise UserError(f"--templates {text} cannot be read ({error}): give sentences with {{}}") from None
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    found.append(sentence(line.strip()))
                except ArgumentTypeError as error:
                    raise UserError(f"--templates {text} line {number}: {error}") from None
    if given and not found:
        raise UserError(f"--templates {given[0]}: the file is empty; write one sentence with {{}} per line")
    return found


def _set_transforms(stream: ContinualDataset, kind: str) -> None:
    """Images of files are resized; those in memory have their size already."""
    size, on_disk = tuple(stream.SIZE), hasattr(stream, "RESIZE") or hasattr(stream, "resize")
    if kind == "crop_raw":
        stream.MEAN, stream.STD = (0.0,) * len(stream.MEAN or (0,) * 3), (1.0,) * len(stream.STD or (0,) * 3)
        stream.get_normalization_transform = lambda: T.Normalize(stream.MEAN, stream.STD)
        stream.get_denormalization_transform = lambda: T.Normalize(stream.MEAN, stream.STD)
    plain = [T.ToTensor()] + ([] if stream.MEAN is None else [T.Normalize(stream.MEAN, stream.STD)])
    resize = T.Compose(resize_to(kind, size)) if on_disk else T.Compose([])
    stream.RESIZE = stream.resize = resize
    stream.TEST_TRANSFORM = T.Compose([*resize.transforms, *plain])
    stream.TRANSFORM = stream.TEST_TRANSFORM
    if kind.startswith("crop"):
        part = T.RandomResizedCrop(size, scale=(0.05, 1.0), interpolation=BICUBIC)
        stream.TRANSFORM = T.Compose([part, T.RandomHorizontalFlip(), *plain])
    stream.get_transform = lambda: T.Compose([T.ToPILImage(), stream.TRANSFORM])


def transform_of(spec, name: str):
    """A torchvision Compose from yaml: names, {Name: {keywords}}, {Name: argument}."""
    if not isinstance(spec, list):
        return spec
    steps = []
    for item in spec:
        step, given = (item, None) if isinstance(item, str) else next(iter(item.items()))
        maker = getattr(T, step, None)
        if maker is None:
            raise UserError(f"{name}: torchvision has no transform '{step}'")
        if isinstance(given, dict):
            if "interpolation" in given:
                given = given | {
                    "interpolation": T.InterpolationMode.BICUBIC
                    if given["interpolation"] == 3
                    else T.InterpolationMode(given["interpolation"])
                }
            if step == "RandomApply":
                given = {"p": given.get("p", 0.5), "transforms": transform_of(given["transform"], name).transforms}
        steps.append(maker() if given is None else maker(**given) if isinstance(given, dict) else maker(given))
    return T.Compose(steps)
