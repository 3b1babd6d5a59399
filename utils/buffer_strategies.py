"""Which place of a replay buffer a new sample takes. Each strategy maps a batch to places, -1 for samples not kept."""

import numpy as np


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

    def update(self, indexes, values) -> None:
        """New scores for stored samples; only score-based strategies keep them."""

    def reset(self) -> None:
        """Forget what belongs to the old content."""

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
    """Reservoir acceptance; an accepted sample takes the place that `victim` names, one sample after the other."""

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
        self.classes[len(self.buffer):] = -1

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
    """Replace in proportion to the min-max normalised score given with the samples (or by `update`)."""

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
    """Half by score, half by how many samples of the same class are stored."""

    def weights(self) -> np.ndarray:
        counts = self.class_counts()
        total = np.abs(self.scores).sum()
        by_score = self.scores / total if total > 0 else np.full(len(counts), 1 / len(counts))
        return np.clip(0.5 * by_score + 0.5 * counts / counts.sum(), 0, None)


STRATEGIES = {"reservoir": Reservoir, "unlimited": Unlimited, "balancoir": Balancoir, "lars": Lars, "labrs": Labrs}
