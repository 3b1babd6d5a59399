"""Converts Mammoth's logs.pyd to run records: python scripts/import_mammoth_logs.py data/results --results_path runs

A logs.pyd holds one Python dict literal per line and run. The lines are parsed, never evaluated: numbers, strings,
containers, nan and inf are read, `device(type='cpu')` and other calls become text, `tensor(1.5)` its content. A line
that cannot be read, or does not have accuracies, is reported on stderr and skipped; the exit code is then 1.
The accuracies of each run are imported (`accuracy_{j}_task{i}`, both from 1), and the masked ones from the file of the
same run under task-il/; averages are computed from them by the definitions of utils/engine/metrics.py. Importing a file
twice does not make a second record.
"""

import argparse
import ast
import hashlib
import math
import re
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.cli import shell
from utils.engine import metrics
from utils.engine import record as results
from utils.engine.record_schema import wrong_line
from utils.errors import UserError
from utils.escape import clean

NAMES = {"nan": math.nan, "inf": math.inf, "None": None, "True": True, "False": False}
MOST_TASKS = 10_000
ACCURACY = re.compile(r"accuracy_(\d+)_task(\d+)$")
VALUES_OF = {"tensor", "array", "Tensor", "list", "tuple", "float32", "float64", "int64", "Parameter"}  # first argument


def parse(line: str) -> dict:
    """A dict from one line; ValueError says why it is not one."""
    try:
        tree = ast.parse(line.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a Python literal ({error})") from None
    if not isinstance(tree, ast.Dict):
        raise ValueError("no dict")
    return value_of(tree)


def value_of(node: ast.expr):
    """The value of a literal; anything else becomes its text."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Dict):
        if None in node.keys:
            raise ValueError("a dict with ** in it")
        return {value_of(k): value_of(v) for k, v in zip(node.keys, node.values, strict=True)}
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [value_of(v) for v in node.elts]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = value_of(node.operand)
        if isinstance(value, (int, float)):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.Name) and node.id in NAMES:
        return NAMES[node.id]
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "Namespace":
            return {k.arg: value_of(k.value) for k in node.keywords}
        if name in VALUES_OF and node.args:
            return value_of(node.args[0])
    return ast.unparse(node)


def matrix_of(row: dict) -> np.ndarray:
    """R[t, j], percent on the test set of task j after training task t; NaN where the log has none."""
    found = {tuple(map(int, m.groups())): v for k, v in row.items() if (m := ACCURACY.match(str(k)))}
    if not found:
        raise ValueError("no accuracy_<j>_task<i>")
    wrong = [k for k, v in found.items() if not isinstance(v, (int, float, str)) or not is_number(v)]
    if wrong:
        raise ValueError(f"accuracy_{wrong[0][0]}_task{wrong[0][1]} is not a number")
    tasks = max(max(pair) for pair in found)
    if tasks > MOST_TASKS:
        raise ValueError(f"{tasks} tasks, more than {MOST_TASKS}")
    R = np.full((tasks, tasks), np.nan)
    for (j, t), value in found.items():
        if j > 0 and t > 0:
            R[t - 1, j - 1] = float(value)
    return R


def is_number(value) -> bool:
    try:
        float(value)
    except (ValueError, OverflowError):
        return False
    return True


def check_names(row: dict) -> None:
    """Refuse names that point outside the results folder, and arguments that a record cannot hold."""
    for key in ("dataset", "model"):
        if key in row and not re.fullmatch(r"[\w.+:-]{1,100}", str(row[key])) or set(str(row.get(key, "x"))) <= {"."}:
            raise ValueError(f"{key} {str(row[key])[:40]!r} is not a valid name")
    seed = row.get("seed")
    told = wrong_line({"type": "start", "args": {"seed": seed, "notes": row.get("notes")}})
    if told:
        raise ValueError(told)


def key_of(row: dict) -> str:
    """What identifies a run: its job number, else everything that is not a score."""
    if row.get("conf_jobnum"):
        return str(row["conf_jobnum"])
    return str(
        sorted(
            (str(k), str(v)) for k, v in row.items() if not re.match(r"acc|.*_transfer$|forgetting|.*memory", str(k))
        )
    )


def runs_in(path: Path, problems: list[str]) -> dict[str, tuple[dict, np.ndarray]]:
    """The readable runs of one logs.pyd, by key; errors are added to `problems`."""
    found = {}
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                row = parse(line)
                check_names(row)
                found[key_of(row)] = row, matrix_of(row)
            except (ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
                problems.append(clean(f"{path}, line {number}: {error or type(error).__name__}; skipped", 400))
    return found


def write(row: dict, R: np.ndarray, masked: np.ndarray | None, source: Path, target: Path) -> bool:
    """Write one record; False if the run was imported before."""
    args = {str(k): v for k, v in row.items() if not ACCURACY.match(str(k)) and not str(k).startswith("accmean_")}
    dataset, model = str(args.get("dataset", source.parent.parent.name)), str(args.get("model", source.parent.name))
    args |= {
        "dataset": dataset,
        "model": model,
        "imported_sha256": hashlib.sha256(repr(sorted(row.items(), key=str)).encode()).hexdigest(),
    }
    if results.find_run(target, dataset, model, results.config_hash(args)) is not None:
        return False
    record = results.open_run(target, dataset, model, args)
    record.start({"args": args, "requested": args, "imported_from": str(source), "imported_format": "mammoth logs.pyd"})
    named = {"class_il": R} | ({"task_il": masked} if masked is not None and masked.shape == R.shape else {})
    for task in range(len(R)):
        scores = {name: M[task].tolist() for name, M in named.items() if not np.isnan(M[task]).all()}
        if scores:
            record.task({"task": task, "scores": scores})
    record.end({"status": "done", "summary": metrics.summary(named, {})})
    record.close()
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path, help="logs.pyd files, or folders that hold them")
    parser.add_argument("--results_path", type=Path, default=Path("runs"), help="where the records go (default: runs)")
    args = parser.parse_args(argv)
    problems: list[str] = []
    try:
        missing = [str(p) for p in args.paths if not p.exists()]
        if missing:
            raise UserError(f"{missing[0]} does not exist")
        files = sorted({f for p in args.paths for f in ([p] if p.is_file() else p.rglob("logs.pyd"))})
        if not files:
            raise UserError(f"no logs.pyd under {', '.join(map(str, args.paths))}")
        logs = {path: runs_in(path, problems) for path in files}
        masked = {key: R for path, runs in logs.items() if "task-il" in path.parts for key, (_, R) in runs.items()}
        written = known = 0
        for path, runs in logs.items():
            for key, (row, R) in runs.items() if "task-il" not in path.parts else ():
                fresh = write(row, R, masked.get(key), path, args.results_path)
                written, known = written + fresh, known + (not fresh)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{written} runs imported to {args.results_path}, {known} were already there, {len(problems)} lines skipped")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(shell.exits(main))
