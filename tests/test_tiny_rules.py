"""The stream of rules: the square that decides what is asked, groups by factor, cells; comparisons and relations."""

import re

import numpy as np
import pytest
import torch

from datasets.tiny_world import captions, questions, streams, world

WORDS = {"one": 1, "two": 2, "three": 3, "four": 4}
COLUMNS = {"color": ("colour", world.COLOURS), "pattern": ("pattern", world.PATTERNS)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(streams, "RULES_SIZE", {True: 90, False: 45})


@pytest.fixture
def described(monkeypatch):
    """What `render` is given by the next stream."""
    seen = []
    monkeypatch.setattr(streams, "render", lambda spec: seen.append(spec) or torch.zeros(len(spec["index"]), 3, 48, 48))
    return seen


def test_each_skill_is_once_in_each_row_and_column_of_a_square_that_turns():
    group, wording = np.divmod(np.arange(9), 3)
    squares = [questions.square(group, wording, task).reshape(3, 3) for task in range(4)]
    for found in squares:
        for line in (*found, *found.T):
            assert sorted(line) == [0, 1, 2]
    assert not any((a == b).any() for a, b in zip(squares, squares[1:], strict=False))
    assert (squares[0] == squares[3]).all()


@pytest.mark.parametrize("factor", questions.FACTORS)
def test_group_and_wording_together_give_the_question(factor, described):
    for task in range(questions.RULE_TASKS):
        data = streams.clove_tiny_rules(task, True, factor=factor)
        spec, cells = described[-1], data["cells"].numpy()
        assert (np.bincount(cells[:, 0] * 3 + cells[:, 1]) == 10).all()
        asked = {}
        for i, (group, wording) in enumerate(cells):
            skill = data["kinds"][i]
            asked.setdefault((wording if factor == "none" else (group, wording)), set()).add(skill)
            name, words = COLUMNS.get(skill, (skill, captions.NAMES if skill == "kind" else captions.SCENES))
            value = spec[name][i] if spec[name].ndim == 1 else spec[name][i, 0]
            assert data["answer"][i] == words[value] and skill != factor
        assert all(len(found) == 1 for found in asked.values())
        values = spec["kind"][:, 0] if factor in ("kind", "none") else spec[factor]
        shown = [set(values[cells[:, 0] == group]) for group in range(3)]
        assert all(len(found) == 1 for found in shown) and len(set.union(*shown)) == 3
        by_wording = [{q for q, w in zip(data["questions"], cells[:, 1], strict=True) if w == j} for j in range(3)]
        assert all(len(found) == 1 for found in by_wording) and len(set.union(*by_wording)) == 3
        if factor != "none":  # neither the group nor the wording tells alone
            skills = np.array(data["kinds"])
            assert all(len(set(skills[cells[:, side] == value])) == 3 for side in (0, 1) for value in range(3))
            assert not re.search("color|pattern|scene|where", " ".join(data["questions"]))


def test_no_wording_and_no_kind_is_that_of_two_tasks(described):
    data = [streams.clove_tiny_rules(task, True) for task in range(questions.RULE_TASKS)]
    assert len({text for part in data for text in part["questions"]}) == 3 * questions.RULE_TASKS
    kinds = [set(spec["kind"][:, 0]) for spec in described]
    assert len(set.union(*kinds)) == 3 * questions.RULE_TASKS


def test_cells_reach_the_samples(tmp_path):
    from argparse import Namespace

    from datasets.clove_tiny_rules import CloveTinyRules

    args = Namespace(dataset="clove-tiny-rules", base_path=str(tmp_path), seed=0, batch_size=8, clip_backbone="tiny")
    dataset = CloveTinyRules(args, factor="scene")
    raw = [streams.clove_tiny_rules(task, False, factor="scene") for task in range(4)]
    samples = dataset.samples(False)
    assert torch.equal(samples.cells, torch.cat([part["cells"] for part in raw]))
    assert samples.questions == [text for part in raw for text in part["questions"]]
    assert [dataset.CLASS_NAMES[t] for t in samples.targets] == [answer for part in raw for answer in part["answer"]]


def test_comparisons_hold_of_what_is_shown(described, monkeypatch):
    monkeypatch.setattr(streams, "CLOVE_SIZE", {True: 300, False: 30})
    data = streams.clove_tiny_function(captions.QUESTION_KINDS.index("logic"), True)
    for text, answer, count in zip(data["questions"], data["answer"], described[-1]["count"], strict=True):
        word, number = re.match(r"are there (more|fewer) than (\w+) ", text).groups()
        true = count > WORDS[number] if word == "more" else count < WORDS[number]
        assert answer == ("yes" if true else "no"), (text, count)
    by_text = [
        np.mean([a == "yes" for q, a in zip(data["questions"], data["answer"], strict=True) if key in q])
        for key in ("more than one", "more than three", "fewer than two", "fewer than four")
    ]
    assert all(0.25 < share < 0.75 for share in by_text)  # the question alone does not tell


def test_relations_are_of_few_pairs_of_objects(described, monkeypatch):
    monkeypatch.setattr(streams, "CLOVE_SIZE", {True: 200, False: 30})
    data = streams.clove_tiny_function(captions.QUESTION_KINDS.index("relation"), True)
    assert len(set(data["questions"])) == 2 * len(questions.RELATED)
    for i, text in enumerate(data["questions"]):
        first, other = re.match(r"where is the (\w+), seen from the (\w+)\?", text).groups()
        kinds = [captions.NAMES[k] for k in described[-1]["kind"][i]]
        place = {kinds[k]: (described[-1]["cx"][i, k], described[-1]["cy"][i, k]) for k in (0, 1)}
        (x, y), (u, v) = place[first], place[other]
        seen = {"left of": x < u, "right of": x > u, "above": y < v, "below": y > v}
        assert seen[data["answer"][i]], (text, data["answer"][i])
