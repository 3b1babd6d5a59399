"""Splits (index views of samples) and loaders whose numbers do not depend on workers or on what ran before."""

import copy
import functools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchvision.transforms import functional as TF

from datasets.utils.image_cache import ImageCaches, places
from datasets.utils.samples import ArraySamples, ForeignSamples, Samples
from utils import ranks
from utils.batch_transforms import BatchTransform, compile_transform
from utils.errors import UserError
from utils.pair import Inputs, Pair, collate
from utils.randomness import generator, seeded


class Split(Dataset):
    """Some rows of some samples, with their own labels and transforms.

    A training item is (augmented, label, not augmented, *extras), a test item (image, label, *extras).
    """

    def __init__(self, samples: Samples, rows: torch.Tensor, targets: torch.Tensor, transform, train: bool):
        self.samples, self.rows, self.train = samples, rows, train
        self.targets = targets  # (len(rows),), after class order, label noise and unlabeling
        self.extra_return_fields: list[str] = []
        self._own_transform = transform
        self.image_caches: ImageCaches | None = None  # with --image_cache
        for name, values in samples.extras.items():
            self.add_extra_return_field(name, values)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def indexes(self) -> torch.Tensor:
        return self.rows

    def __getattr__(self, name: str):
        """What only a torch dataset from elsewhere has: its root, its list of classes."""
        source = getattr(self.__dict__.get("samples"), "dataset", None)
        if source is None or name.startswith("__"):
            raise AttributeError(f"a split has no attribute '{name}'")
        return getattr(source, name)

    @property
    def data(self):
        data = self.samples.data
        if isinstance(data, np.ndarray):
            return data[self.rows.numpy()]
        return data[self.rows] if isinstance(data, (torch.Tensor, Pair)) else [data[int(r)] for r in self.rows]

    @data.setter
    def data(self, value) -> None:
        """Replace the images; `targets` are set next to it."""
        self.samples, self.rows = self.samples.with_data(value), torch.arange(len(value))

    @property
    def transform(self):
        if isinstance(self.samples, ForeignSamples):
            return getattr(self.samples.dataset, "transform", None)
        return self._own_transform

    @transform.setter
    def transform(self, value) -> None:
        if isinstance(self.samples, ForeignSamples):
            self.samples.dataset.transform = value
        self._own_transform = value

    @property
    def not_aug_transform(self):
        return getattr(getattr(self.samples, "dataset", None), "not_aug_transform", TF.to_tensor)

    def add_extra_return_field(self, name: str, values) -> None:
        """Hand `values` to observe as a keyword; one value per row of the split, or per row of its samples."""
        lazy = hasattr(values, "subset")  # its rows are made when asked for: SparseScores
        values = values if lazy else torch.as_tensor(values)
        if len(values) != len(self) and len(values) == len(self.samples):
            values = values.subset(self.rows) if lazy else values[self.rows]
        setattr(self, name, values)
        if name not in self.extra_return_fields:
            self.extra_return_fields.append(name)

    def batch_form(self) -> BatchTransform | None:
        """The transform for whole batches, where samples are in memory and every step has a batch form."""
        return compile_transform(self._own_transform) if isinstance(self.samples, ArraySamples) else None

    def __getitem__(self, position: int) -> tuple:
        row = int(self.rows[position])
        label = self.targets[position]
        extras = tuple(getattr(self, name)[position] for name in self.extra_return_fields)
        if isinstance(self.samples, ForeignSamples):
            item = self.samples.dataset[row]
            return (item[0], label, *item[2:], *extras)
        image, not_aug = self._image(row)
        return (image, label, not_aug, *extras) if self.train else (image, label, *extras)

    def _image(self, row: int) -> tuple[Inputs, Inputs | None]:
        """One transformed sample, and in training the same as a plain tensor."""
        if isinstance(self.samples, ArraySamples):
            raw, batch = self.samples.inputs(torch.tensor([row])), self.batch_form()
            picture = raw.image if isinstance(raw, Pair) else raw
            plain = as_float(picture)
            done = batch(plain)[0] if batch else self._own_transform(TF.to_pil_image(picture[0]))
            pack = (lambda image: Pair(image, raw.text[0])) if isinstance(raw, Pair) else (lambda image: image)
            return pack(done), pack(plain[0])
        text, opened = getattr(self.samples, "text", None), functools.cache(lambda: self.samples.open(row))
        pack = (lambda image: image) if text is None else (lambda image: Pair(image, text[row]))
        done = self._transformed(row, self._own_transform, opened)
        return pack(done), pack(TF.to_tensor(self._transformed(row, self._plain_size, opened))) if self.train else None

    def _transformed(self, row: int, transform, opened: Callable):
        """A transform of one image file, its first steps out of the cache if there is one."""
        found = self.kept(transform)
        if found is None:
            return opened() if transform is None else transform(opened())
        cache, steps = found
        return steps.rest(cache.picture(int(places(self.samples, torch.tensor([row])))))

    def kept(self, transform):
        """(cache, steps) of a transform whose first steps are kept on disk; else None."""
        return self.image_caches and self.image_caches.find(self.samples, transform)

    @property
    def _plain_size(self):
        """Of an image without augmentation: to the size that the transform gives, so that a batch of them stacks."""
        return getattr(self, "not_aug_resize", None)

    def not_aug(self, picture) -> torch.Tensor:
        """The image as [0, 1]."""
        return TF.to_tensor(self._plain_size(picture) if self._plain_size else picture)

    def reader(self, key: tuple) -> Callable | None:
        """Positions -> batch for one pass, all random numbers drawn in advance; None if items are made one by one."""
        transform = self.batch_form()
        if transform is None:
            return self._cached_reader()
        numbers = torch.rand(len(self), transform.n_random, generator=generator(*key, "augment"))
        return lambda positions: self.batch(positions, numbers, transform)

    def _cached_reader(self) -> Callable | None:
        """Fills the caches of this split; test images are then read as batches."""
        for transform in (self._own_transform, self._plain_size if self.train else None):
            if found := self.kept(transform):
                found[0].ensure(places(self.samples, self.rows).unique().numpy(), self.image_caches.progress)
        found = None if self.train else self.kept(self._own_transform)
        rest = found and compile_transform(found[1].rest)
        return (lambda positions: self._cached_batch(positions, found[0], rest)) if rest and not rest.n_random else None

    def _cached_batch(self, positions: torch.Tensor, cache, rest: BatchTransform) -> tuple:
        rows, text = self.rows[positions], getattr(self.samples, "text", None)
        raw = cache.images(places(self.samples, rows))
        images = torch.empty(len(raw), *rest(as_float(raw[0])).shape)
        for place, image in enumerate(raw):  # one fits into the processor's own memory: measured to be twice as fast
            images[place] = rest(as_float(image))
        return (images if text is None else Pair(images, text[rows]), self.targets[positions], *self._extras(positions))

    def items(self, key: tuple) -> Dataset:
        """The split as single items, each under its own random states."""
        return _SeededItems(self, key)

    def plain(self, positions: torch.Tensor) -> tuple[Inputs, torch.Tensor]:
        """Images without augmentation, and labels."""
        if isinstance(self.samples, ArraySamples):
            raw = self.samples.inputs(self.rows[positions])
            images = Pair(as_float(raw.image), raw.text) if isinstance(raw, Pair) else as_float(raw)
        else:
            images = self._plain_files(self.rows[positions])
            text = getattr(self.samples, "text", None)
            images = images if text is None else Pair(images, text[self.rows[positions]])
        return images, self.targets[positions]

    def _plain_files(self, rows: torch.Tensor) -> torch.Tensor:
        if found := self.kept(self._plain_size):
            return as_float(found[0].images(places(self.samples, rows)))
        return torch.stack([self.not_aug(picture) for picture in self.samples.images(rows)])

    def batch(self, positions: torch.Tensor, numbers: torch.Tensor, transform: BatchTransform) -> tuple:
        """A whole batch at once; `numbers` (len(split), n_random) are this pass's random numbers."""
        raw = self.samples.inputs(self.rows[positions])
        plain = Pair(as_float(raw.image), raw.text) if isinstance(raw, Pair) else as_float(raw)
        images = transform(plain, numbers[positions])
        head = (images, self.targets[positions], plain) if self.train else (images, self.targets[positions])
        return head + self._extras(positions)

    def _extras(self, positions: torch.Tensor) -> tuple:
        return tuple(getattr(self, name)[positions] for name in self.extra_return_fields)


