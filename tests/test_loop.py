"""The loop by its flags: what each changes in a run on fabricated digits, against a count or a second run."""

import math

import numpy as np
import pytest
import torch

import main
from models.sgd import Sgd
from tests.conftest import comparable, newest_record
from utils.engine import training

BASE = ["--model", "sgd", "--dataset", "seq-mnist", "--lr", "0.1", "--seed", "2", "--batch_size", "16"]
N_TRAIN = 60  # fabricated images in each of the five tasks
N_BATCHES = 4


def summary(rows: list[dict]) -> dict:
    assert rows[-1]["type"] == "end" and rows[-1]["status"] == "done"
    return rows[-1]["summary"]


def tasks(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["type"] == "task"]


@pytest.fixture
def seen(monkeypatch):
    """Every step of sgd: (task, epoch, labels, learning rate, extras), and the model itself under "model"."""
    calls, real = [], Sgd.meta_observe

    def meta_observe(self, inputs, labels, not_aug_inputs, epoch=None, **extras):
        calls.append((self.current_task, epoch, labels.clone(), self.opt.param_groups[0]["lr"], dict(extras)))
        return real(self, inputs, labels, not_aug_inputs, epoch, **extras)

    monkeypatch.setattr(Sgd, "meta_observe", meta_observe)
    return calls


@pytest.fixture
def built(monkeypatch):
    """The (model, dataset) of each run, as training left them, and the weights before it."""
    found, real = [], training.train

    def train(model, dataset, args, record=None, resume=False):
        before = {k: v.clone() for k, v in model.net.state_dict().items()}
        found.append((model, dataset, before))
        return real(model, dataset, args, record, resume)

    monkeypatch.setattr(training, "train", train)
    return found


def weights(model) -> dict:
    return model.net.state_dict()


