"""CLOVE and VQACL: answers in one spelling, VQA accuracy, vocabulary, files in each layout, orders, and bad files."""

import json
import os
from argparse import Namespace
from itertools import combinations

import numpy as np
import pytest
import torch

import main
from datasets import get_dataset
from datasets.utils.answers import normalise_answer
from datasets.utils.vqa import Question, SparseScores, question_of, soft_scores, tidy_question, vocabulary
from tests import fabricate_mm as mm
from tests.conftest import newest_record
from utils.engine import metrics
from utils.errors import UserError


def make(name, base, **flags):
    return get_dataset(Namespace(dataset=name, base_path=str(base), seed=0, batch_size=4, **flags))


def refused(name, base, **flags):
    with pytest.raises(UserError) as error:
        dataset = make(name, base, **flags)
        dataset.samples(True), dataset.samples(False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "answer, wanted",
    [
        ("The Dogs.", "dogs"),
        ("dont know", "don't know"),
        ("two", "2"),
        ("None", "0"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("red/blue", "red blue"),
        ("red / blue", "red blue"),
        ("a  an the", ""),
        ("yes!", "yes"),
        ("t-shirt", "t shirt"),
        ("dog's", "dog 's"),
        ("its", "its"),
        ("its, a well", "its well"),
        ("thats", "that's"),
        ("Ten\ncats?", "10 cats"),
    ],
)
def test_one_spelling(answer, wanted):
    assert normalise_answer(answer) == wanted


def test_question_text():
    assert tidy_question("What is on the T-shirt/top, right?") == "what is on the t shirt top right"


@pytest.mark.parametrize("n", range(11))
def test_soft_accuracy_is_the_mean_over_who_is_left_out(n):
    people = [1] * n + [0] * (10 - n)
    slow = np.mean([min(sum(nine) / 3, 1) for nine in combinations(people, 9)])
    assert float(soft_scores(torch.tensor(n))) == pytest.approx(slow, abs=1e-6)
    assert float(soft_scores(torch.tensor(n))) == pytest.approx([0, 0.3, 0.6, 0.9, 1][min(n, 4)], abs=1e-6)


def test_spellings_count_together():
    question = question_of(None, "?", ["Two", "2", "two.", "dog", "The dog"] + ["cat"] * 5)
    assert question.credit == pytest.approx({"cat": 1.0, "2": 0.9, "dog": 0.6}) and question.first == "2"


def test_forgetting_takes_each_tasks_own_maximum():
    """The matrix of Symbolic Replay's README: one maximum for all tasks would give 0.274."""
    learned, final = [0.5997, 0.4177, 0.3943, 0.7153, 0.6813, 0.5511], [0.2963, 0.3083, 0.3037, 0.6733, 0.6253, 0.5511]
    R = np.full((6, 6), np.nan)
    for t in range(6):
        R[t, : t + 1] = [final[j] if t == 5 else learned[j] for j in range(t + 1)]
    assert metrics.forgetting(R) == pytest.approx(0.1203, abs=1e-4) == -metrics.bwt(R)


def test_sparse_scores_are_the_dense_ones():
    questions = [Question(None, "", {"a": 1.0, "x": 0.3}, "a"), Question(None, "", {"b": 0.6, "a": 0.9}, "b")]
    scores, dense = SparseScores.of(questions, {"a": 0, "b": 1, "c": 2}), torch.tensor([[1.0, 0, 0], [0.9, 0.6, 0]])
    assert scores.shape == (2, 3) and torch.equal(scores[torch.arange(2)], dense) and torch.equal(scores[1], dense[1])
    assert torch.equal(torch.cat(list(scores.split(1))), dense) and torch.equal(
        scores.subset(torch.tensor([1]))[0], dense[1]
    )
    assert scores.best().tolist() == pytest.approx([1, 0.9])


def test_vocabulary_counts_each_task():
    def asked(**counts):
        return [Question(None, "", {answer: 1.0}, answer) for answer, n in counts.items() for _ in range(n)]

    tasks = [asked(yes=3, no=2, rare=1), asked(no=4, dog=2, cat=2)]
    assert vocabulary(tasks, 2, 10) == ["yes", "no", "cat", "dog"]
    assert vocabulary(tasks, 1, 10) == ["yes", "no", "rare", "cat", "dog"] and vocabulary(tasks, 2, 1) == ["yes", "no"]


@pytest.mark.parametrize("name, kind", [("clove-scene", "scene"), ("clove-function", "function")])
def test_layouts_agree(name, kind, tmp_path):
    found = []
    for number, (form, folders) in enumerate([("json", mm.VG), ("json", ["vg/image"]), ("npy", mm.VG)]):
        mm.clove(tmp_path / str(number), kind, form, folders)
        dataset = make(name, tmp_path / str(number))
        samples = dataset.samples(True)
        assert len(samples) == 48 and samples.task_ids.bincount().tolist() == [8] * 6
        assert len(samples.distinct) == 24, "two questions about each picture"
        found.append(
            (dataset.CLASS_NAMES, samples.targets.tolist(), samples.text.tolist(), [p.name for p in samples.paths])
        )
    assert found[0] == found[1] == found[2]
    assert {"yes", "no", "thing 1", "kind 1"} <= set(found[0][0])


def test_letters_order_the_tasks_and_not_the_answers(tmp_path):
    mm.clove(tmp_path, "function")
    default, other = make("clove-function", tmp_path), make("clove-function", tmp_path, clove_order="slkoar")
    assert default.names == ["object", "attribute", "relation", "logical", "knowledge", "scenetext"]
    assert other.names == ["scenetext", "logical", "knowledge", "object", "attribute", "relation"]
    assert default.CLASS_NAMES == other.CLASS_NAMES
    default.get_data_loaders(), other.get_data_loaders()

    def asked(dataset):
        return {dataset.samples(True).paths[int(row)].parts[-3] for row in dataset.train_loader.dataset.rows}

    assert asked(default) == {"vg"} and asked(other) == {"textvqa"}
    five = make("clove-function", tmp_path, clove_order="oarlk")
    assert five.N_TASKS == 5 and "thing 5" not in five.CLASS_NAMES


def test_the_naming_trap_is_told(tmp_path):
    mm.clove(tmp_path, "function")
    assert "abcdef is aklors here" in refused("clove-function", tmp_path, clove_order="abcdef")
    assert "s scenetext" in refused("clove-function", tmp_path, clove_order="oo")
    assert "f Outdoors" in refused("clove-scene", tmp_path, clove_order="oarlks")
    assert "f Outdoors" in refused("clove-scene", tmp_path, clove_order="")


def test_what_the_answers_do_not_cover(tmp_path, capsys):
    root = mm.clove(tmp_path, "scene")
    path = root / "json/scene/scene_a#ShopAndDining_val.json"
    rows = json.loads(path.read_text())
    rows[0]["answers"] = ["something else"] * 10
    rows[1]["answers"] = ["yes"] * 3 + ["something else"] * 7
    rows[1]["answers"][0] = "something else"  # two of ten: 0.6
    path.write_text(json.dumps(rows))
    dataset = make("clove-scene", tmp_path)
    test = dataset.samples(False)
    assert len(test) == 48 and test.extras["first"][:2].tolist() == [-1, -1]
    facts = dataset.facts()
    assert facts["answer_coverage"]["ShopAndDining"] == pytest.approx(100 * 6.6 / 8)
    assert facts["answer_coverage"]["Workplace"] == 100
    assert "ShopAndDining 82.5" in capsys.readouterr().out
    assert make("clove-scene", tmp_path, max_answers=1).N_CLASSES < dataset.N_CLASSES
    assert "lower --min_answer_freq" in refused("clove-scene", tmp_path, min_answer_freq=50)


def test_a_run_reports_both_accuracies(tmp_path, capsys):
    mm.clove(tmp_path, "function")
    argv = [
        "--model",
        "clip",
        "--dataset",
        "clove-function",
        "--base_path",
        str(tmp_path),
        "--clip_backbone",
        "tiny",
        "--clove_order",
        "os",
        "--results_path",
        str(tmp_path / "runs"),
        "--seed",
        "0",
    ]
    assert main.main(argv) == 0
    rows = newest_record(tmp_path / "runs")
    printed = capsys.readouterr().out
    assert "exact match" in printed and "the best possible accuracy with them is" in printed
    start, end = rows[0], rows[-1]
    assert start["data"]["answers"] > 1 and set(start["data"]["answer_coverage"]) == {"object", "scenetext"}
    assert {"vqa_last", "vqa_forgetting", "exact_match_last"} <= set(end["summary"])
    last = [row for row in rows if row["type"] == "task"][-1]["scores"]
    assert len(last["exact_match"]) == 2 and last["exact_match"][1] <= last["class_il"][1] + 1e-6


@pytest.mark.parametrize(
    "spoil, told",
    [
        ("picture", "does not exist (nor in"),
        ("json", "line 1"),
        ("answers", "question 3: it has no answer"),
        ("field", "question 1 has no 'question'"),
        ("source", "image_source 'coco'"),
        ("escape", "is not a file name"),
        ("empty", "does not contain a question"),
        ("kind", "does not contain a list of questions"),
        ("absent", "prepare_data.py"),
    ],
)
def test_bad_files_are_named(spoil, told, tmp_path):
    root = mm.clove(tmp_path, "scene")
    path = root / "json/scene/scene_b#Workplace_train.json"
    rows = json.loads(path.read_text())
    if spoil == "picture":
        picture = next(p for folder in mm.VG for p in (root / folder).glob(f"{rows[0]['image_id']}.jpg"))
        picture.unlink()
        assert rows[0]["image_id"] in refused("clove-scene", tmp_path)
    elif spoil == "absent":
        path.unlink()
    elif spoil == "json":
        path.write_text(path.read_text()[:-20])
    else:
        changes = {
            "answers": (2, {"answers": []}),
            "source": (0, {"image_source": "coco"}),
            "escape": (0, {"image_id": "../../x"}),
        }
        if spoil in changes:
            rows[changes[spoil][0]] |= changes[spoil][1]
        elif spoil == "field":
            del rows[0]["question"]
        path.write_text(json.dumps({"empty": [], "kind": {"a": 1}}.get(spoil, rows)))
    text = refused("clove-scene", tmp_path)
    assert told in text and (spoil == "picture" or str(path) in text)


def test_an_npy_file_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    root = mm.clove(tmp_path, "scene", "npy")
    path = root / "npy/scene/fcl_mmf_b#Workplace_train.npy"
    np.save(path, np.array([Evil()], dtype=object), allow_pickle=True)
    assert "corrupt" in refused("clove-scene", tmp_path) and not (tmp_path / "owned").exists()


def test_vqacl_partition_and_map(tmp_path):
    mm.vqacl(tmp_path / "a")
    mm.vqacl(tmp_path / "b", "map")
    listed, mapped = make("vqacl", tmp_path / "a", min_answer_freq=1), make("vqacl", tmp_path / "b", min_answer_freq=1)
    for dataset in (listed, mapped):
        assert dataset.CLASS_NAMES == ["2", "yes"] and dataset.N_TASKS == 10
        assert dataset.samples(True).task_ids.bincount().tolist() == [2] * 10
        assert dataset.samples(False).targets.tolist() == [1, 0] * 10
        assert all("train2014" in str(path) for path in dataset.samples(True).paths)
    assert mapped.samples(False).extras["soft"].best().min() == 1
    (tmp_path / "b/vqacl/v2_mscoco_val2014_annotations.json").unlink()
    assert "question 1: it has neither answers" in refused("vqacl", tmp_path / "b", min_answer_freq=1)
    picture = next((tmp_path / "a/vqacl/val2014").iterdir())
    picture.unlink()
    assert str(picture) in refused("vqacl", tmp_path / "a", min_answer_freq=1)


@pytest.mark.parametrize("spoil", ["img_id", "data_subtype", "questions", "row", "annotations"])
def test_bad_vqacl_files_are_named(spoil, tmp_path):
    mm.vqacl(tmp_path, "partition" if spoil == "img_id" else "map")
    root = tmp_path / "vqacl"
    path = root / {
        "img_id": "Partition_Q/karpathy_train_q_count.json",
        "annotations": "v2_mscoco_train2014_annotations.json",
    }.get(spoil, "v2_OpenEnded_mscoco_train2014_questions.json")
    table = json.loads(path.read_text())
    if spoil == "img_id":
        table[0]["img_id"] = "COCO"
    elif spoil == "row":
        table["questions"][0] = 3
    else:
        del table[spoil]
    path.write_text(json.dumps(table))
    text = refused("vqacl", tmp_path, min_answer_freq=1)
    assert str(path) in text and ("COCO" if spoil == "img_id" else "corrupt") in text
