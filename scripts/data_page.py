"""Writes docs/data.md: every stream, what it needs on disk, where that comes from, how to get it.

All of it is read from the data set classes (FILES, docstrings) and the table of domains.
"""

import inspect
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from datasets import get_dataset_class, get_dataset_names
from datasets.utils.mtil_protocol import DOMAINS
from datasets.utils.sources import Source
from utils.cli import registry

PAGE = registry.ROOT / "docs" / "data.md"
HEAD = """# Data sets

All streams of `python main.py --list datasets`. **Only the procedural ones have been run here on their real content;
all others are *not run* on real data**: their readers are tested on tiny files in the same layout. Counts of images and
questions are *reported* by the sources. (`python scripts/data_page.py` writes this page.)

Paths are below `--base_path` (default `./data/`). `prepare` means `python scripts/prepare_data.py NAME --base_path DIR`
fetches all files; `prepare + hand` fetches what has a public host and names what remains; `hand` means that nothing is
fetched. Nothing is downloaded unless you ask: a run without its files stops with an error that names path, source and
size. `python scripts/doctor.py` shows what is there; `python scripts/doctor.py NAME ...` reads it.

`--image_cache 1` keeps decoded images ([performance.md](performance.md#decoded-images)).
"""
MOST_PLACES = 5  # in a row of the table
KINDS = {
    "Procedural: generated here, nothing to fetch": lambda cls: not cls.FILES and not needs_path(cls),
    "Images": lambda cls: not reads_text(cls) and not cls.MTIL and cls.SETTING != "domain-il",
    "Cross-domain": lambda cls: cls.MTIL,
    "One set of classes in several domains": lambda cls: not reads_text(cls) and cls.SETTING == "domain-il",
    "Images with texts": lambda cls: True,
}


def reads_text(cls: type) -> bool:
    return cls.HAS_TEXT or cls.VQA


def needs_path(cls: type) -> bool:
    """Whether a flag names the files: they are the user's own."""
    return any(p.default is p.empty and n not in {"self", "args"} for n, p in inspect.signature(cls).parameters.items())


def kind_of(cls: type) -> str:
    return next(kind for kind, belongs in KINDS.items() if belongs(cls))


def places(sources: tuple[Source, ...]) -> str:
    listed = [" or ".join(f"`{p}`" for p in place.split("|")) for source in sources for place in source.places]
    return "; ".join(
        listed if len(listed) <= MOST_PLACES else [*listed[: MOST_PLACES - 1], f"... ({len(listed)} in all)"]
    )


def how(sources: tuple[Source, ...]) -> str:
    fetched, by_hand = any(s.archives for s in sources), any(s.by_hand for s in sources)
    return ("`prepare + hand`" if by_hand else "`prepare`") if fetched else "hand"


def row(name: str, cls: type) -> str:
    what, sources = registry.index("dataset")[name].line, tuple(dict.fromkeys(cls.FILES))
    if needs_path(cls):
        return f"| `{name}` | {what} | where its flag says | yours | hand; *not run* |"
    if not sources:
        return f"| `{name}` | {what} | drawn once, kept in `tiny_world/` | - | nothing to do |"
    if len(sources) > 3:
        return f"| `{name}` | {what} | the folders of its sets | as these | {how(sources)}; *not run* |"
    hosts = "; ".join(f"{s.host.removeprefix('https://')}, {s.amount}" for s in sources)
    return f"| `{name}` | {what} | {places(sources)} | {hosts} | {how(sources)}; *not run* |"


def notes(name: str, cls: type) -> str:
    """What the file says after its first line."""
    text = (inspect.getdoc(sys.modules[cls.__module__]) or "").split("\n", 1)[1:]
    own = inspect.cleandoc(vars(cls).get("__doc__") or "")
    joined = " ".join(" ".join([*text, own]).split()).replace("<", "&lt;").replace("*", "\\*")
    return (
        "\n".join(textwrap.wrap(f"- `{name}`: {joined}", 118, subsequent_indent="  ", break_on_hyphens=False))
        if joined
        else ""
    )


def page() -> str:
    classes = {name: get_dataset_class(name) for name in sorted(get_dataset_names())}
    parts = [HEAD]
    for kind in KINDS:
        found = {name: cls for name, cls in classes.items() if kind_of(cls) == kind}
        table = ["| name | what | on disk | source | how to get it |", "|---|---|---|---|---|"]
        parts.append("\n".join([f"## {kind}\n", *table, *(row(n, c) for n, c in found.items())]) + "\n")
        if kind == "Cross-domain":
            parts.append(domains())
        if kind.startswith("Procedural"):
            parts.append("The world is described in [tiny_world.md](tiny_world.md).\n")
        else:
            parts.append("\n".join(filter(None, (notes(n, c) for n, c in found.items()))) + "\n")
    return "\n".join(parts)


def domains() -> str:
    lines = ["| domain of `mtil` | must be there | source | list of `--split coop` |", "|---|---|---|---|"]
    for name, domain in DOMAINS.items():
        listed = f"`{domain.coop[0]}`" if domain.coop else "none"
        lines.append(f"| {name} | `{domain.place}` | {domain.source} | {listed} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE} written")
