"""Tables of scripts/claims_mulki.sh: Transfer, Average and Last of each arm, and paired differences to MulKI.

A pair of runs has the same seed, images, batches and order of domains. Last and Average are also given without signs,
which no caption of the pre-training names (zero-shot CLIP is at chance there).
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.records import Run, finished, markdown, spread

SCORES = ("Transfer", "Average", "Last")


def place_of_signs(args: dict) -> int | None:
    """Index of the domain that no teacher knows, on the picture world."""
    from datasets.tiny_world.streams import MTIL_ORDERS

    order = MTIL_ORDERS.get(args.get("mtil_order"), ())
    return list(order).index("signs") if args.get("dataset") == "mtil-tiny" and "signs" in order else None


WANTED = ("mtil_transfer", "mtil_avg", "mtil_last", "task_il_forgetting", "class_il_last", "stored_bytes")


def scores_of(run: Run) -> dict | None:
    """Scores and costs of a run; None, reported on stderr, if the run is not on a cross-domain stream."""
    args, summary = run.args, run.summary
    rows = [task["scores"].get("task_il", []) for task in run.tasks]
    square = (
        len(rows) > 0 and all(len(row) == len(rows) for row in rows) and all("seconds" in task for task in run.tasks)
    )
    if not square or not set(WANTED) <= summary.keys():
        print(f"left out: {run.folder}: it does not have scores across domains", file=sys.stderr)
        return None
    R = np.array(rows, dtype=float)
    signs = place_of_signs(args)
    known = [j for j in range(len(R)) if j != signs]
    seconds = [sum(v or 0 for k, v in task["seconds"].items() if k != "evaluate") for task in run.tasks]
    return {
        "Transfer": summary["mtil_transfer"],
        "Average": summary["mtil_avg"],
        "Last": summary["mtil_last"],
        "without": R[-1, known].mean(),
        "average_without": R[:, known].mean(),
        "own": np.diag(R).mean(),
        "signs": np.nan if signs is None or signs >= len(R) else R[-1, signs],
        "forgetting": summary["task_il_forgetting"],
        "x": summary["class_il_last"],
        "seconds": np.mean(seconds),
        "stored": summary["stored_bytes"] / 2**20,
    }


def read(results: Path) -> dict[str, dict[tuple[int, str], dict]]:
    """arm -> (seed, order) -> scores and costs, of finished runs."""
    arms: dict[str, dict[tuple[int, str], dict]] = {}
    for run in finished(results):
        scores = scores_of(run)
        if scores is not None:
            arms.setdefault(run.notes, {})[run.seed, run.args.get("mtil_order")] = scores
    return arms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a --results_path")
    parser.add_argument("--reference", default="MulKI", help="the arm that the others are compared with")
    args = parser.parse_args()
    arms = read(args.results)
    columns = [*SCORES, "own", "forgetting", "without", "average_without", "signs", "x", "seconds", "stored"]
    titles = [
        *SCORES,
        "own task",
        "forgetting",
        "Last without signs",
        "Average without signs",
        "signs at the end",
        "unmasked last",
        "seconds a task",
        "stored MiB",
    ]
    rows = [
        [name, len(runs), *(f"{np.mean([r[c] for r in runs.values()]):.1f}" for c in columns)]
        for name, runs in arms.items()
    ]
    print(markdown(["arm", "runs", *titles], rows))
    reference, rows = arms.get(args.reference, {}), []
    for name, runs in arms.items():
        common = [key for key in runs if key in reference]
        if name != args.reference and common:
            gaps = [[reference[k][s] - runs[k][s] for k in common] for s in (*SCORES, "without")]
            rows.append([name, len(common), *(spread(values, "+") for values in gaps)])
    head = [f"{args.reference} minus", "pairs", *(f"{s}, mean ± 95 %" for s in SCORES), "Last without signs"]
    print(markdown(head, rows), end="")


if __name__ == "__main__":
    main()
