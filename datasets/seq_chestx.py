"""ChestX-ray14, six findings of the lung, in two tasks of three

<base_path>/chestx/Data_Entry_2017.csv, train_val_list.txt, test_list.txt and images_*/images/*.png, as NIH publishes
them. Choices: images whose only finding is one of the six; NIH's own parts. Mammoth's pickles of another, unpublished
split are not read.
"""

import csv
from pathlib import Path

from torchvision import transforms as T

from datasets.utils.file_streams import BICUBIC, IMAGENET, Content
from datasets.utils.image_streams import VIT, ImageNetStream
from datasets.utils.sources import Source

FINDINGS = ["Cardiomegaly", "Consolidation", "Edema", "Fibrosis", "Pleural_Thickening", "Pneumothorax"]


class SequentialChestX(ImageNetStream):
    NAME = "seq-chestx"
    SETTING = "class-il"
    N_TASKS = 2
    N_CLASSES_PER_TASK = 3
    RESIZE = T.Resize((224, 224), BICUBIC)
    TRANSFORM = TEST_TRANSFORM = T.Compose([RESIZE, T.ToTensor(), T.Normalize(*IMAGENET)])
    TEMPLATES = ["a chest x-ray showing {}.", "a photo of {}."]
    CLASS_NAMES = [name.replace("_", " ").lower() for name in FINDINGS]
    DEFAULTS = {"batch_size": 128, "n_epochs": 30, "backbone": VIT}
    FILES = (
        Source(
            ("chestx/Data_Entry_2017.csv", "chestx/train_val_list.txt", "chestx/test_list.txt", "chestx/images_001"),
            "nihcc.app.box.com/v/ChestXray-NIHCC",
            "112,120 images, 42 GB",
            by_hand="fetch images_001 to images_012, Data_Entry_2017.csv, train_val_list.txt and test_list.txt from "
            "nihcc.app.box.com/v/ChestXray-NIHCC into {base}/chestx",
        ),
    )

    def read(self, base: Path) -> Content:
        root, table = base / "chestx", base / "chestx" / "Data_Entry_2017.csv"
        rows = list(csv.DictReader(self.lines(table)))
        if not rows or not {"Image Index", "Finding Labels"} <= set(rows[0]):
            raise self.broken(table, "it needs columns Image Index and Finding Labels")
        label = {r["Image Index"]: FINDINGS.index(r["Finding Labels"]) for r in rows if r["Finding Labels"] in FINDINGS}
        folder = {path.name: path.relative_to(root).as_posix() for path in sorted(root.glob("images_*/images/*.png"))}
        parts = []
        for source in (root / "train_val_list.txt", root / "test_list.txt"):
            named = [name for name in self.lines(source) if name in label]
            parts.append(self.files(root, [(folder.get(name, name), label[name]) for name in named], source))
        return Content(*parts, self.CLASS_NAMES)
