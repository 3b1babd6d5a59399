"""docs/metrics.md is the output of its script, and describes every key of real records."""

import functools
import json
import re

import pytest

from scripts import metrics_page
from tests import contract
from utils.engine import metrics
from utils.errors import UserError

TEXT = metrics_page.PAGE.read_text()


def keys(heading: str) -> set[str]:
    """First column of the tables below a heading."""
    part = re.search(rf"^#+ {heading}$(.*?)(?=^#+ |\Z)", TEXT, re.M | re.S).group(1)
    return set(re.findall(r"^\| `(\w+)` \|", part, re.M))


@functools.cache
def page() -> str:
    return metrics_page.page()


def test_the_page_is_up_to_date():
    assert page() == TEXT, "run python scripts/metrics_page.py"


RUNS = [
    ("sgd", {"eval_epochs": 1, "enable_other_metrics": 1, "mixed_batches": 1, "validation": 30}),
    ("sgd", {"eval_final": 1}),
    ("cgil", {"eval_future": 1}),
    ("cgil", {"eval_future": 1, "future_scoring": "mammoth"}),
    ("clumo", {}),
    ("exemplar-masking", {"stop_after": 0}),
    ("exemplar-masking", {"stop_after": 0, "predict": "nme"}),
]


@pytest.mark.parametrize("name, flags", RUNS, ids=lambda value: value if isinstance(value, str) else " ".join(value))
def test_a_record_holds_no_key_that_the_page_does_not_describe(name, flags, tmp_path):
    contract.build(name, trained=True, disable_log=0, results_path=tmp_path, **flags)
    check(tmp_path)


def check(folder):
    rows = [json.loads(line) for path in folder.rglob("record.jsonl") for line in path.read_text().splitlines()]
    assert {row["type"] for row in rows} >= {"start", "end"}
    for row in rows:
        assert set(row) <= keys(row["type"]), row["type"]
        assert set(row.get("scores", ())) <= keys("Score matrices")
        assert set(row.get("summary", ())) <= keys("Summary")


def test_a_run_that_fails_is_described(tmp_path):
    with pytest.raises(UserError, match="the loss is"):
        contract.build("sgd", trained=True, disable_log=0, results_path=tmp_path, lr=1e30)
    check(tmp_path)


def test_every_model_with_scores_of_its_own_is_tried():
    from models.utils.continual_model import ContinualModel
    from utils.cli import registry
    from utils.cli.registry import ROOT

    ours = [name for name, entry in registry.index("model").items() if entry.path.parent == ROOT / "models"]
    own = {
        name
        for name in ours
        for hook in ("extra_scores", "future_variants")
        if getattr(contract.model_class(name), hook) is not getattr(ContinualModel, hook)
    }
    assert len(ours) > 40
    assert own <= {name for name, _ in RUNS}


def test_the_summary_of_metrics_py_is_described_whole():
    matrices = {name: [[50, 40, 30], [45, 60, 20], [35, 55, 70]] for name in known_matrices()}
    found = metrics.summary(matrices, {name: [1, 2, 3] for name in ("class_il", "vqa")})
    assert set(found) - {"vqa_fwt"} <= keys("Summary") and len(found) > 20


def known_matrices() -> set[str]:
    with pytest.raises(ValueError) as error:
        metrics.summary({"no such": []})
    return set(re.findall(r"'(\w+)'", str(error.value).partition("known:")[2]))


def test_a_formula_in_the_page_is_the_one_of_its_docstring():
    (line,) = re.findall(r"^\| `class_il_forgetting` .*$", TEXT, re.M)
    assert "[max over j <= t <= T-1 of R[t, j]] - R[T-1, j]" in line and "1801.10112" in line and "`class_il`" in line
    (line,) = re.findall(r"^\| `xtail_last` .*$", TEXT, re.M)
    assert "`all_names`" in line and "2406.18868" in line


def test_a_key_without_description_stops_the_script(monkeypatch):
    monkeypatch.delitem(metrics_page.TASK, "wall_s")
    with pytest.raises(SystemExit, match="wall_s"):
        metrics_page.page()


def test_a_metric_without_tasks_and_paper_stops_the_script(monkeypatch):
    monkeypatch.setattr(metrics.bwt, "__doc__", "Backward transfer.")
    with pytest.raises(SystemExit, match="bwt in utils/engine/metrics.py"):
        metrics_page.page()
