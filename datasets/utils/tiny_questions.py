"""Questions about images of the world, ten answers each, as the question streams of the picture world ask them."""

from argparse import Namespace

import torch

from datasets.tiny_world import world
from datasets.tiny_world.captions import NAMES
from datasets.tiny_world.scenes import SCENES
from datasets.utils import tiny_streams
from datasets.utils.samples import ArraySamples
from datasets.utils.tokens import tokenize
from datasets.utils.vqa import VQADataset, soft_scores
from utils.pair import Pair

# what questions of each kind are answered with; "object" and "relation" as in the captions
ANSWERS = {
    "object": NAMES,
    "attribute": (*world.COLOURS, *world.PATTERNS),
    "count": world.COUNTS,
    "relation": world.RELATIONS,
    "logic": ("yes", "no"),
    "scene": SCENES,
}


class TinyQuestions(VQADataset):
    """Questions about images; a subclass names its tasks and gives `task(number, train, seed)` as raw arrays."""

    SETTING = "domain-il"
    SIZE = tiny_streams.SIZE
    MEAN, STD = tiny_streams.MEAN, tiny_streams.STD
    TRANSFORM = tiny_streams.CROP
    TEMPLATES = ["a photo of {}.", "a picture of {}.", "an image of {}."]
    DEFAULTS = tiny_streams.DEFAULTS | {"backbone": "clip-fused"}
    task_settings: dict[str, str] = {}  # arguments of `task` beside number, train and seed

    def __init__(self, args: Namespace, picture_seed: int = 0):
        super().__init__(args)
        self.picture_seed = picture_seed

    @staticmethod
    def task(number: int, train: bool, seed: int) -> dict:
        """images, questions and answers (ten each) of one task, and cells (N, 2) of a stream with rules."""
        raise NotImplementedError("the stream defines no task()")

    def load(self, train: bool) -> ArraySamples:
        settings = (self.picture_seed, *self.task_settings.values())
        tensors, values = tiny_streams.drawn(self.args, self.NAME, train, settings, lambda: self.build(train))
        text = tokenize(values["questions"], self.args)
        counts = torch.zeros(len(text), self.N_CLASSES, dtype=torch.long)
        answers = tensors["answers"].long()  # (N, 10)
        counts.scatter_add_(1, answers, torch.ones_like(answers))
        label = counts.argmax(1)  # the most frequent answer
        samples = ArraySamples(Pair(tensors["images"], text), label, soft=soft_scores(counts))
        samples.task_ids = tensors["task_ids"].long()
        samples.questions = values["questions"]
        if "cells" in tensors:
            samples.cells = tensors["cells"].long()
        return samples

    def build(self, train: bool) -> tuple[dict, dict]:
        parts = [self.task(t, train, self.picture_seed, **self.task_settings) for t in range(self.N_TASKS)]
        place = {answer: i for i, answer in enumerate(self.CLASS_NAMES)}
        answers = [[place[answer] for answer in row] for part in parts for row in part["answers"]]
        sizes = torch.tensor([len(part["questions"]) for part in parts])
        tensors = {
            "images": torch.cat([part["images"] for part in parts]),
            "answers": torch.tensor(answers, dtype=torch.uint8),
            "task_ids": torch.arange(len(parts)).repeat_interleave(sizes).to(torch.uint8),
        }
        if "cells" in parts[0]:
            tensors["cells"] = torch.cat([part["cells"] for part in parts]).to(torch.uint8)
        return tensors, {"questions": [question for part in parts for question in part["questions"]]}
