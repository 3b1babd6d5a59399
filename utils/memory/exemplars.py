"""Herding, class-balanced memories, and training on a task together with its memory."""

import argparse

import torch
import torch.nn.functional as F

from utils.class_means import class_means
from utils.errors import UserError
from utils.pair import Inputs, Pair
from utils.randomness import generator


def herd(features: torch.Tensor, count: int) -> torch.Tensor:
    """Rows whose running mean stays nearest to the mean of all rows, in order of selection, each row once."""
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free, chosen = torch.ones(len(features), dtype=torch.bool, device=features.device), []
    for k in range(min(count, len(features))):
        distance = (mean - (total + features) / (k + 1)).norm(dim=1)  # (N,)
        best = distance.masked_fill(~free, torch.inf).argmin()
        chosen.append(best)
        free[best] = False
        total = total + features[best]
    return torch.stack(chosen)


def add_rule_arg(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--memory_rule",
        choices=["shared", "per_class"],
        default="shared",
        help="shared: the classes seen so far fill all places; per_class: each class has its places "
        "(--buffer_size over all classes of the stream) from its first task on",
    )


def quotas(size: int, classes: list[int], of: int | None = None) -> dict[int, int]:
    """Places of each class in a memory of `size`: equal numbers, and one more for the first classes.

    `of` is the number of classes that will come in all; given it, places of later classes stay empty until then.
    """
    if of is not None:
        if size < of:
            raise UserError(
                f"--memory_rule per_class: --buffer_size {size} is less than one exemplar for each of {of} classes; "
                f"give at least {of}"
            )
        return dict.fromkeys(sorted(classes), size // of)
    each, rest = divmod(size, len(classes))
    return {c: each + (1 if i < rest else 0) for i, c in enumerate(sorted(classes))}


@torch.no_grad()
def features_of(net, images: Inputs, normalization, device, batch_size: int = 256) -> torch.Tensor:
    """Penultimate features (N, D) of plain [0, 1] images, network in eval mode."""
    training = net.training
    net.eval()

    def prepare(batch: Inputs) -> Inputs:
        image = batch.image if isinstance(batch, Pair) else batch
        image = normalization(image) if normalization is not None else image
        return (Pair(image, batch.text) if isinstance(batch, Pair) else image).to(device)

    parts = [
        net(prepare(images[start : start + batch_size]), returnt="features").flatten(1)
        for start in range(0, len(images), batch_size)
    ]
    net.train(training)
    return torch.cat(parts)


def fill_buffer(
    buffer,
    dataset,
    t_idx: int,
    net=None,
    use_herding: bool = False,
    required_attributes=None,
    normalize_features: bool = False,
    extend_equalize_buffer: bool = False,
    normalization=None,
    memory_rule: str = "shared",
) -> None:
    """Refill a memory with the same number of samples of every class seen up to task `t_idx`.

    Old classes keep the first of their stored samples, which with herding are the best ones. New samples come from
    the training images of the task, without augmentation: herded on `net`'s features, or drawn at random.
    """
    if extend_equalize_buffer:
        raise UserError("fill_buffer(extend_equalize_buffer=True) is not supported: the memory has a fixed size here")
    names = list(required_attributes or ["examples", "labels"])
    if set(names) - {"examples", "labels", "task_labels"}:
        raise UserError(f"fill_buffer stores examples, labels and task_labels, not {', '.join(names)}")
    first, end = dataset.get_offsets(t_idx)
    if getattr(buffer, "max_bytes", None) is not None:
        images, labels = next(iter(dataset.train_loader.plain()))
        buffer.limit_places({name: images if name == "examples" else labels for name in names})
    share = quotas(buffer.buffer_size, list(range(end)), total_classes(dataset, memory_rule))
    keep = torch.zeros(0, dtype=torch.long)
    if not buffer.is_empty():
        labels = buffer.labels[: len(buffer)]
        keep = torch.cat(
            [keep.to(labels.device)] + [torch.nonzero(labels == c).flatten()[: share[c]] for c in range(first)]
        )
    fresh: dict[str, list] = {name: [] for name in names}
    for images, label in images_by_class(dataset.train_loader, first, end):
        count = min(share[label], len(images))
        if count == 0:
            continue
        if use_herding:
            features = features_of(net, images, normalization, next(net.parameters()).device)
            features = F.normalize(features, dim=1) if normalize_features else features
            chosen = herd(features, count).cpu()
        else:
            chosen = torch.randperm(len(images))[:count]
        found = {
            "examples": images[chosen],
            "labels": torch.full((count,), label),
            "task_labels": torch.full((count,), t_idx),
        }
        for name in names:
            fresh[name].append(found[name].to(buffer.device))
    buffer.rewrite(keep, {name: torch.cat(parts) for name, parts in fresh.items() if parts})


def check_rule(args: argparse.Namespace, n_classes: int) -> None:
    """Refuse a memory that has no place for each class, before any training."""
    if args.memory_rule == "per_class":
        quotas(args.buffer_size, [], n_classes)


def total_classes(dataset, memory_rule: str) -> int | None:
    """What `quotas` needs to know for the rule: all classes of the stream under per_class, else nothing."""
    return dataset.get_offsets(dataset.N_TASKS - 1)[1] if memory_rule == "per_class" else None


def as_unit(values: Inputs) -> Inputs:
    """Images stored as bytes back in [0, 1]."""
    if isinstance(values, Pair):
        return Pair(as_unit(values.image), values.text)
    return values.float() / 255 if values.dtype == torch.uint8 else values


def batches_by_class(loader, first: int, end: int):
    """(batches of images without augmentation, label) for each class of a task: one batch at a time is in memory."""
    for label in range(first, end):
        positions = (loader.dataset.targets == label).nonzero().flatten()
        yield (images for images, _ in loader.plain(positions)), label


def images_by_class(loader, first: int, end: int):
    """(images without augmentation, label) for each class of a task, in the order of the split; none: no rows."""
    for batches, label in batches_by_class(loader, first, end):
        parts = list(batches)
        yield torch.cat(parts) if parts else torch.zeros(0), label


def icarl_replay(model, dataset, val_set_split: float = 0) -> None:
    """Make the task's train loader also serve the stored exemplars, with the same augmentation.

    With `val_set_split` that share of the task's images, and of the exemplars, is held out and served by
    `model.val_loader` instead, in the form of training items.
    """
    loader = dataset.train_loader
    if not 0 <= val_set_split < 1:
        raise UserError(f"icarl_replay(val_set_split={val_set_split}): expected a fraction below 1")
    if val_set_split:
        draw = generator(*loader.key, "held out")
        held, kept = _drawn_out(len(loader.dataset), val_set_split, draw)
        model.val_loader, dataset.train_loader = loader.part(held), loader.part(kept)
    if model.current_task == 0 or model.buffer.is_empty():
        return
    stored = model.buffer.serialize("cpu")
    images, labels = stored["examples"], stored["labels"]
    if not isinstance(images, Pair) and images.is_floating_point():
        images = images.mul(255).round().to(torch.uint8)
    if val_set_split:
        held, kept = _drawn_out(len(labels), val_set_split, draw)
        model.val_loader = model.val_loader.with_samples(images[held], labels[held])
        images, labels = images[kept], labels[kept]
    dataset.train_loader = dataset.train_loader.with_samples(images, labels)


def _drawn_out(count: int, share: float, draw: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a share, at least one, and all others, both in order."""
    order = torch.randperm(count, generator=draw)
    cut = max(1, round(share * count))
    return order[:cut].sort().values, order[cut:].sort().values


def unit_rows(features: torch.Tensor | None, labels: torch.Tensor, n_classes: int, encode, loader) -> tuple:
    """Unit features (N, D) and classes (N,) of the exemplars, and of the training images of a class that has none.

    `encode(images)` gives the features (N, D) of a batch of images of `loader`.
    """
    rows, owners = [features] * bool(len(labels)), [labels]
    missing = set(range(n_classes)) - set(labels.unique().tolist())
    if missing and loader is not None:
        for batches, label in batches_by_class(loader, min(missing), n_classes):
            parts = [encode(images) for images in batches] if label in missing else []
            rows += parts
            owners += [labels.new_full((len(part),), label) for part in parts]
    return F.normalize(torch.cat(rows), dim=1), torch.cat(owners)


def balanced_head(rows: torch.Tensor, owners: torch.Tensor, n_classes: int, ridge: float) -> torch.Tensor:
    """(D + 1, C) ridge regression of one-hot classes on unit rows and a constant; every class weighs 1 in total."""
    rows = F.pad(rows, (0, 1), value=1.0).double()
    weighted = rows.T / owners.bincount(minlength=n_classes).clamp(min=1)[owners]  # (D + 1, N)
    gram = weighted @ rows + ridge * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    return torch.linalg.solve(gram, weighted @ F.one_hot(owners, n_classes).double()).float()


def nearest_means(features: torch.Tensor | None, labels: torch.Tensor, n_classes: int, encode, loader) -> torch.Tensor:
    """(C, D) unit means of `unit_rows`."""
    return means_of(*unit_rows(features, labels, n_classes, encode, loader), n_classes)


def means_of(rows: torch.Tensor, owners: torch.Tensor, n_classes: int) -> torch.Tensor:
    """(C, D) unit means of unit rows (N, D) of classes (N,); infinitely far for a class without rows."""
    means = F.normalize(class_means(rows[None], owners, n_classes)[0], dim=1)
    absent = owners.bincount(minlength=n_classes) == 0
    return means.masked_fill(absent[:, None], torch.inf)


def exemplar_means(net, buffer, dataset, n_classes: int, normalization) -> torch.Tensor:
    """`nearest_means` of a Buffer under a network."""
    device = next(net.parameters()).device

    def encode(images: Inputs) -> torch.Tensor:
        return features_of(net, images, normalization, device)

    features, labels = None, torch.zeros(0, dtype=torch.long, device=device)
    if not buffer.is_empty():
        stored = buffer.serialize("cpu")
        features, labels = encode(as_unit(stored["examples"])), stored["labels"].to(device)
    return nearest_means(features, labels, n_classes, encode, dataset.train_loader)
