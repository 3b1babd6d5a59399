"""SUN397, scenes, in seven tasks of fifty and a last one of 47

Split as in `mtil`: 80 percent, seed 42, over the sorted paths, 87,003 and 21,751 images. Mammoth splits the half of the
images that a copy on Hugging Face calls training, so scores are not comparable with its.
"""

from datasets.utils.image_streams import ClipStream, Listed
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.mtil_readers import READERS
from datasets.utils.sources import SOURCES


class SequentialSUN397(ClipStream, Listed):
    NAME = "seq-sun397"
    SETTING = "class-il"
    N_TASKS = 8
    N_CLASSES_PER_TASK = [50] * 7 + [47]
    TEMPLATES = list(DOMAINS["sun397"].templates)
    FILES = (SOURCES["sun397"],)
    N_IMAGES = 108_754
    READ = staticmethod(READERS["sun397"])
