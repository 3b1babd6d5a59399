"""Zero-shot probes outside the stream: what the CLIP at a method's end still does, after each task.

Nothing is trained on a probe: it has no labels in training, draws no random number, and does not count as a cost of the
method except in seconds, under `probe`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from utils.engine.evaluate import batches_of
from utils.errors import UserError
from utils.features import FeatureStore

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset
    from models.utils.continual_model import ContinualModel
    from utils.engine.run import Run

RANKS = (1, 5, 10)
ROWS = 1024  # rows of a similarity matrix at once


def ranks(queries: torch.Tensor, items: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Rank from 1 of each query's best right item by cosine; ties count against it.

    queries (Q, D) and items (N, D) are unit rows; right (Q, N) says which items are right.
    """
    found = []
    for q, own in zip(queries.split(ROWS), right.split(ROWS), strict=True):
        scores = q @ items.T
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        found.append(1 + ((scores >= best) & ~own).sum(1))
    return torch.cat(found)


def retrieval(images: torch.Tensor, texts: torch.Tensor, owner: torch.Tensor) -> dict[str, float]:
    """Percent of images with one of their captions among the first K, and of captions with their image there."""
    own = owner[None, :] == torch.arange(len(images), device=owner.device)[:, None]  # (images, captions)
    scores: dict[str, float] = {}
    for way, place in (("i2t", ranks(images, texts, own)), ("t2i", ranks(texts, images, own.T))):
        scores |= {f"{way}_r{k}": 100.0 * float((place <= k).double().mean()) for k in RANKS}
    return scores


class Probes:
    """The probes of a run, and what they measured so far: `run.rows["probes"]`, values before and after each task."""

    def __init__(self, run: Run, model: ContinualModel, dataset: ContinualDataset) -> None:
        if not getattr(model, "can_probe", False):
            raise UserError(
                f"--probe needs a method that has a whole CLIP at its end; model {model.NAME} does not name classes by "
                "their text: leave the flag out"
            )
        self.run, self.sets = run, dataset.probes()
        self.model: Any = model
        own = getattr(model, "store", None)
        self.store = FeatureStore(own.root, own.mode, own.progress) if own is not None else None

    def start(self) -> None:
        """Measure the untouched model; a resumed run has done so."""
        if "probes" not in self.run.rows:
            self.run.rows["probes"] = {name: [value] for name, value in self.measure().items()}

    def after_task(self) -> None:
        for name, value in self.measure().items():
            self.run.rows["probes"][name].append(value)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Percentages by probe, with the model as it is now."""
        scores: dict[str, float] = {}
        with self.run.watch.phase("probe"), at_rest(self.model, self.store):
            for probe in self.sets:
                images, labels = self.images(probe.loader)
                if probe.captions is None:
                    keys = self.model.probe_keys(probe.names, probe.templates)
                    scores[probe.name] = 100.0 * float(((images @ keys.T).argmax(1) == labels).double().mean())
                else:
                    texts = self.model.probe_texts(probe.captions)
                    found = retrieval(images, texts, probe.owner.to(images.device))
                    scores |= {f"{probe.name}_{name}": value for name, value in found.items()}
        return scores

    def images(self, loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Unit image features (N, D) and labels of a probe; a frozen tower encodes them once for all runs."""
        self.model.use_clip_preprocessing(loader.dataset)
        device, parts = self.model.device, []
        for batch in batches_of(self.model, loader, self.run.args):
            parts.append((self.model.encode(batch[0].to(device)), batch[1].to(device)))
        features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        return torch.nn.functional.normalize(features.float(), dim=1), labels


@contextmanager
def at_rest(model: Any, store: FeatureStore | None) -> Iterator[None]:
    """Evaluation mode, with a store of features and a counter of images of the probes' own."""
    training, counter = model.training, model.forward_counter
    images, own = counter.images, getattr(model, "store", None)
    model.eval()
    model.store = store or own
    try:
        yield
    finally:
        model.train(training)
        model.store, counter.images = own, images


def summary(rows: dict) -> dict[str, float]:
    """`probe_<name>_last`, and `_drop`: the largest fall from the untouched model, negative if it only rose."""
    scores: dict[str, float] = {}
    for name, values in rows.get("probes", {}).items():
        if len(values) > 1:
            scores |= {f"probe_{name}_last": values[-1], f"probe_{name}_drop": values[0] - min(values[1:])}
    return scores


def of_task(rows: dict) -> dict[str, dict[str, float]]:
    """What the record's line about a task holds."""
    found = rows.get("probes")
    if not found:
        return {}
    return {
        "probes": {name: values[-1] for name, values in found.items()},
        "probes_untouched": {name: values[0] for name, values in found.items()},
    }
