"""scripts/bench.py: suites and their flags, the JSON file, the tables of docs/performance.md, exponents of growth."""

import argparse
import json
import math
import subprocess
import sys

import pytest

from scripts import bench, bench_common, bench_growth, bench_report
from utils import json_text
from utils.cli.registry import ROOT

ROWS = [
    {"name": "er step", "value": 1.0312345, "unit": "x", "limit": 1.03, "note": "3 against 2 ms"},
    {"name": "start|end", "value": 0.25, "unit": "s", "limit": 0.5, "note": ""},
    {"name": "shown", "value": 7, "unit": "", "limit": None, "note": ""},
]
FOUND = {
    "suite": "engine",
    "command": "python scripts/bench.py --suite engine --out e.json",
    "commit": "abc123",
    "date": "2026-01-02 03:04 UTC",
    "machine": {"processor": "Abacus", "threads": 1},
    "rows": ROWS,
}


@pytest.fixture
def page(tmp_path, monkeypatch):
    path = tmp_path / "performance.md"
    path.write_text("# Speed\n\nolder: 4.2 s\n\n<!-- benches -->\n<!-- end of benches -->\n\n## After\n")
    monkeypatch.setattr(bench_report, "PAGE", path)
    return path


def put(path, **changes):
    path.write_text(json.dumps(FOUND | changes))
    return str(path)


def test_a_page_shows_machine_command_commit_and_limits(page, tmp_path):
    assert bench.main(["--page", put(tmp_path / "e.json")]) == 0
    text = page.read_text()
    assert text.startswith("# Speed\n\nolder: 4.2 s\n\n<!-- benches -->\n\n### Suite `engine`\n")
    assert text.endswith("\n<!-- end of benches -->\n\n## After\n")
    assert "`python scripts/bench.py --suite engine --out e.json`, commit abc123, 2026-01-02 03:04 UTC; " in text
    assert "processor Abacus, threads 1" in text
    assert "| er step | 1.031 x | 1.03 x (exceeded) | 3 against 2 ms |\n" in text
    assert "| start\\|end | 0.25 s | 0.5 s |  |\n| shown | 7 |  |  |\n" in text


def test_tables_of_other_suites_stay_and_the_same_suite_is_replaced(page, tmp_path):
    assert bench.main(["--page", put(tmp_path / "e.json")]) == 0
    start = put(tmp_path / "s.json", suite="start", commit="def456")
    assert bench.main(["--page", start, put(tmp_path / "n.json", commit="newer1")]) == 0
    text = page.read_text()
    assert "abc123" not in text and text.count("### Suite") == 2
    assert text.index("Suite `start`") < text.index("def456") < text.index("Suite `engine`") < text.index("newer1")
    bench.main(["--page", start])
    assert page.read_text() == text


def test_a_page_without_markers_is_left_alone(page, tmp_path, capsys):
    page.write_text("# Speed\n<!-- end of benches -->\n<!-- benches -->\n")
    assert bench.main(["--page", put(tmp_path / "e.json")]) == 2
    assert page.read_text() == "# Speed\n<!-- end of benches -->\n<!-- benches -->\n"
    assert one_line(capsys, "performance.md: a line <!-- benches -->")


def test_the_real_page_has_its_markers():
    text = (ROOT / "docs" / "performance.md").read_text()
    assert text.count(bench_report.BEGIN) == text.count(bench_report.END) == 1
    assert text.index(bench_report.BEGIN) < text.index(bench_report.END)


def one_line(capsys, *told):
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1 and not out
    return all(word in err for word in told)


