"""CropDisease, leaves of PlantVillage, 35 of its 38 classes in seven tasks of five

Mammoth's cropdisease/{train,test}.json {"data": [file], "labels": [number]} with cropdisease/images/; else the folders
of PlantVillage in cropdisease/, a fifth held out by name. Left out are Apple cedar rust, Peach healthy, Potato healthy.
"""

from pathlib import Path

from torchvision import transforms as T

from datasets.utils.file_streams import BICUBIC, IMAGENET, Content
from datasets.utils.image_streams import VIT, ImageNetStream, rows_by_folder
from datasets.utils.mtil_readers import Rows, read_rows
from datasets.utils.sources import HUB, Source
from utils import json_text

LEFT_OUT = {"Apple___Cedar_apple_rust", "Peach___healthy", "Potato___healthy"}
NAMES = (
    "apple scab|apple black rot|healthy apple|healthy blueberry|cherry powdery mildew|healthy cherry|"
    "corn gray leaf spot|corn common rust|corn northern leaf blight|healthy corn|grape black rot|grape black measles|"
    "grape leaf blight|healthy grape|orange citrus greening|peach bacterial spot|bell pepper bacterial spot|"
    "healthy bell pepper|potato early blight|potato late blight|healthy raspberry|healthy soybean|"
    "squash powdery mildew|strawberry leaf scorch|healthy strawberry|tomato bacterial spot|tomato early blight|"
    "tomato late blight|tomato leaf mold|tomato septoria leaf spot|tomato spider mites|tomato target spot|"
    "tomato yellow leaf curl virus|tomato mosaic virus|healthy tomato"
).split("|")


def cleaned(folder: str) -> str:
    return folder.replace("_(maize)", "").replace("_(including_sour)", "").rstrip("_")


def leaves(root: Path) -> tuple[Rows, Rows, list[str]]:
    """Labels are those of the cleaned folder names in the order of bytes."""
    train, test, folders = rows_by_folder(root, root)
    order = sorted((cleaned(folder), k) for k, folder in enumerate(folders) if cleaned(folder) not in LEFT_OUT)
    label = {k: number for number, (_, k) in enumerate(order)}
    train, test = ([(path, label[k]) for path, k in rows if k in label] for rows in (train, test))
    return train, test, [name for name, _ in order]


class SequentialCropDisease(ImageNetStream):
    NAME = "seq-cropdisease"
    SETTING = "class-il"
    N_TASKS = 7
    N_CLASSES_PER_TASK = 5
    RESIZE = T.Resize((224, 224), BICUBIC)
    TEST_TRANSFORM = T.Compose([RESIZE, T.ToTensor(), T.Normalize(*IMAGENET)])
    TEMPLATES = ["a photo of a leaf with {}.", "a photo of a {} leaf."]
    CLASS_NAMES = NAMES
    DEFAULTS = {"batch_size": 128, "n_epochs": 5, "backbone": VIT}
    FILES = (
        Source(
            ("cropdisease",),
            "github.com/spMohanty/PlantVillage-Dataset, or huggingface.co aimagelab-ta/cropdisease",
            "54,306 images",
            by_hand="put the class folders of raw/color of github.com/spMohanty/PlantVillage-Dataset into "
            f"{{base}}/cropdisease, or train.json, test.json and images/ of {HUB}/cropdisease",
        ),
    )

    def read(self, base: Path) -> Content:
        root = base / "cropdisease"
        if not (root / "train.json").is_file():
            return read_rows(leaves, root, root, self.N_CLASSES, self.absent, self.broken)
        parts = [self.listed(root / f"{part}.json", root / "images") for part in ("train", "test")]
        return Content(*parts, NAMES)

    def listed(self, path: Path, images: Path):
        try:
            table = json_text.parse("\n".join(self.lines(path)))
            rows = [(str(f), int(k)) for f, k in zip(table["data"], table["labels"], strict=True)]
        except (ValueError, KeyError, TypeError) as error:
            raise self.broken(path, error) from None
        return self.files(images, rows, path)
