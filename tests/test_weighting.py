"""Accuracy over tasks and over images, and which names compete on domains: by hand."""

from argparse import Namespace

import numpy as np
import pytest

from utils.engine import metrics, report


def test_half_the_classes_first_by_hand():
    """90 % on 50 classes, then 60 % on 10 more, 20 images of each: 75.0 over tasks, 85.0 over images."""
    R, counts = np.array([[90.0, np.nan], [90.0, 60.0]]), [1000, 200]
    scores = metrics.summary({"class_il": R}, counts=counts)
    assert scores["class_il_last"] == 75.0 and scores["class_il_last_images"] == 85.0
    assert scores["class_il_avg"] == pytest.approx((90 + 75) / 2)
    assert scores["class_il_avg_images"] == pytest.approx((90 + 85) / 2)


def test_over_images_is_the_accuracy_of_all_images_together():
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 40, 4)
    hits = [[draw.random(n) < 0.6 for n in counts[: t + 1]] for t in range(4)]
    R = np.full((4, 4), np.nan)
    for t, row in enumerate(hits):
        R[t, : t + 1] = [100 * h.mean() for h in row]
    stages = [100 * np.concatenate(row).mean() for row in hits]
    assert metrics.last_images(R, counts) == pytest.approx(stages[-1])
    assert metrics.average_incremental_images(R, counts) == pytest.approx(np.mean(stages))


def test_equal_test_sets_make_no_difference():
    R = np.tril(np.arange(9.0).reshape(3, 3)) + np.triu(np.full((3, 3), np.nan), 1)
    assert metrics.last_images(R, [7, 7, 7]) == pytest.approx(metrics.last(R))
    assert metrics.average_incremental_images(R, [7, 7, 7]) == pytest.approx(metrics.average_incremental(R))


def test_a_missing_cell_and_missing_counts_give_nan():
    R = np.array([[90.0, np.nan], [np.nan, 60.0]])
    assert np.isnan(metrics.last_images(R, [1, 1])) and np.isnan(metrics.average_incremental_images(R, [1, 1]))
    assert np.isnan(metrics.last_images(np.ones((2, 2)), [1]))
    assert np.isnan(metrics.last_images(np.ones((1, 1)), [0]))
    assert "class_il_last_images" not in metrics.summary({"class_il": np.ones((1, 1))})


def test_names_seen_by_hand():
    """On and below the diagonal the names seen compete, above it the data set's own."""
    class_il = np.array([[50.0, np.nan], [40.0, 30.0]])
    own = np.array([[80.0, 20.0], [70.0, 60.0]])
    assert report.seen_names(class_il, own).tolist() == [[50.0, 20.0], [40.0, 30.0]]
    scores = metrics.summary({"odcl": report.seen_names(class_il, own)})
    assert scores == {"odcl_transfer": 20.0, "odcl_avg": 35.0, "odcl_last": 35.0}


def test_what_is_shown_first():
    plain = list(report.ordered_titles(Namespace(accuracy_weighting="tasks", mtil_scoring="domain")))
    assert plain == list(report.TITLES) and plain[0] == "class_il_last"
    images = list(report.ordered_titles(Namespace(accuracy_weighting="images")))
    assert images[:2] == ["class_il_last_images", "class_il_avg_images"] and sorted(images) == sorted(plain)
    assert list(report.ordered_titles({"mtil_scoring": "seen"}))[0] == "odcl_transfer"
    assert list(report.ordered_titles({"mtil_scoring": "all"}))[0] == "xtail_transfer"


def test_the_line_of_a_task_counts_images(capsys):
    row = {"task": 1, "scores": {"class_il": [90.0, 60.0]}, "test_images": [1000, 200], "wall_s": 1.0}
    report.print_task(row, 2)
    report.print_task(row, 2, images=True)
    tasks, images = capsys.readouterr().out.splitlines()
    assert "class-il  75.00" in tasks and "class-il  85.00" in images


def test_the_table_of_a_run_shows_its_own_weighting_first(capsys):
    scores = {"class_il_last": 75.0, "class_il_last_images": 85.0}
    report.print_summary(scores, args=Namespace(accuracy_weighting="images"))
    lines = capsys.readouterr().out.splitlines()
    assert "over images" in lines[2] and "85.00" in lines[2] and "75.00" in lines[3]


def test_a_run_has_both(run_main):
    """Test sets of one size: both are equal, and both are in the record."""
    code, rows = run_main(
        *"--model sgd --dataset seq-mnist --lr 0.1 --n_epochs 1 --debug_mode 1 --backbone mnistmlp".split(),
        *"--first_classes 6 --classes_per_task 2 --accuracy_weighting images".split(),
    )
    assert code == 0
    summary, tasks = rows[-1]["summary"], [row for row in rows if row["type"] == "task"]
    assert len(tasks) == 3 and rows[0]["protocol"]["classes_per_task"] == [6, 2, 2]
    counts, values = tasks[-1]["test_images"], tasks[-1]["scores"]["class_il"]
    assert summary["class_il_last_images"] == pytest.approx(np.average(values, weights=counts))
    assert summary["class_il_last"] == pytest.approx(np.mean(values)) and rows[0]["preset"] is None
