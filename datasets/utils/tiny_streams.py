"""What the streams of the picture world share: pictures drawn once and kept on disk, questions with their answers."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torchvision import transforms as T

import datasets.tiny_world as tiny_world
from datasets.tiny_world import world
from datasets.tiny_world.captions import NAMES
from datasets.tiny_world.scenes import SCENES
from datasets.utils.samples import ArraySamples
from datasets.utils.stream_cache import cached_stream, sources_digest
from datasets.utils.tokens import tokenize
from datasets.utils.vqa import VQADataset, soft_scores
from utils.pair import Pair
from utils.settings import option

SIZE = (48, 48)
MEAN, STD = (0.5, 0.5, 0.5), (0.3, 0.3, 0.3)  # as the tiny CLIP expects
CROP = T.Compose(
    [T.RandomCrop(48, padding=4), T.ToTensor(), T.Normalize(MEAN, STD)]
)  # sides and digits keep their sense
CROP_FLIP = T.Compose([T.RandomCrop(48, padding=4), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(MEAN, STD)])
DEFAULTS = {"batch_size": 32, "n_epochs": 2, "clip_backbone": "tiny"}
# what questions of each kind are answered with; "object" and "relation" as in the captions
ANSWERS = {
    "object": NAMES,
    "attribute": (*world.COLOURS, *world.PATTERNS),
    "count": world.COUNTS,
    "relation": world.RELATIONS,
    "logic": ("yes", "no"),
    "scene": SCENES,
}


def drawn(args: Namespace, name: str, train: bool, settings: tuple, build: Callable[[], tuple[dict, dict]]) -> tuple:
    """(tensors, plain values) that `build` makes from `settings`, or the file that an earlier run left."""
    folder = Path(option(args, "base_path", "./data")) / "tiny_world"
    key = f"{sources_digest(Path(tiny_world.__file__).parent)} {train} {settings}"
    return cached_stream(folder, f"{name}-{'train' if train else 'test'}", key, build)


class TinyQuestions(VQADataset):
    """Questions about pictures; a subclass names its tasks and gives `task(number, train, seed)` as raw arrays."""

    SETTING = "domain-il"
    SIZE = SIZE
    MEAN, STD = MEAN, STD
    TRANSFORM = CROP
    TEMPLATES = ["a photo of {}.", "a picture of {}.", "an image of {}."]
    DEFAULTS = DEFAULTS | {"backbone": "clip-fused"}

    def __init__(self, args: Namespace, picture_seed: int = 0):
        super().__init__(args)
        self.picture_seed = picture_seed

    @staticmethod
    def task(number: int, train: bool, seed: int) -> dict:
        """images, questions and answers (ten each) of one task."""
        raise NotImplementedError("the stream defines no task()")

    def load(self, train: bool) -> ArraySamples:
        tensors, values = drawn(self.args, self.NAME, train, (self.picture_seed,), lambda: self.build(train))
        text = tokenize(values["questions"], self.args)
        counts = torch.zeros(len(text), self.N_CLASSES, dtype=torch.long)
        answers = tensors["answers"].long()  # (N, 10)
        counts.scatter_add_(1, answers, torch.ones_like(answers))
        label = counts.argmax(1)  # the most frequent answer
        samples = ArraySamples(Pair(tensors["images"], text), label, soft=soft_scores(counts))
        samples.task_ids = tensors["task_ids"].long()
        samples.questions = values["questions"]
        return samples

    def build(self, train: bool) -> tuple[dict, dict]:
        parts = [self.task(t, train, self.picture_seed) for t in range(self.N_TASKS)]
        place = {answer: i for i, answer in enumerate(self.CLASS_NAMES)}
        answers = [[place[answer] for answer in row] for part in parts for row in part["answers"]]
        sizes = torch.tensor([len(part["questions"]) for part in parts])
        tensors = {
            "images": torch.cat([part["images"] for part in parts]),
            "answers": torch.tensor(answers, dtype=torch.uint8),
            "task_ids": torch.arange(len(parts)).repeat_interleave(sizes).to(torch.uint8),
        }
        return tensors, {"questions": [question for part in parts for question in part["questions"]]}
