"""The records of scripts/classics.sh as a table: scores and costs of each classic, mean over seeds, 95 % interval."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.records import finished, markdown, spread

ORDER = [
    "joint",
    "sgd",
    "er",
    "derpp",
    "icarl",
    "er-ace",
    "der",
    "xder",
    "rpc",
    "fdr",
    "gdumb",
    "gss",
    "hal",
    "mer",
    "lwf",
    "ewc-on",
    "si",
    "agem",
    "agem-r",
    "gem",
    "lucir",
    "bic",
]
COLUMNS = {
    "class_il_last": "last",
    "class_il_avg": "average",
    "class_il_forgetting": "forgetting",
    "task_il_last": "last, task-il",
    "stored_bytes": "stored MiB",
    "wall_s": "seconds",
}
OF_A_STREAM = {"class_il_avg", "class_il_forgetting"}  # joint does not have these: it trains once, on all tasks
PREAMBLE = """# The classics on the picture world

Every method trains all of the tiny CLIP's image tower and a linear classifier (`--backbone clip-visual`) on `seq-tiny`:
10 tasks of 6 classes, class-il, with the values of the block `seq-tiny` in `models/config/<model>.yaml`; methods with a
memory keep 500 images. Scores compare mechanisms on this world; they do not say how good a method is on real images.
The values were not tuned: learning rates of 0.03, lower where a seed failed (0.1 for `icarl`), one pass over each task,
which suits `der` badly (it stores the logits of the first pass).
`bash scripts/classics.sh` runs all of it with three seeds; each seed also draws its own images and class order.

*Reproduced* with seeds {seeds} at {commits} (+: with uncommitted changes), on
{where}:

```
{commands}
```

Mean over seeds, ± half of the 95 % interval (Student's t; none with one seed). *stored*: what a method keeps between
tasks besides its network; `icarl`, `lucir` and `bic` hold images as bytes, the others as floats (`--exemplar_codec
uint8` of `er` and `derpp` takes a quarter), so the column does not compare methods at equal bytes. *seconds*: wall
clock of a run on one thread, with other work on the machine.

"""
NOT_SHOWN = {"--seed", "--picture_seed", "--notes", "--results_path", "--resume", "--non_verbose", "--autosave"}


def table(arms: dict[str, dict[int, dict[str, float]]]) -> str:
    """Markdown rows, one for each method."""
    rows = []
    for name in [*ORDER, *sorted(set(arms) - set(ORDER))]:
        if name not in arms:
            rows.append([f"`{name}`", 0, "*not run*", *[""] * (len(COLUMNS) - 1)])
            continue
        scale = {"stored_bytes": 2**20}
        shown = [k for k in COLUMNS if name != "joint" or k not in OF_A_STREAM]
        found = {k: [s[k] / scale.get(k, 1) for s in arms[name].values() if k in s and k in shown] for k in COLUMNS}
        rows.append([f"`{name}`", len(arms[name]), *map(spread, found.values())])
    return markdown(["method", "seeds", *COLUMNS.values()], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="a --results_path")
    parser.add_argument("--write", type=Path, help="file to write (default: print)")
    args = parser.parse_args()
    runs = finished(args.results)
    arms: dict[str, dict[int, dict[str, float]]] = {}
    for run in runs:
        arms.setdefault(run.args["model"], {})[run.seed] = run.summary
    if not runs:
        parser.error(f"no finished run under {args.results}: run scripts/classics.sh")
    starts = [run.start for run in runs]
    text = PREAMBLE.format(
        seeds=" ".join(map(str, sorted({run.seed for run in runs if run.seed is not None}))),
        commits="commit "
        + ", ".join(
            sorted({str(s.get("git_commit"))[:7] + "+" * str(s.get("git_commit")).endswith("+") for s in starts})
        ),
        where="; ".join(sorted({f"{s.get('device')}, {s.get('threads')} thread" for s in starts})),
        commands="\n".join(command_lines(starts)),
    )
    text += table(arms)
    args.write.write_text(text) if args.write else print(text)


def command_lines(starts: list[dict]) -> list[str]:
    """The command lines of the runs; a command used by a single method names that method."""
    models: dict[str, set[str]] = {}
    for start in starts:
        models.setdefault(command(start.get("argv", [])), set()).add(start["args"]["model"])
    many = len(models) > 1
    return sorted(c.replace("<model>", *own) if many and len(own) == 1 else c for c, own in models.items())


def command(argv: list[str]) -> str:
    """The command line of a run, without flags that differ between methods and seeds or do not change numbers."""
    shown, value_of = [], ""
    for token in argv:
        if value_of:
            flag, value_of = value_of, ""
            shown += [] if flag in NOT_SHOWN else [flag, "<model>" if flag == "--model" else token]
        elif token.startswith("--"):
            value_of = token
    return "python main.py " + " ".join(shown)


if __name__ == "__main__":
    main()
