"""Runs of methods that fine-tune a CLIP, on the toy streams with a CLIP of random weights."""

import functools
import tempfile
from pathlib import Path

from tests import contract
from tests.clip_weights import write_tiny

PLAIN = {
    "lambda_A": 0,
    "lambda_E": 0,
    "avg_freq": 0,
    "inter_alpha": 1,
    "text_bank": "current",
}  # MulKI without its parts


@functools.cache
def random_clip_folder() -> tempfile.TemporaryDirectory:
    """Weights of a small random CLIP, written once."""
    folder = tempfile.TemporaryDirectory(prefix="toy_clip_")
    write_tiny(Path(folder.name))
    return folder


def toy(name="mulki", trained=False, **flags) -> contract.Toy:
    """A method on the toy stream, before or after its run."""
    with contract.toys():
        return contract.build(
            name, trained=trained, **{"clip_backbone": random_clip_folder().name, "features": "ram", **flags}
        )


def begun(task, **flags):
    """A model at the start of a task, those before it trained; and a batch of it: (model, inputs, labels, rest)."""
    made = toy(trained=True, stop_after=task - 1, **flags) if task else toy(**flags)
    made.dataset.get_data_loaders()
    made.model.train()
    made.model.meta_begin_task(made.dataset)
    inputs, labels, *rest = next(iter(made.dataset.train_loader))
    return made.model, inputs, labels.long(), rest
