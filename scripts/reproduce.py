"""Run a record's command again and say what differs: numbers first, then what might be the reason.

python scripts/reproduce.py runs/seq-tiny/cgil/<run>/record.jsonl [--flag value ...]

Flags after the record replace those of the command, for example --device cpu. The exit code is 0 if all scores are
equal bit for bit, 1 if any differs.
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import main
from utils.cli import fail, shell
from utils.engine.record import read_record
from utils.errors import UserError

PLACES = {
    "--results_path",
    "--resume",
    "--savecheck",
    "--checkpoint_path",
    "--ckpt_name",
    "--autosave",
    "--disable_log",
}
CLOCKS = {"wall_s", "peak_bytes", "image_forwards", "question_forwards"}  # of a summary; features may be cached
REASONS = (
    "git_commit patch_sha256 code versions python packages gpu device threads dataset_fingerprint class_names "
    "templates_sha256 weights_sha256 initial_sha256 reference_sha256 files_sha256 plugins protocol class_order"
).split()


def lines_of(path: Path) -> list[dict]:
    path = path / "record.jsonl" if path.is_dir() else path
    rows = read_record(path)
    if not rows:
        raise UserError(f"{path} has no lines: give the record.jsonl of a run, or its folder")
    if rows[0]["type"] != "start" or not isinstance(rows[0].get("argv"), list):
        raise UserError(f"{path} does not say with which arguments it was run")
    return rows


def flag_of(word: str) -> str:
    return "--" + word.lstrip("-").partition("=")[0].replace("-", "_")


def arguments(start: dict, more: list[str]) -> list[str]:
    """The recorded arguments with the seed, without those that say where things are written; `more` replace some."""
    left_out = PLACES | {flag_of(word) for word in more if word.startswith("--")}
    argv, kept, skip = [str(word) for word in start["argv"]], [], False
    for word in argv:
        if word.startswith("--"):
            skip = flag_of(word) in left_out
        if not skip:
            kept.append(word)
    has_seed = any(word.startswith("--") and flag_of(word) == "--seed" for word in kept + more)
    return kept + ([] if has_seed else ["--seed", str(start["args"]["seed"])]) + more


def scores(rows: list[dict]) -> dict[str, object]:
    """Every number that does not depend on the clock, by name."""
    found = {}
    for row in rows:
        for name, values in row["scores"].items() if row["type"] == "task" else ():
            found[f"task {row['task'] + 1} {name}"] = values
    summary = rows[-1].get("summary") or {}
    return found | {name: value for name, value in summary.items() if name not in CLOCKS}


def differences(old: dict, new: dict) -> list[str]:
    """One line for each name whose value is not the same."""
    names = list(dict.fromkeys([*old, *new]))
    return [
        f"{name}: {told(old.get(name))} -> {told(new.get(name))}" for name in names if old.get(name) != new.get(name)
    ]


def told(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def flat(start: dict) -> dict[str, object]:
    """What might be the reason of a difference, by name."""
    found: dict[str, object] = {}
    for name in REASONS:
        value = start.get(name)
        if name == "packages":
            value = dict(str(item).partition("==")[::2] for item in value or [])
        found |= {f"{name} {key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
    return found


def rerun(argv: list[str]) -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        code = main.main([*argv, "--results_path", folder])
        found = list(Path(folder).glob("*/*/*/record.jsonl"))
        if code or not found:
            raise UserError(f"the command ended with exit code {code}: python main.py {' '.join(argv)}")
        return read_record(found[0])


def program(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        if not argv or argv[0].startswith("-"):
            raise UserError("give the record of a run: python scripts/reproduce.py RECORD [--flag value ...]")
        old = lines_of(Path(argv[0]))
        new = rerun(arguments(old[0], argv[1:]))
    except UserError as error:
        return fail(error)
    if old[-1].get("status") != "done":
        print(f"the run of the record is not done ({old[-1].get('status', 'cut off')}): its tasks alone are compared")
        old, new = ([row for row in rows if row["type"] != "end"] for rows in (old, new))
        done = [row["task"] for row in old if row["type"] == "task"]
        new = [row for row in new if row["type"] != "task" or row["task"] in done]
    wrong, reasons = differences(scores(old), scores(new)), differences(flat(old[0]), flat(new[0]))
    for line in wrong:
        print(f"differs: {line}")
    for line in reasons:
        print(f"{'perhaps because of' if wrong else 'also differs'}: {line}")
    total = len(scores(old))
    print(f"{total - len(wrong)} of {total} scores are equal" if wrong else f"all {total} scores are equal")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(shell.exits(program))
