"""What a record says about its origin is enough to repeat its numbers; saves of finished runs are dropped."""

import hashlib
import json
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

import main
from scripts import reproduce
from utils.cli import registry
from utils.engine import provenance

SGD = ["--model", "sgd", "--dataset", "seq-mnist", "--lr", "0.05", "--n_epochs", "1", "--stop_after", "1"]


def folder_of(results: Path) -> Path:
    (path,) = results.glob("*/*/*/record.jsonl")
    return path.parent


def test_a_record_says_where_its_numbers_come_from(run_main, tmp_path):
    _, rows = run_main(*SGD, "--plugins", str(Path(__file__).parent / "plugins"))
    start = rows[0]
    assert start["argv"][: len(SGD)] == SGD, "also when called from Python"
    assert start["code"]["model"] == {
        "file": "models/sgd.py",
        "sha256": hashlib.sha256((registry.ROOT / "models/sgd.py").read_bytes()).hexdigest(),
    }
    assert start["code"]["dataset"]["file"] == "datasets/seq_mnist.py"
    assert f"torch=={torch.__version__.partition('+')[0]}" in [p.partition("+")[0] for p in start["packages"]]
    assert start["gpu"] is None and start["command"].endswith(f"--seed {start['args']['seed']}")
    again = [w for w in shlex.split(start["command"])[2:]]
    again[again.index("--results_path") + 1] = str(tmp_path / "pasted")
    assert main.main(again) == 0
    pasted = [json.loads(line) for line in (folder_of(tmp_path / "pasted") / "record.jsonl").read_text().splitlines()]
    assert [r.get("scores") for r in pasted] == [r.get("scores") for r in rows], "pasting the command repeats it"


def test_the_seed_is_not_added_twice():
    assert provenance.command(["--seed", "3"], 3) == "python main.py --seed 3"
    assert provenance.command(["--seed=3", "--notes", "a b"], 3) == "python main.py --seed=3 --notes 'a b'"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small repository in the place of this one."""
    monkeypatch.setattr(registry, "ROOT", tmp_path / "repo")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "a.py").write_text("x = 1\n")
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path / "repo", check=True)
    return tmp_path / "repo"


def test_changed_and_untracked_files_make_a_checkout_dirty(checkout, tmp_path):
    head, changed = provenance.commit_and_changes()
    assert len(head) == 40 and not changed and provenance.patch(changed) == ""
    (checkout / "b.py").write_text("y = 2\n")
    dirty, changed = provenance.commit_and_changes()
    assert dirty == head + "+" and changed == ["?? b.py"]
    (checkout / "a.py").write_text("x = 3\n")
    provenance.keep_patch(tmp_path)
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "-q", str(checkout), str(other)], check=True)
    subprocess.run(["git", "apply", str(tmp_path / provenance.PATCH)], cwd=other, check=True)
    assert (other / "a.py").read_text() == "x = 3\n" and (other / "b.py").read_text() == "y = 2\n"
    (checkout / "a.py").write_text("x = 4\n")
    assert "+x = 4" in provenance.patch(provenance.commit_and_changes()[1]), "a later change is seen"


def test_saves_of_a_finished_run_are_dropped(run_main, tmp_path):
    run_main(*SGD, results=tmp_path / "plain")
    assert not (folder_of(tmp_path / "plain") / "ckpt").exists()
    run_main(*SGD, "--savecheck", "last", results=tmp_path / "kept")
    assert len(list((folder_of(tmp_path / "kept") / "ckpt").glob("*_last.safetensors"))) == 1
    code, _ = run_main(*SGD, "--resume", "auto", results=tmp_path / "plain")
    assert code == 0 and len(list((tmp_path / "plain").glob("*/*/*"))) == 1, "it is still known as finished"


def test_a_record_is_reproduced(run_main, tmp_path, capsys):
    run_main(*SGD, "--seed", "0")
    folder = folder_of(tmp_path / "runs")
    capsys.readouterr()
    assert reproduce.program([str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("all ")
    assert reproduce.program([str(folder / "record.jsonl"), "--lr", "0.3"]) == 1
    told = capsys.readouterr().out
    assert "differs: task " in told and "scores are equal" in told
    rows = [json.loads(line) for line in (folder / "record.jsonl").read_text().splitlines()]
    rows[0]["code"]["model"]["sha256"] = "0" * 64
    rows[0]["packages"] = ["torch==0.1"]
    rows[1]["scores"]["class_il"][0] = -1.0
    (folder / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    assert reproduce.program([str(folder)]) == 1
    told = capsys.readouterr().out
    for part in ("not done (cut off)", "task 1 class_il: [-1.0, ", "perhaps because of: code model", "packages torch:"):
        assert part in told


def test_what_cannot_be_reproduced_is_refused(tmp_path, capsys):
    (tmp_path / "record.jsonl").write_text('{"type": "start", "schema": 1, "args": {"seed": 1}}\n')
    for argv, message in (
        ([], "give the record"),
        ([str(tmp_path / "none")], "has no lines"),
        ([str(tmp_path)], "does not say with which arguments"),
    ):
        assert reproduce.program(argv) == 2
        assert message in capsys.readouterr().err
