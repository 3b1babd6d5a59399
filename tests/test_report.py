"""The report of all runs: one row for all seeds, unfinished and broken records are named, records are not trusted."""

import json
from html.parser import HTMLParser

import pytest

from scripts import report

PNG = b"\x89PNG\r\n\x1a\n"


def record(folder, model="er", seed=0, last=50.0, status="done", **args):
    folder.mkdir(parents=True)
    args = {
        "model": model,
        "dataset": "seq-x",
        "seed": seed,
        "class_order": [seed, 1 - seed],
        "notes": None,
        "lr": 0.1,
    } | args
    rows = [
        {
            "type": "start",
            "args": args,
            "argv": ["--model", model, "--dataset", "seq-x", "--seed", str(seed), "--lr", str(args["lr"])],
        }
    ]
    rows += [
        {"type": "task", "task": t, "scores": {"class_il": [last + 10 * (1 - t)] * (t + 1) + [None] * (1 - t)}}
        for t in range(2)
    ]
    if status:
        summary = {"class_il_last": last, "stored_bytes": 2**20, "wall_s": 3.0}
        rows.append({"type": "end", "status": status, "summary": summary})
    (folder / "record.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder / "class_il.png").write_bytes(PNG)


class Balanced(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = {"meta", "img", "br"}
    OPTIONAL = {"html"}

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in {"td", "th"}:
            self.cells.append(data)


def test_seeds_are_one_row(tmp_path, capsys):
    for seed, last in enumerate((50.0, 60.0, 70.0)):
        record(tmp_path / f"seq-x/er/{seed}", seed=seed, last=last)
    record(tmp_path / "seq-x/er/9", lr=0.2, last=10.0)
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    (mean,) = [line for line in out.splitlines() if line.startswith("er --lr 0.1")]
    assert mean.split()[3] == "3" and "60.00 ± 24.8" in mean  # t(0.975, 2) * 10 / sqrt(3)
    (alone,) = [line for line in out.splitlines() if line.startswith("er --lr 0.2")]
    assert alone.split()[3:5] == ["1", "10.00"]
    parser = Balanced()
    parser.feed((tmp_path / "report.html").read_text())
    assert parser.open == [] and {"er --lr 0.1", "60.00 ± 24.8", "1.0 MiB"} <= set(parser.cells)


def test_a_repeated_seed_counts_once_and_the_latest_counts(tmp_path):
    for name, last in (("20260101", 20.0), ("20260102", 40.0)):
        record(tmp_path / name, last=last)
    runs, _ = report.load(tmp_path)
    ((arm,),) = report.grouped(runs).values()
    assert [run.summary["class_il_last"] for run in arm] == [40.0]


def test_unfinished_and_broken_are_named(tmp_path, capsys):
    record(tmp_path / "a", notes="<b>good</b>")
    record(tmp_path / "b", status=None, lr=0.3)
    record(tmp_path / "c", status="failed", lr=0.4)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "record.jsonl").write_text("no json\n")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "record.jsonl").write_text("")
    assert report.main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    text, err = (tmp_path / "page.html").read_text(), capsys.readouterr().err
    assert "&lt;b&gt;good&lt;/b&gt;" in text and "<b>good" not in text
    assert text.count("on seq-x</td>") == 2 and "lr 0.3" in text and "lr 0.4" in text
    assert "d/record.jsonl" in err and "e/record.jsonl" in err


def test_curve_is_the_mean_over_tasks_seen(tmp_path):
    record(tmp_path / "a", last=50.0)
    assert report.curve(report.load(tmp_path)[0][0]) == [60.0, 50.0]


@pytest.mark.parametrize("case", ["nothing", "unwritable"])
def test_mistakes(tmp_path, capsys, case):
    if case == "unwritable":
        record(tmp_path / "a")
    assert report.main([str(tmp_path), "--out", str(tmp_path / "no" / "page.html")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
