"""Writes docs/honest.md: how scores change when test images come alone, mixed over tasks, or without their task.

Each method learns the first tasks of `seq-tiny` from a few images per class; then the same model answers the same test
images in four ways. Rows of the page are kept; `python scripts/honest.py NAME ...` or `all` makes them again.
"""

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import main as program
from models import get_model_names
from scripts.records import markdown
from tests import contract
from utils import cli
from utils.cli import registry
from utils.engine import training
from utils.engine.evaluate import UNMASKED, logits_of
from utils.engine.launch import git_commit
from utils.errors import UserError

PAGE = registry.ROOT / "docs" / "honest.md"
TASKS = 3
SETTINGS = f"--shots 10 --stop_after {TASKS - 1} --picture_seed 0"
SOURCES = {"descriptions", "reference", "attention_kept"}  # flags of the toy runs that this page takes over
MEMORY, RATE = "100", "0.03"
MIXED = 64  # images in a mixed batch
HEAD = f"""# Honest evaluation

Test protocols differ, and a method that looks at its test batch gains from it. Each method learns the first {TASKS}
tasks of `seq-tiny` from 10 images per class: `python main.py --model NAME --dataset seq-tiny {SETTINGS} --seed 0`,
with its values for this world. Methods for any network tune CLIP's image tower (`--lr {RATE}` where they have no rate
of their own), memories hold {MEMORY} images. The same model then answers the same test images in other ways. Changes
are in points of accuracy, and *answers changed* counts the images whose first answer is another one in either way.

- **one by one**: each image is a batch of its own. **mixed**: batches of {MIXED} images drawn from all tasks.
- **with the task**: only the classes of the image's own task compete; what a number gains where the task is told.

Where no answer changes, answers do not depend on what else is tested. `python scripts/honest.py NAME ...` writes the
rows, at the commit in the last column.

"""


class Answers(NamedTuple):
    """First answers (N,) to the same images in several ways, their labels, and the answers within the own task."""

    labels: Tensor
    plain: Tensor
    alone: Tensor
    mixed: Tensor
    told: Tensor


class Row(NamedTuple):
    """Accuracy, the changes of it, and how many answers changed."""

    last: float
    alone: float
    mixed: float
    told: float
    answers: int
    images: int
    commit: str


def command(name: str) -> list[str]:
    """The command line of a method's run: what it requires, then the values of this page."""
    cls, argv = contract.model_class(name), contract.argv_of(name, "seq-tiny")
    for flag in (*(set(cls.TOY_ARGS) - SOURCES), "base_path", "clip_backbone"):
        if f"--{flag}" in argv:
            at = argv.index(f"--{flag}")
            argv[at : at + 2] = []
    if "--buffer_size" in argv:
        argv[argv.index("--buffer_size") + 1] = MEMORY
    if not contract.uses_clip(name) and "lr" not in cls.IDLE_FLAGS and own_default(name, "lr") is None:
        argv += ["--lr", RATE]
    return [*argv, *SETTINGS.split()]


def own_default(name: str, flag: str) -> object:
    """The value that the method gives a flag of the framework."""
    parser = cli.new_parser()
    cli.add_model_args(parser, contract.model_class(name))
    return parser.get_default(flag)


def trained(name: str):
    """The model and its stream after the run."""
    made, real = [], training.train

    def train(model, dataset, args, record, resume):
        made[:] = [model, dataset]
        return real(model, dataset, args, record, resume)

    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(training, "train", train):
        program.run(cli.parse(command(name)))
    return made[0].eval(), made[1]


@torch.no_grad()
def answers(model, dataset) -> Answers:
    """Four ways to ask for the same images; batches are mixed in an order drawn by a fixed seed."""
    batches = [batch for loader in dataset.test_loaders for batch in loader]
    inputs, labels = torch.cat([batch[0] for batch in batches]), torch.cat([batch[1] for batch in batches]).long()
    task = torch.cat([torch.full((len(loader.dataset),), t) for t, loader in enumerate(dataset.test_loaders)])

    def ask(groups: Iterable[Tensor]) -> Tensor:
        found = {int(i): row for rows in groups for i, row in zip(rows, logits_of(model, inputs[rows], 0), strict=True)}
        return torch.stack([found[i] for i in range(len(labels))]).cpu()

    everything = torch.arange(len(labels))
    own = [everything[task == t] for t in range(len(dataset.test_loaders))]
    plain, alone = ask(own), ask(everything.split(1))
    mixed = ask(torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(MIXED))
    outside = torch.ones_like(plain, dtype=torch.bool)
    for t, rows in enumerate(own):
        outside[rows, slice(*dataset.get_offsets(t))] = False
    told = plain.masked_fill(outside, -torch.inf)
    return Answers(labels, *(logits.argmax(1) for logits in (plain, alone, mixed, told)))


def row_of(found: Answers, commit: str) -> Row:
    right = [100 * float((part == found.labels).float().mean()) for part in found[1:]]
    changed = (found.alone != found.plain) | (found.mixed != found.plain)
    return Row(right[0], *(value - right[0] for value in right[1:]), int(changed.sum()), len(changed), commit)


def rows_of(page: str) -> dict[str, Row]:
    """What a page holds."""
    number = r"([+-]?[\d.]+)"
    pattern = rf"^\| `([\w-]+)` \| {number} \| {number} \| {number} \| {number} \| (\d+) of (\d+) \| (\S+) \|$"
    return {
        name: Row(*map(float, values[:4]), int(values[4]), int(values[5]), values[6])
        for name, *values in re.findall(pattern, page, re.M)
    }


def page(rows: dict[str, Row]) -> str:
    head = ["method", "accuracy", "one by one", "mixed", "with the task", "answers changed", "commit"]
    table = markdown(
        head,
        [
            [f"`{m}`", f"{r.last:.1f}", *(f"{v:+.1f}" for v in r[1:4]), f"{r.answers} of {r.images}", r.commit]
            for m, r in sorted(rows.items())
        ],
    )
    missing = [name for name in get_model_names() if name not in rows and settled(name)]
    others = [name for name in get_model_names() if not settled(name)]
    tail = (
        f"*not run*: {', '.join(missing) or 'none'}. Always told the task, so not here: {', '.join(others) or 'none'}."
    )
    return f"{HEAD}{table}\n{len(rows)} methods. {tail}\n"


def settled(name: str) -> bool:
    """Whether the method answers without the task."""
    return bool(UNMASKED & set(contract.model_class(name).COMPATIBILITY))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="honest", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("names", nargs="+", choices=["all", *filter(settled, get_model_names())], metavar="NAME")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = rows_of(PAGE.read_text(encoding="utf-8")) if PAGE.is_file() else {}
    known = git_commit() or "unknown"
    failed, commit = 0, known[:10] + "+" * known.endswith("+")  # +: with uncommitted changes
    for name in filter(settled, get_model_names()) if "all" in args.names else args.names:
        try:
            rows[name] = row_of(answers(*trained(name)), commit)
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
            continue
        PAGE.write_text(page(rows), encoding="utf-8")
        print(name, *rows[name], flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
