"""Which method runs on which offline stream: `python scripts/compatibility.py` writes docs/compatibility.md.

Each pair is taken through everything that main.py does before training: the command line, the checks of the
combination, the stream, its images, the network and the method's constructor.
"""

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import main as program
from models import get_model_names
from scripts.records import markdown
from tests import contract
from utils import cli
from utils.cli import registry
from utils.engine import training
from utils.errors import UserError

PAGE = registry.ROOT / "docs" / "compatibility.md"
STREAMS = (
    *("seq-tiny", "seq-tiny-mixed", "seq-tiny-far", "mtil-tiny", "mm-tiny"),
    *("clove-tiny-scene", "clove-tiny-function", "clove-tiny-rules"),
)
HEAD = """# Methods and streams

Every registered method on every stream that needs no files, with default flags, `--lr 0.05` and `--buffer_size 500`.
"runs": everything before the first training step is accepted, from the command line to the method's constructor. A
letter: the run is refused with the line below the table and exit code 2. `python scripts/compatibility.py` writes this
page.

"""


class Accepted(Exception):
    """Raised where the training would begin."""


def command(model: str, stream: str, base: Path) -> list[str]:
    """The flags that the method requires, and sizes that fit streams of up to 100 classes."""
    argv = contract.argv_of(model, stream)
    for flag in (*contract.model_class(model).TOY_ARGS, "base_path", "clip_backbone"):  # sizes and CLIP of the toys
        if f"--{flag}" in argv:
            at = argv.index(f"--{flag}")
            argv[at : at + 2] = []
    if "--buffer_size" in argv:
        argv[argv.index("--buffer_size") + 1] = "500"
    argv += ["--lr", "0.05"] if "lr" not in contract.model_class(model).IDLE_FLAGS else []
    return [*argv, "--base_path", str(base)]


def refusal(model: str, stream: str, base: Path) -> str | None:
    """The line that refuses the pair, None if it would be trained."""
    try:
        with mock.patch.object(training, "train", side_effect=Accepted), contextlib.redirect_stdout(io.StringIO()):
            program.run(cli.parse(command(model, stream, base)))
    except Accepted:
        return None
    except UserError as error:
        return str(error)
    raise AssertionError(f"{model} on {stream} was neither refused nor trained")


def short(model: str, stream: str, reason: str) -> str:
    """The fact of a refusal without its remedy and without the names of the pair."""
    fact = reason.partition(". Datasets that fit")[0].partition(": choose another stream")[0]
    return fact.replace(f"model {model}", "the method").replace(stream, "the stream")


def page(found: dict[str, dict[str, str | None]]) -> str:
    """The whole page from the line that refuses each pair."""
    reasons = list(dict.fromkeys(short(m, s, why) for m, row in found.items() for s, why in row.items() if why))
    letters = {reason: chr(ord("a") + k) for k, reason in enumerate(reasons)}
    rows = []
    for model, row in found.items():
        cells = ["runs" if why is None else letters[short(model, s, why)] for s, why in row.items()]
        rows.append([f"`{model}`", *cells])
    table = markdown(["method", *(f"`{stream}`" for stream in STREAMS)], rows)
    n_runs = sum(why is None for row in found.values() for why in row.values())
    notes = "\n".join(f"- {letter}: {reason}" for reason, letter in letters.items())
    return f"{HEAD}{table}\n{len(found) * len(STREAMS)} pairs, {n_runs} run.\n\n{notes}\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="compatibility", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--only", nargs="+", choices=get_model_names(), metavar="NAME", help="prints these alone")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="compatibility-") as folder:
        found = {m: {s: refusal(m, s, Path(folder)) for s in STREAMS} for m in args.only or get_model_names()}
    if args.only:
        print(page(found))
    else:
        PAGE.write_text(page(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
