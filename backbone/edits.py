"""Small changes of frozen transformer blocks: each turns the `Parts` of a block into a block with something added.

They hold the tensors of one block and are made anew for a forward pass, so the network itself is never changed. With
a zero `up` (or a zero prompt value) the edited block computes what the block computes.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from backbone.attention import Parts
from utils.errors import UserError
from utils.ranks import sum_of_rows

Block = Callable[..., tuple[Tensor, Tensor | None]]  # called as `backbone.attention.run` calls a block
Edit = Callable[[Parts], Block]
PLACES = {"query": 0, "key": 1, "value": 2}


class Adapter(NamedTuple):
    """A bottleneck beside the MLP: rest(x) + scale * up relu(down x)."""

    SHARED = True  # no field has a row for each image
    down: Tensor  # (r, W)
    down_bias: Tensor  # (r,)
    up: Tensor  # (W, r)
    up_bias: Tensor  # (W,)
    scale: float

    def __call__(self, parts: Parts) -> Parts:
        def rest(x: Tensor) -> Tensor:
            return parts.rest(x) + self.scale * linear(
                relu(linear(x, self.down, self.down_bias)), self.up, self.up_bias
            )

        return parts._replace(rest=rest)


class AdapterSet(nn.Module):
    """The weights of an `Adapter` for every block; `up` is zero at first, so nothing is added."""

    def __init__(self, n_blocks: int, width: int, size: int, scale: float):
        super().__init__()
        self.down = nn.Parameter((2 * torch.rand(n_blocks, size, width) - 1) * width**-0.5)
        self.down_bias, self.up = (
            nn.Parameter(torch.zeros(n_blocks, size)),
            nn.Parameter(torch.zeros(n_blocks, width, size)),
        )
        self.up_bias, self.scale = nn.Parameter(torch.zeros(n_blocks, width)), scale

    def edits(self) -> list[Adapter]:
        rows = zip(self.down, self.down_bias, self.up, self.up_bias, strict=True)
        return [Adapter(*own, self.scale) for own in rows]


class LowRank(NamedTuple):
    """Queries, keys or values get up (down h) added: one product of the rank's width for each place."""

    SHARED = True  # no field has a row for each image
    down: Tensor  # (K, R, W), for K places
    up: Tensor  # (K, W, R)
    places: tuple[int, ...]  # of PLACES

    def __call__(self, parts: Parts) -> Parts:
        def project(h: Tensor, rows: int | None) -> Sequence[Tensor]:
            found = list(parts.project(h, rows))
            for place, down, up in zip(self.places, self.down, self.up, strict=True):
                found[place] = found[place] + linear(linear(h[:, :rows] if place == 0 else h, down), up)
            return found

        return parts._replace(project=project)


class ValueShift(NamedTuple):
    """Every value gets the image's own vector added."""

    shift: Tensor  # (B, W)

    def __call__(self, parts: Parts) -> Parts:
        def project(h: Tensor, rows: int | None) -> Sequence[Tensor]:
            query, key, value = parts.project(h, rows)
            return query, key, value + self.shift[:, None]

        return parts._replace(project=project)


class FreshTokens(NamedTuple):
    """The tokens behind the class token are replaced in front of the block."""

    SHARED = True  # no field has a row for each image
    tokens: Tensor  # (n, W)

    def __call__(self, parts: Parts) -> Block:
        def block(x: Tensor, seen: Tensor | None = None, **how) -> tuple[Tensor, Tensor | None]:
            fresh = self.tokens.expand(len(x), -1, -1)
            return parts(torch.cat([x[:, :1], fresh, x[:, 1 + len(self.tokens) :]], dim=1), seen, **how)

        return block


class SecondMoment(NamedTuple):
    """Nothing changes; the sum of h h^T over all inputs h of queries, keys and values is added to `total`."""

    total: Tensor  # (W, W)
    SHARED = True

    def __call__(self, parts: Parts) -> Parts:
        def norm(x: Tensor) -> Tensor:
            h = parts.norm(x)
            rows = h.detach().flatten(0, 1).to(self.total.dtype)
            self.total.add_(sum_of_rows(rows.T @ rows))
            return h

        return parts._replace(norm=norm)


class Chain(NamedTuple):
    """One edit after another."""

    edits: tuple[Edit, ...]

    def __call__(self, parts: Parts) -> Block:
        for edit in self.edits:
            parts = edit(parts)
        return parts


def edited(blocks: Sequence[Parts], edits: Sequence[Edit] | None) -> Sequence[Block]:
    """Blocks with an edit each."""
    if edits is None:
        return blocks
    if len(edits) != len(blocks):
        raise UserError(f"{len(edits)} edits for a network of {len(blocks)} blocks: each block takes one")
    return [edit(parts) for edit, parts in zip(edits, blocks, strict=True)]
