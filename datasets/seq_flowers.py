"""Oxford Flowers, 102 kinds, in ten tasks: nine of ten and a last one of twelve

The published parts train (1,020 images) and test (6,149), as in `mtil`. Choices: the published validation part is not
used; the remainder is in the last task; transforms as in Mammoth's streams over CLIP, which do not include this one.
"""

from datasets.utils.image_streams import ClipStream, Listed
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.mtil_readers import READERS
from datasets.utils.sources import SOURCES


class SequentialFlowers(ClipStream, Listed):
    NAME = "seq-flowers"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = [10] * 9 + [12]
    TEMPLATES = list(DOMAINS["flowers"].templates)
    FILES = (SOURCES["flowers"],)
    N_IMAGES = 7_169
    READ = staticmethod(READERS["flowers"])
