"""CluMo in whole runs: forgetting against fine-tuning, both routes, counted forwards; pre-training of its fusion."""

import contextlib
import io

import pytest
import torch

import main
from backbone.clip import load_clip
from backbone.fusion import make_fusion
from datasets.tiny_world import streams
from scripts.sweeps import grid
from utils import cli
from utils.cli.registry import ROOT
from utils.engine import metrics
from utils.engine.record import read_record

# whole runs


def test_forgetting_takes_the_best_of_each_task():
    """Symbolic Replay's published matrix: its own script subtracts from one global maximum and gets 0.274."""
    learned, final = [0.5997, 0.4177, 0.3943, 0.7153, 0.6813, 0.5511], [0.2963, 0.3083, 0.3037, 0.6733, 0.6253, 0.5511]
    R = [
        [min(learned[j], final[j]) if t > j else learned[j] if t == j else float("nan") for j in range(6)]
        for t in range(6)
    ]
    assert metrics.forgetting(R) == pytest.approx(0.1203, abs=1e-4)
    assert metrics.forgetting(R) == pytest.approx(-metrics.bwt(R))


def finished(folder, *argv) -> dict:
    """The end of the record of a run of main.py, and its folder."""
    common = [
        "--dataset",
        "clove-tiny-function",
        "--base_path",
        str(folder / "data"),
        "--results_path",
        str(folder / "runs"),
        "--device",
        "cpu",
        "--seed",
        "0",
        "--non_verbose",
        "1",
        *("--custom_task_order", "5,2,4,0,1,3"),  # scenes first: a small run learns them, and can forget them
        "--stop_after",
        "2",
        "--batch_size",
        "20",
    ]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        main.run(cli.parse([*common, *argv]))
    path = max((folder / "runs").rglob("record.jsonl"), key=lambda p: p.stat().st_mtime)
    rows = read_record(path)
    return {
        "summary": rows[-1]["summary"],
        "tasks": [r for r in rows if r["type"] == "task"],
        "folder": path.parent,
        "printed": printed.getvalue(),
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """CluMo and sequential fine-tuning of the same fusion, on three small tasks of questions."""
    folder = tmp_path_factory.mktemp("clumo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CLOVE_SIZE", {True: 60, False: 30})
        tuned = ["--optimizer", "adamw", "--lr", "0.003", "--n_epochs", "2"]
        clumo = finished(folder, "--model", "clumo", "--fusion_train", "never", *tuned)
        again = finished(folder, "--model", "clumo", "--fusion_train", "never", *tuned, "--route", "oracle")
        plain = finished(folder, "--model", "sgd", "--backbone", "clip-fusion", *tuned)
    return clumo, again, plain


def test_a_run_forgets_less_than_half_of_what_fine_tuning_forgets(runs):
    clumo, _, plain = (run["summary"] for run in runs)
    assert clumo["vqa_forgetting"] < 0.5 * plain["vqa_forgetting"]
    assert clumo["vqa_last"] > plain["vqa_last"] + 5


def test_a_run_records_both_ways_to_route_and_draws_its_pictures(runs):
    clumo, oracle, _ = runs
    assert 0 <= clumo["summary"]["route_acc_last"] <= 100
    assert clumo["summary"]["oracle_route_last"] == pytest.approx(oracle["summary"]["vqa_last"], abs=1e-4)
    assert oracle["summary"]["key_route_last"] == pytest.approx(clumo["summary"]["vqa_last"], abs=1e-4)
    assert len(clumo["tasks"][2]["scores"]["route_acc"]) >= 3 and clumo["tasks"][0]["scores"]["route_acc"][0] == 100
    for name in ("class_il", "exact_match", "route_acc", "oracle_route"):  # a row for each test set
        for percent in clumo["tasks"][2]["scores"][name][:3]:
            assert f"{percent:.2f}" in clumo["printed"]
    assert "routing accuracy" in clumo["printed"] and "exact match" in clumo["printed"]
    assert (clumo["folder"] / "pictures.png").stat().st_size > 10_000 and "pictures.png" in clumo["printed"]


def test_a_run_encodes_each_picture_once(runs):
    clumo, again, _ = runs
    assert clumo["summary"]["image_forwards"] == 3 * (60 + 30)
    assert 0 < clumo["tasks"][-1]["question_forwards"] < 3 * (60 + 30) and again["tasks"][-1]["question_forwards"] == 0
    assert again["summary"]["image_forwards"] == 0  # tokens on disk, left by the first run


def test_pre_training_of_the_fusion_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from scripts import train_tiny_fusion as script

    clock = iter([])
    monkeypatch.setattr(script, "check", lambda *modules: {})
    monkeypatch.setattr(script.time, "monotonic", lambda: next(clock))
    sizes = ["--steps", "4", "--batch", "2", "--layers", "1", "--minutes", "1"]

    def train(name: str) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            script.main(["--out", str(tmp_path / name), "--checkpoint", str(tmp_path / f"{name}.ckpt"), *sizes])

    clock = iter([0] * 9)
    train("at once")
    clock = iter([0, 0, 0, 61])  # stopped after two steps
    train("stopped")
    assert not (tmp_path / "stopped").exists()
    clock = iter([0] * 9)
    train("stopped")
    once, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("at once", "stopped"))
    assert once.keys() == stopped.keys() and all(torch.equal(once[k], stopped[k]) for k in once)
    config = (tmp_path / "stopped" / "config.json").read_text()
    assert (
        load_clip("tiny").sha256 in config and make_fusion(load_clip("tiny"), str(tmp_path / "stopped")).n_layers == 1
    )


def test_every_command_of_the_papers_grid_is_understood():
    """None uses an untrained fusion."""
    more = ["--blip_weights", "W"]
    lines = grid.read(str(ROOT / "scripts/grids/paper_clumo.yaml"), more=more).lines
    runs = [line.argv for line in lines if "clove-scene" in line.argv]
    names = [argv[argv.index("--notes") + 1] for argv in runs]
    assert len(runs) > 40 and names.count("CluMo") == names.count("head alone") == 6 and "CluMo, random keys" in names
    for argv in runs:
        args = cli.parse(argv).args
        assert args.vqa_backbone == "blip" and args.blip_weights == "W"
        assert args.fusion_train == ("always" if args.notes == "sequential fine-tuning" else None)
