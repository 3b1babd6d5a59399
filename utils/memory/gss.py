"""A memory whose samples have gradients as dissimilar as possible: gradient-based sample selection, greedy version."""

import numpy as np
import torch
from torch.nn.functional import normalize

from utils.memory.buffer import Buffer as PlainBuffer
from utils.pair import Inputs

FIRST_SCORE = 0.1  # of samples without anything to compare to


class Buffer(PlainBuffer):
    """`model` has `gradients(images, labels)` of single samples (B, P), or `get_grads(images, labels)` of a batch (P,).

    A sample's score c is 1 + the largest cosine between its gradient and those of `batch_num` random batches from
    memory. While there is room it is stored. Then, if c < 1, a stored sample i is drawn in proportion to its score s_i
    and replaced with probability s_i / (s_i + c).
    """

    def __init__(self, buffer_size: int, device="cpu", minibatch_size: int = 64, model=None, batch_num: int = 1):
        super().__init__(buffer_size, device)
        self.minibatch_size, self.model, self.batch_num = minibatch_size, model, batch_num
        self.scores = np.zeros(self.buffer_size)

    def add_data(self, examples: Inputs, labels=None, **others) -> None:
        scores, stored = self.scores_of(examples, labels), len(self)
        room = min(self.buffer_size - stored, len(labels))
        if room:
            super().add_data(examples[:room], labels[:room], **{name: value[:room] for name, value in others.items()})
            self.scores[stored : stored + room] = scores[:room]
        for i in [i for i in range(room, len(labels)) if scores[i] < 1]:
            place, total = np.random.randint(self.buffer_size), self.scores.sum()
            if total > 0:
                place = np.random.choice(self.buffer_size, p=self.scores / total)
            if np.random.rand() < self.scores[place] / max(self.scores[place] + scores[i], 1e-12):
                columns = {"examples": examples, "labels": labels, **others}
                self.replace(torch.tensor([place]), **{name: value[i : i + 1] for name, value in columns.items()})
                self.scores[place] = scores[i]

    def scores_of(self, examples: Inputs, labels) -> np.ndarray:
        """(B,) between 0 (dissimilar to the memory) and 2 (similar)."""
        if self.is_empty():
            return np.full(len(labels), FIRST_SCORE)
        references = []
        for _ in range(self.batch_num):
            old = self.get_data(self.minibatch_size, device=labels.device)
            references.append(self.gradients(*old[:2]).mean(0))
        found = self.gradients(examples.to(labels.device), labels)
        cosines = normalize(found, dim=1) @ normalize(torch.stack(references), dim=1).T
        return (1 + cosines.amax(1)).clamp(min=0).double().cpu().numpy()

    def gradients(self, examples: Inputs, labels) -> torch.Tensor:
        if hasattr(self.model, "gradients"):
            return self.model.gradients(examples, labels)
        return torch.stack(
            [self.model.get_grads(examples[i : i + 1], labels[i : i + 1]).flatten() for i in range(len(labels))]
        )

    def drop_cache(self) -> None:
        """Nothing is cached between calls; for files that call it."""

    def reset_fathom(self) -> None:
        """Each draw is from the whole memory, so there is nothing to reset; for files that call it."""

    def empty(self) -> None:
        super().empty()
        self.scores[:] = 0

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.scores.nbytes

    def state(self) -> dict:
        return super().state() | {"scores": self.scores}

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        self.scores = np.asarray(state["scores"]).copy()
