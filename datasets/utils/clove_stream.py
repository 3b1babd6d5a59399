"""What CLOVE's two streams share: tasks by letter, question files, answers."""

from argparse import Namespace
from pathlib import Path

from datasets.utils.clove_files import candidates, image_finder, read_questions
from datasets.utils.fetch import base_path
from datasets.utils.sources import SOURCES
from datasets.utils.vqa import Question
from datasets.utils.vqa_files import QuestionFiles
from utils.errors import UserError


class CloveStream(QuestionFiles):
    """<base_path>/clove holds json/<KIND>/.. (or the .npy files), vg/ and textvqa/. val is the test set."""

    KIND: str  # folder of the json files
    LETTERS: dict[str, str]  # letter -> task, CLVQA's names
    OTHER_LETTERS: dict[str, str] = {}  # another code's letter -> ours
    DEFAULTS = {"batch_size": 32, "n_epochs": 5, "backbone": "clip-fused"}
    FILES = (SOURCES["clove"],)

    def __init__(self, args: Namespace, clove_order: str, min_answer_freq: int, max_answers: int):
        letters = self.check_order(clove_order)
        self.root = base_path(args) / "clove"
        self.find = image_finder(self.root)
        super().__init__(args, [self.LETTERS[letter] for letter in letters], min_answer_freq, max_answers)

    def check_order(self, order: str) -> str:
        """Letters of tasks, each once; fewer than six leave tasks out."""
        known = ", ".join(f"{letter} {name}" for letter, name in self.LETTERS.items())
        if order and len(set(order)) == len(order) and set(order) <= set(self.LETTERS):
            return order
        hint = ""
        if set(order) <= set(self.OTHER_LETTERS) and order:
            ours = "".join(self.OTHER_LETTERS[letter] for letter in order)
            hint = (
                f"; in CluMo's code letters are alphabetical (a attribute .. f scenetext): its {order} is {ours} here"
            )
        raise UserError(f"--clove_order {order!r}: give each letter at most once of {known}{hint}")

    def file_names(self, name: str) -> tuple[str, tuple[str, ...]]:
        """A task's stem among the json files, and its names among the npy files."""
        raise NotImplementedError(f"{type(self).__name__} defines no file_names()")

    def read(self, name: str, train: bool) -> list[Question]:
        paths = candidates(self.root, self.KIND, *self.file_names(name), "train" if train else "val")
        found: Path | None = next((path for path in paths if path.is_file()), None)
        if found is None:
            raise self.absent(paths[0])
        return read_questions(found, self.find, self.broken)
