"""The control that does not look: counts by question against a loop, majority, new questions."""

from collections import Counter

import pytest
import torch

from tests import contract


@pytest.fixture(autouse=True)
def toy_streams(monkeypatch):
    monkeypatch.setattr(contract.ToyPairs, "HAS_TEXT", True)
    with contract.toys():
        yield


def asked(split) -> list[tuple]:
    rows = split.samples.data.text[split.rows]
    return [tuple(row) for row in rows.tolist()]


@pytest.mark.parametrize("reads", ["question", "nothing"])
def test_answers_are_the_most_frequent_to_the_question(reads):
    toy = contract.build("blind", "toy-pairs", reads=reads)
    seen: dict[tuple, Counter] = {}
    for _ in range(2):
        toy.dataset.get_data_loaders()
        toy.model.meta_begin_task(toy.dataset)
        split = toy.dataset.train_loader.dataset
        for question, label in zip(asked(split), split.targets.tolist(), strict=True):
            seen.setdefault(question if reads == "question" else (), Counter())[label] += 1
        toy.model.meta_end_task(toy.dataset)
    for loader in toy.dataset.test_loaders:
        texts = asked(loader.dataset)
        inputs = next(iter(loader))[0]
        for row, question in zip(toy.model(inputs), texts, strict=False):
            counts = seen.get(question if reads == "question" else ())
            if counts:
                assert counts[int(row.argmax())] == max(counts.values())


def test_a_new_question_gets_the_majority_answer():
    toy = contract.build("blind", "toy-pairs")
    toy.model.asked = torch.tensor([[1, 2], [3, 4]])
    toy.model.counts = torch.zeros(2, toy.model.num_classes)
    toy.model.counts[0, 1], toy.model.counts[1, 0] = 3, 2
    text = torch.tensor([[3, 4], [1, 2], [5, 6]])
    from utils.pair import Pair

    assert toy.model(Pair(torch.zeros(3, 3, 4, 4), text)).argmax(1).tolist() == [0, 1, 1]
