"""Which samples a replay memory keeps: reservoir, balanced, loss-aware, ring, greedy."""

from argparse import Namespace

import numpy as np
import pytest
import torch

from tests.buffer_toys import fill, numbered, stored
from utils.errors import UserError
from utils.memory.buffer import Buffer


def inclusion(batches, runs=800, size=3, n=12) -> np.ndarray:
    """How often each of n samples is in memory at the end."""
    np.random.seed(7)
    counts = np.zeros(n)
    for _ in range(runs):
        counts[stored(fill(Buffer(size), n, batches))] += 1
    return counts


@pytest.mark.parametrize("batches", [(12,), (1, 4, 3, 7)])
def test_reservoir_keeps_every_sample_with_probability_m_over_n(batches):
    """The counts of n samples over R runs have mean RM/n; their chi-square has n - 1 degrees of freedom."""
    runs, size, n = 800, 3, 12
    counts = inclusion(batches, runs, size, n)
    assert counts.sum() == runs * size
    variance = runs * size / n * (1 - size / n)
    # sampling without replacement: sum (c - mean)^2 / variance = n/(n-1) * chi2(n-1); chi2(11) has 0.9999 quantile 37.4
    assert ((counts - runs * size / n) ** 2).sum() / variance < 37.4 * n / (n - 1)


def test_batches_and_single_samples_agree_in_distribution():
    one_by_one, at_once = inclusion((1,)), inclusion((12,))
    deviation = np.sqrt(2 * 800 * 0.25 * 0.75)  # of a difference of two counts
    assert np.abs(one_by_one - at_once).max() < 4.5 * deviation


def test_bookkeeping_does_not_depend_on_the_batches():
    single, whole = fill(Buffer(6), 6, (1,)), fill(Buffer(6), 6, (6,))
    assert stored(single) == stored(whole) == list(range(6))  # free places are taken in order
    for buffer in (fill(Buffer(6), 40, (1,)), fill(Buffer(6), 40, (40,)), fill(Buffer(6), 40, (9, 2))):
        assert (buffer.num_seen_examples, len(buffer), buffer.is_full(), buffer.is_empty()) == (40, 6, True, False)
        assert len(set(stored(buffer))) == 6
    part = fill(Buffer(6), 4)
    assert (len(part), part.is_full(), stored(part)) == (4, False, [0, 1, 2, 3])


def test_a_place_taken_twice_in_a_batch_keeps_the_later_sample(monkeypatch):
    buffer = fill(Buffer(3), 3)
    places = np.array([0, 2, 0, -1, 2, 0])
    monkeypatch.setattr(type(buffer.sample_selection_fn), "__call__", lambda self, count, labels, scores: places)
    buffer.add_data(numbered(10, 16))
    assert stored(buffer) == [15, 1, 14]
    assert buffer.num_seen_examples == 9


def test_balancoir_balances_a_skewed_stream():
    """Six of ten samples are of class 0; reservoir keeps that share, balancoir ends within 1 of equal counts."""
    labels = torch.from_numpy(np.random.RandomState(3).choice(3, 3000, p=[0.6, 0.2, 0.2]))
    ends = {"balancoir": [], "reservoir": []}
    for strategy, counts in ends.items():
        for seed in range(10):
            np.random.seed(seed)
            buffer = Buffer(9, sample_selection_strategy=strategy)
            for part in labels.split(100):
                buffer.add_data(torch.zeros(len(part), 1), labels=part)
            counts.append(np.bincount(buffer.get_all_data()[1], minlength=3))
    assert np.abs(np.stack(ends["balancoir"]) - 3).max() <= 1
    assert abs(np.stack(ends["reservoir"])[:, 0].mean() - 5.4) < 1.5  # 9 x 0.6


def test_balancoir_replaces_only_in_a_largest_class():
    """Law of every step: the count that falls was a largest one."""
    np.random.seed(1)
    buffer = Buffer(9, sample_selection_strategy="balancoir")
    draws, before, changes = np.random.RandomState(0), None, 0
    for _ in range(400):
        label = int(draws.choice(4, p=[0.7, 0.1, 0.1, 0.1]))
        buffer.add_data(torch.zeros(1, 1), labels=torch.tensor([label]))
        after = np.bincount(buffer.get_all_data()[1], minlength=4)
        if before is not None and before.sum() == 9 and (after != before).any():
            fallen, risen = np.argmin(after - before), np.argmax(after - before)
            assert before[fallen] == before.max() and risen == label
            changes += 1
        before = after
    assert changes > 3


def test_lars_weights_by_hand():
    buffer = fill(
        Buffer(4, sample_selection_strategy="lars"),
        4,
        sample_selection_scores=lambda i: torch.tensor([2.0, 4.0, 3.0, 6.0])[i.long()],
    )
    strategy = buffer.sample_selection_fn
    assert np.allclose(strategy.weights(), [0, 0.5, 0.25, 1])  # (s - 2) / (6 - 2)
    strategy.update(torch.tensor([3]), torch.tensor([2.0]))
    assert np.allclose(strategy.weights(), [0, 1, 0.5, 0])
    np.random.seed(0)
    share = np.bincount([strategy.victim() for _ in range(3000)], minlength=4) / 3000
    assert share[0] == share[3] == 0 and abs(share[1] - 2 / 3) < 0.04
    strategy.update([0, 1, 2, 3], [5, 5, 5, 5])
    assert np.allclose(strategy.weights(), 1)  # no difference: any place