def as_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 to [0, 1]; floats are unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


class _SeededItems(Dataset):
    """Items of a split, each made under random states that depend on the pass and the position only."""

    def __init__(self, split: Split, key: tuple):
        self.split, self.key = split, key

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> tuple:
        with seeded(*self.key, position):
            return self.split[position]


def collate_items(items: list[tuple]) -> tuple:
    return tuple(collate(column) for column in zip(*items, strict=True))


class Loader:
    """Batches of a split. `for batch in loader` is a new pass each time; `epoch(e, start)` pass e from `start`.

    Order comes from (key, pass), augmentation from (key, pass, position): any batch can be made without the ones
    before.
    """

    def __init__(
        self, split: Split, batch_size: int, key: tuple, shuffle: bool, drop_last: bool = False, workers: int = 0
    ):
        self.dataset, self.batch_size, self.key, self.shuffle = split, batch_size, key, shuffle
        self.drop_last, self.num_workers = drop_last, workers
        self.passes = 0  # plain iterations so far; saved with a checkpoint

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (1 if rest and not self.drop_last else 0)

    def __iter__(self) -> Iterator[tuple]:
        self.passes += 1
        return self._run(("plain", self.passes), 0)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple]:
        return self._run(("epoch", epoch), start)

    def order(self, name: tuple) -> torch.Tensor:
        if not self.shuffle:
            return torch.arange(len(self.dataset))
        return torch.randperm(len(self.dataset), generator=generator(*self.key, *name, "order"))

    def _run(self, name: tuple, start: int) -> Iterator[tuple]:
        batches = self.order(name).split(self.batch_size)[start : len(self)]
        read = self.dataset.reader((*self.key, *name))
        if read is not None:
            yield from map(read, batches)
            return
        # of several ranks each reads its rows of every batch with enough of them
        shared = [len(b) >= ranks.size() for b in batches]
        own = [ranks.share(b) if split else b for b, split in zip(batches, shared, strict=True)]
        # the generator keeps the DataLoader from drawing its base seed out of the global state
        loader = DataLoader(
            self.dataset.items((*self.key, *name)),
            batch_sampler=[b.tolist() for b in own],
            num_workers=self.num_workers,
            collate_fn=collate_items,
            generator=generator(*self.key, *name, "workers"),
        )
        try:
            for items, batch, split in zip(loader, batches, shared, strict=True):
                yield ranks.gathered(items, len(batch)) if split else items
        except UserError as error:  # a worker's comes wrapped in its traceback: the message is the last line
            error.with_traceback(None)  # its frames hold the workers, which would be waited for at exit
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("utils.errors.UserError: ")) from None

    def plain(self, positions: torch.Tensor | None = None) -> Iterator[tuple[Inputs, torch.Tensor]]:
        """(image without augmentation, label) batches in the order of the split, or of these positions in it."""
        positions = torch.arange(len(self.dataset)) if positions is None else positions
        for part in positions.split(self.batch_size) if len(positions) else ():
            yield self.dataset.plain(part)

    def with_batch_size(self, batch_size: int) -> "Loader":
        """The same split in batches of another size, for evaluation."""
        return Loader(self.dataset, batch_size, self.key, self.shuffle, False, self.num_workers)

    def with_inputs(self, inputs: torch.Tensor) -> "Loader":
        """The same labels and extra fields in the same order, with a row of `inputs` (len(split), ...) for each
        image."""
        old, rows = self.dataset, torch.arange(len(inputs))
        split = Split(ArraySamples(inputs, old.targets), rows, old.targets, BatchTransform([]), old.train)
        for name in old.extra_return_fields:
            split.add_extra_return_field(name, getattr(old, name))
        return Loader(split, self.batch_size, self.key, self.shuffle, self.drop_last, self.num_workers)

    def part(self, rows: torch.Tensor) -> "Loader":
        """The loader of some rows of its split."""
        smaller, split = copy.copy(self), copy.copy(self.dataset)
        for name in ("rows", "targets", *split.extra_return_fields):
            setattr(split, name, getattr(split, name)[rows])
        smaller.dataset = split
        return smaller

    def joined(self, others: list["Loader"]) -> "Loader":
        """One loader over this split and others, shuffled together; each keeps its own transform."""
        union = Union([self.dataset, *(other.dataset for other in others)])
        return Loader(union, self.batch_size, (*self.key, "joined"), self.shuffle, self.drop_last, self.num_workers)

    def with_samples(self, images: Inputs, labels: torch.Tensor) -> "Loader":
        """This split and stored images, shuffled together and augmented alike."""
        stored = Split(ArraySamples(images, labels), torch.arange(len(labels)), labels, self.dataset.transform, True)
        for name in self.dataset.extra_return_fields:
            like = getattr(self.dataset, name)
            stored.add_extra_return_field(
                name, labels if "label" in name else torch.zeros(len(labels), *like.shape[1:], dtype=like.dtype)
            )
        return self.joined([Loader(stored, self.batch_size, self.key, self.shuffle)])


