"""Picture world, images with captions: 20 classes whose evidence is partly in the image, partly in the caption"""

from argparse import Namespace
from typing import Literal

from datasets.tiny_world import cluttered, streams
from datasets.utils import tiny_streams
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import ArraySamples
from datasets.utils.tokens import tokenize
from utils.errors import UserError
from utils.pair import Pair


class MmTiny(ContinualDataset):
    """--phases 5 gives four classes per task, 10 two. Classes are named by number: no caption holds a label."""

    NAME = "mm-tiny"
    SETTING = "class-il"
    HAS_TEXT = True
    N_TASKS = 5
    N_CLASSES_PER_TASK = streams.MM_CLASSES // 5
    SIZE = (cluttered.SIDE, cluttered.SIDE)
    MEAN, STD = tiny_streams.MEAN, tiny_streams.STD
    TRANSFORM = tiny_streams.crop_flip(cluttered.SIDE)  # captions do not mention sides
    EVIDENCE = streams.MM_EVIDENCE
    CLASS_NAMES = [f"group {c}" for c in range(streams.MM_CLASSES)]
    TEMPLATES = list(streams.TEMPLATES)
    DEFAULTS = tiny_streams.DEFAULTS | {"backbone": "clip-fused", "clip_backbone": "tiny-cluttered"}

    def __init__(self, args: Namespace, phases: Literal[5, 10] = 5, picture_seed: int = 0):
        self.N_TASKS, self.N_CLASSES_PER_TASK = phases, streams.MM_CLASSES // phases
        super().__init__(args)
        self.picture_seed = picture_seed

    def load(self, train: bool) -> ArraySamples:
        def build():
            found = streams.mm_tiny(train, self.picture_seed)
            tensors = {name: found[name] for name in ("images", "labels", "evidence", "cells")}
            return tensors, {"captions": found["captions"]}

        tensors, values = tiny_streams.drawn(self.args, self.NAME, train, (self.picture_seed,), build)
        try:
            words = tokenize(values["captions"], self.args)
        except UserError as error:
            raise UserError(f"mm-tiny, whose captions --clip_backbone tiny-cluttered reads: {error}") from None
        samples = ArraySamples(Pair(tensors["images"], words), tensors["labels"])
        samples.captions = values["captions"]
        samples.evidence, samples.object_cells = tensors["evidence"], tensors["cells"].bool()
        return samples