def equal(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


# orders


def test_joint_is_one_task_of_all_classes(run_main, seen):
    code, rows = run_main(*BASE, "--joint", "1")
    assert code == 0 and len(tasks(rows)) == 1 and len(seen) == math.ceil(300 / 16)
    assert torch.cat([c[2] for c in seen]).unique().tolist() == list(range(10))
    assert "class_il_forgetting" not in summary(rows)


def test_orders_decide_which_digits_come_first(run_main, seen, built):
    run_main(*BASE, "--custom_task_order", "4,3,2,1,0", "--stop_after", "0")
    assert built[-1][1].get_class_names()[:2] == ["eight", "nine"]
    run_main(*BASE, "--custom_class_order", "9,0,8,1,7,2,6,3,5,4", "--stop_after", "0")
    assert built[-1][1].get_class_names()[:2] == ["nine", "zero"]
    for seed in (5, 6):
        _, rows = run_main(*BASE, "--permute_classes", "1", "--class_order_seed", str(seed), "--stop_after", "0")
        assert rows[0]["class_order"] == np.random.RandomState(seed).permutation(10).tolist()
    assert {int(label) for call in seen for label in call[2]} == {0, 1}, "labels follow the stream"


# what is measured


@pytest.mark.parametrize("mode", ["current", "complete"])
def test_validation_stands_in_for_the_test_set_until_the_end(run_main, seen, built, mode):
    _, rows = run_main(*BASE, "--validation", "0.2", "--validation_mode", mode)
    assert "final_test" in summary(rows) and 0 <= summary(rows)["final_test"] <= 100
    sizes = [len(loader.dataset) for loader in built[0][1].test_loaders]
    assert sizes == ([12] * 5 if mode == "current" else [12, 24, 36, 48, 60])
    assert [sum(len(c[2]) for c in seen if c[0] == t) for t in range(5)] == [N_TRAIN - 12] * 5
    model, dataset, _ = built[0]
    model.eval()
    hits = [
        float((model(x).argmax(1) == y).float().mean())
        for x, y in ([torch.cat(part) for part in zip(*loader, strict=True)] for loader in dataset.final_test_loaders)
    ]
    assert summary(rows)["final_test"] == pytest.approx(100 * np.mean(hits))


def test_early_stopping_goes_back_to_the_best_weights(run_main, monkeypatch, built):
    script, kept = (
        [3.0, 1.0, 2.0, 2.5, 2.6, 9.0],
        [],
    )  # losses of the checks: the second is best, patience 2 ends at the fourth
    real = training.evaluate_tasks

    def evaluate_tasks(model, dataset, loaders, future=False):
        scores = real(model, dataset, loaders, future)
        if model.training and len(kept) < 4:
            kept.append({k: v.clone() for k, v in weights(model).items()})
            for score in scores.values():
                score.loss = script[len(kept) - 1] * score.count
        return scores

    monkeypatch.setattr(training, "evaluate_tasks", evaluate_tasks)
    flags = ["--fitting_mode", "early_stopping", "--validation", "0.2", "--early_stopping_patience", "2"]
    code, _ = run_main(*BASE, *flags, "--n_epochs", "6", "--stop_after", "0")
    assert code == 0 and len(kept) == 4
    assert equal(weights(built[0][0]), kept[1]) and not equal(kept[1], kept[3])


def test_eval_epochs_writes_lines_inside_a_task(run_main):
    _, rows = run_main(*BASE, "--n_epochs", "5", "--eval_epochs", "2", "--stop_after", "1")
    lines = [(r["task"], r["epoch"], len(r["class_il"])) for r in rows if r["type"] == "epoch"]
    assert lines == [(0, 2, 1), (0, 4, 1), (1, 2, 2), (1, 4, 2)]
    plain = run_main(*BASE, "--n_epochs", "5", "--stop_after", "1")[1]
    assert [r["scores"] for r in tasks(rows)] == [r["scores"] for r in tasks(plain)], "looking changes nothing"


def test_forward_transfer_is_accuracy_before_a_task_less_that_of_the_untrained_net(run_main, monkeypatch):
    measured, real = [], training.evaluate_tasks

    def evaluate_tasks(model, dataset, loaders, future=False):
        scores = real(model, dataset, loaders, future)
        measured.append((dict(loaders), dataset.c_task, {t: s.percent("class_il") for t, s in scores.items()}))
        return scores

    monkeypatch.setattr(training, "evaluate_tasks", evaluate_tasks)
    _, rows = run_main(*BASE, "--enable_other_metrics", "1")
    untrained = measured[0][2]
    ahead = {
        t: values[t]
        for loaders, c_task, values in measured[1:]
        for t in values
        if len(loaders) == 1 and t > 0 and t == c_task
    }
    assert sorted(untrained) == [0, 1, 2, 3, 4] and sorted(ahead) == [1, 2, 3, 4]
    assert summary(rows)["class_il_fwt"] == pytest.approx(np.mean([ahead[t] - untrained[t] for t in range(1, 5)]))


# steps


def test_iterations_end_a_task(run_main, seen):
    run_main(*BASE, "--fitting_mode", "iters", "--n_iters", "6", "--stop_after", "1")
    assert [(c[0], c[1]) for c in seen] == [(t, e) for t in (0, 1) for e in (0, 0, 0, 0, 1, 1)]


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--lr_scheduler", "multisteplr", "--lr_milestones", "1", "3"], [0.1, 0.01, 0.01, 0.001]),
        (["--lr_scheduler", "cosine"], [0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]),
    ],
)
def test_schedules_by_epoch(run_main, seen, flags, expected):
    run_main(*BASE, "--n_epochs", "4", "--stop_after", "1", *flags)
    for task in (0, 1):  # each task starts anew
        rates = [[c[3] for c in seen if c[:2] == (task, e)] for e in range(4)]
        assert all(len(set(r)) == 1 for r in rates)
        np.testing.assert_allclose([r[0] for r in rates], expected, rtol=1e-6)


def test_schedule_by_iteration(run_main, seen):
    flags = ["--lr_scheduler", "multisteplr", "--lr_milestones", "2", "--scheduler_mode", "iter"]
    run_main(*BASE, "--stop_after", "0", *flags)
    np.testing.assert_allclose([c[3] for c in seen], [0.1, 0.1, 0.01, 0.01], rtol=1e-6)


