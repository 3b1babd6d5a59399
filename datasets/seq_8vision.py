"""Eight data sets, one per task: cars, textures, land, traffic signs, digits, aerial images, scenes, house numbers

Mammoth's order and sizes: 196, 47, 10, 43, 10, 45, 397, 10 names. Each set is read and split as its own stream here
does it (seq-cars196, seq-dtd, seq-eurosat-rgb, seq-gtsrb, seq-mnist, seq-resisc45, seq-sun397, seq-svhn), so parts
differ from Mammoth's where they do there. Choices: Mammoth's epochs per task and its two sentences are not kept: every
task has the same epochs, and a set's names go into the sentences of its stream.
"""

from argparse import Namespace
from pathlib import Path

from torchvision import transforms as T

from datasets import get_dataset_class
from datasets.utils.continual_dataset import fix_class_names_order
from datasets.utils.fetch import base_path
from datasets.utils.file_streams import CLIP, Content
from datasets.utils.image_streams import VIT, ClipStream
from datasets.utils.mtil_stream import JoinedSamples

SETS = "cars196 dtd eurosat-rgb gtsrb mnist resisc45 sun397 svhn"
STREAMS = [f"seq-{name}" for name in SETS.split()]


class EightVision(ClipStream):
    NAME = "seq-8vision"
    SETTING = "class-il"
    N_TASKS = 8
    N_CLASSES_PER_TASK = [196, 47, 10, 43, 10, 45, 397, 10]
    TRANSFORM = T.Compose(
        [
            T.RandomResizedCrop(224, scale=(0.8, 1.0)),
            T.ColorJitter(0.2, 0.2, 0.2, 0.1),
            T.ToTensor(),
            T.Normalize(*CLIP),
        ]
    )
    FILES = tuple(source for name in STREAMS for source in get_dataset_class(name).FILES)
    DEFAULTS = {"batch_size": 32, "n_epochs": 10, "backbone": VIT}

    def __init__(self, args: Namespace):
        own = Namespace(base_path=str(base_path(args)))  # orders of classes are those of the whole stream
        self.streams = [get_dataset_class(name)(own) for name in STREAMS]
        super().__init__(args)

    def read(self, base: Path) -> Content:
        offsets = [sum(self.N_CLASSES_PER_TASK[:k]) for k in range(self.N_TASKS)]
        parts = [JoinedSamples([s.load(train) for s in self.streams], offsets) for train in (True, False)]
        return Content(*parts, [name for stream in self.streams for name in stream.get_class_names()])

    def class_templates(self) -> list[list[str]]:
        each = [stream.get_prompt_templates() for stream in self.streams for _ in range(stream.N_CLASSES)]
        return fix_class_names_order(each, self.args)
