"""DTD, describable textures, in four tasks of ten and a last one of seven

Partition 1, 1,880 images in each part. --test_part val is Mammoth's choice, which tests on the validation part; the
default is the published test part.
"""

from argparse import Namespace
from pathlib import Path
from typing import Literal

from torchvision.datasets import DTD

from datasets.utils.file_streams import Content
from datasets.utils.image_streams import ClipStream
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.mtil_readers import listed, read_rows
from datasets.utils.sources import SOURCES


class SequentialDTD(ClipStream):
    NAME = "seq-dtd"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = [10] * 4 + [7]
    TEMPLATES = list(DOMAINS["dtd"].templates)
    FILES = (SOURCES["dtd"],)
    N_IMAGES = 3_760

    def __init__(self, args: Namespace, test_part: Literal["test", "val"] = "test"):
        self.test_part = test_part
        super().__init__(args)

    def read(self, base: Path) -> Content:
        reader, root = listed(DTD, ("train", self.test_part), "_image_files"), SOURCES["dtd"].root(base)
        return read_rows(reader, root, root / "dtd/dtd/images", self.N_CLASSES, self.absent, self.broken)
