"""Training target of a question: its best answer, if its task has that answer; any number of annotators."""

import json
from argparse import Namespace
from itertools import combinations

import numpy as np
import pytest
import torch

from datasets import get_dataset
from datasets.utils.vqa import as_samples, best_answer, question_of, soft_scores, task_answers, vocabulary
from tests import fabricate_mm as mm
from utils.errors import UserError


def asked(tmp_path, *answers: list[str]) -> list:
    return [
        question_of(mm.picture(tmp_path / f"{k}.jpg", 20 * k), f"what {k}?", given) for k, given in enumerate(answers)
    ]


def samples(tasks: list, least: int = 1, train: bool = True):
    answers, own = vocabulary(tasks, least, 10), [task_answers(questions, least, 10) for questions in tasks]
    return answers, as_samples(tasks, answers, Namespace(clip_backbone="tiny"), train, "toy", own)


def test_a_question_whose_best_answer_is_rare_is_not_trained_toward_another(tmp_path):
    rare = ["exit 42"] * 7 + ["yes"] * 3
    tasks = [asked(tmp_path, ["unanswerable"] * 10, ["unanswerable"] * 10, rare, ["yes"] * 10, ["yes"] * 10)]
    answers, found = samples(tasks, least=2)
    assert answers == ["unanswerable", "yes"] and found.targets.tolist() == [0, 0, 1, 1]
    _, test = samples(tasks, least=2, train=False)
    assert (
        len(test) == 5
        and test.targets.tolist() == [0, 0, 1, 1, 1]
        and test.extras["soft"][2].tolist() == pytest.approx([0, 0.9])
    ), "its score stays"


def test_which_questions_stay_does_not_depend_on_other_tasks(tmp_path):
    first = asked(tmp_path, ["red"] * 10, ["red"] * 10, ["blue"] * 6 + ["red"] * 4)
    second = asked(tmp_path, ["blue"] * 10, ["blue"] * 10)
    alone, joined = samples([first], least=2), samples([first, second], least=2)
    assert alone[0] == ["red"] and joined[0] == ["red", "blue"]
    assert alone[1].targets.tolist() == [0, 0] and joined[1].targets.tolist() == [0, 0, 1, 1]
    assert joined[1].task_ids.tolist() == [0, 0, 1, 1], "blue is an answer of the second task alone"


def test_of_several_with_full_credit_the_most_frequent_is_the_label(tmp_path):
    question = asked(tmp_path, ["dog"] * 4 + ["cat"] * 6)[0]
    assert question.credit == {"cat": 1.0, "dog": 1.0} and best_answer(question) == "cat"
    answers, found = samples([[question] * 3])
    assert [answers[label] for label in found.targets] == ["cat"] * 3


@pytest.mark.parametrize("of", [1, 2, 3, 5, 9, 10, 20])
def test_answers_of_another_number_of_annotators_are_scaled_to_ten(of):
    for n in range(of + 1):
        score, share = float(soft_scores(torch.tensor(n), of)), 10 * n / of
        wanted = ((10 - share) * min(share / 3, 1) + share * min(max(share - 1, 0) / 3, 1)) / 10
        assert score == pytest.approx(wanted, abs=1e-6)
        if of == 10:
            people = [1] * n + [0] * (10 - n)
            assert score == pytest.approx(
                np.mean([min(sum(nine) / 3, 1) for nine in combinations(people, 9)]), abs=1e-6
            )
    assert float(soft_scores(torch.tensor(of), of)) == 1 and float(soft_scores(torch.tensor(0), of)) == 0


def test_a_file_with_single_answers_is_read_and_told(tmp_path, capsys):
    root = mm.clove(tmp_path, "scene")
    path = root / "json/scene/scene_a#ShopAndDining_train.json"
    rows = json.loads(path.read_text())
    rows[0]["answers"], rows[1]["answers"] = ["yes"], ["yes"] * 3 + ["no"]
    path.write_text(json.dumps(rows))
    dataset = get_dataset(Namespace(dataset="clove-scene", base_path=str(tmp_path), seed=0, batch_size=4))
    credit = [question.credit for question in dataset.questions(True)[0][:2]]
    assert credit[0] == {"yes": 1.0} and credit[1] == pytest.approx(
        {"yes": 1.0, "no": float(soft_scores(torch.tensor(1), 4))}
    )
    assert dataset.facts()["other_than_ten_answers"] == 2
    assert "2 questions do not have ten answers" in capsys.readouterr().out


def test_a_question_without_answers_is_refused():
    with pytest.raises(ValueError, match="no answer"):
        question_of(None, "?", [])


def test_a_task_with_rare_answers_only_is_refused(tmp_path):
    questions = asked(tmp_path, ["red"] * 10, ["blue"] * 10)
    with pytest.raises(UserError, match="lower --min_answer_freq"):
        as_samples([questions], ["green"], Namespace(clip_backbone="tiny"), True, "toy", [["green"]])
