"""Tiny copies of the question and caption sets in their true layouts."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.fabricate_real import picture

SCENES = ["a#ShopAndDining", "b#Workplace", "c#HomeOrHotel", "d#Transportation", "e#SportAndLeisure", "f#Outdoors"]
FUNCTIONS = ["object", "attribute", "relation", "logical", "knowledge", "scenetext"]
VG = ["vg/VG_100K", "vg/VG_100K_2"]


def records(task: int, part: str, source: str, answers: list[str], count: int = 8) -> list[dict]:
    """Questions as CLVQA's README describes them; two ask about each picture."""
    rows = []
    for k in range(count):
        given = [answers[k % len(answers)]] * 10
        if source == "textvqa":
            given = given[:4] + ["The " + given[0].upper()] * 2 + ["none"] * 3 + ["dont know"]
        rows.append({
            "question": f"What is it, number {k // 2}?", "answer": given[0], "answers": given, "image_source": source,
            "image_id": f"{'n' if source == 'vg' else ''}{1000 * (part == 'val') + 100 * task + k // 2}",
            "question_id": f"g{task}{part}{k}", "set_name": part, "stage": str(task), "program": [{"op": "select"}],
        })  # fmt: skip
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


FABRICATORS: dict[str, Callable] = {
    "clove-scene": lambda base: clove(base, "scene") and {},
    "clove-function": lambda base: clove(base, "function") and {},
}
