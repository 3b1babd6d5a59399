"""mammoth-vl from Python: `run` a method on a stream, `load_runs` of a folder, `plot_matrix` and `plot_curves`.

    from mammoth_vl import run, load_runs, plot_matrix, plot_curves
    result = run("ncm", "seq-tiny", seed=1)
    plot_matrix(result)

The console command `mammoth-vl` is `python main.py`.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # models, datasets, ... lie beside this file

from utils.errors import UserError

__all__ = ["Result", "UserError", "load_runs", "plot_curves", "plot_matrix", "run"]


class Result(dict):
    """The summary of a run: score -> value. `record` is the path of its record, None with disable_log=True."""

    def __init__(self, summary: Mapping[str, float], record: Path | None = None):
        super().__init__(summary)
        self.record = record

    def rows(self) -> list[dict]:
        """The lines of the record."""
        from utils.engine.record import read_record

        if self.record is None:
            raise UserError("this run has no record: leave out disable_log")
        return read_record(self.record)


def run(model: str | type, dataset: str | type, **flags: Any) -> Result:
    """Train and evaluate as `python main.py --model .. --dataset ..` does; flags as on the command line without --.

    A class of yours is given as it is, with a NAME; True and False are 1 and 0, a list is several values.
    """
    import main
    from utils import cli

    argv = ["--model", name_of("model", model), "--dataset", name_of("dataset", dataset), *words(flags)]
    parsed = cli.parse(argv)
    if parsed is None:
        raise UserError(f"{' '.join(argv)} asks for a text: use the command line")
    summary = main.run(parsed)
    return Result(summary, parsed.folder and Path(parsed.folder) / "record.jsonl")


def name_of(kind: str, value: str | type) -> str:
    """The name of a method or stream; a class is registered under its NAME."""
    from utils.cli import registry

    if isinstance(value, str):
        return value
    if not isinstance(getattr(value, "NAME", None), str):
        raise UserError(f"{kind} {getattr(value, '__name__', value)} needs a NAME, for example NAME = 'mine'")
    name = registry.canonical(value.NAME)
    if name in registry.index(kind) and registry._registered[kind].get(name) is None:
        raise UserError(f"there is a {kind} '{name}' already: give your class another NAME")
    registry._registered[kind][name] = value
    return name


def words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as words of a command line; None leaves a flag out."""
    found = []
    for name, value in flags.items():
        if value is None:
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        found += [f"--{name}", *(str(int(v)) if isinstance(v, bool) else str(v) for v in values)]
    return found


def load_runs(path: str | Path = "runs") -> Any:
    """One row per record below `path`: dataset, model, seed, status, time, folder, and the summary's scores. A pandas
    DataFrame if pandas is installed, else a list of dicts. A record that cannot be read is named in its status."""
    from utils.engine.record import read_record

    rows = []
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder of runs")
    for file in sorted(Path(path).rglob("record.jsonl")):
        try:
            lines = read_record(file)
        except UserError as error:
            rows.append({"status": f"unreadable: {error}", "folder": str(file.parent)})
            continue
        if not lines or lines[0]["type"] != "start":
            rows.append({"status": "empty", "folder": str(file.parent)})
            continue
        args, end = lines[0].get("args") or {}, lines[-1] if lines[-1]["type"] == "end" else {}
        first = {name: args.get(name) for name in ("dataset", "model", "seed", "notes")}
        first |= {"status": end.get("status", "unfinished"), "time": lines[0].get("time"), "folder": str(file.parent)}
        rows.append(first | (end.get("summary") or {}))
    try:
        import pandas
    except ImportError:
        return rows
    return pandas.DataFrame(rows)


def matrix_of(source: "Result | str | Path | Sequence[Sequence[float]]", name: str = "class_il") -> Any:
    """R[t, j], percent on test set j after training task t, of a result, a record or folder, or the numbers."""
    import numpy as np

    from utils.engine.record import read_record

    if isinstance(source, (str, Path)):
        path = Path(source) / "record.jsonl" if Path(source).is_dir() else Path(source)
        lines, where = read_record(path), str(path)
        if not lines:
            raise UserError(f"{path} has no lines: give a record.jsonl or its folder")
    elif isinstance(source, Result):
        lines, where = source.rows(), str(source.record)
    else:
        return np.asarray(source, dtype=float)
    scores = [row["scores"] for row in lines if row["type"] == "task"]
    if not scores or name not in scores[-1]:
        known = ", ".join(sorted({key for row in scores for key in row})) or "none: no task was finished"
        raise UserError(f"{where} has no scores '{name}'; it has {known}")
    width = max(len(row[name]) for row in scores)
    return np.array(
        [[np.nan if v is None else v for v in row[name]] + [np.nan] * (width - len(row[name])) for row in scores]
    )


def plot_matrix(source: Any, name: str = "class_il", title: str | None = None) -> Any:
    """A heat map of a score matrix; returns the matplotlib figure."""
    from matplotlib import pyplot

    from utils.engine.record import draw_matrix

    figure = pyplot.figure(layout="constrained")
    draw_matrix(figure, matrix_of(source, name), title if title is not None else label_of(source))
    return figure


def plot_curves(sources: Any, name: str = "class_il") -> Any:
    """Mean over the test sets seen so far, after each task: one line per label, with a band of one standard deviation
    where several runs have it. `sources` is a list of results or paths, or {label: result, path or list of them}."""
    import numpy as np
    from matplotlib import pyplot

    if not isinstance(sources, Mapping):
        named: dict[str, list] = {}
        for source in sources:
            named.setdefault(label_of(source), []).append(source)
        sources = named
    figure, axes = pyplot.subplots(layout="constrained")
    for label, runs in sources.items():
        runs = [runs] if isinstance(runs, (Result, str, Path)) or not isinstance(runs, Iterable) else list(runs)
        curves = np.array([[np.nanmean(row[: t + 1]) for t, row in enumerate(matrix_of(one, name))] for one in runs])
        tasks = np.arange(1, curves.shape[1] + 1)
        (line,) = axes.plot(tasks, curves.mean(0), marker="o", label=label)
        if len(curves) > 1:
            low, high = (curves.mean(0) + k * curves.std(0, ddof=1) for k in (-1, 1))
            axes.fill_between(tasks, low, high, alpha=0.2, color=line.get_color())
    axes.set(xlabel="after task", ylabel=f"{name.replace('_', '-')}, mean over tasks seen (%)")
    axes.legend()
    return figure


def label_of(source: Any) -> str:
    """The method of a result or record."""
    from utils.engine.record import read_record

    if isinstance(source, Result):
        lines = source.rows()
    elif isinstance(source, (str, Path)):
        lines = read_record(Path(source) / "record.jsonl" if Path(source).is_dir() else source)
    else:
        return ""
    return str((lines[0].get("args") or {}).get("model", "")) if lines else ""


def console() -> None:
    """The command `mammoth-vl`."""
    import main
    from utils.cli import shell

    sys.exit(shell.exits(main.main))


if __name__ == "__main__":
    console()
