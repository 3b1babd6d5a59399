"""A table from records: mean over seeds of each arm (the --notes of a run), and paired differences to one of them."""

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.stats import t

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.engine.record import read_record  # noqa: E402

COLUMNS = {
    "class_il_last": "last",
    "class_il_avg": "average",
    "ci_transfer": "ci-transfer",
    "seen_all": "seen, all names",
    "ci_harmonic": "harmonic",
    "stored_bytes": "stored MiB",
    "wall_s": "seconds",
}

VQA_COLUMNS = {
    "vqa_last": "last",
    "exact_match_last": "exact match",
    "vqa_forgetting": "forgetting",
    "route_acc_last": "routed right",
    "oracle_route_last": "true pool",
    "stored_bytes": "stored MiB",
    "wall_s": "seconds",
}


def read(results: Path) -> dict[str, dict[int, dict[str, float]]]:
    """arm -> seed -> summary, of finished runs."""
    arms: dict[str, dict[int, dict[str, float]]] = {}
    for path in sorted(results.rglob("record.jsonl"), key=lambda p: p.parent.name):
        rows = read_record(path)
        if rows and rows[-1].get("status") == "done":
            arms.setdefault(rows[0]["args"]["notes"], {})[rows[0]["args"]["seed"]] = (
                averages(rows) | rows[-1]["summary"]
            )
    return arms


def averages(rows: list[dict]) -> dict[str, float]:
    """`<score>_avg` of each score: mean over the tasks of its mean over the tasks seen by then."""
    tasks = [r["scores"] for r in rows if r["type"] == "task"]
    return {
        f"{name}_avg": float(np.mean([np.mean(scores[name][: t + 1]) for t, scores in enumerate(tasks)]))
        for name in (tasks[0] if tasks else ())
        if all(name in scores for scores in tasks)
    }


def interval(values: list[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean (Student's t)."""
    return (
        float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5)
        if len(values) > 1
        else float("nan")
    )


def spread(values: list[float]) -> str:
    """Mean ± half the 95 % interval; one value has no interval."""
    return f"{np.mean(values):+.1f}" + (f" ± {interval(values):.1f}" if len(values) > 1 else "") if values else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a --results_path")
    parser.add_argument("--reference", required=True, help="the arm that the others are compared with")
    parser.add_argument("--vqa", action="store_true", help="columns of question answering")
    args = parser.parse_args()
    columns, last = (VQA_COLUMNS, "vqa_last") if args.vqa else (COLUMNS, "class_il_last")
    arms = read(args.results)
    print(
        "| arm | seeds | "
        + " | ".join(columns.values())
        + f" | last: {args.reference} minus this, per seed | mean ± 95 % |"
    )
    print("|---" * (len(columns) + 4) + "|")
    for name, seeds in arms.items():
        cells = []
        for key in columns:
            values = [s[key] / (2**20 if key.endswith("bytes") else 1) for s in seeds.values() if key in s]
            cells.append(f"{np.mean(values):.1f}" if values else "")
        common = [s for s in seeds if s in arms.get(args.reference, {})]
        gaps = [arms[args.reference][s][last] - seeds[s][last] for s in common]
        paired = [" ".join(f"{g:+.1f}" for g in gaps), spread(gaps)] if gaps and name != args.reference else ["", ""]
        print(f"| {name} | {len(seeds)} | " + " | ".join(cells + paired) + " |")


if __name__ == "__main__":
    main()
