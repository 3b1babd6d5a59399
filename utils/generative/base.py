"""What every class-conditional feature generator shares: storage, merging, guards, random streams, state."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from utils import ranks
from utils.errors import UserError

Progress = Callable[[int, int, float], None]  # (done, total, loss of the latest step)
ROWS_PER_DRAW = 64  # rows drawn at once: limits the copies of weights and the hidden activations of `sample`
# Bytes of weights, gradients and Adam moments that one stacked fit may hold; `bench.py --suite generative` with
# --stack_bytes compares budgets. On a CPU small networks gain until a few MiB and large ones are flat above 100 MiB; on
# a GPU a stack shares its kernel launches among all classes in it, so only memory should bound it.
FIT_BYTES = {"cpu": 128 * 2**20, "cuda": 4 * 2**30}


class ClassGenerator:
    """Feature generators of all classes ever fitted, held as stacked tensors with one row per (class, fit).

    A subclass names its `kind` and writes two functions: `_fit_rows`, features of K classes to tensors (K, ...), and
    `_draw`, such tensors to samples (K, n, D). Each class draws from its own random stream during a fit, so its
    generator depends on its own features and on `rng` alone, not on the classes that are fitted with it.
    """

    kind = ""

    def __init__(self, **options):
        self.options = options  # hyperparameters; part of the state, since a draw may need them
        self.rows: dict[str, Tensor] = {}  # (R, ...)
        self.row_class: list[int] = []  # R class labels
        self.row_count: list[int] = []  # R numbers of features each row was fitted on

    def _fit_rows(self, xs: list[Tensor], streams: list[torch.Generator], progress: Progress | None):
        raise NotImplementedError(f"{type(self).__name__} does not define _fit_rows()")

    def _draw(self, rows: dict[str, Tensor], n: int, rng: torch.Generator | None) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} does not define _draw()")

    def _joined(self, old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: torch.cat([old[k], v]) for k, v in new.items()}

    @property
    def classes(self) -> list[int]:
        """Labels of all classes fitted so far, sorted."""
        return sorted(set(self.row_class))

    def fit(
        self,
        features: dict[int, Tensor],
        rng: torch.Generator | None = None,
        progress: Progress | None = None,
        merge: bool = False,
    ) -> None:
        """Fit one generator per class of `features` {label: (n_c, D)}, all in one batched computation.

        A class fitted before is replaced; with `merge` its older generators are kept, and `sample` draws from the
        mixture of all of them, each with weight proportional to the number of features it was fitted on (the same
        mixture as pooled data of the domains would have). One class of one feature is generated as that feature.
        `progress(done, total, loss)` is called from time to time by the generators that train.
        """
        classes, xs = _checked(features)
        if self.rows and self.rows["mean"].shape[-1] != xs[0].shape[1]:
            old, new = self.rows["mean"].shape[-1], xs[0].shape[1]
            raise UserError(f"features have {new} dimensions but the stored generators have {old}; use one encoder")
        with torch.no_grad():
            fitted = self._fit_dealt(xs, class_streams(classes, rng, xs[0].device), progress)
        keep = [r for r, c in enumerate(self.row_class) if merge or c not in features]
        if keep:
            fitted = self._joined({k: self.rows[k][keep].to(v.device, v.dtype) for k, v in fitted.items()}, fitted)
        self.rows = fitted
        self.row_class = [self.row_class[r] for r in keep] + classes
        self.row_count = [self.row_count[r] for r in keep] + [len(x) for x in xs]

    def _fit_dealt(self, xs: list[Tensor], streams: list[torch.Generator], progress: Progress | None):
        """`_fit_rows`; of several ranks each fits some classes, which depend on nothing else."""
        if len(xs) < ranks.size() or ranks.size() == 1:
            return self._fit_rows(xs, streams, progress)
        dealt = ranks.by_size([len(x) for x in xs])
        own = dealt[ranks.rank()]
        with ranks.alone():
            fitted = self._fit_rows([xs[i] for i in own], [streams[i] for i in own], progress)
        parts = ranks.everyone({name: value.cpu() for name, value in fitted.items()})
        order = torch.tensor([i for part in dealt for i in part]).argsort()
        return {k: v[order].to(xs[0].device) for k, v in functools.reduce(self._joined, parts).items()}

    @torch.no_grad()
    def sample(self, classes: Tensor, n: int, rng: torch.Generator | None = None) -> Tensor:
        """Draw n synthetic features of each of the K given classes: (K, n, D), on the device of the generators."""
        table, share = self._components(classes.tolist())  # (K, M) row numbers, (K, M) weights
        n_classes, n_parts = table.shape
        if n_parts == 1:
            return self._draw_rows(table[:, 0], n, rng)
        where = rng.device if rng is not None else share.device
        part = torch.multinomial(share.to(where), n, replacement=True, generator=rng)  # (K, n)
        hits = torch.nn.functional.one_hot(part, n_parts)  # (K, n, M)
        place = (
            (hits.cumsum(1) - 1).gather(2, part.unsqueeze(2)).squeeze(2)
        )  # (K, n): how many of this part came before
        quota = int(hits.sum(1).max())
        pool = self._draw_rows(table.flatten(), quota, rng).view(n_classes, n_parts, quota, -1)
        first = torch.arange(n_classes, device=where).unsqueeze(1)
        return pool[first.to(pool.device), part.to(pool.device), place.to(pool.device)]

    def shuffled(self, n_classes: int, n: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """n samples of each of the classes from `first` to `n_classes` in random order: features (K * n, D), labels."""
        classes = torch.arange(first, n_classes)
        samples = self.sample(classes, n)
        order = torch.randperm(len(classes) * n, device=samples.device)
        labels = classes.to(samples.device).repeat_interleave(n)
        return samples.flatten(0, 1)[order], labels[order]

    def _components(self, classes: list[int]) -> tuple[Tensor, Tensor]:
        rows_of: dict[int, list[int]] = {}
        for row, c in enumerate(self.row_class):
            rows_of.setdefault(c, []).append(row)
        for c in classes:
            if c not in rows_of:
                raise UserError(
                    f"class {c} does not have a generator, because no task so far had samples of it "
                    f"({len(rows_of)} classes have one): "
                    "choose a stream whose tasks contain samples of all their classes"
                )
        parts = [rows_of[c] for c in classes]
        width = max((len(p) for p in parts), default=1)
        table = torch.tensor([p + p[:1] * (width - len(p)) for p in parts], dtype=torch.long).view(-1, width)
        share = [[float(self.row_count[r]) for r in p] + [0.0] * (width - len(p)) for p in parts]
        return table, torch.tensor(share).view(-1, width)

    def _draw_rows(self, index: Tensor, n: int, rng: torch.Generator | None) -> Tensor:
        if not len(index):
            raise UserError("no class was requested; pass at least one class label to sample")
        device = self.rows["mean"].device
        blocks = [i.to(device) for i in index.split(ROWS_PER_DRAW)]
        return torch.cat([self._draw({k: v[i] for k, v in self.rows.items()}, n, rng) for i in blocks])

    def stored_bytes(self) -> int:
        """Bytes of all tensors stored for sampling."""
        return sum(v.numel() * v.element_size() for v in self.rows.values())

    def to(self, device: torch.device | str) -> "ClassGenerator":
        """Move the stored tensors to a device."""
        self.rows = {k: v.to(device) for k, v in self.rows.items()}
        return self

    def state(self) -> dict:
        """All that sampling needs, as tensors and JSON values."""
        own = {"kind": self.kind, "options": dict(self.options)}
        return own | {"row_class": list(self.row_class), "row_count": list(self.row_count)} | dict(self.rows)

    def load_state(self, state: dict) -> None:
        """Load what `state` returned; a different kind or different hyperparameters are refused."""
        if (state["kind"], state["options"]) != (self.kind, self.options):
            old, new = (state["kind"], state["options"]), (self.kind, self.options)
            raise UserError(f"stored generators are {old}, this run asks for {new}; use the stored flags or refit")
        self.row_class, self.row_count = list(state["row_class"]), list(state["row_count"])
        self.rows = {k: v for k, v in state.items() if isinstance(v, Tensor)}


def _checked(features: dict[int, Tensor]) -> tuple[list[int], list[Tensor]]:
    """Sorted labels and their features as float32 or float64; the error names an unusable class and the reason."""
    if not features:
        raise UserError("no class to fit; pass features of at least one class")
    classes = sorted(features)
    width = features[classes[0]].shape[-1]
    for c in classes:
        x = features[c]
        if x.ndim != 2 or x.shape[1] != width:
            raise UserError(f"class {c} has features of shape {tuple(x.shape)}, expected (n, {width}); use one encoder")
        if not len(x):
            raise UserError(f"class {c} has 0 features; leave it out or pass at least one sample")
        if not bool(torch.isfinite(x).all()):
            raise UserError(f"class {c} has NaN or infinite features; check its images and the encoder's precision")
    dtype = torch.float64 if features[classes[0]].dtype == torch.float64 else torch.float32
    return classes, [features[c].detach().to(dtype) for c in classes]


def class_streams(classes: list[int], rng: torch.Generator | None, device: torch.device) -> list[torch.Generator]:
    """One random stream per class on `device`, seeded by one draw from `rng` and the class label."""
    where = rng.device if rng is not None else "cpu"
    base = int(torch.randint(2**32, (1,), generator=rng, device=where))
    # the CPU engine reads 32 bits of a seed; the odd factor (Knuth's 2^32 / golden ratio) maps labels to distinct seeds
    return [torch.Generator(device).manual_seed((base + 2654435761 * c) % 2**32) for c in classes]


def normal(shape: tuple[int, ...], rng: torch.Generator | None, like: Tensor) -> Tensor:
    """Standard normal draws, made on the generator's device and moved to that of `like`."""
    where = rng.device if rng is not None else like.device
    return torch.randn(shape, generator=rng, device=where, dtype=like.dtype).to(like.device)


