"""Caltech-101, objects, in ten tasks: nine of ten and a last one of eleven

Without the class of background images; split as in `mtil`, 80 percent, seed 42, 6,941 and 1,736 images. Choices: the
remainder is in the last task; transforms as in Mammoth's streams over CLIP, which do not include this one.
"""

from datasets.utils.image_streams import ClipStream, Listed
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.mtil_readers import READERS
from datasets.utils.sources import SOURCES


class SequentialCaltech101(ClipStream, Listed):
    NAME = "seq-caltech101"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = [10] * 9 + [11]
    TEMPLATES = list(DOMAINS["caltech101"].templates)
    FILES = (SOURCES["caltech101"],)
    N_IMAGES = 8_677
    READ = staticmethod(READERS["caltech101"])
