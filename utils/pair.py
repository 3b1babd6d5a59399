"""One container for an image batch with its text, so that loaders, loops and buffers need no changes."""

from collections.abc import Sequence

import torch


class Pair:
    """Two tensors with the same first dimension: `image` and `text` (token ids).

    Indexing, len, `.to(device)`, torch.cat and torch.stack act on both halves, so code written for a tensor of
    images runs on pairs.
    """

    def __init__(self, image: torch.Tensor, text: torch.Tensor):
        self.image, self.text = image, text

    def map(self, function) -> "Pair":
        return Pair(function(self.image), function(self.text))

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index) -> "Pair":
        return self.map(lambda part: part[index])

    def __repr__(self) -> str:
        return f"Pair(image={tuple(self.image.shape)}, text={tuple(self.text.shape)})"

    def to(self, *args, **kwargs) -> "Pair":
        """Move both halves; a floating dtype is applied to the image only, token ids stay integers."""

        def of_text(value):
            return self.text.dtype if isinstance(value, torch.dtype) else value

        if args and isinstance(args[0], torch.Tensor):  # to(other, ...): its device and dtype
            args = (args[0].device, args[0].dtype, *args[1:])
        text = self.text.to(*map(of_text, args), **{k: of_text(v) for k, v in kwargs.items()})
        return Pair(self.image.to(*args, **kwargs), text)

    def clone(self) -> "Pair":
        return self.map(torch.Tensor.clone)

    def detach(self) -> "Pair":
        return self.map(torch.Tensor.detach)

    def cpu(self) -> "Pair":
        return self.map(torch.Tensor.cpu)

    @property
    def shape(self) -> torch.Size:
        return self.image.shape

    def size(self, dim: int | None = None):
        return self.image.size() if dim is None else self.image.size(dim)

    @property
    def device(self) -> torch.device:
        return self.image.device

    @property
    def dtype(self) -> torch.dtype:
        return self.image.dtype

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function in {torch.cat, torch.stack, torch.concat, torch.concatenate}:
            parts, rest = args[0], args[1:]
            if not all(isinstance(p, Pair) for p in parts):
                raise TypeError(f"torch.{function.__name__} got pairs mixed with plain tensors")
            return Pair(
                function([p.image for p in parts], *rest, **(kwargs or {})),
                function([p.text for p in parts], *rest, **(kwargs or {})),
            )
        return NotImplemented


Inputs = torch.Tensor | Pair


def collate(items: Sequence) -> Inputs:
    """Stack images, pairs or numbers of single samples into one batch."""
    if isinstance(items[0], (torch.Tensor, Pair)):
        return torch.stack(list(items))
    return torch.as_tensor(items)
