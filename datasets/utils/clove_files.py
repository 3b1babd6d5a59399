"""CLOVE's question files (json, or npy as CLVQA keeps them) and where their images are."""

import io
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from datasets.utils.array_files import ARRAY_ERRORS, _Unpickler
from datasets.utils.vqa import Question, question_of
from utils import json_text
from utils.errors import UserError

IMAGE_FOLDERS = {
    "vg": ("vg/image", "vg/VG_100K", "vg/VG_100K_2"),
    "textvqa": ("textvqa", "textvqa/train_images"),
}


def candidates(root: Path, kind: str, stem: str, names: tuple[str, ...], part: str) -> list[Path]:
    """Where a task's questions may be: CLOVE-json.zip's name first, then CLVQA's npy names."""
    folders = (root / "npy" / kind, root / "npy", root)
    arrays = [folder / f"fcl_mmf_{name}_{part}.npy" for folder in folders for name in names]
    return [root / "json" / kind / f"{stem}_{part}.json", *arrays]


def read_records(path: Path, broken: Callable) -> list[dict]:
    """The list of dicts that a file holds; nothing in it is executed."""
    try:
        if path.suffix == ".json":
            records = json_text.parse(path.read_text(encoding="utf-8"))
        else:
            with path.open("rb") as file:
                content = io.BytesIO(file.read())
            version = np.lib.format.read_magic(content)
            header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            header[version](content)
            records = np.asarray(_Unpickler(content).load(), dtype=object).reshape(-1).tolist()
    except json.JSONDecodeError as error:
        raise broken(path, f"line {error.lineno}: {error.msg}") from None
    except ARRAY_ERRORS as error:
        raise broken(path, error) from None
    if not isinstance(records, list):
        raise broken(path, "it does not contain a list of questions")
    return records


def image_finder(root: Path) -> Callable[[str, str], Path]:
    """(image_source, image_id) -> path, from one listing of each folder: a stream asks for some 100,000 images."""

    @cache
    def listing(folder: str) -> frozenset[str]:
        place = root / folder
        return frozenset(os.listdir(place)) if place.is_dir() else frozenset()

    def find(source: str, image_id: str) -> Path:
        folders = IMAGE_FOLDERS.get(source)
        if folders is None:
            raise ValueError(f"image_source '{source}' is not one of {', '.join(IMAGE_FOLDERS)}")
        name = f"{image_id}.jpg"
        if "/" in name or "\\" in name:
            raise ValueError(f"image_id '{image_id}' is not a file name")
        for folder in folders:
            if name in listing(folder):
                return root / folder / name
        raise FileNotFoundError(root / folders[0] / name, [str(root / folder) for folder in folders[1:]])

    return find


def read_questions(path: Path, find: Callable[[str, str], Path], broken: Callable) -> list[Question]:
    """Questions of one file; the images they ask about must be there."""
    questions = []
    for number, record in enumerate(read_records(path, broken), 1):
        try:
            answers = record["answers"]
            if not isinstance(answers, (list, tuple, np.ndarray)) or not all(isinstance(a, str) for a in answers):
                raise ValueError("'answers' is not a list of strings")
            image = find(record["image_source"], str(record["image_id"]))
            if not isinstance(record["question"], str):
                raise ValueError("'question' is not a string")
            questions.append(question_of(image, record["question"], list(answers)))
        except FileNotFoundError as error:
            where, others = error.args
            raise UserError(
                f"{path} question {number} asks about {where}, which does not exist (nor in "
                f"{', '.join(others)}): unpack the images there"
            ) from None
        except KeyError as error:
            raise broken(path, f"question {number} has no {error}") from None
        except (TypeError, ValueError, AttributeError) as error:
            raise broken(path, f"question {number}: {error}") from None
    if not questions:
        raise UserError(f"{path} does not contain a question: download it again or leave this task out of the order")
    return questions
