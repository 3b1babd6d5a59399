"""Whole runs with the flags of the shape: what reaches the record."""

import pytest
import torch
from PIL import Image

import main
from tests import contract
from tests.conftest import newest_record
from tests.contract import NAMES, ToyClasses
from utils import cli
from utils.cli import registry
from utils.engine import training
from utils.errors import Interrupted, UserError


class ToyDomainNames(ToyClasses):
    """Three domains with the same three names."""

    NAME = "toy-named-domains"
    MTIL = True
    N_CLASSES_PER_TASK = [3, 3, 3]
    CLASS_NAMES = NAMES[:3] * 3


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(registry._registered["dataset"], ToyDomainNames.NAME, ToyDomainNames)


def domains(**flags):
    with contract.toys():
        return contract.build("ncm", ToyDomainNames.NAME, trained=True, **flags)


def test_scores_among_the_names_seen():
    """On the diagonal and below the names seen compete; above it a domain's own, as MTIL has it."""
    summary, rows = (made := domains()).summary, made.rows["matrices"]
    seen = [[rows["class_il" if j <= t else "task_il"][t, j] for j in range(3)] for t in range(3)]
    assert summary["odcl_last"] == pytest.approx(sum(seen[2]) / 3)
    assert summary["odcl_transfer"] == pytest.approx(summary["mtil_transfer"])
    assert summary["odcl_avg"] == pytest.approx(sum(map(sum, seen)) / 9)
    assert summary["odcl_last"] == pytest.approx(summary["class_il_last"])


def test_merged_names_score_at_least_as_high_and_own_names_the_same():
    plain, merged = domains().summary, domains(merge_names=1).summary
    assert merged["xtail_last"] > plain["xtail_last"] or merged["odcl_last"] > plain["odcl_last"]
    assert merged["odcl_last"] >= plain["odcl_last"] and merged["mtil_last"] == plain["mtil_last"]


def test_mixed_batches_of_one_image_have_the_same_scores():
    """A method whose prediction depends on its image alone."""
    summary = domains(mixed_batches=1, eval_batch_size=1).summary
    assert summary["mixed_odcl_last"] == pytest.approx(summary["odcl_last"])
    assert summary["mixed_odcl_transfer"] == pytest.approx(summary["odcl_transfer"])


def test_blurry_tasks_need_a_method_for_them():
    with contract.toys():
        made = contract.build("er", "toy-class-il", trained=True, blurry="0,30", buffer_size=12)
        assert made.dataset.SETTING == "general-continual" and "task_il_last" not in made.summary
        assert made.summary["class_il_last"] >= 0
        seen = torch.cat(
            [
                call[2][1] if len(call[2]) > 1 else call[3]["labels"]
                for call in made.calls
                if call[0] == "observe" and call[1] == 0
            ]
        )
        assert int(seen.max()) >= 3, "the first task shows classes of later ones"
        with pytest.raises(UserError, match="is general-continual with --blurry"):
            contract.build("lwf", "toy-class-il", trained=True, blurry="0,30")


def test_a_folder_in_other_tasks(tmp_path, run_main):
    """First task of three classes, then one each; the old flag for equal parts contradicts the new ones."""
    for part, n in (("train", 4), ("test", 2)):
        for c in range(5):
            folder = tmp_path / "images" / part / f"class_{c}"
            folder.mkdir(parents=True)
            for k in range(n):
                Image.new("RGB", (10, 10), (40 * c, 10 * k, 0)).save(folder / f"{k}.png")
    command = [*"--model sgd --lr 0.1 --n_epochs 1 --image_size 8 --backbone mnistmlp --dataset seq-folder".split()]
    command += ["--folder_path", str(tmp_path / "images"), "--first_classes", "3", "--classes_per_task", "1"]
    command[command.index("mnistmlp")] = "reduced-resnet18"
    code, rows = run_main(*command, "--shots", "2", "--image_transform", "squash")
    assert code == 0 and rows[0]["protocol"]["classes_per_task"] == [3, 1, 1]
    (last,) = [row for row in rows if row["type"] == "task" and row["task"] == 2]
    assert last["test_images"] == [6, 2, 2]
    assert run_main(*command, "--n_tasks", "2")[0] == 2


@pytest.mark.filterwarnings("ignore:probe")
def test_probes_are_in_the_record_and_survive_a_resume(tmp_path, monkeypatch):
    """A run that is stopped in its second task and goes on measures the untouched model once, and ends the same."""
    argv = contract.argv_of("finetune-clip", "toy-class-il")
    argv[argv.index("--disable_log") + 1] = "0"
    argv += ["--probe", "toy-class-il", "--resume", "auto", "--results_path"]
    real = training._one_task

    def stopped(run, model, dataset, task, saved):
        if task == 1:
            raise Interrupted(15)
        real(run, model, dataset, task, saved)

    with contract.toys():
        main.run(cli.parse([*argv, str(tmp_path / "whole")]))
        monkeypatch.setattr(training, "_one_task", stopped)
        with pytest.raises(Interrupted):
            main.run(cli.parse([*argv, str(tmp_path / "parts")]))
        monkeypatch.setattr(training, "_one_task", real)
        main.run(cli.parse([*argv, str(tmp_path / "parts")]))
    found = []
    for name in ("whole", "parts"):
        rows = newest_record(tmp_path / name)
        tasks = [row for row in rows if row["type"] == "task"]
        assert len(tasks) == 3 and all("probe" in row["seconds"] for row in tasks)
        found.append([(row["probes"], row["probes_untouched"], row["test_images"]) for row in tasks])
        found[-1].append({k: v for k, v in rows[-1]["summary"].items() if k.startswith(("probe_", "class_il"))})
    assert found[0] == found[1] and "probe_toy_class_il_drop" in found[0][-1]
