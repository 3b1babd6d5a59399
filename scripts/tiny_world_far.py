"""The rows of docs/tiny_world.md about the domain far from pre-training: can CLIP name it, can its features tell it?

python scripts/tiny_world_far.py --seeds 3 --sheets docs/img      # prints the rows and draws the contact sheet
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.tiny_world import far
from scripts.tiny_world_sheet import sheet

FAR = "seq-tiny-far"
# rung, target, flags of the run; class_il_last is read from its record
RUNS = [
    ("zero-shot, one template", f"chance {100 / len(far.names()):.1f}", "--model clip --permute_classes 1"),
    ("joint linear probe", "at least 80", "--model linear-probe --joint 1 --permute_classes 1"),
]


def rows_of_far(args: Namespace, record_of: Callable, over_seeds: Callable, text: Callable) -> list[list[str]]:
    """Zero-shot accuracy and that of a probe on frozen features, by runs of main.py."""
    rows = []
    for rung, goal, flags in RUNS:

        def measure(seed, flags=flags):
            return record_of(FAR, flags, seed, args)[-1]["summary"]["class_il_last"]

        mean, half = over_seeds(measure, args.seeds)
        rows.append([FAR, rung, goal, text(mean[0], half[0]), f"`{flags}`"])
    return rows


def draw(out: Path) -> None:
    """One image per class, by weave and kind of cell."""
    data = far.far_tiny(False)
    order = far.classes().argsort()
    sheet(out / "seq_tiny_far.png", data["images"][order], [far.names()[c] for c in order], far.KINDS)


def main() -> None:
    from scripts.tiny_world import over_seeds, record_of, text

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sheets", type=Path, help="folder to draw the contact sheet in")
    parser.add_argument("--results_path", default="runs/ladder")
    parser.add_argument("--base_path", default="data")
    args = parser.parse_args()
    if args.sheets:
        args.sheets.mkdir(parents=True, exist_ok=True)
        draw(args.sheets)
    for row in rows_of_far(args, record_of, over_seeds, text):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
