"""Domain-incremental streams over image files: the same classes in every domain, a domain per task."""

from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch

from datasets.utils.continual_dataset import store_masked_loaders
from datasets.utils.file_streams import Content
from datasets.utils.image_streams import ImageNetStream
from datasets.utils.samples import FileSamples

Part = list[tuple[Path, int]]  # (image, class)


class DomainStream(ImageNetStream):
    """A subclass names its DOMAINS and writes `domain(base, name)`; with HELD_OUT, `held_out(base)` is one test set for
    all tasks.

    --domain_labels own numbers the classes of each domain anew, K * task + y, as S-Prompts does; a prediction counts as
    correct if it is y modulo K. --custom_task_order puts the domains in another order.
    """

    DOMAINS: tuple[str, ...]
    N_CLASSES_PER_TASK: int
    HELD_OUT = False

    def __init__(self, args: Namespace, domain_labels: Literal["shared", "own"] = "shared"):
        self.n_names = type(self).N_CLASSES_PER_TASK
        self.own_labels = domain_labels == "own"
        if self.own_labels:
            self.N_CLASSES = self.n_names * self.N_TASKS
            self.CLASS_NAMES = self.CLASS_NAMES and self.CLASS_NAMES * self.N_TASKS
        super().__init__(args)

    def domain(self, base: Path, name: str) -> tuple[Part, Part]:
        """Training and test images of a domain; the test part is not used with HELD_OUT."""
        raise NotImplementedError(f"{type(self).__name__} defines no domain()")

    def held_out(self, base: Path) -> Part:
        raise NotImplementedError(f"{type(self).__name__} defines no held_out()")

    def names(self, base: Path) -> list[str]:
        raise NotImplementedError(f"{type(self).__name__} defines no names()")

    def read(self, base: Path) -> Content:
        found = [self.domain(base, name) for name in self.DOMAINS]
        names = self.names(base) * (self.N_TASKS if self.own_labels else 1)
        train = self.joined([part for part, _ in found])
        test = plain_samples(self.held_out(base)) if self.HELD_OUT else self.joined([part for _, part in found])
        return Content(train, test, names)

    def joined(self, parts: list[Part]) -> FileSamples:
        """All domains, each image with the number of its domain, which is the task it belongs to."""
        samples = plain_samples([row for part in parts for row in part])
        samples.task_ids = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part) for part in parts]))
        if self.own_labels:
            place = torch.tensor([self.task_order.index(k) for k in range(len(parts))])
            samples.targets = samples.targets + self.n_names * place[samples.task_ids]
        return samples

    @cached_property
    def _held_out_by_task(self) -> list[FileSamples]:
        """The one test set with the labels of each task."""
        test = self.samples(False)
        return [shifted(test, self.n_names * task if self.own_labels else 0) for task in range(self.N_TASKS)]

    def get_data_loaders(self):
        task = self.c_task + 1
        if not self.HELD_OUT or task >= self.N_TASKS:
            return super().get_data_loaders()
        loaders = store_masked_loaders(self.samples(True), self._held_out_by_task[task], self)
        self.train_loader.dataset.not_aug_resize = self.RESIZE
        return loaders

    def get_offsets(self, task: int | None = None) -> tuple[int, int]:
        if not self.own_labels:
            return 0, self.N_CLASSES
        task = max(self.c_task, 0) if task is None else task
        return self.n_names * task, self.n_names * (task + 1)

    def score(self, outputs: torch.Tensor, labels: torch.Tensor, extras: dict[str, torch.Tensor]) -> torch.Tensor:
        """Credit for the class, whichever domain's label names it."""
        return (outputs.argmax(dim=1) % self.n_names == labels % self.n_names).float()


def plain_samples(part: Part) -> FileSamples:
    return FileSamples([path for path, _ in part], [label for _, label in part])


def shifted(samples: FileSamples, by: int) -> FileSamples:
    """The same images with other labels; digests that are known stay known."""
    other = FileSamples(samples.paths, samples.targets + by)
    other.keep_digests(samples.digest_folder, samples.trust_times)
    return other
