"""docs/methods.md is what the method files say, and its numbers are those of a run."""

import re

import pytest

from models import get_model_names
from scripts import methods_page
from tests import contract

TEXT = methods_page.PAGE.read_text(encoding="utf-8")
FACTS = methods_page.facts_of(TEXT)
ROWS = {name: line for line in TEXT.splitlines() if (name := (re.match(r"\| `([\w-]+)` \|", line) or [0, ""])[1])}


def test_the_page_is_what_the_files_say():
    assert methods_page.page(FACTS) == TEXT, "run python scripts/methods_page.py --words"


def test_each_method_has_a_row_a_paper_and_a_command():
    assert list(ROWS) == get_model_names() and len(ROWS) >= 70
    without = {name for name, line in ROWS.items() if line.split(" | ")[2] == "-"}
    assert without == {"joint", "linear-probe", "sgd"}, "bounds and a linear layer have no paper"
    for name in ROWS:
        (note,) = re.findall(rf"^- `{name}`: (.*(?:\n  .*)*)", TEXT, re.M)
        words = " ".join(note.split())
        assert words.startswith("Choices") and f"`python main.py --model {name} " in words, name


@pytest.mark.parametrize(
    "text, cited",
    [
        (
            "A.\n\nSmith et al., CVPR 2023, arXiv 2211.13218. With q (2020) more.",
            "Smith et al., CVPR 2023, arXiv 2211.13218",
        ),
        ("A.\n\nBy hand.\n\nChoices: as Smith et al. 2020 do.", "-"),
        ("A.\n\nRow of docs/x.md, 2020", "-"),
        ("A.\n\nAs X (Zhou et al. 2023, arXiv 2303.07338), but not.", "Zhou et al. 2023, arXiv 2303.07338"),
        (
            "A.\n\no sum -> `f`\nWu et al., ICLR 2025, arXiv 2501.13198\nBoe, Coe & Doe, ECCV 2024 -> `g`",
            "Wu et al., ICLR 2025, arXiv 2501.13198; Boe, Coe & Doe, ECCV 2024",
        ),
    ],
    ids=["sentence", "choices", "row", "brackets", "formulas"],
)
def test_the_paper_is_found(text, cited):
    assert methods_page.paper(text) == cited


def test_what_methods_need():
    told = {name: set(line.split("|")[-2].strip().split(", ")) for name, line in ROWS.items()}
    assert told["pnn"] == {"task id"} and sum("task id" in wants for wants in told.values()) == 1
    assert "memory" in told["er"] and "memory" in told["proof"] and "memory" not in told["lwf"]
    assert "reference" in told["zscl"] and "descriptions" in told["engine"] and "future" in told["clip"]
    measured = {name for name in FACTS if "text" in told[name]}
    assert "clip" in measured and not measured & {"er", "agem", "acil"}


class Counted(contract.ToyClasses):
    """A toy method's stream in place of the large one."""

    NAME = methods_page.Hundred.NAME


def test_numbers_are_measured(monkeypatch):
    """ER on the toy stream: 33 images of 3 x 8 x 8 floats with labels, and every parameter of the network."""
    monkeypatch.setattr(methods_page, "Hundred", Counted)
    with contract.toys():
        found = methods_page.measured("er")
        net = contract.toy_net(9)
    reached = sum(p.numel() for name, p in net.named_parameters() if "words" not in name)
    seen = sum(min(n, 4 * 5) for n in (21, 13, 25))  # five batches of four in a task
    assert found == methods_page.Facts(seen * (4 * 3 * 8 * 8 + 8), reached, False)
    with contract.toys():
        assert methods_page.measured("clip") == methods_page.Facts(9 * 128 * 4, 0, True)


def test_facts_of_a_page_are_those_written():
    facts = {name: methods_page.Facts(1234567 + k, 10 * k, k % 2 == 0) for k, name in enumerate(get_model_names()[:4])}
    text = methods_page.page(facts)
    assert methods_page.facts_of(text) == facts and text.count("*not run* | *not run*") == len(get_model_names()) - 4
    assert "1,234,567" in text and "4 measured" in text