def pad(xs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Ragged features as one zero-padded stack (K, N, D) and their counts (K,)."""
    counts = torch.tensor([len(x) for x in xs], device=xs[0].device)
    return torch.nn.utils.rnn.pad_sequence(xs, batch_first=True), counts


def pad_rows(x: Tensor, n: int) -> Tensor:
    """Zero-pad a stack (K, N, D) to n rows a class."""
    return torch.nn.functional.pad(x, (0, 0, 0, n - x.shape[1]))


def row_mask(counts: Tensor, n_rows: int) -> Tensor:
    """(K, n_rows, 1) booleans: true where a padded stack holds a feature."""
    return (torch.arange(n_rows, device=counts.device) < counts.unsqueeze(1)).unsqueeze(2)


def moments(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation per class and dimension, (K, D) each, in float64; 0 where n is 1."""
    x, n = x.double(), counts.double().unsqueeze(1)
    mean = x.sum(1) / n
    centred = (x - mean.unsqueeze(1)) * row_mask(counts, x.shape[1])
    return mean, (centred.square().sum(1) / (n - 1).clamp(min=1)).sqrt()


def standardise(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """z-scored features (K, N, D), zero-padded, and the mean and std (K, D) that undo it; constant dims become 0."""
    mean, std = (m.to(x.dtype) for m in moments(x, counts))
    # a constant dimension may keep a std of rounding size; below this it is rounding noise of the mean
    std = std.where(std > 16 * torch.finfo(x.dtype).eps * mean.abs(), 0)
    z = (x - mean.unsqueeze(1)) / std.where(std > 0, 1).unsqueeze(1)
    return z * row_mask(counts, x.shape[1]) * (std > 0).unsqueeze(1), mean, std


def uniform_linear(weight: Tensor, fan_in: int, streams: list[torch.Generator]) -> None:
    """PyTorch's default initialization of a linear layer, U(+-1/sqrt(fan_in)), in place and per class (K, ...)."""
    for row, stream in zip(weight, streams, strict=True):
        row.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=stream)


def classes_per_fit(n_params: int, like: Tensor) -> int:
    """How many class networks of `n_params` weights to train in one stack on the device of `like`."""
    budget = FIT_BYTES.get(like.device.type, FIT_BYTES["cuda"])
    return max(1, budget // (4 * n_params * like.element_size()))
