"""Batched augmentation under the names of `utils.kornia_utils`; the operations are ours, kornia is not needed."""

import torch
from torchvision.transforms import RandAugment

from utils.batch_transforms import apply_each, compile_transform


class KorniaAugNoGrad:
    """A transform on a batch (B, C, H, W), without gradients; per image where a step has no batch form."""

    takes_batches = True

    def __init__(self, transform):
        self.transform = transform
        self.compiled = compile_transform(transform)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        single = x.dim() == 3
        x = x[None] if single else x
        out = self.compiled(x) if self.compiled is not None else apply_each(self.transform, x)
        return out[0] if single else out


def to_kornia_transform(transform, apply: bool = True) -> KorniaAugNoGrad:
    """The batch form of a torchvision transform, or of a list of its steps."""
    from torchvision.transforms import Compose

    return KorniaAugNoGrad(Compose(list(transform)) if isinstance(transform, (list, tuple)) else transform)


class KorniaMultiAug(KorniaAugNoGrad):
    """`n_augs` different views of each sample, concatenated: (B, ...) to (n_augs * B, ...)."""

    def __init__(self, transform, n_augs: int):
        transform, n_augs = (n_augs, transform) if isinstance(transform, int) else (transform, n_augs)
        if isinstance(transform, (list, tuple)):
            transform = to_kornia_transform(transform).transform
        super().__init__(transform)
        self.n_augs = n_augs

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x.repeat(self.n_augs, *[1] * (x.dim() - 1)))


class CustomKorniaRandAugment:
    """RandAugment on float images: n operations of strength m of 30, drawn separately for each image."""

    takes_batches = True

    def __init__(self, n: int = 2, m: int = 9):
        self.draw = RandAugment(num_ops=n, magnitude=m)

    @torch.no_grad()
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        single = x.dim() == 3
        images = (x[None] if single else x).mul(255).round().clamp(0, 255).to(torch.uint8)
        out = torch.stack([self.draw(image) for image in images]).to(x.dtype) / 255
        return out[0] if single else out
