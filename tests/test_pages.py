"""README and CONTRIBUTING: links and paths exist, every page is linked, every package is listed."""

import re

import pytest

from utils.cli.registry import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text()):
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_every_page_is_linked_from_the_readme(page):
    assert f"](docs/{page.name})" in README


def test_where_things_are_follows_the_rooms():
    block = re.search(r"## Where things are\n\n```\n(.*?)```", README, re.S).group(1)
    named = [line.split()[0] for line in block.splitlines()]
    assert [n for n in named if not (ROOT / n).exists()] == ["utils/*.py"]
    rooms = {f"utils/{p.name}/" for p in (ROOT / "utils").iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert rooms <= set(named)


def test_flags_of_the_page_are_flags():
    from utils import cli

    known = {option for action in cli.new_parser()._actions for option in action.option_strings}
    table = README.partition("| you want | you type |")[2].partition("\n\n")[0]
    used = set(re.findall(r"--[a-z_]+", table))
    assert len(used) > 6 and used <= known
