"""The place of a new sample in a replay buffer. Each strategy maps a batch to places, -1 for samples not stored."""

import numpy as np

from utils.errors import UserError


class Reservoir:
    """Every sample seen so far is in memory with the same probability."""

    def __init__(self, buffer):
        self.buffer = buffer

    def accepted(self, count: int) -> np.ndarray:
        """Free places first, then a uniform draw over all samples seen; -1 where it falls outside the memory."""
        seen = self.buffer.num_seen_examples + np.arange(count)
        places = seen.copy()
        full = seen >= self.buffer.buffer_size
        places[full] = np.random.randint(0, seen[full] + 1) if full.any() else 0
        places[full & (places >= self.buffer.buffer_size)] = -1
        return places

    def __call__(self, count: int, labels, scores) -> np.ndarray:
        return self.accepted(count)

    def filled(self) -> int:
        """Number of occupied places."""
        return min(self.buffer.num_seen_examples, self.buffer.buffer_size)

    def update(self, indexes, values) -> None:
        """New scores for stored samples; only score-based strategies keep them."""

    def reset(self) -> None:
        """Forget the old content."""

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        """The inverse of state."""


class Unlimited(Reservoir):
    """Keep everything; the memory doubles when it is full."""

    def __init__(self, buffer):
        super().__init__(buffer)
        buffer.buffer_size, buffer.capacity = 1_000_000_000, 10

    def __call__(self, count: int, labels, scores) -> np.ndarray:
        buffer = self.buffer
        wanted = buffer.num_seen_examples + count
        while buffer.capacity < wanted:
            buffer.capacity *= 2
        buffer.grow(buffer.capacity)
        return buffer.num_seen_examples + np.arange(count)


class _PlaceByPlace(Reservoir):
    """Reservoir acceptance; an accepted sample takes the place chosen by `victim`, sample by sample."""

    def __call__(self, count: int, labels, scores) -> np.ndarray:
        size, places = self.buffer.buffer_size, self.accepted(count)
        labels = np.zeros(count, int) if labels is None else labels.detach().cpu().numpy()
        scores = None if scores is None else np.asarray(getattr(scores, "cpu", lambda: scores)(), dtype=float)
        self.begin(size)
        for i in range(count):
            if self.buffer.num_seen_examples + i >= size and places[i] >= 0:
                places[i] = self.victim()
            if places[i] >= 0:
                self.take(int(places[i]), labels[i], None if scores is None else scores[i])
        return places

    def begin(self, size: int) -> None:
        stored = self.buffer.data.get("labels")
        self.classes = np.full(size, -1) if stored is None else stored.cpu().numpy().copy()
        self.classes[len(self.buffer) :] = -1

    def take(self, place: int, label: int, score) -> None:
        self.classes[place] = label

    def class_counts(self) -> np.ndarray:
        """For each place, how many stored samples share its class."""
        _, inverse, counts = np.unique(self.classes, return_inverse=True, return_counts=True)
        return counts[inverse].astype(float)


class Balancoir(_PlaceByPlace):
    """Replace a random sample of the most populated class."""

    def victim(self) -> int:
        counts = self.class_counts()
        return int(np.random.choice(np.nonzero(counts == counts.max())[0]))


class Lars(_PlaceByPlace):
    """Replace in proportion to the min-max normalized score given with the samples (or by `update`)."""

    def __init__(self, buffer):
        super().__init__(buffer)
        self.reset()

    def reset(self) -> None:
        self.scores = np.zeros(0)

    def begin(self, size: int) -> None:
        super().begin(size)
        self.scores = np.resize(self.scores, size) if len(self.scores) else np.zeros(size)

    def take(self, place: int, label: int, score) -> None:
        super().take(place, label, score)
        self.scores[place] = 0.0 if score is None else score

    def update(self, indexes, values) -> None:
        self.scores[np.asarray(indexes)] = np.asarray(values)

    def weights(self) -> np.ndarray:
        span = self.scores.max() - self.scores.min()
        return (self.scores - self.scores.min()) / span if span > 0 else np.ones_like(self.scores)

    def victim(self) -> int:
        weights = self.weights()
        return int(np.random.choice(len(weights), p=weights / weights.sum()))

    def state(self) -> dict:
        return {"scores": self.scores}

    def load_state(self, state: dict) -> None:
        self.scores = np.asarray(state["scores"])


