"""Streams of questions read from files: answers collected from training, and how much of the test set they cover."""

from argparse import Namespace
from pathlib import Path

import torch
from torchvision import transforms as T

from datasets.utils import file_streams
from datasets.utils.fetch import absent, base_path, broken
from datasets.utils.file_streams import FileStream
from datasets.utils.samples import PairFiles
from datasets.utils.vqa import N_ANNOTATORS, Question, VQADataset, as_samples, task_answers, vocabulary
from utils.errors import UserError


class QuestionFiles(VQADataset):
    """A subclass names FILES, and reads one task in `read(name, train)`.

    The classes are answers of the training questions (`vocabulary`), task after task by name, so that they do not
    depend on the order of the tasks.
    """

    SETTING = "domain-il"
    SIZE = (224, 224)
    MEAN, STD = file_streams.CLIP
    TRANSFORM = TEST_TRANSFORM = T.Compose(  # no crop, no flip: questions are about places and sides
        [*FileStream.RESIZE.transforms, T.ToTensor(), T.Normalize(MEAN, STD)]
    )
    TEMPLATES = ["a photo of {}.", "a picture of {}.", "an image of {}."]

    def __init__(self, args: Namespace, names: list[str], min_answer_freq: int, max_answers: int):
        if min_answer_freq < 1 or max_answers < 1:
            raise UserError("--min_answer_freq and --max_answers must be at least 1")
        self.args, self.names = args, names  # the paths are needed before the classes are known
        self.N_TASKS = len(names)
        self._questions: dict[bool, list[list[Question]]] = {}
        places = sorted(range(len(names)), key=lambda task: names[task])
        training = self.questions(True)
        self.CLASS_NAMES = vocabulary([training[task] for task in places], min_answer_freq, max_answers)
        self.own_answers = [task_answers(questions, min_answer_freq, max_answers) for questions in training]
        if len(self.CLASS_NAMES) < 2:
            raise UserError(
                f"{self.NAME}: {len(self.CLASS_NAMES)} answers are given to {min_answer_freq} or more training "
                "questions; lower --min_answer_freq"
            )
        self.N_CLASSES_PER_TASK = len(self.CLASS_NAMES)
        super().__init__(args)

    def read(self, name: str, train: bool) -> list[Question]:
        """The questions of one task."""
        raise NotImplementedError(f"{type(self).__name__} defines no read()")

    def questions(self, train: bool) -> list[list[Question]]:
        """All tasks in the order of the stream, read once."""
        if train not in self._questions:
            self._questions[train] = [self.read(name, train) for name in self.names]
        return self._questions[train]

    def load(self, train: bool) -> PairFiles:
        return as_samples(self.questions(train), self.CLASS_NAMES, self.args, train, self.NAME, self.own_answers)

    def get_data_loaders(self):
        loaders = super().get_data_loaders()
        self.train_loader.dataset.not_aug_resize = FileStream.RESIZE
        return loaders

    def coverage(self) -> dict[str, float]:
        """Percent of VQA accuracy on each task's test questions that the best choice among the answers would reach."""
        samples = self.samples(False)
        best = samples.extras["soft"].best().double()
        means = torch.zeros(self.N_TASKS, dtype=torch.double).index_add_(0, samples.task_ids, best)
        means = 100 * means / samples.task_ids.bincount(minlength=self.N_TASKS)
        return dict(zip(self.names, means.tolist(), strict=True))

    def facts(self) -> dict:
        """For the record: the number of answers and how much they cover; also printed in one line."""
        reach = self.coverage()
        asked = len(self.samples(True)), sum(map(len, self.questions(True)))
        told = ", ".join(f"{name} {percent:.1f}" for name, percent in reach.items())
        print(
            f"{len(self.CLASS_NAMES)} answers, given to {asked[0]} of {asked[1]} training questions; "
            f"the best possible accuracy with them is (percent) {told}"
        )
        other = sum(
            q.annotators != N_ANNOTATORS for part in (True, False) for task in self.questions(part) for q in task
        )
        if other:
            print(f"{other} questions do not have ten answers: their counts are scaled to ten")
        return {
            "other_than_ten_answers": other,
            "tasks": self.names,
            "answers": len(self.CLASS_NAMES),
            "answer_coverage": reach,
            "train_questions": asked[1],
            "train_questions_kept": asked[0],
        }

    def absent(self, path: Path) -> UserError:
        return absent(path, self.NAME, self.FILES[0].host, self.FILES[0].amount, base_path(self.args))

    def broken(self, path: Path, reason: object) -> UserError:
        return broken(path, self.NAME, reason, base_path(self.args))
