"""Tables of scripts/claims_mulki.sh: Transfer, Average and Last of each arm, and MulKI minus the arm, paired by seed and order.

A pair of runs has the same pictures, batches and order of domains. Signs, which nothing in pre-training names (zero-shot CLIP
is at chance there), are also left out of Last and Average.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.claims import spread  # noqa: E402
from utils.engine.record import read_record  # noqa: E402

SCORES = ("Transfer", "Average", "Last")


def place_of_signs(args: dict) -> int | None:
    """Place of the domain that no teacher knows, on the picture world."""
    from datasets.tiny_world.streams import MTIL_ORDERS

    return list(MTIL_ORDERS[args["mtil_order"]]).index("signs") if args["dataset"] == "mtil-tiny" else None


def read(results: Path) -> dict[str, dict[tuple[int, str], dict]]:
    """arm -> (seed, order) -> scores and costs, of finished runs."""
    arms: dict[str, dict[tuple[int, str], dict]] = {}
    for path in sorted(results.rglob("record.jsonl"), key=lambda p: p.parent.name):
        rows = read_record(path)
        if not rows or rows[-1].get("status") != "done":
            continue
        args, summary = rows[0]["args"], rows[-1]["summary"]
        tasks = [row for row in rows if row["type"] == "task"]
        R = np.array([row["scores"]["task_il"] for row in tasks], dtype=float)
        signs = place_of_signs(args)
        known = [j for j in range(len(R)) if j != signs]
        seconds = [sum(v for k, v in row["seconds"].items() if k != "evaluate") for row in tasks]
        arms.setdefault(args["notes"], {})[args["seed"], args["mtil_order"]] = {
            "Transfer": summary["mtil_transfer"],
            "Average": summary["mtil_avg"],
            "Last": summary["mtil_last"],
            "without": R[-1, known].mean(),
            "average_without": R[:, known].mean(),
            "own": np.diag(R).mean(),
            "signs": np.nan if signs is None else R[-1, signs],
            "forgetting": summary["task_il_forgetting"],
            "x": summary["class_il_last"],
            "seconds": np.mean(seconds),
            "stored": summary["stored_bytes"] / 2**20,
        }
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
    print("| arm | runs | " + " | ".join(titles) + " |")
    print("|---" * (len(titles) + 2) + "|")
    for name, runs in arms.items():
        cells = [f"{np.mean([r[c] for r in runs.values()]):.1f}" for c in columns]
        print(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    print(
        f"\n| {args.reference} minus | pairs | "
        + " | ".join(f"{s}, mean ± 95 %" for s in SCORES)
        + " | Last without signs |"
    )
    print("|---" * (len(SCORES) + 3) + "|")
    reference = arms.get(args.reference, {})
    for name, runs in arms.items():
        common = [key for key in runs if key in reference]
        if name == args.reference or not common:
            continue
        cells = [spread([reference[k][s] - runs[k][s] for k in common]) for s in (*SCORES, "without")]
        print(f"| {name} | {len(common)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
