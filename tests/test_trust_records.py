"""Crafted records and texts: each bad record is reported and skipped, and text of users is never interpreted."""

import copy
import json
import os
import random
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from scripts import classics_table, import_mammoth_logs, records, report
from tests.test_report import record
from tests.test_trust_data import SGD, draw
from utils import escape, picture_grid
from utils.engine import record as results
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
FUZZED = 300
START = {
    "type": "start",
    "args": {"model": "er", "dataset": "seq-x", "seed": 0, "notes": None},
    "argv": ["--model", "er"],
}
TASKS = [
    {"type": "task", "task": 0, "scores": {"class_il": [60.0, None]}},
    {"type": "task", "task": 1, "scores": {"class_il": [50, 40]}},
]
END = {"type": "end", "status": "done", "summary": {"class_il_last": 45.0, "stored_bytes": 10, "wall_s": 1.0}}


def text_of(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def with_args(**args) -> str:
    return text_of(START | {"args": START["args"] | args}, *TASKS, END)


def with_scores(scores, task=0) -> str:
    return text_of(START, {"type": "task", "task": task, "scores": scores}, END)


def with_summary(summary) -> str:
    return text_of(START, *TASKS, END | {"summary": summary})


BAD = {
    "empty": "",
    "no line break": json.dumps(START),
    "no JSON": "no json\n",
    "bytes": b"\x00\xff\xfe\n",
    "utf-16": "\ufeff{}\n".encode("utf-16"),
    "a number": "5\n",
    "a list": "[]\n",
    "null": "null\n",
    "nested 100,000 deep": "[" * 100_000 + "]" * 100_000 + "\n",
    "seed of 5,000 digits": '{"type": "start", "args": {"model": "er", "dataset": "x", "seed": ' + "9" * 5000 + "}}\n",
    "no start": text_of(*TASKS, END),
    "two starts": text_of(START, START, END),
    "end first": text_of(END, START),
    "start without args": text_of({"type": "start"}, END),
    "args null": text_of(START | {"args": None}, END),
    "args a list": text_of(START | {"args": []}, END),
    "args a text": text_of(START | {"args": "model"}, END),
    "no model": with_args(model=None),
    "model a number": with_args(model=3),
    "model a list": with_args(model=["er"]),
    "no dataset": with_args(dataset=""),
    "dataset an object": with_args(dataset={}),
    "seed a text": with_args(seed="<script>alert(1)</script>"),
    "seed a list": with_args(seed=[1]),
    "seed an object": with_args(seed={}),
    "seed negative": with_args(seed=-1),
    "seed a fraction": with_args(seed=0.5),
    "seed true": with_args(seed=True),
    "notes a list": with_args(notes=["a"]),
    "notes a number": with_args(notes=7),
    "argv a text": text_of(START | {"argv": "--model er"}, *TASKS, END),
    "argv of numbers": text_of(START | {"argv": [1, 2]}, *TASKS, END),
    "argv null": text_of(START | {"argv": None}, *TASKS, END),
    "commit a number": text_of(START | {"git_commit": 5}, *TASKS, END),
    "task without scores": text_of(START, {"type": "task", "task": 0}, END),
    "scores a list": with_scores([1.0]),
    "scores of text": with_scores({"class_il": ["a"]}),
    "scores no list": with_scores({"class_il": 5}),
    "scores nested": with_scores({"class_il": [[1.0]]}),
    "scores empty": with_scores({"class_il": []}),
    "scores too few": with_scores({"class_il": [1.0]}, task=3),
    "score beyond floats": with_scores({"class_il": [10**400]}),
    "score true": with_scores({"class_il": [True]}),
    "score not a number": text_of(START)
    + '{"type": "task", "task": 0, "scores": {"class_il": [NaN]}}\n'
    + text_of(END),
    "score infinite": text_of(START) + '{"type": "task", "task": 0, "scores": {"class_il": [1e999]}}\n' + text_of(END),
    "task a text": with_scores({"class_il": [1.0]}, task="0"),
    "task negative": with_scores({"class_il": [1.0]}, task=-1),
    "task twice": text_of(START, TASKS[0], TASKS[0], END),
    "tasks backwards": text_of(START, *TASKS[::-1], END),
    "status a number": text_of(START, *TASKS, END | {"status": 1}),
    "status unknown": text_of(START, *TASKS, END | {"status": "fine"}),
    "status a list": text_of(START, *TASKS, END | {"status": []}),
    "no status": text_of(START, *TASKS, {"type": "end", "summary": {}}),
    "no summary": text_of(START, *TASKS, {"type": "end", "status": "done"}),
    "summary null": with_summary(None),
    "summary empty": with_summary({}),
    "summary a list": with_summary([1]),
    "summary of text": with_summary({"class_il_last": "high"}),
    "summary of lists": with_summary({"class_il_last": [1]}),
    "summary beyond floats": with_summary({"class_il_last": 10**400}),
    "summary true": with_summary({"class_il_last": True}),
}


def put(folder: Path, name: str, content) -> Path:
    path = folder / name.replace(" ", "-").replace(",", "") / "record.jsonl"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


class Scripts(HTMLParser):
    """Elements that a page has."""

    def __init__(self):
        super().__init__()
        self.tags, self.values = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.values += [value or "" for name, value in attrs if name != "src"]


def tags_of(path: Path) -> set[str]:
    parser = Scripts()
    parser.feed(path.read_text())
    return parser.tags


OURS = set(
    "html head meta title style body header nav main section script h1 h2 h3 p table thead tbody tr th td details "
    "summary pre div span small a label input button dl dt dd".split()
)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_named_and_left_out(name, tmp_path, capsys):
    record(tmp_path / "good", notes="good")
    path = put(tmp_path, name, BAD[name])
    assert report.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert [str(path) in line for line in err.splitlines()] == [True] and "left out" in err
    page = (tmp_path / "report.html").read_text()
    assert (
        "left out: " in page and escape.in_html(path) in page and "good" in page and "60.00" not in out.split("good")[0]
    )
    assert tags_of(tmp_path / "report.html") <= OURS


def test_all_of_them_at_once_and_alone(tmp_path, capsys):
    for name, content in BAD.items():
        put(tmp_path, name, content)
    assert report.main([str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == len(BAD) + 1
    record(tmp_path / "good")
    assert report.main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().err.splitlines()) == len(BAD)


def test_things_in_the_place_of_a_record(tmp_path, capsys):
    record(tmp_path / "good")
    (tmp_path / "folder" / "record.jsonl").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "record.jsonl")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "record.jsonl").symlink_to(tmp_path / "loop" / "record.jsonl")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "record.jsonl").symlink_to(tmp_path / "nowhere")
    assert report.main([str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert (
        f"{tmp_path}/folder/record.jsonl" in err
        and f"{tmp_path}/pipe/record.jsonl" in err
        and len(err.splitlines()) <= 4
    )


def test_the_table_leaves_the_same_records_out(tmp_path, capsys, monkeypatch):
    for name, content in BAD.items():
        put(tmp_path, name, content)
    put(tmp_path, "good", with_args(notes="a|b <i>"))
    monkeypatch.setattr("sys.argv", ["table", str(tmp_path)])
    classics_table.main()
    out, err = capsys.readouterr()
    usable = {"no dataset"}  # what only a page needs
    assert len([line for line in err.splitlines() if line.startswith("left out")]) >= len(BAD) - len(usable)
    tables = [table.splitlines() for table in out.split("\n\n") if table.startswith("| ")]
    widths = [{line.count("|") - line.count("\\|") for line in table if line.startswith("|")} for table in tables]
    assert tables and all(len(width) == 1 for width in widths) and "<i>" not in out


def places(node, path=()):
    yield path
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def test_mutated_records_make_a_page_or_are_named(tmp_path, capsys):
    draw_, whole = random.Random(5), [START, *TASKS, END]
    values = [None, True, -1, 10**400, 0.5, "", "<script>", "$^$", [], {}, [None], {"x": "y"}, "a" * 10**5, "\ud800"]
    record(tmp_path / "good", notes="good")
    for number in range(FUZZED):
        rows = copy.deepcopy(whole)
        for _ in range(draw_.choice([1, 1, 2])):
            *way, last = draw_.choice([p for p in places(rows) if p])
            node = rows
            for key in way:
                node = node[key]
            if draw_.random() < 0.2 and isinstance(node, dict):
                del node[last]
            else:
                node[last] = draw_.choice(values)
        put(tmp_path, f"fuzz-{number}", text_of(*rows))
    assert report.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    runs, broken = report.load(tmp_path)
    assert (
        len(lines) == len(broken)
        and len(runs) + len(broken) == FUZZED + 1
        and min(len(runs), len(broken)) > FUZZED // 10
    )
    assert all(len(line) < 700 for line in lines) and tags_of(tmp_path / "report.html") <= OURS


HOSTILE = [
    "$^$",
    "gain in $x_$",
    "$",
    "$$",
    r"\$^\$",
    r"\$ $^$ \\",
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "_hidden",
    "a\nb",
    "\x1b[31mred",
    "\x00",
    "\udcff name",
    "x" * 100_000,
    "&amp;",
    "{}",
    "%s",
    "'",
    "`id`",
    "a|b",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_takes_the_page_down(text, tmp_path, capsys):
    for seed in range(2):
        record(tmp_path / f"n{seed}", seed=seed, notes=text)
        record(tmp_path / f"m{seed}", seed=seed, model=text, dataset=text)
    record(tmp_path / "open", status=None, notes=text, lr=0.7)
    assert report.main([str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "\x1b" not in out and tags_of(tmp_path / "report.html") <= OURS
    page = (tmp_path / "report.html").read_text()
    assert escape.in_html(text, 200)[:100] in page and max(map(len, page.replace("><", ">\n<").split("\n"))) < 200_000
    parser = Scripts()
    parser.feed(page)
    assert not any("onerror" in v and '"' not in text for v in parser.values)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_is_a_formula_or_a_hidden_label(text, tmp_path):
    """The text that matplotlib shows is the text given, and nothing is parsed as a formula."""
    from matplotlib.figure import Figure

    figure = Figure()
    shown = figure.text(0, 0, escape.on_figure(text, 40))
    preprocessed, is_math = shown._preprocess_math(shown.get_text())
    assert is_math is False and not preprocessed.startswith("_")
    if text.isprintable() and len(text) < 40:
        assert preprocessed.lstrip(" ") == text
    results.plot_matrix(np.ones((2, 2)), tmp_path / "a.png", text)
    picture_grid.plot_pictures([np.zeros((4, 4, 3), np.uint8)], [[text, text]], 1, tmp_path / "b.png", text)
    assert (tmp_path / "a.png").stat().st_size > 0 < (tmp_path / "b.png").stat().st_size


def test_a_run_with_formulas_for_names_ends_well(tmp_path, capsys):
    """Class folders, notes and the name of the data as formulas: the run, its heat maps and the report are made."""
    import main

    draw(tmp_path / "images", classes=["$^$", "$x_$", "a$", "<b>"])
    argv = [
        "--model",
        *SGD,
        "--dataset",
        "seq-folder",
        "--folder_path",
        str(tmp_path / "images"),
        "--n_tasks",
        "2",
        "--image_size",
        "32",
        "--seed",
        "1",
        "--base_path",
        str(tmp_path / "data"),
        "--results_path",
        str(tmp_path / "runs"),
        "--device",
        "cpu",
        "--notes",
        "gain in $x_$",
    ]
    assert main.main(argv) == 0 and len(list((tmp_path / "runs").rglob("*.png"))) >= 1
    assert report.main([str(tmp_path / "runs")]) == 0
    assert "gain in $x_$" in (tmp_path / "runs" / "report.html").read_text()


def test_escapes_keep_what_is_harmless():
    assert escape.in_html("a < b & 'c'") == "a &lt; b &amp; &#x27;c&#x27;" and escape.clean("é – 漢") == "é – 漢"
    assert escape.in_markdown("a|b\n<i>") == "a\\|b &lt;i&gt;" and escape.on_figure("a\nb") == "a\nb"
    assert len(escape.clean("x" * 999)) == escape.LONGEST and escape.clean("\udcff\x1b") == "? "


# the one reader


def test_numbers_of_the_one_reader_by_hand(tmp_path):
    assert records.interval([50.0, 54.0]) == pytest.approx(12.706 * 2, abs=1e-3)  # t(0.975, 1) * standard error
    assert (
        records.spread([50.0, 54.0], "+") == "+52.0 ± 25.4"
        and records.spread([3.0]) == "3.0"
        and records.spread([]) == ""
    )
    assert np.isnan(records.interval([1.0]))
    assert records.averages(TASKS) == {"class_il_avg": (60 + 45) / 2}
    assert records.averages([]) == {} and records.averages([{"scores": {"a": [None]}}]) == {}
    assert records.markdown(["a", "b"], [[1, "x|y"]]) == "| a | b |\n| --- | --- |\n| 1 | x\\|y |\n"
    record(tmp_path / "1", seed=1, last=40.0)
    record(tmp_path / "2", seed=2, status="failed")
    assert [run.seed for run in records.finished(tmp_path)] == [1]


def test_no_script_reads_records_by_itself():
    """read_record, intervals and tables have one home."""
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        text = path.read_text()
        if path.name not in {
            "records.py",
            "import_mammoth_logs.py",
            "tiny_world.py",  # these write their own
            "reproduce.py",
            "state.py",
            "watch.py",  # these look at one record, maybe of a run that goes on
        }:
            assert "read_record" not in text and "ppf" not in text and '"|---"' not in text, path
            assert 'rglob("record.jsonl")' not in text, path


@pytest.mark.parametrize(
    "name", ["args null", "summary of text", "nested 100,000 deep", "score beyond floats", "status unknown"]
)
def test_a_resumed_run_refuses_such_a_record_in_one_line(name, tmp_path):
    path = put(tmp_path, name, BAD[name])
    if name == "args null":
        with pytest.raises(UserError, match="does not contain a seed"):
            results.seed_of(results.RunRecord(path.parent))
    else:
        with pytest.raises(UserError, match="is not a record entry|not JSON"):
            results.read_record(path)


LOGS = {
    "leaves the folder": "{'dataset': '../../out', 'model': 'er', 'accuracy_1_task1': 1.0}",
    "dots": "{'dataset': '..', 'model': 'er', 'accuracy_1_task1': 1.0}",
    "absolute": "{'dataset': '/tmp/out', 'model': 'er', 'accuracy_1_task1': 1.0}",
    "model leaves": "{'dataset': 'seq-x', 'model': 'er/../../../out', 'accuracy_1_task1': 1.0}",
    "long name": "{'dataset': '" + "x" * 300 + "', 'model': 'er', 'accuracy_1_task1': 1.0}",
    "a billion tasks": "{'dataset': 'seq-x', 'model': 'er', 'accuracy_1_task1000000000': 1.0}",
    "accuracy beyond floats": "{'dataset': 'seq-x', 'model': 'er', 'accuracy_1_task1': 1" + "0" * 400 + "}",
    "seed a text": "{'dataset': 'seq-x', 'model': 'er', 'seed': '<script>', 'accuracy_1_task1': 1.0}",
    "nested": "{'dataset': 'seq-x', 'model': 'er', 'accuracy_1_task1': 1.0, 'a': " + "[" * 150 + "]" * 150 + "}",
    "nested calls": "{'dataset': 'seq-x', 'model': 'er', 'accuracy_1_task1': 1.0, 'a': "
    + "tensor(" * 190
    + "1"
    + ")" * 190
    + "}",
}


@pytest.mark.parametrize("name", LOGS)
def test_crafted_logs_are_skipped_or_imported(name, tmp_path, capsys):
    path = tmp_path / "logs" / "logs.pyd"
    path.parent.mkdir()
    path.write_text(LOGS[name] + "\n{'dataset': 'seq-x', 'model': 'er', 'accuracy_1_task1': 2.0}\n")
    code = import_mammoth_logs.main([str(path), "--results_path", str(tmp_path / "in" / "runs")])
    out, err = capsys.readouterr()
    found = list(tmp_path.rglob("record.jsonl"))
    assert code == (0 if name.startswith("nested") else 1) and len(found) == (2 if name.startswith("nested") else 1)
    assert (
        all((tmp_path / "in" / "runs" / "seq-x" / "er") in p.parents for p in found) and len(err.splitlines()) == code
    )
    runs, broken = report.load(tmp_path / "in")
    assert len(runs) == len(found) and not broken


def test_scripts_run_by_themselves(tmp_path):
    record(tmp_path / "a")
    for name in ("report", "classics_table"):
        done = subprocess.run(
            [sys.executable, ROOT / "scripts" / f"{name}.py", tmp_path], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
