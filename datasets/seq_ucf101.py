"""UCF-101, actions, one frame of each video, in ten tasks: nine of ten and a last one of eleven

<base_path>/ucf101/UCF-101-midframes/<class>/ with the list split_zhou_UCF101.json of Zhou et al., its validation
part left out; else ucf101/train/<class>/ and ucf101/test/ (or val/), as in PILOT's copy. Choice: the remainder is in
the last task.
"""

import functools
import re
from pathlib import Path

from datasets.utils.file_streams import Content
from datasets.utils.image_streams import ClipStream, rows_by_folder
from datasets.utils.mtil_readers import coop, read_rows
from datasets.utils.sources import COOP, Source

LIST, FRAMES = "ucf101/split_zhou_UCF101.json", "ucf101/UCF-101-midframes"


class SequentialUCF101(ClipStream):
    NAME = "seq-ucf101"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = [10] * 9 + [11]
    TEMPLATES = ["a photo of a person doing {}.", "a photo of a person {}."]
    FILES = (
        Source(
            (f"{FRAMES}|ucf101/train",),
            "github.com/KaiyangZhou/CoOp",
            "13,320 images, one for each video",
            by_hand=f"{COOP}: put UCF-101-midframes and split_zhou_UCF101.json under {{base}}/ucf101",
        ),
    )

    def read(self, base: Path) -> Content:
        root = base / "ucf101"
        split = (root / "train").is_dir() and not (base / LIST).is_file()
        reader = (lambda _: rows_by_folder(root, root)) if split else functools.partial(coop, lists=(LIST, FRAMES))
        place = root if split else base / FRAMES
        found = read_rows(reader, base, place, self.N_CLASSES, self.absent, self.broken)
        return Content(found.train, found.test, [spaced(name) for name in found.names])


def spaced(name: str) -> str:
    """ "ApplyEyeMakeup" and "Apply Eye Makeup" -> "apply eye makeup" """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
