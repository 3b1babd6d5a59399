"""Oxford-IIIT Pets, 37 breeds, in three tasks of ten and a last one of seven

The published parts trainval (3,680 images) and test (3,669). Choices: sizes of the tasks; transforms as in Mammoth's
streams over CLIP, whose list of streams does not include this one.
"""

from datasets.utils.image_streams import ClipStream, Listed
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.mtil_readers import READERS
from datasets.utils.sources import SOURCES


class SequentialPets(ClipStream, Listed):
    NAME = "seq-pets"
    SETTING = "class-il"
    N_TASKS = 4
    N_CLASSES_PER_TASK = [10] * 3 + [7]
    TEMPLATES = list(DOMAINS["pets"].templates)
    FILES = (SOURCES["pets"],)
    N_IMAGES = 7_349
    READ = staticmethod(READERS["pets"])
