"""The report of all runs: one row for all seeds, names by what differs, the data and structure of the page, formats."""

import base64
import csv
import hashlib
import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from scripts import records, report
from scripts.reporting import arms, details, export, page, payload, rows
from tests import report_runs

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

    VOID = {"meta", "img", "br", "input"}

    def __init__(self):
        super().__init__()
        self.open, self.cells, self.ids, self.addresses = [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [given[name] for name in ("src", "href", "action", "data") if given.get(name)]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.cells.append(data.strip())


def test_seeds_are_one_row(tmp_path, capsys):
    for seed, last in enumerate((50.0, 60.0, 70.0)):
        record(tmp_path / f"seq-x/er/{seed}", seed=seed, last=last)
    record(tmp_path / "seq-x/er/9", lr=0.2, last=10.0)
    assert report.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    (mean,) = [line for line in out.splitlines() if line.startswith("er lr=0.1")]
    assert mean.split()[2] == "3" and "60.00 ± 24.8" in mean  # t(0.975, 2) * 10 / sqrt(3)
    (alone,) = [line for line in out.splitlines() if line.startswith("er lr=0.2")]
    assert alone.split()[2:4] == ["1", "10.00"]
    parser = Balanced()
    parser.feed((tmp_path / "report.html").read_text())
    assert parser.open == [] and {"er", "lr=0.1", "60.00", "± 24.8", "1.0 MiB"} <= set(parser.cells)


def test_a_repeated_seed_counts_once_and_the_latest_counts(tmp_path):
    for name, last in (("20260101", 20.0), ("20260102", 40.0)):
        record(tmp_path / name, last=last)
    runs, _ = report.load(tmp_path)
    ((arm,),) = arms.grouped(runs).values()
    assert [run.summary["class_il_last"] for run in arm] == [40.0]


def test_unfinished_and_broken_are_named(tmp_path, capsys):
    record(tmp_path / "a", notes="<b>good</b>")
    record(tmp_path / "b", status=None, lr=0.3)
    record(tmp_path / "c", status="failed", lr=0.4)
    for name, text in (("d", "no json\n"), ("e", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.jsonl").write_text(text)
    assert report.main([str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0
    text, err = (tmp_path / "page.html").read_text(), capsys.readouterr().err
    assert "&lt;b&gt;good&lt;/b&gt;" in text and "<b>good" not in text
    assert text.count("er on seq-x</th>") == 2 and "--lr 0.3" in text and "--lr 0.4" in text
    assert "d/record.jsonl" in err and "e/record.jsonl" in err and text.count("Not readable, left out") == 2


def runs_of(folder):
    found, broken = report.load(folder)
    assert not broken
    return found


def tables_of(folder):
    return rows.all_tables(arms.grouped(runs_of(folder)))


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1))


def test_why_a_run_has_no_end(tmp_path):
    report_runs.unfinished(tmp_path / "a", "failed", error="UserError: the loss is nan")
    report_runs.unfinished(tmp_path / "b", "interrupted", signal=15)
    report_runs.unfinished(tmp_path / "c", None)
    held = records.read(report_runs.unfinished(tmp_path / "d", None) / "record.jsonl")
    record_ = details.RunRecord(held.folder)
    record_.lock()
    found = [details.ending_of(run) for run in runs_of(tmp_path)]
    record_.close()
    assert [status for status, _ in found] == ["failed", "interrupted", "stopped", "running"]
    assert found[0][1] == "UserError: the loss is nan" and "signal 15" in found[1][1] and "no end" in found[2][1]


def test_the_command_has_the_seed_that_was_drawn(tmp_path):
    report_runs.finished(tmp_path / "a", "er", 7, notes="two words")
    (run,) = runs_of(tmp_path)
    assert details.command_of(run) == "python main.py --model er --dataset seq-toy --notes 'two words' --seed 7"
    given = run._replace(start=run.start | {"argv": ["--seed=7"]})
    assert details.command_of(given) == "python main.py --seed=7"
    facts = dict(details.facts_of(run))
    assert facts["commit"].endswith("(with uncommitted changes)") and facts["machine"] == "toy, cpu"
    assert facts["versions"] == "python 3.11.7, torch 2.12.1" and facts["files"] == "record.jsonl (6 KiB)"


def named(folder, *settings):
    for number, (method, flags) in enumerate(settings):
        report_runs.finished(folder / str(number), method, 0, **flags)
    (found,) = tables_of(folder)
    return [row.full for row in found.rows]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([("er", {}), ("derpp", {})], ["er", "derpp"]),
        ([("er", {"lr": 0.1}), ("derpp", {"lr": 0.2})], ["er", "derpp"]),  # the method tells them apart
        ([("er", {"lr": 0.1}), ("er", {"lr": 0.2}), ("sgd", {})], ["er lr=0.1", "er lr=0.2", "sgd"]),
        ([("er", {"buffer_size": 5}), ("er", {"buffer_size": 9})], ["er buffer_size=5", "er buffer_size=9"]),
        # what a whole stream shares is named wherever it differs
        ([("er", {"buffer_size": 5}), ("derpp", {"buffer_size": 9})], ["er buffer_size=5", "derpp buffer_size=9"]),
        ([("er", {"shots": 5}), ("sgd", {"shots": 9})], ["er shots=5", "sgd shots=9"]),
        ([("er", {"notes": "ours"}), ("er", {"lr": 0.2})], ["ours", "er lr=0.2"]),
        ([("er", {"notes": "x"}), ("er", {"notes": "x", "lr": 0.2})], ["x er", "x er lr=0.2"]),
        ([("er", {"notes": "a", "shots": 5}), ("sgd", {"notes": "b", "shots": 9})], ["a shots=5", "b shots=9"]),
        ([("er", {"device": "cpu"}), ("er", {"device": "cuda"})], ["er device=cpu", "er device=cuda"]),
    ],
)
def test_rows_are_named_by_what_differs(settings, expected, tmp_path):
    assert named(tmp_path, *settings) == expected


def test_values_that_no_command_has_tell_rows_apart(tmp_path):
    for number, lr in enumerate((0.1, 0.2)):
        lines = [report_runs.start("er", "seq-toy", 0, 2, 1)]
        lines[0]["args"]["lr"] = lr
        lines.append({"type": "end", "status": "done", "summary": {"class_il_last": 5.0}})
        report_runs.write(tmp_path / str(number), lines)
    assert [row.full for row in tables_of(tmp_path)[0].rows] == ["er lr=0.1", "er lr=0.2"]


def test_joint_training_is_a_level_without_an_average_and_not_the_best(tmp_path, capsys):
    for seed in range(2):
        report_runs.finished(tmp_path / f"a{seed}", "er", seed, level=50.0)
        report_runs.finished(tmp_path / f"b{seed}", "joint", seed, level=90.0, joint=True)
        report_runs.finished(tmp_path / f"c{seed}", "sgd", seed, level=20.0)
    (found,) = tables_of(tmp_path)
    joint = next(n for n, row in enumerate(found.rows) if row.name == "joint")
    assert found.rows[joint].values["class_il_avg"] == {} and found.rows[joint].values["class_il_last"]
    assert found.best["class_il_last"] == {[row.name for row in found.rows].index("er")}
    assert [arm["one"] for arm in payload.table_data(found)["arms"]] == [row.name == "joint" for row in found.rows]
    alone = rows.best_of([row.arm for row in found.rows if row.name == "joint"] * 2, ["class_il_last"])
    assert alone == {"class_il_last": {0, 1}}, "upper bounds among themselves"


def test_curve_is_the_mean_over_tasks_seen(tmp_path):
    record(tmp_path / "a", last=50.0)
    (run,) = runs_of(tmp_path)
    assert payload.curve(run) == [60.0, 50.0]
    weighted = run._replace(start={"args": run.args | {"accuracy_weighting": "images"}})
    weighted.tasks[1].update(test_images=[1, 3], scores={"class_il": [10.0, 50.0]})
    assert payload.curve(weighted) == [60.0, 40.0]


def test_the_charts_have_the_means_of_the_records(tmp_path):
    for seed in range(3):
        report_runs.finished(tmp_path / f"a{seed}", "er", seed)
    (found,), runs = tables_of(tmp_path), runs_of(tmp_path)
    (arm,) = payload.table_data(found)["arms"]
    for t in range(5):
        cells = [[run.tasks[t]["scores"]["class_il"][j] for run in runs] for j in range(t + 1)]
        assert arm["matrices"]["class_il"][t] == pytest.approx([*map(np.mean, cells)] + [None] * (4 - t), abs=0.051)
    assert arm["curves"]["class_il"][1][-1] == pytest.approx(runs[1].summary["class_il_last"], abs=0.01)
    assert arm["loss"][2][5:10] == pytest.approx(runs[2].tasks[1]["loss"], abs=1e-4) and arm["epochs"] == [5] * 5
    assert arm["probes"]["zero-shot"][0][:2] == [62.0, 60.0] and arm["seeds"] == [0, 1, 2]
    assert arm["values"]["trained_parameters"] == [50_000.0] * 3


def test_classes_are_matched_by_name_whatever_their_order(tmp_path):
    """Two seeds with opposite orders of the classes: accuracies and mistakes belong to names, not to places."""
    for seed, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        first = report_runs.start("er", "seq-toy", seed, 1, 2) | {"class_names": names}
        by_name = {"cat": 80.0 + seed, "dog": 10.0}
        cat, dog = names.index("cat"), names.index("dog")
        task = {"type": "task", "task": 0, "scores": {"class_il": [45.0]}, "per_class": [by_name[n] for n in names]}
        task["confusion"] = sorted([[cat, cat, 8], [cat, dog, 2], [dog, cat, 9], [dog, dog, 1 + seed]])
        end = {"type": "end", "status": "done", "summary": {"class_il_last": 45.0}}
        report_runs.write(tmp_path / str(seed), [first, task, end])
    (found,) = tables_of(tmp_path)
    data = payload.table_data(found)
    (arm,) = data["arms"]
    assert dict(zip(data["classes"], arm["classes"], strict=True)) == {"cat": 80.5, "dog": 10.0}
    cells = {(data["classes"][t], data["classes"][s]): n for t, s, n in arm["confusion"]}
    assert cells == {("cat", "cat"): 16, ("cat", "dog"): 4, ("dog", "cat"): 18, ("dog", "dog"): 3}


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ({"classes_per_task": 2, "n_tasks": 2}, ["a, b", "c, d"]),
        ({"classes_per_task": [1, 3], "n_tasks": 2}, ["a", "b, c, d"]),
        ({"classes_per_task": 3, "n_tasks": 2}, []),  # more than there are names
        ({"classes_per_task": 2, "n_tasks": 10**9}, []),
        ({"classes_per_task": ["x"], "n_tasks": None}, []),
        ({"classes_per_task": 2, "n_tasks": 2, "setting": "domain-il"}, []),
        ({}, []),
    ],
)
def test_tasks_have_the_names_of_their_classes(protocol, expected):
    first, other = ({"args": {}, "protocol": protocol, "class_names": list(names)} for names in ("abcd", "bacd"))
    assert payload.task_names([records.Run(None, first, [], {})] * 2) == expected
    assert payload.task_names([records.Run(None, start, [], {}) for start in (first, other)]) == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with all kinds of runs, and the text of its page."""
    folder = report_runs.everything(tmp_path_factory.mktemp("runs"))
    assert report.main([str(folder)]) == 0
    return folder, (folder / "report.html").read_text()


def test_the_page_is_whole_and_asks_nothing_of_the_network(whole):
    _, text = whole
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and len(parser.ids) == len(set(parser.ids))
    assert {"table-0", "table-1", "unfinished", "data", "filter", "theme"} <= set(parser.ids)
    assert all(address.startswith("#") for address in parser.addresses)
    assert re.findall(r"https?://[^'\"` ]+", text) == ["http://www.w3.org/2000/svg"], "the name of a namespace"
    assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|innerHTML|\beval\b|new Function", text)
    script = re.findall(r"<script>(.*?)</script>", text, re.S)[-1]
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    assert script == page.program()


def test_the_page_has_what_its_program_asks_for(whole):
    _, text = whole
    data = data_of(text)
    for place, table in enumerate(data["tables"]):
        part = text[text.index(f'id="table-{place}"') :].partition("</section>")[0]
        assert len(re.findall(r'<tr data-arm="\d+"', part)) == len(table["arms"])
        heads = re.findall(r'<th scope="col" data-key="([^"]+)" data-group="([^"]+)"', part)
        assert heads == [(column["key"], column["group"]) for column in table["columns"]]
        groups = [group for _, group in heads]
        assert groups == sorted(groups, key=page.GROUPS.index), "columns of a group stand side by side"
        assert all(set(arm["values"]) == {key for key, _ in heads} for arm in table["arms"])
    assert 'title="seed 0: ' in text and "&#10;seed 2: " in text
    for word in ("UserError: the loss is nan", "by signal 15", "python main.py --model er", "torch 2.12.1"):
        assert word in text
    assert data["factors"][:3] == [0, 0, pytest.approx(12.7062 / 2**0.5, abs=1e-3)]


def test_user_text_does_not_end_the_data(tmp_path):
    record(tmp_path / "a", notes="</script><script>alert(1)</script>&amp;\u2028", model="<!--")
    assert report.main([str(tmp_path)]) == 0
    text = (tmp_path / "report.html").read_text()
    assert text.count("<script") == 2 and text.count("</script>") == 2 and "<!--" not in text
    assert data_of(text)["tables"][0]["arms"][0]["name"].startswith("</script><script>alert(1)</script>&amp;")


def test_a_page_that_would_be_too_large_says_what_it_leaves_out(whole, capsys, monkeypatch):
    folder, _ = whole
    tables = tables_of(folder)
    text, left_out = payload.fit(tables)
    assert left_out == [] and len(text) < payload.LIMIT
    smaller, left_out = payload.fit(tables, limit=len(text) - 100)
    assert left_out == ["confusion matrices"] and len(smaller) < len(text)
    assert all(arm["confusion"] == [] and arm["curves"] for t in json.loads(smaller)["tables"] for arm in t["arms"])
    assert payload.fit(tables, limit=10)[1] == list(payload.DROPS)
    monkeypatch.setattr(payload.fit, "__defaults__", (len(text) - 100,))
    assert report.main([str(folder), "--out", str(folder / "small.html")]) == 0
    told = "left out to keep the page small: confusion matrices"
    assert told in capsys.readouterr().out and told[1:] in (folder / "small.html").read_text()


def text_of(folder, capsys, *argv) -> str:
    assert report.main([str(folder), *argv]) == 0
    return capsys.readouterr().out


def test_every_format_has_the_same_numbers(whole, capsys):
    folder, _ = whole
    told = {name: text_of(folder, capsys, "--format", name, "--spread", "std") for name in export.FORMATS}
    for table in json.loads(told["json"]):
        lines = [line for line in csv.DictReader(io.StringIO(told["csv"])) if line["dataset"] == table["dataset"]]
        for row, line in zip(table["rows"], lines, strict=True):
            score = row["scores"]["class_il_last"]
            values = list(score["by_seed"].values())
            assert score["mean"] == pytest.approx(np.mean(values)) and len(row["runs"]) == len(values) == 3
            assert score["std"] == pytest.approx(np.std(values, ddof=1))
            assert score["ci"] == pytest.approx(4.302653 * np.std(values, ddof=1) / 3**0.5)
            assert float(line["class_il_last"]) == pytest.approx(score["mean"], rel=1e-5)
            assert float(line["class_il_last_std"]) == pytest.approx(score["std"], rel=1e-5)
            assert (line["method"], line["flags"], line["seeds"]) == (row["method"], row["flags"], "3")
            shown = f"{score['mean']:.2f} ± {score['std']:.1f}"
            assert (f"| **{shown}** |" if score["best"] else f"| {shown} |") in told["md"]
            latex = shown.replace("±", r"$\pm$")
            assert (rf"\textbf{{{latex}}}" if score["best"] else f"& {latex} ") in told["latex"]
    assert "± standard deviation" in told["md"]


def test_groups_choose_the_columns(whole, capsys):
    folder, _ = whole
    text = text_of(folder, capsys, "--format", "csv", "--groups", "forgetting,cost")
    names = text.splitlines()[0].split(",")[7:]
    assert names[:2] == ["class_il_forgetting", "class_il_forgetting_ci"] and "class_il_last" not in names
    assert {"stored_bytes", "trained_parameters", "wall_s"} <= set(names)
    assert report.main([str(folder), "--groups", "cost"]) == 0
    chips = re.findall(r'data-group="(\w+)" checked>', (folder / "report.html").read_text())
    assert chips == ["cost"] and "final average" not in capsys.readouterr().out


def latex_rows(text: str) -> list[list[str]]:
    """Cells of each line between \\midrule and \\bottomrule."""
    body = text.partition("\\midrule\n")[2].partition("\\bottomrule")[0]
    return [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in body.splitlines()]


HOSTILE = r"a_b & 50% #1 $x$ {y} ^z~ \end{tabular} <i> | é 漢"


def test_latex_is_escaped_and_every_line_has_all_cells(tmp_path, capsys):
    for seed in range(3):
        record(tmp_path / f"a{seed}", seed=seed, notes=HOSTILE)
    text = text_of(tmp_path, capsys, "--format", "latex")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    ((name, *cells),) = latex_rows(text)
    assert len(cells) == text.partition(r"\begin{tabular}{")[2].partition("}")[0].count("r") == 4
    expected = r"a\_b \& 50\% \#1 \$x\$ \{y\} \textasciicircum{}z\textasciitilde{} \textbackslash{}end\{tabular\} "
    assert name == expected + r"\textless{}i\textgreater{} \textbar{} é U+6F22"
    assert cells == ["3", r"50.00 $\pm$ 0.0", "1.0 MiB", "3.00"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex (Debian: texlive-latex-recommended)")
def test_latex_compiles(whole, tmp_path, capsys):
    record(tmp_path / "runs" / "a", notes=HOSTILE)
    tables = [text_of(folder, capsys, "--format", "latex") for folder in (whole[0], tmp_path / "runs")]
    packages = tables[0].splitlines()[0].removeprefix("% ")
    lines = [r"\documentclass{article}", packages, r"\begin{document}", r"\tiny", *tables, r"\end{document}"]
    (tmp_path / "t.tex").write_text("\n".join(lines))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and (tmp_path / "t.pdf").stat().st_size > 1000, done.stdout[-1000:]


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@x"])
def test_a_spreadsheet_does_not_take_a_name_for_a_formula(text, tmp_path, capsys):
    record(tmp_path / "a", notes=text)
    (line,) = csv.DictReader(io.StringIO(text_of(tmp_path, capsys, "--format", "csv")))
    assert line["name"] == f"'{text}" and export.plain("-2.5") == "-2.5"


@pytest.mark.parametrize("kind", ["std", "ci"])
def test_the_spread_is_the_one_asked_for(kind, tmp_path, capsys):
    for seed, last in enumerate((50.0, 60.0, 70.0)):
        record(tmp_path / str(seed), seed=seed, last=last)
    assert report.main([str(tmp_path), "--spread", kind]) == 0
    text, wanted = (tmp_path / "report.html").read_text(), {"std": "± 10.0", "ci": "± 24.8"}
    assert f"60.00 {wanted[kind]}" in capsys.readouterr().out
    assert f'<span class="pm" data-std="± 10.0" data-ci="± 24.8">{wanted[kind]}</span>' in text
    assert re.findall(r'value="(\w+)" title="[^"]*" checked', text) == [kind]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--groups", "costs"], "no group costs; there are accuracy, forgetting"),
        (["--groups", ","], "needs a group"),
        (["--format", "pdf"], "invalid choice: 'pdf'"),
        (["--spread", "sem"], "invalid choice: 'sem'"),
    ],
)
def test_what_the_command_line_refuses(argv, told, tmp_path, capsys):
    record(tmp_path / "a")
    with pytest.raises(SystemExit) as stop:
        report.main([str(tmp_path), *argv])
    assert stop.value.code == 2 and told in capsys.readouterr().err and not (tmp_path / "report.html").exists()


def test_a_table_needs_a_finished_run(tmp_path, capsys):
    report_runs.unfinished(tmp_path / "a", None)
    assert report.main([str(tmp_path), "--format", "md"]) == 2
    assert "is finished" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 0 and "Not finished" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("case", ["nothing", "unwritable", "unwritable table"])
def test_mistakes(tmp_path, capsys, case):
    if case != "nothing":
        record(tmp_path / "a")
    form = ["--format", "csv"] if case == "unwritable table" else []
    assert report.main([str(tmp_path), "--out", str(tmp_path / "no" / "page.html"), *form]) == 2
    assert capsys.readouterr().err.startswith("error: ")