class Labrs(Lars):
    """Half by score, half by the number of stored samples of the same class."""

    def weights(self) -> np.ndarray:
        counts = self.class_counts()
        total = np.abs(self.scores).sum()
        by_score = self.scores / total if total > 0 else np.full(len(counts), 1 / len(counts))
        return np.clip(0.5 * by_score + 0.5 * counts / counts.sum(), 0, None)


class Greedy(_PlaceByPlace):
    """Balanced classes: a new sample replaces one of the largest class, unless it belongs to that class."""

    def accepted(self, count: int) -> np.ndarray:
        seen = self.buffer.num_seen_examples + np.arange(count)
        return np.minimum(seen, self.buffer.buffer_size)  # past the end: requests a victim

    def __call__(self, count: int, labels, scores) -> np.ndarray:
        size, places = self.buffer.buffer_size, self.accepted(count)
        labels = labels.detach().cpu().numpy()
        self.begin(size)
        for i in range(count):
            places[i] = places[i] if places[i] < size else self.victim(labels[i])
            if places[i] >= 0:
                self.take(int(places[i]), labels[i], None)
        return places

    def victim(self, label: int) -> int:
        counts = self.class_counts()
        largest = counts == counts.max()
        return -1 if (self.classes[largest] == label).any() else int(np.random.choice(np.nonzero(largest)[0]))


class Ring(Reservoir):
    """The last samples of each class: `size // n_classes` places for every class, the oldest is replaced."""

    def __init__(self, buffer, n_classes: int):
        super().__init__(buffer)
        self.each = buffer.buffer_size // n_classes
        if not self.each:
            raise UserError(
                f"a memory of {buffer.buffer_size} samples does not have room for each of {n_classes} classes; "
                f"use --buffer_size of at least {n_classes}"
            )
        self.seen = np.zeros(n_classes, int)
        self.rows = np.full((n_classes, self.each), -1)

    def reset(self) -> None:
        self.seen[:], self.rows[:] = 0, -1

    def filled(self) -> int:
        return int((self.rows >= 0).sum())

    def __call__(self, count: int, labels, scores) -> np.ndarray:
        places, free = np.empty(count, int), self.filled()
        for i, label in enumerate(labels.tolist()):
            slot = self.seen[label] % self.each
            if self.rows[label, slot] < 0:
                self.rows[label, slot], free = free, free + 1
            places[i] = self.rows[label, slot]
            self.seen[label] += 1
        return places

    def state(self) -> dict:
        return {"ring_seen": self.seen, "ring_rows": self.rows}

    def load_state(self, state: dict) -> None:
        self.seen, self.rows = np.asarray(state["ring_seen"]), np.asarray(state["ring_rows"])


class Abs(Lars):
    """Alternating between samples of old tasks and of the current one, by their shares of the memory.

    Scores are losses: from old tasks, samples with low loss go first, from the current task those with high loss, which
    are likely to be mislabeled. `dataset` says which classes are current.
    """

    def __init__(self, buffer, dataset):
        super().__init__(buffer)
        self.dataset = dataset

    def victim(self) -> int:
        first, _ = self.dataset.get_offsets(max(self.dataset.c_task, 0))
        old = self.classes < first
        past = np.random.rand() < old.mean()
        group = np.nonzero(old if past else ~old)[0]
        scores = self.scores[group]
        weights = scores.max() - scores if past else scores - scores.min()
        weights = weights / weights.sum() if weights.sum() > 0 else np.full(len(group), 1 / len(group))
        return int(np.random.choice(group, p=weights))


STRATEGIES = {
    "reservoir": Reservoir,
    "unlimited": Unlimited,
    "balancoir": Balancoir,
    "lars": Lars,
    "labrs": Labrs,
    "abs": Abs,
    "greedy": Greedy,
    "ring": Ring,
}
