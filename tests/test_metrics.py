import itertools
import math

import numpy as np
import pytest

from utils.engine import metrics

NAN = float("nan")
SMALL = [[80, 50, 40], [70, 90, 45], [60, 85, 95]]
LOWER = [[80, NAN, NAN], [70, 90, NAN], [60, 85, 95]]
ZERO_SHOT = {
    "Aircraft": 24.3, "Caltech101": 88.4, "CIFAR100": 68.2, "DTD": 44.6, "EuroSAT": 54.9, "Flowers": 71.0,
    "Food": 88.5, "MNIST": 59.4, "OxfordPet": 89.0, "StanfordCars": 64.7, "SUN397": 65.2,
}  # fmt: skip
ORDER_2 = [
    "StanfordCars",
    "Food",
    "MNIST",
    "OxfordPet",
    "Flowers",
    "SUN397",
    "Aircraft",
    "Caltech101",
    "DTD",
    "EuroSAT",
    "CIFAR100",
]


def test_mtil_by_hand():
    assert metrics.mtil_transfer(SMALL) == pytest.approx((50 + (40 + 45) / 2) / 2) == pytest.approx(46.25)
    assert round(metrics.mtil_avg(SMALL), 2) == 68.33
    assert metrics.mtil_last(SMALL) == 80.0


@pytest.mark.parametrize("order, expected", [(list(ZERO_SHOT), (69.4, 65.3, 65.3)), (ORDER_2, (65.4, 65.3, 65.3))])
def test_mtil_zero_shot_rows(order, expected):
    R = np.tile([ZERO_SHOT[name] for name in order], (11, 1))
    scores = metrics.mtil_transfer(R), metrics.mtil_avg(R), metrics.mtil_last(R)
    # only one decimal is published; Order II gives 65.35 exactly, from columns rounded to one decimal
    assert scores == pytest.approx(expected, abs=0.05 + 1e-9)


def test_class_il_by_hand():
    assert metrics.last(LOWER) == 80.0
    assert metrics.average_incremental(LOWER) == pytest.approx((80 + 80 + 80) / 3)
    assert metrics.bwt(LOWER) == pytest.approx(((60 - 80) + (85 - 90)) / 2)
    assert metrics.forgetting(LOWER) == pytest.approx(((80 - 60) + (90 - 85)) / 2)
    assert metrics.fwt(SMALL, [10, 20, 30]) == pytest.approx(((50 - 20) + (45 - 30)) / 2)
    assert metrics.ci_transfer(SMALL) == pytest.approx(((50 + 40) / 2 + 45) / 2)
    assert metrics.seen_all(SMALL) == pytest.approx((80 + (70 + 90) / 2) / 2)


def test_forgetting_looks_at_the_best_row_after_training_only():
    zero_shot_was_best = [[50, 99, 0], [70, 60, 0], [65, 62, 10]]
    assert metrics.forgetting(zero_shot_was_best) == pytest.approx(((70 - 65) + (62 - 62)) / 2)


def test_full_and_half_matrix_agree_where_only_the_half_counts():
    for metric in (metrics.last, metrics.average_incremental, metrics.forgetting, metrics.bwt):
        assert metric(SMALL) == metric(LOWER)


# The cells (t, j) of a 4 x 4 matrix that each metric reads, from the definitions.
CELLS = {
    metrics.last: lambda t, j: t == 3,
    metrics.average_incremental: lambda t, j: j <= t,
    metrics.forgetting: lambda t, j: j < 3 and t >= j,
    metrics.bwt: lambda t, j: j < 3 and t in (j, 3),
    metrics.ci_transfer: lambda t, j: j > t,
    metrics.seen_all: lambda t, j: j <= t < 3,
    metrics.mtil_transfer: lambda t, j: t < j,
    metrics.mtil_avg: lambda t, j: True,
    metrics.mtil_last: lambda t, j: t == 3,
}


@pytest.mark.parametrize("metric", CELLS, ids=lambda m: m.__name__)
def test_missing_cell_gives_nan_exactly_where_the_cell_counts(metric):
    R = np.random.default_rng(0).uniform(0, 100, (4, 4))
    whole = metric(R)
    for t, j in itertools.product(range(4), range(4)):
        holed = R.copy()
        holed[t, j] = NAN
        if CELLS[metric](t, j):
            assert math.isnan(metric(holed)), (t, j)
        else:
            assert metric(holed) == whole, (t, j)


