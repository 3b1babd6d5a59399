"""FGVC-Aircraft, 100 variants, in ten tasks of ten

Published parts trainval (6,667 images) and test (3,333); labels in the order of variants.txt. Choice: transforms as in
Mammoth's streams over CLIP, which do not include this one.
"""

from torchvision.datasets import FGVCAircraft

from datasets.utils.image_streams import ClipStream, Listed
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.mtil_readers import listed
from datasets.utils.sources import SOURCES


class SequentialAircraft(ClipStream, Listed):
    NAME = "seq-aircraft"
    SETTING = "class-il"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 10
    TEMPLATES = list(DOMAINS["aircraft"].templates)
    FILES = (SOURCES["aircraft"],)
    N_IMAGES = 10_000
    READ = staticmethod(listed(FGVCAircraft, ("trainval", "test"), "_image_files"))
