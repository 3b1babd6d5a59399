"""Learned prompts for a frozen CLIP: context vectors before class names, encoded at the cost of the tokens in use."""

import torch
from torch import nn

from backbone.clip import CLIPBackbone
from utils.errors import UserError

BUCKET = 64  # prompts of similar length that are encoded together; each bucket is cut to its longest


class NamePrompts(nn.Module):
    """Sentences [start][context: n vectors]["name."][end] for a list of class names, as embeddings.

    The text tower is causal and read at the end token only, so prompts are cut there: exact, at a tenth of the tokens.
    """

    def __init__(self, clip: CLIPBackbone, names: list[str], n_context: int):
        super().__init__()
        place = " ".join(["X"] * n_context)
        try:
            tokens = clip.tokenize([f"{place} {name}." for name in names])  # (C, context_length)
            bare = clip.tokenize([f"{name}." for name in names])
        except UserError as error:
            raise UserError(f"{n_context} context vectors and a class name do not fit this CLIP: {error}") from None
        self.eot = tokens.argmax(dim=1)  # (C,), kept on the CPU
        self.groups_of: dict[tuple, tuple] = {}  # of ranges of classes, computed once
        if not torch.equal(self.eot, bare.argmax(dim=1) + n_context):
            raise UserError(
                "this CLIP's tokenizer does not encode each placeholder X as one token; choose another CLIP"
            )
        self.n_context, length = n_context, int(self.eot.max()) + 1
        embeddings = clip.token_embeddings(tokens[:, :length]).detach()
        self.register_buffer("start", embeddings[:, :1].clone(), persistent=False)  # (C, 1, W)
        self.register_buffer("rest", embeddings[:, 1 + n_context :].clone(), persistent=False)  # (C, L - 1 - n, W)

    def __len__(self) -> int:
        return len(self.eot)

    def encode(self, clip: CLIPBackbone, context: torch.Tensor, classes: torch.Tensor | slice) -> torch.Tensor:
        """Raw text features (K, D) of the given classes with context vectors (K, n, W), with gradient.

        Pass a range of classes as a slice: then nothing is copied to the device in a step.
        """
        start, rest = self.start[classes], self.rest[classes]
        length, groups, back = self.groups(classes, start.device)
        embeds = torch.cat([start, context.to(start.dtype), rest], dim=1)[:, :length]
        parts = [clip.encode_embeddings(embeds[rows, :end], eot) for rows, eot, end in groups]
        return parts[0] if back is None else torch.cat(parts)[back]

    def groups(self, classes: torch.Tensor | slice, device: torch.device) -> tuple:
        """(longest, [(places, end tokens, length) of prompts of similar length], their places afterwards or None)."""
        key = (classes.start, classes.stop, device) if isinstance(classes, slice) else None
        if key in self.groups_of:
            return self.groups_of[key]
        eot, back = self.eot[classes], None
        length, groups = int(eot.max()) + 1, [(slice(None), eot.to(device), int(eot.max()) + 1)]
        if len(eot) > BUCKET:
            order = eot.argsort()
            groups = [(r.to(device), eot[r].to(device), int(eot[r].max()) + 1) for r in order.split(BUCKET)]
            back = order.argsort().to(device)
        if key is not None:
            self.groups_of[key] = length, groups, back
        return length, groups, back


class ContextNet(nn.Module):
    """An MLP from a text (or image) feature (N, D) to one context vector (N, W).

    Three normalized hidden layers. The normalization layers act as in eval mode with initial statistics: a
    learned scale and shift over sqrt(1 + eps), so a class's vector depends only on its own input.
    """

    def __init__(self, feature_dim: int, width: int):
        super().__init__()
        sizes = [(feature_dim, feature_dim), (feature_dim, feature_dim), (feature_dim, width)]
        layers = [layer for a, b in sizes for layer in (nn.Linear(a, b), ScaleShift(b), nn.SELU())]
        self.layers = nn.Sequential(*layers, nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class ScaleShift(nn.Module):
    """BatchNorm in eval mode whose statistics are still 0 and 1."""

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.factor = (1 + eps) ** -0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (self.factor * self.weight) + self.bias


def chunked_backward(encode, n_classes: int, chunk: int, loss_of) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss over class keys, with gradients accumulated over groups of classes; equal to one backward pass over all.

    `encode(rows)` gives the keys of a range of classes, `loss_of(keys)` the loss of all keys. With `chunk` 0 everything
    is computed at once; else the text tower holds the activations of `chunk` classes at a time and runs forward twice.
    """
    if not chunk or chunk >= n_classes:
        keys = encode(slice(0, n_classes))
        loss = loss_of(keys)
        loss.backward()
        return loss.detach(), keys.detach()
    parts = [slice(first, min(first + chunk, n_classes)) for first in range(0, n_classes, chunk)]
    with torch.no_grad():
        keys = torch.cat([encode(rows) for rows in parts])
    keys.requires_grad_()
    loss = loss_of(keys)
    loss.backward()
    for rows in parts:
        encode(rows).backward(keys.grad[rows])
    return loss.detach(), keys.detach()