def test_one_task_and_fewer_rows_than_columns():
    assert metrics.last([[40]]) == metrics.average_incremental([[40]]) == metrics.mtil_last([[40]]) == 40
    for metric in (metrics.forgetting, metrics.bwt, metrics.ci_transfer, metrics.seen_all, metrics.mtil_transfer):
        assert math.isnan(metric([[40]]))
    stopped = np.asarray(LOWER)[:2]  # two of three tasks trained
    assert metrics.last(stopped) == 80 and metrics.bwt(stopped) == -10
    assert math.isnan(metrics.mtil_last(stopped)) and math.isnan(metrics.mtil_avg(stopped))
    with pytest.raises(ValueError, match="two dimensions"):
        metrics.last([1, 2])


def test_harmonic_mean():
    assert metrics.harmonic_mean(50.4, 54.8) == pytest.approx(2 / (1 / 50.4 + 1 / 54.8))
    assert metrics.harmonic_mean(0, 0) == 0 == metrics.harmonic_mean(0, 90)
    assert math.isnan(metrics.harmonic_mean(NAN, 1))


def test_ece_by_hand_and_against_a_loop():
    # two bins: (0, .5] holds .5 (right) and .3 (wrong), (.5, 1] holds .9 (right) and .7 (wrong)
    assert metrics.ece([0.5, 0.3, 0.9, 0.7], [1, 0, 1, 0], n_bins=2) == pytest.approx(100 * (0.5 * 0.1 + 0.5 * 0.3))
    rng = np.random.default_rng(1)
    p, hit = np.append(rng.random(500), [0.0, 1.0]), rng.random(502) < 0.6
    slow = 0.0
    for b in range(15):
        inside = [i for i in range(502) if b / 15 < p[i] <= (b + 1) / 15 or (b == 0 and p[i] == 0)]
        slow += abs(sum(hit[i] for i in inside) - sum(p[i] for i in inside)) / 502
    assert metrics.ece(p, hit) == pytest.approx(100 * slow)
    assert metrics.ece(np.ones(5), np.ones(5)) == 0
    assert math.isnan(metrics.ece([], [])) and math.isnan(metrics.ece([NAN], [1]))
    with pytest.raises(ValueError):
        metrics.ece([1.5], [1])


def test_per_class_accuracy():
    got = metrics.per_class_accuracy([0, 1, 1, 2, 9], [0, 1, 0, 2, 2], 4)
    np.testing.assert_array_equal(got, [50, 100, 50, NAN])
    with pytest.raises(ValueError):
        metrics.per_class_accuracy([0], [4], 4)


def test_summary_has_what_was_measured_and_nothing_else():
    every = {"class_il": LOWER, "future": SMALL, "seen_all": LOWER, "future_unseen": SMALL, "mtil": SMALL}
    scores = metrics.summary(every)
    assert scores["class_il_last"] == 80 and scores["class_il_bwt"] == -12.5
    assert scores["ci_transfer"] == scores["future_unseen"] == 45 and scores["seen_all"] == 80
    other = metrics.summary({"future": SMALL, "future_unseen": 2 * np.asarray(SMALL)})
    assert other["ci_transfer"] == 45 and other["future_unseen"] == 90, "each from its own matrix"
    assert scores["ci_harmonic"] == pytest.approx(2 * 45 * 80 / 125)
    assert scores["mtil_transfer"] == 46.25 and "task_il_last" not in scores and "class_il_fwt" not in scores
    assert all(type(v) is float for v in scores.values())
    holed = [[NAN, NAN, NAN], *LOWER[1:]]  # the first task was trained elsewhere
    assert metrics.summary({"task_il": holed}) == {"task_il_last": 80.0}
    assert set(metrics.summary({"vqa": LOWER}, {"vqa": [0, 0, 0]})) == {
        f"vqa_{k}" for k in ("last", "avg", "forgetting", "bwt")
    }
    assert metrics.summary({"class_il": SMALL}, {"class_il": [10, 20, 30]})["class_il_fwt"] == 22.5
    with pytest.raises(ValueError, match="clas_il"):
        metrics.summary({"clas_il": SMALL})


def test_confusion_counts_the_pairs_that_occur():
    pred, target = [0, 1, 1, 2, 9, -1, 1], [0, 1, 0, 2, 2, 2, 0]
    slow = [[t, p, list(zip(target, pred, strict=True)).count((t, p))] for t in range(3) for p in range(10)]
    assert metrics.confusion(pred, target).tolist() == [row for row in slow if row[2]]
    assert metrics.confusion([], []).shape == (0, 3)