class Union(Dataset):
    """Several splits, one after another."""

    def __init__(self, splits: list[Split]):
        self.splits = splits
        self.ends = torch.tensor([len(s) for s in splits]).cumsum(0)
        self.extra_return_fields = splits[0].extra_return_fields
        self.train = splits[0].train

    def __len__(self) -> int:
        return int(self.ends[-1])

    @property
    def targets(self) -> torch.Tensor:
        return torch.cat([s.targets for s in self.splits])

    @property
    def transform(self):
        return self.splits[0].transform

    def parts(self, positions: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
        """(split number, positions in it) for every split that the positions touch."""
        which = torch.searchsorted(self.ends, positions, right=True)
        starts = self.ends - torch.tensor([len(s) for s in self.splits])
        return [(k, positions[which == k] - starts[k]) for k in which.unique().tolist()]

    def reader(self, key: tuple) -> Callable | None:
        readers = [s.reader((*key, k)) for k, s in enumerate(self.splits)]
        if any(r is None for r in readers):
            return None
        return lambda positions: tuple(
            torch.cat(column) for column in zip(*(readers[k](own) for k, own in self.parts(positions)), strict=True)
        )

    def items(self, key: tuple) -> Dataset:
        return ConcatDataset([s.items((*key, k)) for k, s in enumerate(self.splits)])

    def plain(self, positions: torch.Tensor) -> tuple[Inputs, torch.Tensor]:
        found = [self.splits[k].plain(own) for k, own in self.parts(positions)]
        return torch.cat([images for images, _ in found]), torch.cat([labels for _, labels in found])

    def __getitem__(self, position: int) -> tuple:
        ((which, own),) = self.parts(torch.tensor([position]))
        return self.splits[which][int(own)]