def test_debug_mode_counts(run_main, seen):
    run_main(*BASE[:-1], "4", "--n_epochs", "7", "--debug_mode", "1")
    assert [(c[0], c[1]) for c in seen] == [(t, 0) for t in range(5) for _ in range(5)]


def test_inference_only_changes_no_weight(run_main, seen, built):
    code, rows = run_main(*BASE, "--inference_only", "1")
    model, _, before = built[0]
    assert code == 0 and not seen and equal(weights(model), before) and len(tasks(rows)) == 5


# labels


def test_labels_that_are_withheld_reach_no_step(run_main, monkeypatch):
    sizes, real = [], Sgd.observe

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        sizes.append(len(labels))
        assert bool((labels >= 0).all())
        return real(self, inputs, labels, not_aug_inputs)

    monkeypatch.setattr(Sgd, "observe", observe)
    assert run_main(*BASE, "--label_perc", "0.5", "--stop_after", "0")[0] == 0
    assert sum(sizes) == N_TRAIN // 2


def test_noise_hands_over_the_true_labels(run_main, seen):
    run_main(*BASE, "--noise_rate", "0.4", "--stop_after", "0")
    labels, true = torch.cat([c[2] for c in seen]), torch.cat([c[4]["true_labels"] for c in seen])
    assert int((labels != true).sum()) == 24 and set(true.tolist()) == {0, 1}


# parts of a stream


def test_start_from_and_stop_after(run_main, seen):
    code, rows = run_main(*BASE, "--start_from", "1", "--stop_after", "2")
    assert code == 0 and [r["task"] for r in tasks(rows)] == [1, 2] and {c[0] for c in seen} == {1, 2}


def test_kept_checkpoints_continue_like_the_uninterrupted_run(run_main, tmp_path):
    er = ["--model", "er", *BASE[2:], "--buffer_size", "30", "--optim_mom", "0.9"]
    _, whole = run_main(*er, "--savecheck", "task", results=tmp_path / "whole")
    kept = sorted(tmp_path.glob("whole/*/*/*/ckpt/er_seq-mnist_*.safetensors"))
    assert [p.stem.rsplit("_", 1)[1] for p in kept] == ["0", "1", "2", "3", "4"]
    code, rest = run_main(*er, "--loadcheck", str(kept[2]), results=tmp_path / "rest")
    assert code == 0 and [r["task"] for r in tasks(rest)] == [3, 4]
    assert [r["scores"] for r in tasks(rest)] == [r["scores"] for r in tasks(whole)[3:]]
    run_main(*er, "--savecheck", "last", "--ckpt_name", "mine", "--stop_after", "1", results=tmp_path / "last")
    (last,) = tmp_path.glob("last/*/*/*/ckpt/*_last.safetensors")
    assert last.name.startswith("mine_er_seq-mnist_")


# other


@pytest.mark.parametrize("level", [1, 2])
def test_speed_levels_run_on_the_cpu(run_main, level):
    precision = torch.get_float32_matmul_precision()
    try:
        code, rows = run_main(*BASE, "-O", str(level), "--stop_after", "0", "--n_epochs", "5")
    finally:
        torch.set_float32_matmul_precision(precision)
    assert code == 0 and summary(rows)["class_il_last"] > 60


@pytest.mark.parametrize("model", ["sgd", "er", "derpp"])
def test_general_continual_stream(run_main, model):
    flags = {
        "sgd": [],
        "er": ["--buffer_size", "20"],
        "derpp": ["--buffer_size", "20", "--alpha", "0.1", "--beta", "0.5"],
    }
    code, rows = run_main("--model", model, "--dataset", "mnist-360", "--lr", "0.1", "--seed", "0", *flags[model])
    assert code == 0 and len(tasks(rows)) == 1 and len(tasks(rows)[0]["per_class"]) == 9
    assert not [k for k in summary(rows) if k.startswith("task_il")]


