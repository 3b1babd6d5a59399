"""README and CONTRIBUTING: links and paths exist, every page is linked, every package is listed."""

import re
import shlex

import pytest
import yaml

from scripts import cli_page
from scripts.assets import site
from utils import cli
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
    known = {option for action in cli.new_parser()._actions for option in action.option_strings}
    table = README.partition("| you want | you type |")[2].partition("\n\n")[0]
    used = set(re.findall(r"--[a-z_]+", table)) - {"--nproc_per_node"}  # torchrun's
    assert len(used) > 6 and used <= known


def test_the_page_of_flags_is_what_the_script_writes():
    assert cli_page.page() == cli_page.PAGE.read_text(), "run python scripts/cli_page.py"


def test_every_flag_of_the_framework_has_a_meaning():
    empty = [action.option_strings for action in cli.new_parser()._actions if not action.help]
    assert not empty


def test_every_page_is_in_the_navigation_of_the_site_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    named: list[str] = []

    def walk(entry):
        for value in entry.values() if isinstance(entry, dict) else entry:
            named.append(value) if isinstance(value, str) else walk(value)

    walk(config["nav"])
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert sorted(named) == sorted([*pages, *site.OUTSIDE.values()])
    assert all((ROOT / path).exists() for path in [*config["hooks"], *site.OUTSIDE])


def test_links_of_pages_from_the_root_fit_the_site():
    text = "[a](docs/cgil.md#x) [b](CHANGELOG.md) [c](main.py) [d](https://e.org) ![e](docs/img/seq_tiny.png)"
    assert site.inside(text) == "[a](cgil.md#x) [b](changelog.md) c [d](https://e.org) ![e](img/seq_tiny.png)"


# of README and docs/, without those of a plug-in or with a placeholder; CONTRIBUTING has its own test
COMMANDS = sorted(
    {
        (page.name, line.split(" #")[0])
        for page in PAGES
        if page.name != "CONTRIBUTING.md"
        for line in re.findall(r"^(?:\.venv/bin/)?python main\.py (.*)$", page.read_text().replace("\\\n", " "), re.M)
        if "--plugins" not in line and "<" not in line
    }
)


@pytest.mark.parametrize("page, line", COMMANDS, ids=[f"{page}-{i}" for i, (page, _) in enumerate(COMMANDS)])
def test_commands_of_the_pages_are_understood(page, line, capsys):
    parsed = cli.parse(shlex.split(line))
    assert parsed is None or parsed.args.model and parsed.args.dataset


def test_there_are_commands_of_the_pages():
    assert len(COMMANDS) >= 8
