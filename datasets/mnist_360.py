"""One stream of the digits 0 to 8, two at a time, each rotating once through 360 degrees (arXiv 2004.07211)"""

import torch

from datasets.utils.fetch import base_path
from datasets.utils.gcl_dataset import GCLDataset
from datasets.utils.labels import validation_mask
from datasets.utils.loaders import Loader, Split
from datasets.utils.mnist_files import CLASS_NAMES, TEMPLATES, load_mnist, rotated_pixels, show_pixels
from datasets.utils.samples import ArraySamples
from datasets.utils.sources import SOURCES
from utils.errors import UserError
from utils.randomness import generator
from utils.settings import option

N_DIGITS = 9  # a 9 upside down is a 6
N_ROUNDS = 3
CHUNK = 512  # images rotated at once


class StreamLoader(Loader):
    """Batches of given sizes in the order of the split."""

    def __init__(self, split: Split, sizes: list[int], key: tuple):
        super().__init__(split, sizes, key, shuffle=False)

    def __len__(self) -> int:
        return len(self.batch_size)

    def with_batch_size(self, batch_size: int) -> Loader:
        return Loader(self.dataset, batch_size, self.key, shuffle=False)


class MNIST360(GCLDataset):
    NAME = "mnist-360"
    SETTING = "general-continual"
    N_CLASSES_PER_TASK = N_DIGITS
    SIZE = (28, 28)
    CLASS_NAMES = CLASS_NAMES[:N_DIGITS]
    TEMPLATES = TEMPLATES
    FILES = (SOURCES["mnist"],)
    DEFAULTS = {"batch_size": 16, "n_epochs": 1, "backbone": "mnistmlp"}

    def __init__(self, args):
        if min(option(args, "label_perc", 1.0), option(args, "label_perc_by_class", 1.0)) < 1:
            raise UserError(f"{self.NAME} has labels for every image: leave --label_perc and --label_perc_by_class out")
        if option(args, "drop_last"):
            raise UserError(f"{self.NAME} has batches of several sizes and needs all of them: leave --drop_last out")
        super().__init__(args)

    def load(self, train: bool) -> ArraySamples:
        digits = load_mnist(self.args, self.NAME, train)
        kept = digits.targets < N_DIGITS
        found = digits.targets[kept].unique()
        if len(found) < N_DIGITS:
            missing = sorted(set(range(N_DIGITS)) - set(found.tolist()))
            raise UserError(
                f"{self.NAME}: no {'training' if train else 'test'} image of digit {missing[0]} "
                f"under {base_path(self.args) / 'MNIST'}"
            )
        return ArraySamples(digits.data[kept], digits.targets[kept])

    def get_data_loaders(self):
        self.c_task += 1
        if self.c_task:
            raise UserError(f"{self.NAME} is one stream: there is no task {self.c_task}")
        args, train, test = self.args, self.samples(True), self.samples(False)
        seed, batch_size, workers = option(args, "seed", 0), self.get_batch_size(), option(args, "num_workers", 0)
        key, rows = (seed, self.NAME), torch.arange(len(train))
        tests = self._test_loader(test, torch.arange(len(test)), batch_size, workers)
        if option(args, "validation"):
            held = validation_mask(train.targets, args.validation, seed)
            self.final_test_loaders.append(tests)
            tests = self._test_loader(train, rows[held], batch_size, workers)
            rows = rows[~held]
        order, sizes = stream_order(train.targets[rows], batch_size, generator(*key))
        rows = rows[order]
        self.train_loader = StreamLoader(
            turned(train, rows, stream_angles(train.targets[rows], True), True), sizes, key
        )
        self.test_loaders.append(tests)
        return self.train_loader, tests

    def _test_loader(self, samples: ArraySamples, rows: torch.Tensor, batch_size: int, workers: int) -> Loader:
        """Digit after digit, each rotating once."""
        rows = rows[samples.targets[rows].argsort(stable=True)]
        split = turned(samples, rows, stream_angles(samples.targets[rows], False), False)
        return Loader(split, batch_size, (self.NAME, "test"), shuffle=False, workers=workers)


def stream_order(targets: torch.Tensor, batch_size: int, rng: torch.Generator) -> tuple[torch.Tensor, list[int]]:
    """Rows in the order in which they are shown, and the sizes of the batches.

    Every digit is cut into 2 * N_ROUNDS chunks, one for each pair it belongs to. A batch mixes the two digits of the
    pair in proportion to what is left; when one chunk is used up the next pair follows and the rest is not shown.
    """
    chunks = []
    for digit in range(N_DIGITS):
        rows = torch.nonzero(targets == digit).flatten()
        rows = rows[torch.randperm(len(rows), generator=rng)]
        chunks.append(list(rows.tensor_split(2 * N_ROUNDS)))
    batches = []
    for _ in range(N_ROUNDS):
        for digit in range(N_DIGITS):
            a, b = chunks[digit].pop(0), chunks[(digit + 1) % N_DIGITS].pop(0)
            while len(a) and len(b):
                total = min(batch_size, len(a) + len(b))
                n_a = min(len(a), max(total - len(b), round(total * len(a) / (len(a) + len(b)))))
                batches.append(torch.cat([a[:n_a], b[: total - n_a]]))
                a, b = a[n_a:], b[total - n_a :]
    return torch.cat(batches) if batches else torch.empty(0, dtype=torch.long), [len(batch) for batch in batches]


def stream_angles(labels: torch.Tensor, train: bool) -> torch.Tensor:
    """Degrees of each image: digit j starts at 60 (j - 1) in training and at 0 in the test, and rotates once."""
    angles = torch.zeros(len(labels), dtype=torch.float64)
    for digit in range(N_DIGITS):
        shown = labels == digit
        count = int(shown.sum())
        angles[shown] = 60 * (digit - 1) * train + torch.arange(count, dtype=torch.float64) * 360 / max(count, 1)
    return angles


def turned(samples: ArraySamples, rows: torch.Tensor, angles: torch.Tensor, train: bool) -> Split:
    """The given rows, each rotated by its angle."""
    parts = [
        show_pixels(samples.data[r], rotated_pixels(a))
        for r, a in zip(rows.split(CHUNK), angles.split(CHUNK), strict=True)
    ]
    images = torch.cat(parts) if len(rows) else samples.data[:0]
    moved = ArraySamples(images, samples.targets[rows])
    return Split(moved, torch.arange(len(rows)), moved.targets.clone(), None, train)