def test_lars_scores_follow_the_samples():
    """Sample i has score i, so after any number of replacements the score in a place is the number stored there."""
    np.random.seed(0)
    buffer = fill(Buffer(6, sample_selection_strategy="lars"), 60, (5, 3), sample_selection_scores=lambda i: i)
    assert buffer.sample_selection_fn.scores.tolist() == buffer.get_all_data()[0][:, 0].tolist()
    assert max(stored(buffer)) > 5


def test_labrs_weights_by_hand():
    scores = torch.tensor([1.0, 3.0, 0.0, 4.0])
    buffer = fill(
        Buffer(4, sample_selection_strategy="labrs"),
        4,
        (4,),
        labels=lambda i: torch.tensor([0, 0, 0, 1]),
        sample_selection_scores=lambda i: scores,
    )
    strategy = buffer.sample_selection_fn
    strategy.begin(4)
    by_score, by_class = np.array([1, 3, 0, 4]) / 8, np.array([3, 3, 3, 1]) / 10
    assert np.allclose(strategy.weights(), (by_score + by_class) / 2) and np.isclose(strategy.weights().sum(), 1)
    strategy.update([0, 1, 2, 3], [0, 0, 0, 0])
    assert np.allclose(strategy.weights(), (0.25 + by_class) / 2)


def test_ring_keeps_the_last_of_each_class():
    buffer = Buffer(7, sample_selection_strategy="ring", n_classes=3)  # two places for each class
    fill(buffer, 5, labels=lambda i: (i > 2).long())  # 0 1 2 | 3 4
    assert len(buffer) == 4 and sorted(stored(buffer)) == [1, 2, 3, 4]
    buffer.add_data(numbered(5, 9), labels=torch.tensor([2, 0, 2, 2]))
    assert len(buffer) == 6 and sorted(stored(buffer)) == [2, 3, 4, 6, 7, 8]
    with pytest.raises(UserError, match="at least 3"):
        Buffer(2, sample_selection_strategy="ring", n_classes=3)


def test_greedy_memory_is_balanced():
    """Once full, class counts differ by at most one, however uneven the stream; before that everything is kept."""
    np.random.seed(0)
    buffer = Buffer(10, sample_selection_strategy="greedy")
    fill(buffer, 8, labels=lambda i: torch.zeros_like(i).long())
    assert len(buffer) == 8
    buffer.add_data(numbered(8, 14), labels=torch.tensor([0, 0, 0, 1, 2, 1]))
    for label, n in ((1, 20), (2, 3), (0, 9), (2, 5)):
        buffer.add_data(numbered(0, n), labels=torch.full((n,), label))
    assert sorted(torch.bincount(buffer.labels).tolist()) == [3, 3, 4]


def test_abs_replaces_by_group_and_loss():
    """Old tasks lose samples of low loss, the current task those of high loss, each by its share of the memory."""
    np.random.seed(0)
    dataset = Namespace(c_task=1, get_offsets=lambda task: (2, 4))
    buffer = Buffer(4, sample_selection_strategy="abs", dataset=dataset)
    labels, losses = torch.tensor([0, 1, 2, 3]), torch.tensor([1.0, 5.0, 1.0, 5.0])
    buffer.add_data(numbered(0, 4), labels=labels, sample_selection_scores=losses)
    pick = buffer.sample_selection_fn
    pick.begin(4)
    victims = np.bincount([pick.victim() for _ in range(400)], minlength=4)
    assert victims[1] == 0 == victims[2] and abs(victims[0] - 200) < 60 and victims[3] == 400 - victims[0]


def test_reservoir_takes_a_large_batch_like_single_samples():
    """10,000 samples at once: each part of the stream is kept as often as one at a time (chi-square, 9 degrees)."""
    from scipy.stats import chi2

    np.random.seed(3)
    counts = np.zeros(10)
    for _ in range(20):
        buffer = Buffer(500)
        buffer.add_data(numbered(0, 10_000))
        counts += np.bincount((buffer.examples[:, 0] // 1000).long().numpy(), minlength=10)
    assert ((counts - 1000) ** 2 / 1000).sum() < chi2.ppf(0.999, 9)


def test_greedy_memory_refuses_the_largest_class():
    buffer = Buffer(4, sample_selection_strategy="greedy")
    fill(buffer, 4, labels=lambda i: (i == 3).long())  # 0 0 0 1
    buffer.add_data(numbered(10, 20), labels=torch.zeros(10, dtype=torch.long))
    assert stored(buffer) == [0, 1, 2, 3]


def test_abs_shares_follow_the_memory():
    """One place of six is of an old task: it goes with probability 1/6."""
    np.random.seed(0)
    dataset = Namespace(c_task=1, get_offsets=lambda task: (2, 4))
    buffer = Buffer(6, sample_selection_strategy="abs", dataset=dataset)
    labels = torch.tensor([0, 2, 2, 3, 3, 3])
    buffer.add_data(numbered(0, 6), labels=labels, sample_selection_scores=torch.arange(6.0))
    pick = buffer.sample_selection_fn
    pick.begin(6)
    old = sum(pick.victim() == 0 for _ in range(1200))
    assert abs(old - 200) < 4 * (1200 * 5 / 36) ** 0.5
