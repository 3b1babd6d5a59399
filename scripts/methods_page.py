"""Writes docs/methods.md: every method, its paper, what it keeps, trains and needs, and where it leaves its paper.

Words are read from the docstrings of the method files. Bytes and parameters are measured by a short run of each method
(`measured`); what the page has is kept, `--measure NAME ...` or `all` measures again, `--words` measures nothing.
"""

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

from backbone.clip import CLIPBackbone
from datasets.tiny_world import streams, world
from models import get_model_names
from scripts.records import markdown
from tests import contract
from utils.cli import registry
from utils.errors import UserError

PAGE = registry.ROOT / "docs" / "methods.md"
HEAD = """# Methods

Every registered method. Ideas, papers, choices and commands are the docstrings of the files in `models/`, which also
have the formulas; `python scripts/methods_page.py` writes this page.

- **keeps**: bytes kept between tasks beside the network after 100 classes in 10 tasks, 5 images of 48 x 48 per class,
  with the sizes of the picture world's runs and a memory of 500 images for methods that have one (6,912 bytes each,
  27,648 as floats), on the embedded CLIP: features of {width} numbers; methods for any network on its image tower.
  Copies of the network count.
- **trains**: parameters with a gradient in the largest step of that run; 0: closed form or nothing trained.
- **needs**: *memory* of past tasks' images, or of features of single ones; *text*: class names or sentences through a
  text tower; *descriptions* of the names; *reference* images or texts from outside the stream; *task id* at test.
  *future*: also scores names that are not trained yet.

"""
YEAR = re.compile(r"arXiv \d{4}\.\d{4,5}|[12][09]\d\d")
PAPER = re.compile(r"[A-Z]\w+(?:[ ,&]+(?:and )?[A-Z]\w+)*(?: et al\.)?,? (?:[A-Z][\w ]+ )?\d{4}(?:, arXiv [\d.]+\d)?")
MEMORY = {"buffer_size", "exemplars", "memory_bytes"}  # flags of methods that store samples
SOURCES = {"descriptions", "reference", "clip_backbone", "attention_kept"}  # flags taken over from the toy runs


class Hundred(contract.ToyClasses):
    """100 classes named by two words that the embedded CLIP knows, 5 images of 48 x 48 each, in 10 tasks."""

    NAME = "toy-hundred"
    N_TASKS = 10
    N_CLASSES_PER_TASK = 10
    SIZE = (48, 48)
    CLASS_NAMES = [f"{pattern} {kind}" for pattern in world.PATTERNS for kind in streams.NAMES][:100]
    DEFAULTS = {"batch_size": 64, "n_epochs": 1, "backbone": "clip-visual", "clip_backbone": "tiny", "lr": 1e-4}

    def load(self, train: bool):
        labels = torch.arange(100).repeat_interleave(5 if train else 1)
        samples = contract.pictures(labels, train)
        samples.data = samples.data.repeat(1, 1, 6, 6)
        return samples


class Facts(NamedTuple):
    """What is measured of a method."""

    kept: int
    trained: int
    text: bool

    @property
    def cells(self) -> list[str]:
        return [f"{self.kept:,}", f"{self.trained:,}"]


def text_of(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def paragraphs(text: str) -> list[str]:
    return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]


def paper(text: str) -> str:
    """The first sentence below the first line that cites something, up to its last year or arXiv number; the papers
    alone where formulas stand around them."""
    for part in paragraphs(text)[1:]:
        sentence = re.split(r"(?<=\d)[.);] |(?<=\w)\. (?=[A-Z])(?<!al\. )", part)[0]
        found = list(YEAR.finditer(sentence))
        if not found or part.startswith(("Choices", "Row of", "No table", "Arm of")):
            continue
        if "->" in part or "(" in sentence[: found[0].start()]:
            return "; ".join(dict.fromkeys(PAPER.findall(part)))
        return sentence[: found[-1].end()]
    return "-"


def choices(text: str) -> str:
    """The paragraphs on where the file leaves its paper, or decides what the paper leaves open."""
    parts = [part for part in paragraphs(text) if re.search(r"\bChoices\b", part)]
    return " ".join(part[re.search(r"\bChoices\b", part).start() :] for part in parts) or "Choices: none noted."


def command(text: str) -> str:
    found = re.search(r"^ +(python main\.py (?:.*\\\n)*.*)$", text, re.M)
    return " ".join(found[1].replace("\\\n", " ").split())