BROKEN = {
    "not JSON": "{",
    "nested": "[" * 100_000,
    "NaN": json.dumps(FOUND).replace("0.25", "NaN"),
    "a list": "[]",
    "another suite": json.dumps(FOUND | {"suite": "brakes"}),
    "no machine": json.dumps({k: v for k, v in FOUND.items() if k != "machine"}),
    "rows of text": json.dumps(FOUND | {"rows": ["er step"]}),
    "value of text": json.dumps(FOUND | {"rows": [ROWS[0] | {"value": "1"}]}),
    "row without limit": json.dumps(FOUND | {"rows": [{k: v for k, v in ROWS[0].items() if k != "limit"}]}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line_and_nothing_is_written(name, page, tmp_path, capsys):
    path, before = tmp_path / "b.json", page.read_text()
    path.write_text(BROKEN[name])
    assert bench.main(["--page", put(tmp_path / "e.json"), str(path)]) == 2
    assert page.read_text() == before
    assert one_line(capsys, "b.json", "give a file that --out wrote")


@pytest.mark.parametrize(
    ("argv", "told"),
    {
        "unknown suite": ("--suite brakes", "--suite brakes: no such suite; there are start, engine"),
        "no suite": ("", "--suite --page"),
        "no such flag": ("--suite growth --pairs 3", "--pairs"),
        "absent file": ("--page no-such.json", "no-such.json: No such file"),
        "page and out": ("--page no-such.json --out a.json", "leave out --out"),
        "one number of tasks": ("--suite growth --tasks 4 4", "two different numbers"),
        "file exists": (f"--suite growth --out {__file__}", "the file exists"),
        "no folder": ("--suite growth --out no-such-folder/a.json", "no folder no-such-folder"),
        "threads": ("--suite growth --threads 0", "--threads"),
    }.values(),
)
def test_bad_input_is_one_line(argv, told, capsys):
    assert bench.main(argv.split()) == 2
    assert one_line(capsys, told)


@pytest.mark.parametrize("suite", bench.SUITES)
def test_every_suite_has_its_flags(suite, capsys):
    with pytest.raises(SystemExit) as left:
        bench.main(["--suite", suite, "--help"])
    assert left.value.code == 0
    own = set(capsys.readouterr().out.split()) & {"--repeats", "--tasks", "--layers", "--passes", "--rounds"}
    assert own


def test_every_bench_belongs_to_a_suite():
    helpers = {"bench_common", "bench_report", "bench_noise", "bench_bare", "bench_ranks"}  # the last: for torchrun
    files = {path.stem for path in (ROOT / "scripts").glob("bench_*.py")}
    assert files - helpers == {name for names in bench.SUITES.values() for name in names}


def test_an_exponent_is_the_slope_of_a_line_through_logarithms():
    """By hand: logarithms to base 2 are 0, 1, 2 and c, c + 2, c + 3; slope (-1 * c + 1 * (c + 3)) / 2 = 1.5."""
    assert bench_growth.exponent([1, 2, 4], [3, 12, 24]) == pytest.approx(1.5)
    assert bench_growth.exponent([5, 10, 20], [0.7 * n**2 for n in (5, 10, 20)]) == pytest.approx(2)


def test_a_value_without_order_exceeds_its_limit():
    assert bench_common.Row("a", math.nan, "s", 1.0).broken and bench_common.Row("a", 1.01, "s", 1.0).broken
    assert not bench_common.Row("a", 1.0, "s", 1.0).broken and not bench_common.Row("a", 9.0, "s").broken


def test_calls_take_turns_and_the_first_round_is_not_counted():
    calls = []
    found = bench_common.in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3 and {k: len(v) for k, v in found.items()} == {"a": 2, "b": 2}


def test_growth_is_measured_written_and_read_back(tmp_path, page, capsys):
    """A task has 4 images each way. Two tasks train on 8 and test 4, then 8; three train on 12 and test 4, 8, 12."""
    out = tmp_path / "g.json"
    argv = ["--suite", "growth", "--methods", "sgd", "--tasks", "2", "3", "--images", "4", "--out", str(out)]
    assert bench.main([*argv, "--check"]) == 0
    found = json_text.parse(out.read_text(), strict=True)
    time, images = found["rows"]
    assert images["note"] == "20, 36 at T = 2, 3"
    assert images["value"] == pytest.approx(math.log(36 / 20) / math.log(3 / 2)) and images["limit"] == 2
    assert time["limit"] is None and "s at T = 2, 3" in time["note"]
    assert found["command"] == f"python scripts/bench.py {' '.join(argv)} --check"
    assert found["machine"]["threads"] == 1 and found["commit"] and found["machine"]["processor"]
    assert bench.main(["--page", str(out)]) == 0 and "20, 36 at T = 2, 3" in page.read_text()
    assert "20, 36 at T = 2, 3" in capsys.readouterr().out
    assert bench.main(argv) == 2 and json_text.parse(out.read_text()) == found


TINIEST = {
    "start": "start --commands_only --repeats 1",
    "engine": "engine --sections step evaluation --pairs 3 --wide 0 --repeats 1",
    "cgil": "cgil --classes 4 --repeats 1",
    "cgil in a process of its own": "cgil --memory 4 --chunks 0 --repeats 1",
    "mulki": "mulki --batch 2 --classes 2 --repeats 1",
    "mulki in a process of its own": "mulki --batch 2 --classes 2 --memory",
    "clumo": "clumo --batch 1 --repeats 1",
    "masking": "masking --layers 1 --batch 1",
    "vilt": "masking --vilt --batch 1",
    "generative": "generative --classes 2 --epochs 1 --repeats 1",
    "growth": "growth --tasks 2 3 --images 4",
    "io": "io --images 20 --pixels 64 --millions 2 --seconds 3 --autosave 0.5",
    "fisher": "fisher --images 2 --rounds 1",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINIEST)
def test_every_suite_measures(name, tmp_path):
    """In a process of its own, as users run it: a bench calls parts of the framework that no command calls so."""
    out = tmp_path / "rows.json"
    call = [sys.executable, "scripts/bench.py", "--suite", *TINIEST[name].split(), "--out", str(out)]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = bench_report.read(out, bench.SUITES)[1]
    assert rows and all(0 < row.value < math.inf or row.name.startswith("largest difference") for row in rows)


def test_an_exceeded_limit_is_exit_code_1_with_check(monkeypatch, capsys):
    monkeypatch.setattr(bench_growth, "rows", lambda args: [bench_common.Row("slow", 3.0, "s", 2.0)])
    assert bench.main(["--suite", "growth"]) == 0 and bench.main(["--suite", "growth", "--check"]) == 1
    assert capsys.readouterr().out.count("2 s (exceeded)") == 2


def test_a_child_imports_nothing_large_before_its_module():
    """Peaks of memory and the time to the first step are measured in it."""
    code = "import sys; from scripts import bench; assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_figures_of_a_child_are_what_it_prints_last(monkeypatch, capsys):
    def shout(argv):
        print("noise")
        return {"given": argv}

    monkeypatch.setattr(bench.importlib, "import_module", lambda name: argparse.Namespace(CHILDREN={"shout": shout}))
    assert bench.main(["--child", "bench_any", "shout", "a", "b"]) == 0
    assert json_text.parse(capsys.readouterr().out.splitlines()[-1]) == {"given": ["a", "b"]}
