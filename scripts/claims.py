"""A table from records: mean over seeds of each arm (the --notes of a run), and paired differences to one of them."""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.records import arms_of, finished, markdown, spread

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
    "route_acc_last": "routing accuracy",
    "oracle_route_last": "true pool",
    "stored_bytes": "stored MiB",
    "wall_s": "seconds",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a --results_path")
    parser.add_argument("--reference", required=True, help="the arm that the others are compared with")
    parser.add_argument("--vqa", action="store_true", help="columns for question answering")
    args = parser.parse_args()
    columns, last = (VQA_COLUMNS, "vqa_last") if args.vqa else (COLUMNS, "class_il_last")
    arms = arms_of(finished(args.results))
    head = ["arm", "seeds", *columns.values(), f"last: {args.reference} minus this, per seed", "mean ± 95 %"]
    rows = []
    for name, seeds in arms.items():
        cells = []
        for key in columns:
            values = [s[key] / (2**20 if key.endswith("bytes") else 1) for s in seeds.values() if key in s]
            cells.append(f"{np.mean(values):.1f}" if values else "")
        reference = arms.get(args.reference, {})
        gaps = [reference[s][last] - seeds[s][last] for s in seeds if last in reference.get(s, {}) and last in seeds[s]]
        paired = (
            [" ".join(f"{g:+.1f}" for g in gaps), spread(gaps, "+")] if gaps and name != args.reference else ["", ""]
        )
        rows.append([name, len(seeds), *cells, *paired])
    print(markdown(head, rows), end="")


if __name__ == "__main__":
    main()
