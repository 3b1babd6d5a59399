"""torchvision transforms as operations on whole batches, with the random numbers of each sample passed in.

A transform is compiled once from the torchvision Compose that a dataset declares. An operation has `n_random`, the
uniform numbers it needs per sample, and `apply(x, u)` with x (B, C, H, W) float in [0, 1] and u (B, n_random).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchvision.transforms import functional as TF
from torchvision.transforms import transforms as T

from utils.errors import UserError
from utils.pair import Inputs, Pair


class RandomCrop:
    """Pad with zeros, then cut a window at a random place; one gather for the batch."""

    n_random = 2

    def __init__(self, size: tuple[int, int], padding: int = 0):
        self.size, self.padding = size, padding

    def apply(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        x = F.pad(x, [self.padding] * 4) if self.padding else x
        if x.shape[2] < self.size[0] or x.shape[3] < self.size[1]:
            raise UserError(
                f"a crop of {self.size[0]} x {self.size[1]} does not fit into padded images of "
                f"{x.shape[2]} x {x.shape[3]}: change the transform's size or padding"
            )
        room = torch.tensor([x.shape[2] - self.size[0] + 1, x.shape[3] - self.size[1] + 1], device=x.device)
        start = (u * room).long().clamp_(max=room - 1)  # (B, 2)
        rows = start[:, 0, None] + torch.arange(self.size[0], device=x.device)  # (B, h)
        columns = start[:, 1, None] + torch.arange(self.size[1], device=x.device)  # (B, w)
        x = x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))
        return x.gather(3, columns[:, None, None, :].expand(-1, x.shape[1], self.size[0], -1))


class RandomFlip:
    """Mirror a sample left to right with probability p."""

    n_random = 1

    def __init__(self, p: float = 0.5):
        self.p = p

    def apply(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.where((u < self.p)[:, :, None, None], x.flip(-1), x)


class RandomGray:
    """Replace color by luminance with probability p."""

    n_random = 1

    def __init__(self, p: float):
        self.p = p

    def apply(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return torch.where((u < self.p)[:, :, None, None], TF.rgb_to_grayscale(x, num_output_channels=3), x)


class Fixed:
    """Any deterministic function of the batch."""

    n_random = 0

    def __init__(self, function):
        self.function = function

    def apply(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return self.function(x)


class Normalize:
    """(x - mean) / std per channel."""

    n_random = 0

    def __init__(self, mean, std):
        self.mean = torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self.std = torch.as_tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def apply(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return (x - self.mean.to(x.device)) / self.std.to(x.device)


class BatchTransform:
    """A sequence of batch operations; without given random numbers, it draws them from torch's global state."""

    def __init__(self, operations: list):
        self.operations = operations
        self.n_random = sum(op.n_random for op in operations)

    def __call__(self, x: Inputs, u: torch.Tensor | None = None) -> Inputs:
        if isinstance(x, Pair):
            return Pair(self(x.image, u), x.text)
        single = x.dim() == 3
        x = x[None] if single else x
        if u is None:
            u = torch.rand(len(x), self.n_random)
        u, used = u.to(x.device), 0
        for op in self.operations:
            x, used = op.apply(x, u[:, used : used + op.n_random]), used + op.n_random
        return x[0] if single else x

    @property
    def deterministic(self) -> bool:
        return self.n_random == 0


def compile_transform(transform) -> BatchTransform | None:
    """The batch form of a torchvision transform, or None if one of its operations does not have one."""
    if transform is None or isinstance(transform, BatchTransform):
        return transform or BatchTransform([])
    operations, steps = [], flatten(transform)
    on_bytes = next((i for i, step in enumerate(steps) if isinstance(step, T.ToTensor)), 0)  # steps that see PIL images
    for number, step in enumerate(steps):
        operation = resize(step, number < on_bytes) if type(step) is T.Resize else batch_operation(step)
        if operation is None:
            return None
        operations += [] if operation == "nothing" else [operation]
    return BatchTransform(operations)


def flatten(transform) -> list:
    """The single steps of nested Compose objects."""
    if isinstance(transform, (T.Compose, torch.nn.Sequential)):
        parts = transform.transforms if isinstance(transform, T.Compose) else list(transform)
        return [step for part in parts for step in flatten(part)]
    return [transform]


def batch_operation(step):
    """One torchvision step as a batch operation; "nothing" for format changes, None when there is no batch form."""
    if isinstance(step, (T.ToTensor, T.ToPILImage)):
        return "nothing"
    if hasattr(step, "n_random") and hasattr(step, "apply"):
        return step
    if type(step) is T.RandomCrop and not step.pad_if_needed and step.padding_mode == "constant" and not step.fill:
        padding = step.padding or 0
        return RandomCrop(tuple(step.size), padding) if isinstance(padding, int) else None
    if type(step) is T.RandomHorizontalFlip:
        return RandomFlip(step.p)
    if type(step) is T.RandomGrayscale:
        return RandomGray(step.p)
    if type(step) is T.Normalize:
        return Normalize(step.mean, step.std)
    if type(step) is T.CenterCrop:
        return Fixed(step)
    return None


def resize(step: T.Resize, on_bytes: bool) -> Fixed | None:
    """Resize as torchvision does it on tensors or, where the images are bytes by then, as on PIL images."""
    mode = step.interpolation
    if not on_bytes:
        return Fixed(step)
    if not step.antialias or mode not in {T.InterpolationMode.BILINEAR, T.InterpolationMode.BICUBIC}:
        return None  # PIL picks other pixels than tensor operations do
    return Fixed(lambda x: step(x).clamp_(0, 1))  # bytes cannot overshoot


def apply_each(transform, x: Inputs) -> Inputs:
    """Apply a per-image transform to every sample of a float batch, through PIL as torchvision does."""
    if isinstance(x, Pair):
        return Pair(apply_each(transform, x.image), x.text)
    steps = flatten(transform)
    wants_pil = any(isinstance(step, (T.ToTensor, T.PILToTensor)) for step in steps)
    images = [
        TF.to_pil_image(image) if wants_pil and not isinstance(steps[0], T.ToPILImage) else image for image in x.cpu()
    ]
    done = [transform(image) for image in images]
    if isinstance(done[0], tuple):  # several views of each image: as many batches
        return tuple(torch.stack(views).to(x.device) for views in zip(*done, strict=True))
    return torch.stack(done).to(x.device)


def augmentation_of(transform) -> Callable | None:
    """The training transform for a float batch: as one batch operation where every step has one, else per image."""
    if transform is None:
        return None
    steps = getattr(transform, "transforms", None)
    inner = steps[-1] if steps and hasattr(steps[-1], "transforms") else transform  # Compose([ToPILImage(), TRANSFORM])
    compiled = compile_transform(inner)
    return compiled if compiled is not None else PerImage(inner)


class PerImage:
    """A per-image transform, called on batches."""

    takes_batches = True

    def __init__(self, transform: Callable):
        self.transform = transform

    def __call__(self, x: Inputs) -> Inputs:
        return apply_each(self.transform, x)
