"""mammoth-vl from Python: run, load_runs, plots, the notebook, the console command."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import mammoth_vl
from mammoth_vl import Result, UserError, load_runs, matrix_of, plot_curves, plot_matrix, run
from utils.cli import registry

FLAGS = {"lr": 0.05, "n_epochs": 1, "device": "cpu", "non_verbose": True}


@pytest.fixture
def places(data, tmp_path, monkeypatch):
    """Where runs read and write, without windows and without names that stay registered."""
    matplotlib.use("Agg")
    monkeypatch.setattr(registry, "_registered", {kind: dict(names) for kind, names in registry._registered.items()})
    monkeypatch.chdir(tmp_path)
    yield {"base_path": str(data), "results_path": str(tmp_path / "runs")}
    matplotlib.pyplot.close("all")


def test_two_runs_a_table_and_their_figures(places, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)  # not installed
    first, second = (run("sgd", "seq-mnist", seed=seed, **FLAGS, **places) for seed in (1, 2))
    table = load_runs("runs")
    assert [(row["model"], row["seed"], row["status"]) for row in table] == [("sgd", 1, "done"), ("sgd", 2, "done")]
    assert [row["class_il_last"] for row in table] == [first["class_il_last"], second["class_il_last"]]
    R = matrix_of(first)
    assert R.shape == (5, 5) and np.nanmean(R[-1]) == pytest.approx(first["class_il_last"])
    cells = [t for t in plot_matrix(first).axes[0].texts if t.get_text()]
    assert [float(t.get_text()) for t in cells][:1] == [pytest.approx(R[0, 0], abs=0.06)] and len(cells) == 15
    (line,) = plot_curves([first, str(second.record)]).axes[0].lines
    both = np.array([[np.nanmean(M[t, : t + 1]) for t in range(5)] for M in (R, matrix_of(second))])
    np.testing.assert_allclose(line.get_ydata(), both.mean(0))
    assert len(plot_curves({"a": first, "b": [second]}).axes[0].lines) == 2
    argv = first.rows()[0]["argv"]
    assert argv[:4] == ["--model", "sgd", "--dataset", "seq-mnist"] and argv[argv.index("--non_verbose") + 1] == "1"


def test_wrong_calls_are_told(places, tmp_path):
    for call, message in (
        (lambda: run("sdg", "seq-mnist"), "unknown model 'sdg'"),
        (lambda: run("sgd", "seq-mnist", lr=-1), "--lr: -1 is out of range"),
        (lambda: run("sgd", "seq-mnist", help=True), "--help"),
        (lambda: run(type("A", (), {}), "seq-mnist"), "needs a NAME"),
        (lambda: run(type("A", (), {"NAME": "sgd"}), "seq-mnist"), "there is a model 'sgd' already"),
        (lambda: load_runs("nowhere"), "is not a folder of runs"),
        (lambda: matrix_of(tmp_path / "none.jsonl"), "has no lines"),
        (lambda: Result({}).rows(), "has no record"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "record.jsonl").write_text("{\n")
    assert "unreadable" in str(list(load_runs(tmp_path / "runs"))[0] if isinstance(load_runs(tmp_path / "runs"), list)
                               else load_runs(tmp_path / "runs")["status"][0])  # fmt: skip


@pytest.mark.slow
def test_the_notebook_runs(places, tmp_path, capsys):
    """Its code cells in order, as a kernel runs them, in a folder of its own."""
    book = json.loads((registry.ROOT / "docs" / "first_hour.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    names: dict = {"__name__": "__main__"}
    for number, cell in enumerate(cells):
        exec(compile(cell, f"cell {number}", "exec"), names)
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in told if line.endswith(tuple("0123456789")) and " 1 done " in line] == [
        ["between", "1", "done"],
        ["clip", "1", "done"],
        ["ncm", "1", "done"],
    ]
    assert names["means"]["class_il_last"] > names["zero_shot"]["class_il_last"] > 10, "chance is 1.7"
    assert names["mine"]["class_il_last"] > names["zero_shot"]["class_il_last"]
    assert not any(cell.get("outputs") for cell in book["cells"]), "outputs are not kept in the file"


def test_the_console_command_is_main_py():
    code = "import sys; sys.argv = ['mammoth-vl', '--list', 'models']; import mammoth_vl; mammoth_vl.console()"
    there = f"import sys; sys.path.insert(0, {str(Path(mammoth_vl.__file__).parent)!r}); "
    done = subprocess.run([sys.executable, "-c", there + code], capture_output=True, text=True, cwd="/")
    assert done.returncode == 0 and done.stdout.startswith("models (")
