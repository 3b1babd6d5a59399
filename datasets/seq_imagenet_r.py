"""ImageNet-R in ten tasks of twenty: renditions of 200 ImageNet classes"""

import re
import warnings
from pathlib import Path

from torchvision import transforms as T
from torchvision.datasets.folder import IMG_EXTENSIONS

from datasets.utils.file_streams import CROP_AND_FLIP, Content, FileStream, held_out, read_split_list
from datasets.utils.sources import SOURCES
from utils.errors import UserError

Rows = list[tuple[str, int]]  # path below the folder, label


class SequentialImageNetR(FileStream):
    """<base_path>/imagenet-r/<wnid>/*.jpg with README.txt, which holds the names.

    Split, first match wins: lists train and test (.txt or .yaml; `imagenet-r_train.yaml` is also recognized), whose
    labels are kept; folders train/<wnid> and test/<wnid>; else a fifth of the files by md5 of "<wnid>/<file>". Without
    labels in a list, classes are in the order of their wnids.
    """

    NAME = "seq-imagenet-r"
    SETTING = "class-il"
    FOLDER = "imagenet-r"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 20
    MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    TRANSFORM = T.Compose([*CROP_AND_FLIP, T.ToTensor()])
    TEST_TRANSFORM = T.Compose([*FileStream.RESIZE.transforms, T.ToTensor()])
    TEMPLATES = ["a photo of a {}.", "a drawing of a {}.", "a rendition of a {}.", "a painting of a {}."]
    DEFAULTS = {"batch_size": 128, "n_epochs": 50, "backbone": "timm:vit_base_patch16_224"}
    FILES = (SOURCES["imagenet-r"],)
    N_IMAGES = 30_000

    def read(self, base: Path) -> Content:
        root = base / self.FOLDER
        if not root.is_dir():
            raise self.absent(root)
        names = dict(
            m.groups() for m in map(re.compile(r"(n\d{8})\s+(\S+)").fullmatch, self.lines(root / "README.txt")) if m
        )
        lists = [_list_of(root, part) for part in ("train", "test")]
        if any(lists) and not all(lists):
            raise UserError(
                f"{root} has a list for one part only: put train.txt and test.txt (or .yaml) there, or neither"
            )
        if all(lists):
            parts = [self._listed(path) for path in lists]
        elif (root / "train").is_dir() and (root / "test").is_dir():
            parts = [[(name, None) for name in _images(root, f"{part}/")] for part in ("train", "test")]
        else:
            found = _images(root, "")
            warnings.warn(
                f"{self.NAME}: no train and test list in {root}: a fifth of the files is held out by name; "
                "scores are not comparable to those on a published split",
                stacklevel=2,
            )
            parts = [[(name, None) for name in found if held_out(name) == test] for test in (False, True)]
        wnids = self._wnids(root, parts)
        unknown = [wnid for wnid in wnids if wnid not in names]
        if unknown:
            raise self.broken(root / "README.txt", f"no name for class {unknown[0]}")
        label = {wnid: number for number, wnid in enumerate(wnids)}
        sources = lists if all(lists) else (root, root)
        samples = [
            self.files(root, [(name, label[_wnid(name)]) for name, _ in rows], source)
            for rows, source in zip(parts, sources, strict=True)
        ]
        return Content(*samples, [names[wnid].replace("_", " ") for wnid in wnids])

    def _listed(self, path: Path) -> list[tuple[str, int | None]]:
        """Rows of a list, paths from the wnid on: some lists contain their author's folder."""
        try:
            rows = read_split_list(self.lines(path))
        except ValueError as error:
            raise UserError(f"{path} is not a split list ({error}): fix it or remove both lists") from None
        return [(re.sub(r"^(.*/)?(?=n\d{8}/)", "", name), label) for name, label in rows]

    def _wnids(self, root: Path, parts: list[list[tuple[str, int | None]]]) -> list[str]:
        """Class folders in the order of their labels."""
        rows = parts[0] + parts[1]
        strange = [name for name, _ in rows if _wnid(name) is None]
        if strange:
            raise UserError(
                f"{root}: {strange[0]} is not in a class folder (n and eight digits): fix or remove that row"
            )
        given = {(label, _wnid(name)) for name, label in rows if label is not None}
        wnids = sorted({_wnid(name) for name, _ in rows})
        if given:
            if any(label is None for _, label in rows) or sorted(label for label, _ in given) != list(
                range(len(wnids))
            ):
                raise UserError(
                    f"{root}: the lists do not give each of the {len(wnids)} classes one label from 0 on; "
                    "fix or remove both"
                )
            wnids = [wnid for _, wnid in sorted(given)]
        if len(wnids) != self.N_CLASSES:
            raise self.broken(root, f"{len(wnids)} class folders, {self.N_CLASSES} are published")
        return wnids


def _wnid(name: str) -> str | None:
    found = re.search(r"(?:^|/)(n\d{8})/[^/]+$", name)
    return found and found[1]


def _list_of(root: Path, part: str) -> Path | None:
    names = (f"{part}.txt", f"{part}.yaml", f"imagenet-r_{part}.yaml")
    return next((root / name for name in names if (root / name).is_file()), None)


def _images(root: Path, part: str) -> list[str]:
    """ "<part><wnid>/<file>" of every image, sorted."""
    return sorted(
        path.relative_to(root).as_posix()
        for path in root.glob(f"{part}n[0-9]*/*")
        if path.suffix.lower() in IMG_EXTENSIONS
    )