def test_disable_log_writes_nothing(run_main, tmp_path):
    code, rows = run_main(*BASE, "--disable_log", "1", "--stop_after", "0")
    assert code == 0 and rows == [] and not (tmp_path / "runs").exists()


def test_lines_of_the_record_have_their_fields(run_main):
    _, rows = run_main(*BASE, "--notes", "first try", "--savecheck", "last")
    start, end = rows[0], rows[-1]
    assert {
        "type",
        "schema",
        "config_hash",
        "requested",
        "args",
        "git_commit",
        "versions",
        "python",
        "host",
        "device",
        "time",
        "weights_sha256",
        "dataset_fingerprint",
        "class_order",
        "argv",
        "threads",
    } <= set(start)
    assert (
        start["args"]["notes"] == "first try"
        and start["requested"]["lr"] == 0.1
        and len(start["dataset_fingerprint"]) == 64
    )
    assert {"torch", "torchvision", "numpy"} <= set(start["versions"])
    for number, row in enumerate(tasks(rows)):
        assert {
            "scores",
            "seconds",
            "wall_s",
            "peak_bytes",
            "stored_bytes",
            "parameters",
            "image_forwards",
            "per_class",
            "ece",
        } <= set(row)
        assert row["task"] == number and {"begin_task", "train", "end_task", "evaluate"} <= set(row["seconds"])
        assert set(row["scores"]) == {"class_il", "task_il"} and row["parameters"]["trainable"] > 0
    both = {f"{s}_il_{m}" for s in ("class", "task") for m in ("last", "avg", "forgetting", "bwt")}
    assert both | {"ece", "stored_bytes", "image_forwards", "peak_bytes", "wall_s"} <= set(end["summary"])
    R = np.array([r["scores"]["class_il"] for r in tasks(rows)], dtype=float)
    assert end["summary"]["class_il_last"] == pytest.approx(R[-1].mean())
    assert end["summary"]["class_il_avg"] == pytest.approx(np.mean([R[t, : t + 1].mean() for t in range(5)]))
    assert end["summary"]["class_il_bwt"] == pytest.approx(np.mean([R[-1, j] - R[j, j] for j in range(4)]))


def test_a_seed_that_was_not_given_is_in_the_record(data, tmp_path):
    argv = [a for a in BASE if a not in {"--seed", "2"}] + [
        "--stop_after",
        "0",
        "--base_path",
        str(data),
        "--device",
        "cpu",
    ]
    assert main.main([*argv, "--results_path", str(tmp_path / "a"), "--non_verbose", "1"]) == 0
    first = newest_record(tmp_path / "a")
    again = [
        *argv,
        "--results_path",
        str(tmp_path / "b"),
        "--non_verbose",
        "1",
        "--seed",
        str(first[0]["args"]["seed"]),
    ]
    assert main.main(again) == 0
    assert comparable(newest_record(tmp_path / "b")[-1]) == comparable(first[-1])


# what a report draws


def test_a_record_has_the_losses_of_each_epoch_and_the_confusion_at_the_end(run_main, monkeypatch):
    told, real = [], Sgd.meta_observe

    def meta_observe(self, *args, epoch=None, **more):
        loss = real(self, *args, epoch=epoch, **more)
        told.append((self.current_task, epoch, float(loss)))
        return loss

    monkeypatch.setattr(Sgd, "meta_observe", meta_observe)
    _, rows = run_main(*BASE, "--n_epochs", "2", "--stop_after", "1")
    for row in tasks(rows):
        by_hand = [[v for t, e, v in told if (t, e) == (row["task"], epoch)] for epoch in range(2)]
        assert row["loss"] == [sum(values) / len(values) for values in by_hand] and len(by_hand[0]) == N_BATCHES
    first, last = tasks(rows)
    assert first["confusion"] == [] and {type(v) for cell in last["confusion"] for v in cell} == {int}
    for k, percent in enumerate(last["per_class"][:4]):
        own = {said: n for true, said, n in last["confusion"] if true == k}
        assert sum(own.values()) == 10 and own.get(k, 0) * 10 == percent  # ten fabricated test images of each digit
