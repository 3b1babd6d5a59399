"""Visual question answering as classification over an answer vocabulary, scored by how many annotators agree."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from datasets.utils.answers import normalise_answer
from datasets.utils.continual_dataset import ContinualDataset
from datasets.utils.samples import PairFiles
from datasets.utils.tokens import tokenize
from utils.errors import UserError

N_ANNOTATORS = 10
QUESTION_TOKENS = 77  # longer questions lose their tail


def soft_scores(counts: torch.Tensor) -> torch.Tensor:
    """VQA accuracy (N, A) of each answer from the number n of the ten annotators who gave it (N, A).

    The official form: min(matches / 3, 1) among nine annotators, averaged over the ten ways to leave one out. One of
    the n matching is left out in n of the ten ways, so the score is ((10 - n) min(n/3, 1) + n min((n - 1)/3, 1)) / 10:
    0.3, 0.6, 0.9 and 1 for n = 1, 2, 3 and more.
    """
    n = counts.double()
    kept, left_out = (n / 3).clamp(max=1), ((n - 1) / 3).clamp(0, 1)
    return (((N_ANNOTATORS - n) * kept + n * left_out) / N_ANNOTATORS).float()


CREDIT = soft_scores(torch.arange(N_ANNOTATORS + 1)).tolist()  # by how many of the ten gave an answer


@dataclass
class Question:
    """One question as read from a file."""

    image: Path
    text: str
    credit: dict[str, float]  # normalised answer -> VQA accuracy of giving it
    first: str  # the first annotator's answer, normalised


def question_of(image: Path, text: str, answers: Sequence[str]) -> Question:
    """A question with its ten answers; their spellings are made one before they are counted."""
    given = [normalise_answer(answer) for answer in answers]
    if len(given) != N_ANNOTATORS:
        raise ValueError(f"{len(given)} answers, wanted {N_ANNOTATORS}")
    counts = Counter(given)
    return Question(image, text, {answer: CREDIT[n] for answer, n in counts.most_common()}, given[0])


def tidy_question(text: str) -> str:
    """Lower case, hyphens and slashes to spaces, no punctuation."""
    text = re.sub(r"[-/]", " ", text.lower())
    return " ".join(re.sub(r"[^\w\s']", " ", text).split())


def best_answer(question: Question) -> str:
    """The answer with the highest credit; of several, the one given first."""
    return max(question.credit, key=question.credit.__getitem__)


def vocabulary(tasks: Sequence[Sequence[Question]], min_freq: int, most: int) -> list[str]:
    """Answers that training questions are classified into: of each task the `most` frequent of those that are the best
    answer of at least `min_freq` questions, frequent ones first, ties by name; tasks one after another."""
    found: dict[str, None] = {}
    for questions in tasks:
        counts = Counter(map(best_answer, questions))
        ranked = sorted((-n, answer) for answer, n in counts.items() if n >= min_freq and answer)
        found |= dict.fromkeys(answer for _, answer in ranked[:most])
    return list(found)


class SparseScores:
    """Credit of every answer, (N, A), kept as the few answers of each question and made dense a batch at a time."""

    dtype = torch.float32

    def __init__(self, ids: torch.Tensor, credit: torch.Tensor, n_answers: int):
        self.ids, self.credit, self.n_answers = (
            ids,
            credit,
            n_answers,
        )  # (N, K) with n_answers where there is none, (N, K)

    @classmethod
    def of(cls, questions: Sequence[Question], place: dict[str, int]) -> "SparseScores":
        ids = torch.full((len(questions), N_ANNOTATORS), len(place), dtype=torch.int32)
        credit = torch.zeros(len(questions), N_ANNOTATORS)
        for row, question in enumerate(questions):
            known = [(place[answer], value) for answer, value in question.credit.items() if answer in place]
            for k, (number, value) in enumerate(known[:N_ANNOTATORS]):
                ids[row, k], credit[row, k] = number, value
        return cls(ids, credit, len(place))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.ids), self.n_answers

    def subset(self, rows: torch.Tensor) -> "SparseScores":
        return SparseScores(self.ids[rows], self.credit[rows], self.n_answers)

    def __getitem__(self, rows) -> torch.Tensor:
        """Dense rows: (A,) for one position, (B, A) for several."""
        ids, credit = self.ids[rows].long(), self.credit[rows]
        return credit.new_zeros(*ids.shape[:-1], self.n_answers + 1).scatter_(-1, ids, credit)[..., :-1]

    def split(self, size: int) -> Iterator[torch.Tensor]:
        return (self[start : start + size] for start in range(0, len(self), size))

    def best(self) -> torch.Tensor:
        """(N,) the highest credit that any answer in the vocabulary earns."""
        return self.credit.max(dim=1).values


class VQADataset(ContinualDataset):
    """Samples are Pairs (picture, question tokens), labels the most frequent answers, and the extra `soft` (N, A) holds
    the credit of every answer. The record names its scores vqa_*; exact_match_last compares with the first answer."""

    VQA = True
    HAS_TEXT = True

    def score(self, outputs: torch.Tensor, labels: torch.Tensor, extras: dict[str, torch.Tensor]) -> torch.Tensor:
        return extras["soft"].gather(1, outputs.argmax(dim=1, keepdim=True)).squeeze(1)


def as_samples(tasks: Sequence[Sequence[Question]], answers: Sequence[str], args, train: bool, name: str) -> PairFiles:
    """Samples of all tasks, classes being `answers`. A training question none of whose answers is among them is left out;
    a test question stays and earns nothing: its label is a placeholder, its `first` -1."""
    place = {answer: number for number, answer in enumerate(answers)}
    kept = [
        (task, q) for task, questions in enumerate(tasks) for q in questions if not train or place.keys() & q.credit
    ]
    if not kept:
        raise UserError(f"{name}: no question has an answer that is in the vocabulary; lower --min_answer_freq")
    questions = [question for _, question in kept]
    soft = SparseScores.of(questions, place)
    label = soft.ids.gather(1, soft.credit.argmax(dim=1, keepdim=True)).squeeze(1).long()
    label[label == len(place)] = 0
    extras = {"soft": soft}
    if not train:
        extras["first"] = torch.tensor([place.get(question.first, -1) for question in questions])
    text = tokenize([tidy_question(question.text) for question in questions], args, cut=QUESTION_TOKENS)
    samples = PairFiles([question.image for question in questions], text, label, **extras)
    samples.task_ids = torch.tensor([task for task, _ in kept])
    samples.questions = [question.text for question in questions]
    return samples
