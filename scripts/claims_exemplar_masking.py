"""Accuracy, exemplars and bytes of each arm (the --notes of a run), the claims as paired differences, and a plot of
accuracy against bytes."""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.records import arms_of, finished, markdown, spread
from utils.escape import on_figure

COLUMNS = {
    "class_il_avg": "average",
    "class_il_last": "last",
    "class_il_forgetting": "forgetting",
    "nme_avg": "average, nearest mean",
    "nme_last": "last, nearest mean",
    "exemplars_last": "exemplars a class",
    "exemplar_bytes_last": "bytes each",
    "kept_patches_last": "patches %",
    "kept_words_last": "words %",
    "kept_attention_last": "attention %",
    "stored_bytes": "stored KiB",
    "wall_s": "seconds",
}
# arm, arm it is compared with, what the difference of the average accuracy should be: at least, or at most
CLAIMS = [
    ("masked 5x", "full 5x", ">=", 1.0),
    ("masked 5x", "random mask 5x", ">=", 0.0),
    ("masked 5x", "masked, not augmented 5x", ">=", 0.0),
    ("masked 5x", "class words alone 5x", ">=", 0.0),
    ("masked, 5 exemplars", "full 5x", "<=", 1.0),
    ("masked 5x", "box 5x", ">=", 0.0),
    ("masked 5x", "jpeg 5x", ">=", 0.0),
    ("masked 5x", "l2p", ">=", 0.0),
    ("masked, not augmented 5x", "full 5x", ">=", 1.0),
    ("masked, not augmented 5x", "random mask, not augmented 5x", ">=", 0.0),
    ("masked + swap 5x", "masked, not augmented 5x", ">=", 0.0),
    ("er, masked", "er, full", ">=", 0.0),
    ("masked, of JPEG bytes", "full, of JPEG bytes", ">=", 0.0),
]
Arms = dict[str, dict[int, dict[str, float]]]


def gaps(arms: Arms, first: str, second: str, key: str) -> list[float]:
    """Differences of two arms for each seed that both have."""
    one, other = arms.get(first, {}), arms.get(second, {})
    return [one[s][key] - other[s][key] for s in sorted(one) if s in other and key in one[s] and key in other[s]]


def table(arms: Arms) -> None:
    rows = []
    for name, seeds in arms.items():
        values = {k: [s[k] / (1024 if k == "stored_bytes" else 1) for s in seeds.values() if k in s] for k in COLUMNS}
        rows.append([name, len(seeds), *(f"{np.mean(v):.1f}" if v else "" for v in values.values())])
    print(markdown(["arm", "seeds", *COLUMNS.values()], rows), end="")


def claims(arms: Arms) -> None:
    """One line per claim and head whose two arms share a seed."""
    rows = []
    for first, second, sign, bound in CLAIMS:
        for score, head in (("class_il", "linear"), ("nme", "nearest mean")):
            found = gaps(arms, first, second, f"{score}_avg")
            if found:
                holds = np.mean(found) >= bound if sign == ">=" else np.mean(found) <= bound
                each = " ".join(f"{g:+.1f}" for g in found)
                rows.append(
                    [
                        f"{first} minus {second}",
                        f"{sign} {bound:g}",
                        head,
                        each,
                        spread(found, "+"),
                        "yes" if holds else "no",
                        spread(gaps(arms, first, second, f"{score}_last"), "+"),
                    ]
                )
    masked, full = (arms.get(name, {}) for name in ("masked 5x", "full 5x"))
    key = "exemplars_last"
    ratios = [masked[s][key] / full[s][key] for s in sorted(masked) if key in masked[s] and full.get(s, {}).get(key)]
    if ratios:
        each = " ".join(f"{r:.2f}" for r in ratios)
        rows.append(
            [
                "exemplars a class, masked 5x over full 5x",
                ">= 2",
                "",
                each,
                f"{np.mean(ratios):.2f}",
                "yes" if np.mean(ratios) >= 2 else "no",
                "",
            ]
        )
    head = ["average accuracy", "claimed", "head", "per seed", "mean ± 95 %", "mean as claimed", "last"]
    print("\n" + markdown(head, rows), end="")


def plot(arms: Arms, path: Path) -> None:
    """One line per kind of exemplar with several budgets: average accuracy over the seeds that all of them have."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found: dict[str, dict[float, dict[int, float]]] = {}
    for name, seeds in arms.items():
        if kind := re.fullmatch(r"(.*) ([\d.]+)x", name):
            found.setdefault(kind[1], {})[float(kind[2])] = {
                seed: s["class_il_avg"] for seed, s in seeds.items() if "class_il_avg" in s
            }
    common = {name: set.intersection(*map(set, points.values())) for name, points in found.items()}
    lines = {
        name: {w: [of[seed] for seed in sorted(common[name])] for w, of in points.items()}
        for name, points in found.items()
        if len(points) > 1 and common[name]
    }
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, (name, points) in enumerate(sorted(lines.items(), key=lambda line: -np.mean(line[1][max(line[1])]))):
        worth = sorted(points)
        axes.plot(
            worth, [np.mean(points[w]) for w in worth], color=f"C{i}", marker="o", markersize=5, label=on_figure(name)
        )
        for w in worth:
            axes.plot([w] * len(points[w]), points[w], ".", color=f"C{i}", markersize=4, alpha=0.5)
    if not axes.lines:
        print(f"no kind of exemplar was run with two budgets: {path} is not drawn", file=sys.stderr)
        return
    axes.set_xticks(sorted({w for points in lines.values() for w in points}))
    axes.set_xlabel("bytes of a class, in full samples")
    axes.set_ylabel("average incremental accuracy, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(str(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a --results_path")
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    arms = arms_of(finished(args.results))
    table(arms)
    claims(arms)
    if args.plot:
        plot(arms, args.plot)


if __name__ == "__main__":
    main()
