"""Tiny copies of the question and caption data sets in their real layouts."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fabricate_real import imagenet_r, picture

SCENES = ["a#ShopAndDining", "b#Workplace", "c#HomeOrHotel", "d#Transportation", "e#SportAndLeisure", "f#Outdoors"]
FUNCTIONS = ["object", "attribute", "relation", "logical", "knowledge", "scenetext"]
VG = ["vg/VG_100K", "vg/VG_100K_2"]


def records(task: int, part: str, source: str, answers: list[str], count: int = 8) -> list[dict]:
    """Questions as CLVQA's README describes them; two ask about each image."""
    rows = []
    for k in range(count):
        given = [answers[k % len(answers)]] * 10
        if source == "textvqa":
            given = given[:4] + ["The " + given[0].upper()] * 2 + ["none"] * 3 + ["dont know"]
        rows.append(
            {
                "question": f"What is it, number {k // 2}?",
                "answer": given[0],
                "answers": given,
                "image_source": source,
                "image_id": f"{'n' if source == 'vg' else ''}{1000 * (part == 'val') + 100 * task + k // 2}",
                "question_id": f"g{task}{part}{k}",
                "set_name": part,
                "stage": str(task),
                "program": [{"op": "select"}],
            }
        )
    return rows


def clove(base: Path, kind: str, form: str = "json", folders: list[str] = VG) -> Path:
    """<base>/clove with six tasks of eight questions a part; answers of a task are two of its own and two of all."""
    root = Path(base) / "clove"
    tasks = SCENES if kind == "scene" else FUNCTIONS
    for number, task in enumerate(tasks):
        source = "textvqa" if task == "scenetext" else "vg"
        answers = [f"thing {number}", f"Kind-{number}.", "yes", "no"]
        for part in ("train", "val"):
            rows = records(number, part, source, answers)
            for k, row in enumerate(rows):
                places = folders if source == "vg" else ["textvqa/train_images"]
                path = root / places[k // 2 % len(places)] / f"{row['image_id']}.jpg"
                if not path.exists():
                    picture(path, number)
            if form == "json":
                path = root / "json" / kind / f"{'scene' if kind == 'scene' else 'functional'}_{task}_{part}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(rows))
            else:
                path = root / "npy" / kind / f"fcl_mmf_{task}_{part}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, np.array(rows, dtype=object), allow_pickle=True)
    return root


def vqacl(base: Path, form: str = "partition") -> Path:
    """<base>/vqacl: two questions a task and part, as Partition_Q files or as VQAv2's own with the map."""
    root = Path(base) / "vqacl"
    root.mkdir(parents=True)
    tasks = [
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
    given = [*["yes"] * 9, "no"], [*["two"] * 6, *["2"] * 3, "the dog"]
    task_of, tables = {}, {"train": ([], []), "val": ([], [])}
    for number, task in enumerate(tasks):
        for part, own in tables.items():
            rows, split = [], "train" if part == "train" else "test"
            for k, answers in enumerate(given):
                image = 10 * number + k + (1000 if part == "val" else 0)
                name = f"COCO_{part}2014_{image:012d}"
                picture(root / f"{part}2014" / f"{name}.jpg", number)
                question = 1000 * image + 1
                task_of[str(question)] = f"q_{task}"
                ten = [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1}
                    for i, answer in enumerate(answers)
                ]
                own[0].append({"image_id": image, "question": f"How is {task} {k}?", "question_id": question})
                own[1].append(
                    {
                        "question_id": question,
                        "image_id": image,
                        "question_type": "how",
                        "answer_type": "other",
                        "multiple_choice_answer": answers[0],
                        "answers": ten,
                    }
                )
                rows.append(
                    {
                        "img_id": name,
                        "question_id": question,
                        "sent": f"How is {task} {k}?",
                        "answer_type": "other",
                        "label": {"yes": 1, "no": 0.3} if k == 0 else {"2": 1, "dog": 0.3},
                        "question_type": "how",
                    }
                )
            if form == "partition":
                path = root / "Partition_Q" / f"karpathy_{split}_q_{task}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(rows))
    if form == "map":
        (root / "QuesId_task_map.json").write_text(json.dumps(task_of))
        for part, (questions, annotations) in tables.items():
            about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": f"{part}2014"}
            (root / f"v2_OpenEnded_mscoco_{part}2014_questions.json").write_text(
                json.dumps(about | {"questions": questions})
            )
            (root / f"v2_mscoco_{part}2014_annotations.json").write_text(
                json.dumps(about | {"annotations": annotations})
            )
    return root


def mm_imagenet_r(base: Path, form: str = "jsonl") -> Path:
    """<base>/imagenet-r and captions of all its images, as lines or as one object."""
    root, folder = imagenet_r(base), Path(base) / "mm_imagenet_r"
    folder.mkdir()
    texts = {
        path.relative_to(root).as_posix(): f"a picture in style {k % 7}"
        for k, path in enumerate(sorted(root.glob("n*/*")))
    }
    if form == "jsonl":
        lines = [
            json.dumps({"file": name, "caption": text, "model": "m", "prompt": "p"}) for name, text in texts.items()
        ]
        (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    else:
        (folder / "captions.jsonl").write_text(json.dumps(texts))
    return folder


def upmc_food101(base: Path, form: str = "csv") -> Path:
    """<base>/upmc_food101: 101 dishes, one named "deep_dish_0"; an empty title, and one with a comma."""
    root = Path(base) / "upmc_food101"
    names = ["deep_dish_0" if k == 0 else f"dish{k}" for k in range(101)]
    rows = {"train": [], "test": []}
    for label, name in enumerate(names):
        for part, found in rows.items():
            file = f"{name}_{label}.jpg"
            picture(root / "images" / part / name / file, label, len(part))
            found.append((file, f'How to make {name}, "quick" and {part}', name))
    picture(root / "images" / "train" / "dish1" / "dish1_900.jpg", 1)
    rows["train"].append(("dish1_900.jpg", "", "dish1"))
    if form == "csv":
        (root / "texts").mkdir()
        for part, found in rows.items():
            with (root / "texts" / f"{part}_titles.csv").open("w", newline="") as file:
                csv.writer(file).writerows(found)
        return root
    files = {part: [row[0] for row in found] for part, found in rows.items()}
    split = {"train": files["train"][::2], "val": files["train"][1::2], "test": files["test"]}
    (root / "split.json").write_text(json.dumps(split))
    # of one name in train and test the title is the same here
    (root / "text.json").write_text(json.dumps({row[0]: row[1] for found in rows.values() for row in found if row[1]}))
    (root / "class_idx.json").write_text(json.dumps({name: 100 - k for k, name in enumerate(names)}))
    return root


def mm_imdb(base: Path, form: str = "published", genres: int = 6) -> Path:
    """<base>/mmimdb: ten movies to train and two to test of each genre, one of two genres, ids of 7 and 8 digits."""
    known = ["Drama", "Comedy", "Romance", "Thriller", "Crime", "Action", "Adventure"][:genres]
    root = Path(base) / "mmimdb"
    texts, images = ("dataset", "dataset") if form == "published" else ("labels", "images")
    split, number = {"train": [], "dev": [], "test": []}, 0
    for label, genre in enumerate([*known, "Western", "Drama"]):
        for part, count in (("train", 8), ("dev", 2), ("test", 2)):
            for _ in range(1 if genre == "Western" else count):
                number += 1
                name = f"{number:07d}" if number % 2 else f"{number:08d}"
                more = ["Crime"] if label > len(known) else ["News"] if number % 3 == 0 else []
                table = {"plot": [f"a story about {genre} {number}"], "genres": [genre, *more], "title": str(number)}
                split[part].append(name)
                picture(root / images / f"{name}.jpeg", label, number)
                (root / texts).mkdir(exist_ok=True)
                (root / texts / f"{name}.json").write_text(json.dumps(table))
    (root / "split.json").write_text(json.dumps(split))
    return root


FABRICATORS: dict[str, Callable] = {
    "clove-scene": lambda base: clove(base, "scene") and {},
    "clove-function": lambda base: clove(base, "function") and {},
    "vqacl": lambda base: vqacl(base) and {"min_answer_freq": 1},
    "mm-imagenet-r": lambda base: mm_imagenet_r(base) and {},
    "upmc-food101": lambda base: upmc_food101(base) and {},
    "mm-imdb": lambda base: mm_imdb(base) and {},
}
