"""GTSRB, German traffic signs, in four tasks of ten and a last one of three

The archive that torchvision reads, 26,640 training and 12,630 test images. Names are the official meanings of the 43
signs; CLIP's longer phrases, which describe shape and color, are not used. Mirrored signs are Mammoth's transform.
"""

from pathlib import Path

from torchvision.datasets import GTSRB

from datasets.utils.image_streams import ClipStream, Listed
from datasets.utils.mtil_readers import Rows
from datasets.utils.sources import SOURCES

NAMES = (
    "speed limit 20|speed limit 30|speed limit 50|speed limit 60|speed limit 70|speed limit 80|end of speed limit 80|"
    "speed limit 100|speed limit 120|no passing|no passing for trucks|right of way at the next intersection|"
    "priority road|yield|stop|no vehicles|no trucks|no entry|general caution|curve to the left|curve to the right|"
    "double curve|bumpy road|slippery road|road narrows on the right|road work|traffic signals|pedestrians|"
    "children crossing|bicycles crossing|ice or snow|wild animals crossing|end of all limits|turn right ahead|"
    "turn left ahead|ahead only|go straight or right|go straight or left|keep right|keep left|roundabout|"
    "end of no passing|end of no passing for trucks"
).split("|")


def signs(root: Path) -> tuple[Rows, Rows, list[str]]:
    parts = [
        [(Path(path), label) for path, label in GTSRB(str(root), split=part)._samples] for part in ("train", "test")
    ]
    return *parts, NAMES


class SequentialGTSRB(ClipStream, Listed):
    NAME = "seq-gtsrb"
    SETTING = "class-il"
    N_TASKS = 5
    N_CLASSES_PER_TASK = [10] * 4 + [3]
    TEMPLATES = ['a photo of a "{}" traffic sign.', 'a close up photo of a "{}" traffic sign.']
    FILES = (SOURCES["gtsrb"],)
    N_IMAGES = 39_270
    READ = staticmethod(signs)