def needs(name: str, text: bool) -> list[str]:
    cls, flags = contract.model_class(name), {action.dest: action for action in contract.own_actions(name)}
    found = {
        "memory": bool(MEMORY & flags.keys()),
        "text": text,
        "descriptions": "descriptions" in flags,
        "reference": "reference" in flags,
        "task id": set(cls.COMPATIBILITY) == {"task-il"},
        "future": hasattr(cls, "future_forward"),
    }
    return [what for what, there in found.items() if there]


def picture_world(name: str) -> dict[str, object]:
    """The method's values for `seq-tiny` that are used without --model_config best."""
    path = registry.ROOT / "models" / "config" / f"{name.replace('-', '_')}.yaml"
    table = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return dict((table.get("default_for") or {}).get("seq-tiny") or {})


def measured(name: str) -> Facts:
    """A run of debug length on the 100 classes, with the sizes of the picture world's runs."""
    steps, texts, tokenize = [0], [], CLIPBackbone.tokenize

    def stepped(optimizer, args, kwargs):
        taken = {id(p): p.numel() for g in optimizer.param_groups for p in g["params"] if p.grad is not None}
        steps.append(sum(taken.values()))

    def tokenized(net, words):
        texts.extend(filter(None, [words] if isinstance(words, str) else words))  # "" is the null question
        return tokenize(net, words)

    cls = contract.model_class(name)
    sources = {flag: value for flag, value in cls.TOY_ARGS.items() if flag in SOURCES}
    sizes = picture_world(name)
    memory = {"buffer_size": 500} if "buffer_size" in {a.dest for a in contract.own_actions(name)} else {}
    handle = register_optimizer_step_post_hook(stepped)
    try:
        with (
            mock.patch.dict(contract.TOYS["dataset"], {Hundred.NAME: Hundred}),
            mock.patch.object(cls, "TOY_ARGS", sources),
            mock.patch.object(CLIPBackbone, "tokenize", tokenized),
        ):
            toy = contract.run(name, Hundred.NAME, debug_mode=1, **sizes | memory)
    finally:
        handle.remove()
    return Facts(sum(toy.model.stored_bytes().values()), max(steps), bool(texts))


def facts_of(page: str) -> dict[str, Facts]:
    """What a page says was measured."""
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| ([\d,]+) \| ([\d,]+) \| ([^|]*) \|$", page, re.M)
    return {
        name: Facts(int(kept.replace(",", "")), int(trained.replace(",", "")), "text" in wants.split(", "))
        for name, kept, trained, wants in rows
    }


def row(name: str, facts: Facts | None) -> list[str]:
    entry, cells = registry.index("model")[name], facts.cells if facts else ["*not run*"] * 2
    wants = ", ".join(needs(name, facts is not None and facts.text)) or "-"
    return [f"`{name}`", entry.line, paper(text_of(entry.path)), *cells, wants]


def note(name: str) -> str:
    text = text_of(registry.index("model")[name].path)
    body = choices(text).replace("<", "\\<").replace("*", "\\*")
    lines = textwrap.wrap(f"- `{name}`: {body} `{command(text)}`", 118, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines)


def page(found: dict[str, Facts]) -> str:
    names = get_model_names()
    head = ["method", "idea", "paper", "keeps, bytes", "trains", "needs"]
    known = sum(name in found for name in names)
    table = markdown(head, [row(name, found.get(name)) for name in names])
    notes = "\n".join(note(name) for name in names)
    count = f"{len(names)} methods, {known} measured.\n\n## Choices, and the command of a row\n"
    return f"{HEAD.format(width=128)}{table}\n{count}\n{notes}\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="methods_page", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--measure", nargs="+", default=[], choices=["all", *get_model_names()], metavar="NAME")
    parser.add_argument("--words", action="store_true", help="measure nothing; methods without numbers say so")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {} if "all" in args.measure or not PAGE.is_file() else facts_of(PAGE.read_text(encoding="utf-8"))
    failed = 0
    for name in get_model_names():
        if not args.words and (name not in found or name in args.measure):
            try:
                found[name] = measured(name)
            except UserError as error:
                print(f"{name}: {error}", file=sys.stderr)
                failed = 1
                continue
            print(name, *found[name], flush=True)
            PAGE.write_text(page(found), encoding="utf-8")  # what is measured so far is kept if it is stopped
    PAGE.write_text(page(found), encoding="utf-8")
    return failed


if __name__ == "__main__":
    sys.exit(main())
