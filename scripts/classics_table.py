"""The records of scripts/classics.sh as a table: mean over seeds and 95 % interval of what each classic reaches and costs."""

import argparse
from pathlib import Path

import numpy as np
from claims import interval, read

ORDER = ["joint", "sgd", "er", "derpp", "icarl", "er_ace", "der", "xder", "rpc", "fdr", "gdumb", "gss", "hal", "mer",
         "lwf", "ewc_on", "si", "agem", "agem_r", "gem", "lucir", "bic"]  # fmt: skip
COLUMNS = {"class_il_last": "last", "class_il_avg": "average", "class_il_forgetting": "forgetting",
           "stored_bytes": "stored MiB", "wall_s": "seconds"}  # fmt: skip
PREAMBLE = """# The classics on the picture world

Every method trains all of the tiny CLIP's image tower and a linear classifier (`--backbone clip-visual`) on `seq-tiny`:
10 tasks of 6 classes, class-il, with the values of the block `seq-tiny` in `models/config/<model>.yaml`; methods with a
memory keep 500 images. A seed fixes pictures, class order and initialisation. Scores compare mechanisms on this world;
they do not say how good a method is on real images, and the values were not searched for each method.

*Reproduced* with `bash scripts/classics.sh {seeds}` at {commits}, {where}. Mean over seeds, ± half of the 95 % interval
(Student's t; none with one seed). *stored*: what a method keeps between tasks besides its network. *seconds*: wall
clock of a run on one thread, two runs at a time, other work on the machine: an order of magnitude.

"""


def cell(values: list[float]) -> str:
    """Mean and half interval."""
    spread = interval(values)
    return f"{np.mean(values):.1f}" + (f" ± {spread:.1f}" if np.isfinite(spread) else "")


def table(arms: dict[str, dict[int, dict[str, float]]]) -> str:
    """Markdown rows, one for each method."""
    lines = ["| method | seeds | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name in sorted(arms, key=lambda n: (ORDER.index(n) if n in ORDER else len(ORDER), n)):
        scale = {"stored_bytes": 2**20}
        found = {k: [s[k] / scale.get(k, 1) for s in arms[name].values() if k in s] for k in COLUMNS}
        cells = [cell(values) if values else "" for values in found.values()]
        lines.append(f"| `{name}` | {len(arms[name])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a --results_path")
    parser.add_argument("--write", type=Path, help="file to write, instead of printing")
    args = parser.parse_args()
    arms, starts = read(args.results), first_lines(args.results)
    if not arms:
        parser.error(f"no finished run under {args.results}: run scripts/classics.sh")
    seeds = " ".join(map(str, sorted({seed for own in arms.values() for seed in own})))
    commits = "commit " + ", ".join(sorted({str(s.get("git_commit"))[:7] for s in starts}))
    where = "; ".join(sorted({str(s.get("device")) for s in starts}))
    text = PREAMBLE.format(seeds=seeds, commits=commits, where=where) + table(arms)
    args.write.write_text(text) if args.write else print(text)


def first_lines(results: Path) -> list[dict]:
    """The start line of every record."""
    from utils.results import read_record

    return [rows[0] for path in results.rglob("record.jsonl") if (rows := read_record(path))]


if __name__ == "__main__":
    main()
