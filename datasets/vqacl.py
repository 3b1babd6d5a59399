"""VQACL: questions about COCO images in ten tasks by what they ask for, a partition of VQAv2

Zhang, Zhang and Xu, CVPR 2023 (VQAv2: arXiv 1612.00837). Tasks in the paper's order: recognition, location,
judge, commonsense, count, action, color, type, subcategory, causal.

Files under <base_path>/vqacl, one of
- Partition_Q/karpathy_{train,test}_q_<task>.json, the authors' partition;
- QuesId_task_map.json with VQAv2's v2_OpenEnded_mscoco_{train,val}2014_questions.json: train2014 trains, val2014 tests.
Both need v2_mscoco_{train,val}2014_annotations.json for the ten answers (a partition file may hold answers or scores
itself) and images as train2014/COCO_train2014_<12 digits>.jpg and val2014/...

Choices:
- Only the outer level of the paper's stream: the five object groups inside each task need the authors' lists, which are
  not published; so there is no composition test.
- Classes are answers of training questions: --max_answers and --min_answer_freq as in the CLOVE streams.
- Without a partition or a map there is no stream: question types are not guessed from their words.
"""

import json
from argparse import Namespace
from functools import cached_property
from pathlib import Path

from datasets.utils.answers import normalise_answer
from datasets.utils.clove_files import read_records
from datasets.utils.fetch import base_path
from datasets.utils.sources import SOURCES
from datasets.utils.vqa import Question, question_of
from datasets.utils.vqa_files import QuestionFiles
from utils import json_text
from utils.errors import UserError

QUESTION_TASKS = [
    "recognition",
    "location",
    "judge",
    "commonsense",
    "count",
    "action",
    "color",
    "type",
    "subcategory",
    "causal",
]
PARTS = {True: "train", False: "val"}


class Vqacl(QuestionFiles):
    NAME = "vqacl"
    SETTING = "domain-il"
    N_TASKS = len(QUESTION_TASKS)
    DEFAULTS = {"batch_size": 80, "n_epochs": 3, "backbone": "clip-fused"}
    FILES = (SOURCES["vqacl"],)

    def __init__(self, args: Namespace, min_answer_freq: int = 2, max_answers: int = 3000):
        self.root = base_path(args) / "vqacl"
        super().__init__(args, QUESTION_TASKS, min_answer_freq, max_answers)

    def read(self, name: str, train: bool) -> list[Question]:
        path = self.root / "Partition_Q" / f"karpathy_{'train' if train else 'test'}_q_{name}.json"
        by_map = not path.is_file() and (self.root / "QuesId_task_map.json").is_file()
        if by_map:
            path, rows = self.questions_path(PARTS[train]), self.mapped(name, PARTS[train])
        elif path.is_file():
            rows = read_records(path, self.broken)
        else:
            raise self.absent(path)
        found = []
        for number, row in enumerate(rows, 1):
            try:
                found.append(self.question(row, path))
            except KeyError as error:
                raise self.broken(path, f"question {number} has no {error}") from None
            except (TypeError, ValueError, AttributeError) as error:
                raise self.broken(path, f"question {number}: {error}") from None
        if not found:
            raise UserError(f"{path} does not contain a question of task {name}: download it again")
        return found

    def question(self, row: dict, source: Path) -> Question:
        """A row of the partition, whose image must exist."""
        name, text = row["img_id"], row.get("sent") or row["question"]
        folder = name.removeprefix("COCO_").partition("_")[0]
        if not name.startswith("COCO_") or "/" in name or folder not in {"train2014", "val2014"}:
            raise ValueError(f"img_id '{name}' is not a COCO image name")
        image = self.root / folder / f"{name}.jpg"
        if image.name not in self.pictures(folder):
            raise UserError(f"{source} asks about {image}, which does not exist: unpack {folder}.zip there")
        answers = row.get("answers") or self.annotations.get(int(row["question_id"]))
        if answers:
            return question_of(image, text, [a["answer"] if isinstance(a, dict) else a for a in answers])
        credit = {normalise_answer(answer): float(score) for answer, score in row["label"].items()}
        if not credit:
            raise ValueError("it has neither answers nor scores, and is not in the annotations")
        return Question(image, text, credit, max(credit, key=credit.__getitem__))

    def pictures(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            place = self.root / folder
            self._listings[folder] = frozenset(p.name for p in place.iterdir()) if place.is_dir() else frozenset()
        return self._listings[folder]

    @cached_property
    def _listings(self) -> dict[str, frozenset[str]]:
        return {}

    @cached_property
    def annotations(self) -> dict[int, list[str]]:
        """question_id -> ten answers, from the annotation files that exist."""
        found = {}
        for part in PARTS.values():
            path = self.root / f"v2_mscoco_{part}2014_annotations.json"
            try:
                for row in self.table(path)["annotations"] if path.is_file() else ():
                    found[int(row["question_id"])] = [answer["answer"] for answer in row["answers"]]
            except (KeyError, TypeError, ValueError) as error:
                raise self.broken(path, f"an annotation or its list: {error!r}") from None
        return found

    def questions_path(self, part: str) -> Path:
        return self.root / f"v2_OpenEnded_mscoco_{part}2014_questions.json"

    @cached_property
    def task_of(self) -> dict[str, str]:
        return self.table(self.root / "QuesId_task_map.json")

    def mapped(self, name: str, part: str) -> list[dict]:
        """VQAv2's questions that the map gives to a task; the file determines the part of COCO."""
        table = self.table(path := self.questions_path(part))
        try:
            return [
                {
                    "img_id": f"COCO_{table['data_subtype']}_{int(row['image_id']):012d}",
                    "question": row["question"],
                    "question_id": row["question_id"],
                    "label": {},
                }
                for row in table["questions"]
                if self.task_of.get(str(row["question_id"])) in {name, f"q_{name}"}
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise self.broken(path, f"a question or its list: {error!r}") from None

    def table(self, path: Path) -> dict:
        if not path.is_file():
            raise self.absent(path)
        try:
            found = json_text.parse(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise self.broken(path, error) from None
        if not isinstance(found, dict):
            raise self.broken(path, "it does not contain a table")
        return found
