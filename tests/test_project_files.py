"""Project files: license, citation, changelog, workflow, hooks and issue templates."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PAPERS = {
    "models/cgil.py": "2407.15793",
    "models/mulki.py": "2411.06764",
    "models/clumo.py": "2408.11742",
    "models/exemplar_masking.py": "2412.09549",
}


def jobs() -> dict[str, list[str]]:
    """Job of the workflow -> its commands."""
    found = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    return {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in found.items()}


def version() -> str:
    return re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M).group(1)


def test_the_citation_names_the_software_and_the_papers_that_the_method_files_name():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == version() and cited["license"] == "MIT"
    assert [r["url"].rpartition("/")[2] for r in cited["references"]] == list(PAPERS.values())
    for reference, (path, number) in zip(cited["references"], PAPERS.items(), strict=True):
        text = " ".join((ROOT / path).read_text().split('"""')[1].split())
        assert number in text and path in reference["notes"], path
        for author in reference["authors"][:1]:
            assert author["family-names"] in text, path


def test_license_and_changelog():
    assert (
        "MIT License" in (ROOT / "LICENSE").read_text() and "the mammoth-vl authors" in (ROOT / "LICENSE").read_text()
    )
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased" and version() in headings


def test_the_workflow_has_three_jobs_which_together_run_what_ci_runs():
    found = jobs()
    assert set(found) == {"lint", "fast-tests", "contract"}
    local = (ROOT / ".ci" / "run").read_text().splitlines()
    tools = [line for line in local if line.startswith(".venv/bin/")]
    assert len(tools) >= 2 and [c for c in found["lint"] if c.startswith(".venv/bin/")] == tools


def test_every_test_file_belongs_to_one_of_two_jobs():
    found = jobs()
    fast, contract = shlex.split(found["fast-tests"][-1])[2:], shlex.split(found["contract"][-1])[2:]
    assert fast[::2] == ["--ignore"] * len(contract) and fast[1::2] == contract
    assert all((ROOT / path).is_file() for path in contract)


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_issue_templates_are_forms(path):
    form = yaml.safe_load(path.read_text())
    ids = [part["id"] for part in form["body"]]
    assert form["name"] and form["description"] and len(ids) == len(set(ids))
    assert all(part["attributes"]["label"] for part in form["body"])


def test_the_hooks_are_those_of_ci():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["entry"].removesuffix(" --force-exclude") for hook in hooks] == [
        ".venv/bin/ruff format",
        ".venv/bin/ruff check",
    ]
