"""Writes the table of docs/distributed.md: every method on one rank and on two, in float64 with SGD.

    OMP_NUM_THREADS=1 python scripts/ranks_page.py            # all methods, tens of minutes on one busy core
    OMP_NUM_THREADS=1 python scripts/ranks_page.py er derpp   # prints rows, writes nothing

A run is two tasks of a toy stream, ten steps. "from one rank" is the largest difference of a parameter, buffer, loss or
test logit; "between ranks" is the same between the two ranks at the end. Bytes are of gradients, in float64 and for the
toy network, on average over the times that they were averaged; 0: all ranks compute the same gradients.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests import contract
from tests.ranks import ILL_POSED, Verdict, under_the_law
from utils.cli import registry

PAGE = Path(__file__).resolve().parent.parent / "docs" / "distributed.md"
BEGIN, END = "<!-- scripts/ranks_page.py writes from here -->\n", "<!-- to here -->\n"
HEAD = "| method | from one rank | between ranks | gradient bytes | |\n|---|---|---|---|---|\n"


def row(name: str, found: Verdict) -> str:
    if reason := contract.model_class(name).ONE_RANK:
        return f"| {name} | refused | | | {reason} |"
    if found.error:
        return f"| {name} | failed | | | {found.error} |"
    remark = ILL_POSED.get(name, "")
    return f"| {name} | {found.far:.0e} | {found.apart:.0f} | {found.sent:,} | {remark} |"


def main(names: list[str]) -> int:
    chosen = names or [entry.name for entry in registry.index("model").values()]
    print(HEAD, end="", flush=True)
    found = under_the_law(chosen, lambda name, verdict: print(row(name, verdict), flush=True))
    if not names:
        rows, text = "\n".join(row(name, found[name]) for name in chosen), PAGE.read_text()
        before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
        PAGE.write_text(f"{before}\n{HEAD}{rows}\n\n{after}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
