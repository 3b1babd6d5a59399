"""What people bring: small symbols with transparent borders, in folders of classes or in a list with texts."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("grinning_face", "red_heart", "green_leaf", "blue_star")
COLORS = ((250, 210, 60), (220, 30, 40), (40, 170, 60), (40, 80, 220))
VENDORS = ("alpha", "beta")
SIDE = 32


def symbol(number: int, vendor: int, k: int) -> Image.Image:
    """A filled shape on a transparent ground; vendors draw it round or square, k moves and shades it."""
    draw_on = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    rng = np.random.default_rng((number, vendor, k))
    x, y = (int(v) for v in rng.integers(2, 8, 2))
    color = tuple(int(np.clip(c + rng.integers(-20, 20), 0, 255)) for c in COLORS[number])
    shape = ImageDraw.Draw(draw_on)
    (shape.ellipse if vendor == 0 else shape.rectangle)((x, y, x + 20, y + 20), fill=(*color, 255))
    return draw_on


def folder(root: Path, each: int = 6) -> Path:
    """<root>/<class>/<vendor>_<k>.png, no train/ and test/."""
    for number, name in enumerate(CLASSES):
        (Path(root) / name).mkdir(parents=True, exist_ok=True)
        for vendor, vendor_name in enumerate(VENDORS):
            for k in range(each):
                symbol(number, vendor, k).save(Path(root) / name / f"{vendor_name}_{k}.png")
    return Path(root)


def rows(root: Path, *columns: str) -> list[dict]:
    """One row for each image of `folder`, with the columns asked for."""
    found = []
    for path in sorted(Path(root).glob("*/*.png")):
        vendor, k = path.stem.split("_")
        number = CLASSES.index(path.parent.name)
        everything = {
            "image": path.relative_to(root).as_posix(),
            "label": path.parent.name,
            "split": "test" if int(k) % 3 == 0 else "train",
            "task": number // 2,
            "domain": vendor,
            "text": f"a {path.parent.name.split('_')[0]} symbol",
            "question": "what shape is it?" if number < 2 else "which color?",
            "answers": ["round" if vendor == "alpha" else "square"] if number < 2 else [path.parent.name.split("_")[0]],
            "note": "mine",
        }
        found.append({name: everything[name] for name in columns})
    return found


def listed(path: Path, content: list[dict]) -> Path:
    """A .csv or .jsonl of rows; answers are joined by | in a CSV."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in content))
        return path
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows({k: "|".join(v) if isinstance(v, list) else v for k, v in row.items()} for row in content)
    return path


LISTS = {
    "captions.csv": ("image", "label", "text", "note"),
    "domains.csv": ("image", "label", "domain"),
    "questions.jsonl": ("image", "task", "question", "answers", "split"),
}

if __name__ == "__main__":
    root = folder(Path(sys.argv[1]))
    for name, columns in LISTS.items():
        listed(root / name, rows(root, *columns))
