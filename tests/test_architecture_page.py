"""docs/architecture.md and its figure agree with the code: arrows are imports, names and files exist."""

import re
from pathlib import Path

import pytest

from scripts.assets import architecture
from tests.test_architecture import FILES, ROOT, imported_modules

TEXT = (ROOT / "docs" / "architecture.md").read_text()
# imports that the figure omits: rooms that find their files by utils/cli, and exceptions that the page names
NOT_DRAWN = {
    ("models", "utils/cli"),
    ("datasets", "utils/cli"),
    ("backbone", "utils/cli"),
    ("backbone", "utils/memory"),
}
EXCEPTIONS = {("datasets", "backbone"), ("datasets", "utils/engine"), ("models", "datasets")}


def room_of(module: str) -> str | None:
    first, *rest = module.split(".")
    inner = f"{first}/{rest[0]}" if rest else first
    return inner if inner in architecture.ROOMS else first if first in architecture.ROOMS else None


def arrows() -> set[tuple[str, str]]:
    """(room, room it imports) of the code."""
    found = set()
    for path in FILES:
        own = room_of(str(path.relative_to(ROOT).with_suffix("")).replace("/", "."))
        found |= {(own, room_of(module)) for module in imported_modules(path)}
    return {(a, b) for a, b in found if a and b and a != b}


def test_every_arrow_is_an_import_and_every_import_an_arrow():
    drawn, code = {(a, b) for a, b, *_ in architecture.IMPORTS}, arrows()
    assert drawn <= code
    toolbox = {(room, "utils") for room in architecture.ROOMS}
    from_mammoth = {(a, b) for a, b in code if a == "utils/mammoth"}
    from_main = {(a, b) for a, b in code if a == "main"}
    assert code - drawn <= toolbox | from_mammoth | from_main | NOT_DRAWN | EXCEPTIONS


def test_arrows_leave_and_reach_their_boxes_and_boxes_do_not_overlap():
    for importer, imported, start, end in architecture.IMPORTS:
        for room, x in ((importer, start), (imported, end)):
            left, _, width, *_ = architecture.ROOMS[room]
            assert left < x < left + width, (importer, imported)
    boxes = list(architecture.ROOMS.values())
    for i, (left, bottom, width, height, _) in enumerate(boxes):
        for other_left, other_bottom, other_width, other_height, _ in boxes[:i]:
            apart = left >= other_left + other_width or other_left >= left + width
            assert apart or bottom >= other_bottom + other_height or other_bottom >= bottom + height


def test_the_picture_is_drawn_from_its_script(tmp_path):
    architecture.draw(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 50_000 and architecture.PICTURE.is_file()
    assert {room for room, *_ in architecture.STEPS} <= set(architecture.ROOMS)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:utils|models|datasets|backbone|tests|scripts)/[\w./]*)`", TEXT)))
)
def test_paths_of_the_page_exist(path):
    assert (ROOT / path).exists()


def test_the_names_of_the_batch_are_in_the_code():
    code = "\n".join(Path(path).read_text() for path in FILES)
    part = TEXT.partition("## One batch")[2].partition("## Where")[0]
    names = {name.split(".")[-1].split("(")[0] for name in re.findall(r"`([\w.]+(?:\(.*?\))?)`", part)}
    names -= {"py", "jsonl", "end"}
    assert len(names) > 12 and not [n for n in names if not re.search(rf"(?:def|class) {n}\b", code)]


def test_the_page_names_seven_decisions():
    assert len(re.findall(r"^\*\*[^*]+\.\*\*", TEXT.partition("## Seven decisions")[2], re.M)) == 7
