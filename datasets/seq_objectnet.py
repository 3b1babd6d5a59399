"""ObjectNet, household objects in unusual positions, 200 of its 313 classes in ten tasks of twenty

<base_path>/objectnet-1.0/images/<class>/*.png, first 200 folders in the order of bytes (air_freshener to plunger), as
PILOT and C3Box take them. Their split is not published in a form that is read here: without folders train/ and test/ a
fifth is held out by name. The red border of each image is cut off. The license allows tests only: do not publish
networks trained on it.
"""

from pathlib import Path

from PIL import Image

from datasets.utils.file_streams import Content
from datasets.utils.image_streams import ImageNetStream, rows_by_folder
from datasets.utils.mtil_readers import Rows, read_rows
from datasets.utils.samples import FileSamples
from datasets.utils.sources import Source

BORDER = 2  # pixels


class Framed(FileSamples):
    """Images without their red border."""

    def open(self, row: int) -> Image.Image:
        image = super().open(row)
        return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


def objects(root: Path) -> tuple[Rows, Rows, list[str]]:
    return rows_by_folder(root, root / "images", 200)


class SequentialObjectNet(ImageNetStream):
    NAME = "seq-objectnet"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 20
    FILES = (
        Source(
            ("objectnet-1.0/images|objectnet-1.0/train",),
            "objectnet.dev/downloads/objectnet-1.0.zip",
            "about 50,000 images",
            by_hand="unpack objectnet.dev/downloads/objectnet-1.0.zip (its page gives the password) into {base}",
        ),
    )

    def read(self, base: Path) -> Content:
        root = base / "objectnet-1.0"
        found = read_rows(objects, root, root, self.N_CLASSES, self.absent, self.broken)
        return Content(*(Framed(part.paths, part.targets) for part in (found.train, found.test)), found.names)
