"""Visual question answering as classification over an answer vocabulary, scored by how many annotators agree."""

import functools
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


def soft_scores(counts: torch.Tensor, of: int = N_ANNOTATORS) -> torch.Tensor:
    """VQA accuracy (N, A) of each answer from the number n of the ten annotators who gave it (N, A); counts of another
    number of annotators, `of`, are scaled to ten.

    The official form: min(matches / 3, 1) among nine annotators, averaged over the ten ways to leave one out. One of
    the n matching is left out in n of the ten ways, so the score is ((10 - n) min(n/3, 1) + n min((n - 1)/3, 1)) / 10:
    0.3, 0.6, 0.9 and 1 for n = 1, 2, 3 and more.
    """
    n = counts.double() * N_ANNOTATORS / of
    kept, left_out = (n / 3).clamp(max=1), ((n - 1) / 3).clamp(0, 1)
    return (((N_ANNOTATORS - n) * kept + n * left_out) / N_ANNOTATORS).float()


@functools.cache
def credits_of(annotators: int) -> list[float]:
    """Credit by how many of the annotators gave an answer."""
    return soft_scores(torch.arange(annotators + 1), annotators).tolist()


@dataclass
class Question:
    """One question as read from a file."""

    image: Path
    text: str
    credit: dict[str, float]  # normalized answer -> VQA accuracy of giving it
    first: str  # the first annotator's answer, normalized
    annotators: int = N_ANNOTATORS


def question_of(image: Path, text: str, answers: Sequence[str]) -> Question:
    """A question with its answers, most frequent first; their spellings are unified before they are counted."""
    given = [normalise_answer(answer) for answer in answers]
    if not given:
        raise ValueError("it has no answer")
    credit, counts = credits_of(len(given)), Counter(given)
    return Question(image, text, {answer: credit[n] for answer, n in counts.most_common()}, given[0], len(given))


def tidy_question(text: str) -> str:
    """Lower case, hyphens and slashes to spaces, no punctuation."""
    text = re.sub(r"[-/]", " ", text.lower())
    return " ".join(re.sub(r"[^\w\s']", " ", text).split())


def best_answer(question: Question) -> str:
    """The answer with the highest credit; of several, the most frequent, then the one given first."""
    return max(question.credit, key=question.credit.__getitem__)


def task_answers(questions: Sequence[Question], min_freq: int, most: int) -> list[str]:
    """The `most` frequent of those that are the best answer of at least `min_freq` questions, most frequent first, ties
    by name."""
    counts = Counter(map(best_answer, questions))
    ranked = sorted((-n, answer) for answer, n in counts.items() if n >= min_freq and answer)
    return [answer for _, answer in ranked[:most]]


def vocabulary(tasks: Sequence[Sequence[Question]], min_freq: int, most: int) -> list[str]:
    """Answers that training questions are classified into: those of the tasks, one task after another."""
    return list(dict.fromkeys(answer for questions in tasks for answer in task_answers(questions, min_freq, most)))


class SparseScores:
    """Credit of every answer, (N, A), stored as the few answers of each question and made dense batch by batch."""

    dtype = torch.float32

    def __init__(self, ids: torch.Tensor, credit: torch.Tensor, n_answers: int):
        self.ids, self.credit, self.n_answers = (
            ids,
            credit,
            n_answers,
        )  # (N, K) with n_answers where there is none, (N, K)

    @classmethod
    def of(cls, questions: Sequence[Question], place: dict[str, int]) -> "SparseScores":
        most = max(len(question.credit) for question in questions)
        ids = torch.full((len(questions), most), len(place), dtype=torch.int32)
        credit = torch.zeros(len(questions), most)
        for row, question in enumerate(questions):
            known = [(place[answer], value) for answer, value in question.credit.items() if answer in place]
            for k, (number, value) in enumerate(known):
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
    """Samples are Pairs (image, question tokens), labels the most frequent answers, and the extra `soft` (N, A) holds
    the credit of every answer. The record names its scores vqa_*; exact_match_last compares with the first answer."""

    VQA = True
    HAS_TEXT = True
    CLIP_BACKBONE = "ViT-B/16"

    def score(self, outputs: torch.Tensor, labels: torch.Tensor, extras: dict[str, torch.Tensor]) -> torch.Tensor:
        return extras["soft"].gather(1, outputs.argmax(dim=1, keepdim=True)).squeeze(1)


def as_samples(
    tasks: Sequence[Sequence[Question]],
    answers: Sequence[str],
    args,
    train: bool,
    name: str,
    own: Sequence[Sequence[str]],
) -> PairFiles:
    """Samples of all tasks, classes being `answers`. A training question whose best answer is not one of its `own`
    task's is left out, even if another task has that answer. A test question stays: its label is the best answer that
    is among the classes, or a placeholder if none is, and its `first` is -1 if that is not."""
    place = {answer: number for number, answer in enumerate(answers)}
    allowed = [set(names) for names in own]
    kept = [
        (task, q)
        for task, questions in enumerate(tasks)
        for q in questions
        if not train or best_answer(q) in allowed[task]
    ]
    if not kept:
        raise UserError(f"{name}: no question has an answer that is in the vocabulary; lower --min_answer_freq")
    questions = [question for _, question in kept]
    soft = SparseScores.of(questions, place)
    known = [[answer for answer in question.credit if answer in place] for question in questions]
    label = torch.tensor(
        [place[max(some, key=q.credit.__getitem__)] if some else 0 for q, some in zip(questions, known, strict=True)]
    )
    extras = {"soft": soft}
    if not train:
        extras["first"] = torch.tensor([place.get(question.first, -1) for question in questions])
    text = tokenize([tidy_question(question.text) for question in questions], args, cut=QUESTION_TOKENS)
    samples = PairFiles([question.image for question in questions], text, label, **extras)
    samples.task_ids = torch.tensor([task for task, _ in kept])
    samples.questions = [question.text for question in questions]
    return samples
