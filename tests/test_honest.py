"""scripts/honest.py: what it measures of models whose answers do, or do not, depend on the batch; and its page."""

import re
from types import SimpleNamespace

import pytest
import torch

from models import get_model_names
from scripts import honest
from utils import cli

LABELS = [torch.tensor([0, 1, 0]), torch.tensor([2, 3])]  # two tasks of two classes


class Loader:
    """A test set of images (N, 1, 1, 1) that hold their label."""

    def __init__(self, labels):
        self.dataset, self.labels = labels, labels

    def __iter__(self):
        return iter([(self.labels.float().view(-1, 1, 1, 1), self.labels)])


class Model(torch.nn.Module):
    """Answers (B, 4): the label plus one, wrapped at `wrap`, or what `rule` makes of the batch."""

    COMPATIBILITY = ["class-il"]

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x):
        return self.rule(x.flatten().long())


DATASET = SimpleNamespace(test_loaders=[Loader(part) for part in LABELS], get_offsets=lambda t: (2 * t, 2 * t + 2))


def one_hot(answers):
    return torch.nn.functional.one_hot(answers, 4).float()


def measured(rule) -> honest.Row:
    return honest.row_of(honest.answers(Model(rule), DATASET), "abc")


def test_a_model_that_sees_its_image_alone_does_not_change():
    assert measured(one_hot) == honest.Row(100.0, 0.0, 0.0, 0.0, 0, 5, "abc")


def test_the_task_helps_where_answers_are_of_another_one():
    """Images of class 0 are taken for 2, with 0 as the second choice: 2 of 5 wrong without the task."""
    row = measured(lambda x: one_hot(x) + 2 * (x == 0)[:, None] * one_hot(torch.full_like(x, 2)))
    assert row.last == pytest.approx(60) and row.told == pytest.approx(40) and row.answers == 0


def test_a_vote_over_the_batch_is_seen_in_both_ways():
    """The largest label of a batch moves all answers to its task: right while batches are of one task."""

    def vote(x):
        task = x.max() // 2
        return one_hot(2 * task + x % 2)

    row = measured(vote)
    assert row.last == 100 and row.alone == 0 and row.mixed == pytest.approx(-60) and row.answers == 3


def test_batches_of_one_are_seen():
    row = measured(lambda x: one_hot(x if len(x) > 1 else torch.zeros_like(x)))
    assert row.alone == pytest.approx(-60) and row.mixed == 0 and row.answers == 3


def test_rows_of_a_page_are_those_written():
    rows = {
        "ncm": honest.Row(76.3, 0.0, -1.5, 17.0, 3, 540, "c4aa5f3e65"),
        "er": honest.Row(9.0, 0.1, 0, 2.0, 1, 9, "x+"),
    }
    text = honest.page(rows)
    assert honest.rows_of(text) == rows and honest.page(honest.rows_of(text)) == text
    listed = re.search(r"\*not run\*: (.*)\. Always told the task, so not here: (.*)\.", text)
    assert set(listed[1].split(", ")) | {"er", "ncm", *listed[2].split(", ")} == set(get_model_names())
    assert listed[2] == "pnn"


@pytest.mark.parametrize("name", ["ncm", "er", "quad", "zscl", "engine", "proof"])
def test_commands_are_understood(name):
    """The page's settings, and the method's own ones for this world in place of those of toy runs."""
    args = cli.parse(honest.command(name)).args
    assert (args.dataset, args.shots, args.stop_after, args.seed) == ("seq-tiny", 10, 2, 0)
    assert getattr(args, "buffer_size", 100) == 100 and args.clip_backbone == "tiny"
    assert name != "proof" or (args.lr == 0.01 and args.exemplars == 20)
    assert name != "er" or (args.lr == 0.03 and args.backbone == "clip-visual")
