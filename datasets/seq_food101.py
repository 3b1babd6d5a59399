"""Food-101, dishes, in ten tasks: nine of ten and a last one of eleven

The published parts, 75,750 and 25,250 images. Choices: the remainder is in the last task; transforms as in Mammoth's
streams over CLIP, whose list of streams does not include this one.
"""

from datasets.utils.image_streams import ClipStream, Listed
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.mtil_readers import READERS
from datasets.utils.sources import SOURCES


class SequentialFood101(ClipStream, Listed):
    NAME = "seq-food101"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = [10] * 9 + [11]
    TEMPLATES = list(DOMAINS["food"].templates)
    FILES = (SOURCES["food"],)
    N_IMAGES = 101_000
    READ = staticmethod(READERS["food"])
