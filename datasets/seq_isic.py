"""ISIC 2018, six kinds of skin lesion, in three tasks of two"""

import csv
import warnings
from pathlib import Path

from torchvision import transforms as T

from datasets.utils.array_files import ARRAY_ERRORS, ImageArrays, as_images, as_labels, read_pickle
from datasets.utils.file_streams import BICUBIC, IMAGENET, Content, FileStream, held_out
from datasets.utils.sources import Archive, Source

COLUMNS = ["MEL", "BCC", "AKIEC", "BKL", "DF", "VASC"]  # in the order of the labels; NV, two thirds of all, is left out
STEM = "ISIC2018_Task3_Training"


class SequentialISIC(FileStream):
    """<base_path>/isic/{train,test}_{images,labels}.pkl; else the challenge's own files in <base_path>/isic.

    They do not have a labeled test part: a fifth of the lesions (not images: a lesion has several) is held out by md5.
    """

    NAME = "seq-isic"
    SETTING = "class-il"
    N_TASKS = 3
    N_CLASSES_PER_TASK = 2
    MEAN, STD = IMAGENET
    TRANSFORM = T.Compose(
        [T.Resize(256, BICUBIC), T.RandomCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*IMAGENET)]
    )
    TEST_TRANSFORM = T.Compose([*FileStream.RESIZE.transforms, T.ToTensor(), T.Normalize(*IMAGENET)])
    TEMPLATES = ["a photo of a {}.", "a dermoscopic image of {}."]
    CLASS_NAMES = [
        "melanoma",
        "basal cell carcinoma",
        "actinic keratosis or intraepithelial carcinoma",
        "benign keratosis",
        "dermatofibroma",
        "vascular skin lesion",
    ]
    DEFAULTS = {"batch_size": 128, "n_epochs": 30, "backbone": "timm:vit_base_patch16_224"}
    FILES = (
        Source(
            (f"isic/train_images.pkl|isic/{STEM}_Input",),
            "https://isic-challenge-data.s3.amazonaws.com/2018",
            "10,015 images",
            tuple(
                Archive(f"https://isic-challenge-data.s3.amazonaws.com/2018/{STEM}_{part}", None, "isic")
                for part in ("Input.zip", "GroundTruth.zip", "LesionGroupings.csv")
            ),
        ),
    )

    def read(self, base: Path) -> Content:
        root = base / "isic"
        if (root / "train_images.pkl").is_file():
            return Content(self._arrays(root, "train"), self._arrays(root, "test"), self.CLASS_NAMES)
        truth = self._rows(root / f"{STEM}_GroundTruth" / f"{STEM}_GroundTruth.csv", ["image", *COLUMNS])
        lesions = self._rows(root / f"{STEM}_LesionGroupings.csv", ["image", "lesion_id"])
        lesion = {row["image"]: row["lesion_id"] for row in lesions}
        rows = {False: [], True: []}
        for row in truth:
            marked = [label for label, column in enumerate(COLUMNS) if float(row[column]) == 1]
            if len(marked) != 1:
                continue  # NV
            if row["image"] not in lesion:
                raise self.broken(root / f"{STEM}_LesionGroupings.csv", f"no lesion for image {row['image']}")
            rows[held_out(lesion[row["image"]])].append((f"{row['image']}.jpg", marked[0]))
        warnings.warn(
            f"{self.NAME}: a fifth of the lesions of {root} is held out by name; scores are not comparable "
            "to those on other splits",
            stacklevel=2,
        )
        samples = [self.files(root / f"{STEM}_Input", rows[test], root) for test in (False, True)]
        return Content(*samples, self.CLASS_NAMES)

    def _rows(self, path: Path, columns: list[str]) -> list[dict[str, str]]:
        rows = list(csv.DictReader(self.lines(path)))
        if not rows or any(row.get(column) in (None, "") for row in rows for column in columns):
            raise self.broken(path, f"it needs rows with {', '.join(columns)}")
        return rows

    def _arrays(self, root: Path, part: str) -> ImageArrays:
        found = []
        for kind, form in (("images", as_images), ("labels", as_labels)):
            path = root / f"{part}_{kind}.pkl"
            if not path.is_file():
                raise self.absent(path)
            try:
                found.append(form(read_pickle(path)))
            except ARRAY_ERRORS as error:
                raise self.broken(path, error or type(error).__name__) from None
        if len(found[0]) != len(found[1]):
            raise self.broken(root / f"{part}_labels.pkl", f"{len(found[1])} labels for {len(found[0])} images")
        return ImageArrays(*found)
