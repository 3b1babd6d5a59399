"""Accuracy, exemplars and bytes of each arm (the --notes of a run) as a table, and a plot of accuracy against bytes."""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from claims import read  # noqa: E402

COLUMNS = {"class_il_avg": "average", "class_il_last": "last", "class_il_forgetting": "forgetting", "nme_last": "last, nearest mean",
           "exemplars_last": "exemplars a class", "exemplar_bytes_last": "bytes each", "kept_patches_last": "patches %",
           "kept_words_last": "words %", "kept_attention_last": "attention %", "wall_s": "seconds"}  # fmt: skip


def plot(arms: dict, path: Path) -> None:
    """One line for each arm with several budgets: mean average accuracy over seeds against samples' worth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines: dict[str, dict[float, list[float]]] = {}
    for name, seeds in arms.items():
        found = re.fullmatch(r"(.*) ([\d.]+)x", name)
        if found:
            values = [s["class_il_avg"] for s in seeds.values()]
            lines.setdefault(found[1], {})[float(found[2])] = values
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        worth = sorted(points)
        axes.plot(worth, [np.mean(points[w]) for w in worth], marker="o", markersize=4, label=name)
    axes.set_xlabel("budget of a class in full samples")
    axes.set_ylabel("average incremental accuracy, %")
    axes.legend(fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a --results_path")
    parser.add_argument("--reference", default="full 5x", help="the arm that the others are compared with")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    arms = read(args.results)
    print("| arm | seeds | " + " | ".join(COLUMNS.values()) + f" | average minus {args.reference}, per seed |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for name, seeds in arms.items():
        cells = [f"{np.mean(v):.1f}" if (v := [s[key] for s in seeds.values() if key in s]) else "" for key in COLUMNS]
        base = arms.get(args.reference, {})
        gaps = [f"{s['class_il_avg'] - base[k]['class_il_avg']:+.1f}" for k, s in seeds.items() if k in base]
        print(f"| {name} | {len(seeds)} | " + " | ".join(cells) + f" | {' '.join(gaps)} |")
    if args.plot and arms:
        plot(arms, args.plot)


if __name__ == "__main__":
    main()
