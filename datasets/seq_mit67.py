"""MIT Indoor 67, rooms, in seven tasks of seven and three of six

<base_path>/MIT67/Images/<class>/*.jpg with TrainImages.txt and TestImages.txt (5,360 and 1,340 images).
"""

from pathlib import Path

from torchvision import transforms as T

from datasets.utils.file_streams import BICUBIC, IMAGENET, Content
from datasets.utils.image_streams import VIT, ImageNetStream
from datasets.utils.sources import Source


class SequentialMIT67(ImageNetStream):
    NAME = "seq-mit67"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = [7] * 7 + [6] * 3
    TRANSFORM = T.Compose(
        [T.Resize(256, BICUBIC), T.RandomCrop(224), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(*IMAGENET)]
    )
    RESIZE = T.Compose([T.Resize(256), T.CenterCrop(224)])
    TEST_TRANSFORM = T.Compose([*RESIZE.transforms, T.ToTensor(), T.Normalize(*IMAGENET)])
    TEMPLATES = ["a photo of a {}.", "a photo of the {}.", "a photo of an indoor {}."]
    DEFAULTS = {"batch_size": 32, "n_epochs": 50, "backbone": VIT}
    FILES = (
        Source(
            ("MIT67/Images", "MIT67/TrainImages.txt", "MIT67/TestImages.txt"),
            "groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar",
            "15,620 images, 2.4 GB",
            by_hand="unpack groups.csail.mit.edu/vision/LabelMe/NewImages/indoorCVPR_09.tar into {base}/MIT67 and put "
            "web.mit.edu/torralba/www/TrainImages.txt and TestImages.txt there (no checksums are published)",
        ),
    )
    N_IMAGES = 6_700

    def read(self, base: Path) -> Content:
        root = base / "MIT67"
        if not (root / "Images").is_dir():
            raise self.absent(root / "Images")
        names = sorted(folder.name for folder in (root / "Images").iterdir() if folder.is_dir())
        if len(names) != self.N_CLASSES:
            raise self.broken(root / "Images", f"{len(names)} class folders, {self.N_CLASSES} are published")
        label, parts = {name: number for number, name in enumerate(names)}, []
        for path in (root / "TrainImages.txt", root / "TestImages.txt"):
            rows = [(line, label.get(line.split("/")[0], -1)) for line in self.lines(path)]
            parts.append(self.files(root / "Images", rows, path))
        return Content(*parts, [name.replace("_", " ") for name in names])
