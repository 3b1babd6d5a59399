"""Replay memory: a dict of tensors with one row per stored sample, filled and read in batches."""

import math

import numpy as np
import torch

from utils.errors import UserError
from utils.free_memory import require
from utils.memory.exemplars import as_unit, fill_buffer, icarl_replay  # noqa: F401  (part of this module's interface)
from utils.memory.strategies import STRATEGIES
from utils.pair import Inputs, Pair, collate

ATTRIBUTES = ["examples", "labels", "logits", "task_labels", "true_labels", "attention_maps"]


class Buffer:
    """Memory of at most `buffer_size` samples; the strategy decides which sample goes where.

    `codec="uint8"` keeps images as bytes: exact for images that came from bytes, a quarter of the memory.
    `max_bytes` lowers the number of places to what that many bytes hold, once the size of a sample is known.
    """

    def __init__(
        self,
        buffer_size: int,
        device="cpu",
        sample_selection_strategy: str = "reservoir",
        *,
        codec: str = "float",
        max_bytes: int | None = None,
        **kwargs,
    ):
        if int(buffer_size) <= 0:
            raise UserError(f"buffer_size is {buffer_size}, but must be at least 1")
        if sample_selection_strategy not in STRATEGIES:
            raise UserError(
                f"unknown buffer strategy '{sample_selection_strategy}'; use one of {', '.join(STRATEGIES)}"
            )
        if codec not in {"float", "uint8"}:
            raise UserError(f"unknown buffer codec '{codec}'; use one of float, uint8")
        self.buffer_size, self.device, self.codec, self.max_bytes = (
            int(buffer_size),
            torch.device(device),
            codec,
            max_bytes,
        )
        self.capacity = None  # rows allocated, if fewer than buffer_size
        self.num_seen_examples = 0
        self.iteration = 0
        self.data: dict[str, Inputs] = {}
        self.strategy_name = sample_selection_strategy
        self.sample_selection_fn = STRATEGIES[sample_selection_strategy](self, **kwargs)

    def __len__(self) -> int:
        return self.sample_selection_fn.filled()

    @property
    def attributes(self) -> list[str]:
        return list(ATTRIBUTES)

    @property
    def used_attributes(self) -> list[str]:
        return [name for name in ATTRIBUTES if name in self.data]

    def is_empty(self) -> bool:
        return self.num_seen_examples == 0

    def is_full(self) -> bool:
        return self.num_seen_examples >= self.buffer_size

    @property
    def nbytes(self) -> int:
        """Bytes of the stored samples, as they would be written to disk."""
        return sum(tensor.element_size() * tensor[: len(self)].numel() for _, tensor in self._tensors())

    def _tensors(self):
        for name, value in self.data.items():
            yield from (
                [(f"{name}.image", value.image), (f"{name}.text", value.text)]
                if isinstance(value, Pair)
                else [(name, value)]
            )

    def add_data(
        self,
        examples: Inputs,
        labels=None,
        logits=None,
        task_labels=None,
        attention_maps=None,
        true_labels=None,
        sample_selection_scores=None,
    ) -> None:
        """Offer a batch; the strategy decides, sample by sample, which are stored and what they replace."""
        offered = {
            "examples": examples,
            "labels": labels,
            "logits": logits,
            "task_labels": task_labels,
            "true_labels": true_labels,
            "attention_maps": attention_maps,
        }
        offered = {name: value for name, value in offered.items() if value is not None}
        for name, value in offered.items():
            if len(value) != len(examples):
                raise UserError(
                    f"add_data got {len(examples)} examples but {len(value)} {name}: pass one of each per sample"
                )
        self._allocate(offered)
        places = self.sample_selection_fn(len(examples), labels, sample_selection_scores)  # (B,), -1 = not kept
        self.num_seen_examples += len(examples)
        sources = np.nonzero(places >= 0)[0]
        last = {int(places[s]): int(s) for s in sources}  # a place assigned twice keeps the later sample
        if not last:
            return
        rows = torch.tensor(list(last), device=self.device)
        picked = torch.tensor(list(last.values()))
        for name, value in offered.items():
            self._write(name, rows, value[picked.to(value.device)])

    def replace(self, places: torch.Tensor, **values: Inputs) -> None:
        """Write new values of some attributes into occupied places."""
        for name, value in values.items():
            self._write(name, places.to(self.device), value)

    def limit_places(self, offered: dict[str, Inputs]) -> None:
        """Lower buffer_size to what max_bytes holds of such samples."""
        if self.max_bytes is not None:
            sizes = [self._new(name, value, 1) for name, value in offered.items()]
            each = sum(
                t.element_size() * t.numel()
                for v in sizes
                for t in ((v.image, v.text) if isinstance(v, Pair) else (v,))
            )
            self.buffer_size = min(self.buffer_size, self.max_bytes // each)
            if not self.buffer_size:
                raise UserError(f"one sample takes {each} bytes, more than the buffer's {self.max_bytes}")

    def _allocate(self, offered: dict[str, Inputs]) -> None:
        if not self.data:
            self.limit_places(offered)
        for name, value in offered.items():
            if name not in self.data:
                self.data[name] = self._new(name, value, self.capacity or self.buffer_size)

    def grow(self, rows: int) -> None:
        """Make room for `rows` samples; stored samples keep their places."""
        for name, value in self.data.items():
            if len(value) < rows:
                self.data[name] = torch.cat([value, self._new(name, value, rows - len(value))])

    def _new(self, name: str, value: Inputs, rows: int) -> Inputs:
        if isinstance(value, Pair):
            return Pair(
                self._new(name, value.image, rows),
                torch.zeros(rows, *value.text.shape[1:], dtype=value.text.dtype, device=self.device),
            )
        dtype = torch.int64 if name.endswith("els") else torch.float32
        if name == "examples" and self.codec == "uint8":
            dtype = torch.uint8
        each = math.prod(value.shape[1:]) * dtype.itemsize
        require(rows * each, f"a memory of {rows:,} samples ({name})", "lower --buffer_size", self.device)
        return torch.zeros(rows, *value.shape[1:], dtype=dtype, device=self.device)

    def _write(self, name: str, rows: torch.Tensor, value: Inputs) -> None:
        held = self.data[name]
        for target, source in (
            ((held.image, value.image), (held.text, value.text)) if isinstance(held, Pair) else ((held, value),)
        ):
            source = source.detach().to(self.device)
            if target.dtype == torch.uint8 and source.is_floating_point():
                source = source.mul(255).round_()
            elif source.dtype == torch.uint8 and target.is_floating_point():
                source = source / 255
            target[rows] = source.to(target.dtype)

    def _read(self, name: str, rows: torch.Tensor, device) -> Inputs:
        value = self.data[name][rows.to(self.device)]
        if name == "examples" and self.codec == "uint8":
            value = Pair(value.image.float() / 255, value.text) if isinstance(value, Pair) else value.float() / 255
        return value.to(device)

    def get_data(
        self,
        size: int,
        transform=None,
        return_index=False,
        device=None,
        mask_task_out=None,
        cpt=None,
        return_not_aug=False,
        not_aug_transform=None,
        force_indexes=None,
    ) -> tuple:
        """Random samples without repetition: ([index], [not augmented], examples, other attributes in order)."""
        if self.is_empty():
            raise UserError("the buffer is empty: check is_empty() before get_data()")
        device = self.device if device is None else device
        available = np.arange(len(self))
        if mask_task_out is not None:
            available = available[(self._tasks(cpt)[: len(self)] != mask_task_out).cpu().numpy()]
        if force_indexes is not None:
            chosen = np.asarray(force_indexes)
        else:
            chosen = np.random.choice(available, min(size, len(available)), replace=False)
        rows = torch.as_tensor(chosen, dtype=torch.long)
        self.iteration += 1
        found = self.get_data_by_index(rows, transform=transform, device=device)
        if return_not_aug:
            plain = self._read("examples", rows, device)
            found = (plain if not_aug_transform is None else apply(not_aug_transform, plain), *found)
        return (rows.to(device), *found) if return_index else found

    def _tasks(self, cpt: int | list[int] | None) -> torch.Tensor:
        """Task of each stored sample: as stored, or from its label and the classes per task."""
        if "task_labels" in self.data:
            return self.data["task_labels"]
        if cpt is None:
            raise UserError("mask_task_out needs stored task_labels, or cpt, the number of classes per task")
        labels = self.data["labels"]
        if isinstance(cpt, int):
            return labels // cpt
        return torch.bucketize(labels, torch.tensor(cpt, device=labels.device).cumsum(0), right=True)

    def get_data_by_index(self, indexes, transform=None, device=None) -> tuple:
        """The samples in the given places."""
        device = self.device if device is None else device
        rows = torch.as_tensor(indexes, dtype=torch.long)
        found = [self._read(name, rows, device) for name in self.used_attributes]
        return (apply(transform, found[0]), *found[1:])

    def get_all_data(self, transform=None, device=None) -> tuple:
        return self.get_data_by_index(torch.arange(len(self)), transform=transform, device=device)

    def get_balanced_data(self, size: int, transform=None, n_classes: int = -1) -> tuple:
        """Samples with the same number of each stored class, if there are enough."""
        labels = self.data["labels"][: len(self)].cpu().numpy()
        classes = np.unique(labels)
        classes = classes if n_classes <= 0 else np.random.permutation(classes)[:n_classes]
        each = np.full(len(classes), size // len(classes))
        each[np.random.permutation(len(classes))[: size - each.sum()]] += 1
        rows = [
            np.random.choice(pool, min(n, len(pool)), replace=False)
            for pool, n in ((np.nonzero(labels == c)[0], n) for c, n in zip(classes, each, strict=True))
        ]
        return self.get_data_by_index(np.concatenate(rows), transform=transform)

    def empty(self) -> None:
        self.num_seen_examples = 0
        self.data = {}
        self.sample_selection_fn.reset()

    def to(self, device) -> "Buffer":
        self.device = torch.device(device)
        self.data = {name: value.to(self.device) for name, value in self.data.items()}
        return self

    def serialize(self, out_device="cpu") -> dict[str, Inputs]:
        """Stored tensors by attribute."""
        return {name: value[: len(self)].to(out_device) for name, value in self.data.items()}

    def rewrite(self, keep: torch.Tensor, fresh: dict[str, Inputs]) -> None:
        """Replace the content by these rows of it, followed by `fresh`."""
        stored = self.serialize(self.device)
        old = {name: as_unit(stored[name][keep]) for name in fresh or stored if name in stored}
        self.load(
            {name: torch.cat([values[name] for values in (old, fresh) if name in values]) for name in old | fresh}
        )

    def load(self, tensors: dict[str, Inputs]) -> None:
        """Replace the content by tensors such as `serialize` gives; all of them count as seen."""
        count = len(tensors["examples"])
        self.limit_places(tensors)
        if count > self.buffer_size:
            raise UserError(f"{count} stored samples do not fit into a buffer of {self.buffer_size}")
        self.empty()
        self.capacity = self.capacity and max(self.capacity, count)
        self._allocate(tensors)
        for name, value in tensors.items():
            self._write(name, torch.arange(count), value)
        self.num_seen_examples = count

    def state(self) -> dict:
        """Everything that an exact continuation needs."""
        tensors = {n: {"image": v.image, "text": v.text} if isinstance(v, Pair) else v for n, v in self.data.items()}
        return {
            "tensors": tensors,
            "seen": self.num_seen_examples,
            "iteration": self.iteration,
            "size": self.buffer_size,
            "capacity": self.capacity,
            "strategy": self.sample_selection_fn.state(),
        }

    def load_state(self, state: dict) -> None:
        self.buffer_size, self.num_seen_examples, self.iteration = state["size"], state["seen"], state["iteration"]
        self.capacity = state["capacity"]
        self.data = {
            n: (Pair(v["image"], v["text"]) if isinstance(v, dict) else v).to(self.device)
            for n, v in state["tensors"].items()
        }
        self.sample_selection_fn.load_state(state["strategy"])

    def get_dataloader(self, args, batch_size: int, shuffle=False, drop_last=False, transform=None, sampler=None):
        """A DataLoader over the stored samples; images pass through `transform` one by one."""
        from torch.utils.data import DataLoader

        columns = self.get_all_data(device="cpu")
        items = list(zip(*columns, strict=True))
        items = items if transform is None else [(apply(transform, item[0][None])[0], *item[1:]) for item in items]
        return DataLoader(
            items,
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            sampler=sampler,
            collate_fn=lambda rows: tuple(collate(column) for column in zip(*rows, strict=True)),
        )


def apply(transform, images: Inputs) -> Inputs:
    """A transform on a batch: at once if it takes batches, else image by image."""
    if transform is None:
        return images
    from utils.batch_transforms import BatchTransform, apply_each

    whole = isinstance(transform, BatchTransform) or getattr(transform, "takes_batches", False)
    return transform(images) if whole else apply_each(transform, images)


def column(name: str) -> property:
    """An attribute of the buffer that is a column of its data."""

    def get(buffer: Buffer) -> Inputs:
        if name not in buffer.data:
            raise AttributeError(f"the buffer does not contain '{name}'")
        return buffer.data[name]

    return property(get, lambda buffer, value: buffer.data.__setitem__(name, value))


for _name in ATTRIBUTES:
    setattr(Buffer, _name, column(_name))
del _name
