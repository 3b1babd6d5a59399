"""One way to run transformer blocks of any library, and to see what they attend to.

    attend   softmax(Q K^T / sqrt(d)) V with prefixes and padding
    shares   the softmax itself
    Parts    a block by its parts: norm, queries/keys/values, heads, what follows attention, what follows the sum
    run      blocks one after another: prefixes by number, only the requested rows of the last, an attention map of each

The output comes from the fused kernel with and without a map, so returning attention does not change any number.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, seen: Tensor | None = None, prefix: Tensor | None = None
) -> Tensor:
    """Rows (B, R, W): weighted means of values, for keys and values (B, S, W).

    seen (B, S) is False at padding; prefix (B, 2, P, W) holds P keys and P values in front, seen by all rows.
    """
    if prefix is not None:
        value = torch.cat([prefix[:, 1], value], dim=1)
    key, mask = in_sight(key, seen, prefix)
    q, k, v = (by_head(t, heads) for t in (query, key, value))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def shares(query: Tensor, key: Tensor, heads: int, seen: Tensor | None = None, prefix: Tensor | None = None) -> Tensor:
    """(B, heads, R, S): the weights by which `attend` mixes."""
    key, mask = in_sight(key, seen, prefix)
    q, k = by_head(query, heads), by_head(key, heads)
    scores = q @ k.transpose(2, 3) / q.shape[3] ** 0.5
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)


def in_sight(key: Tensor, seen: Tensor | None, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Keys preceded by those of the prefix, and the mask over them."""
    if prefix is not None:
        key = torch.cat([prefix[:, 0], key], dim=1)
        seen = None if seen is None else torch.cat([seen.new_ones(len(seen), prefix.shape[2]), seen], dim=1)
    return key, None if seen is None else seen[:, None, None]


def by_head(x: Tensor, heads: int) -> Tensor:
    """(B, S, W) -> (B, heads, S, W / heads)."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


class Parts(NamedTuple):
    """A block split into its parts, in the order in which they run."""

    norm: Callable[[Tensor], Tensor]
    project: Callable[[Tensor, int | None], Sequence[Tensor]]  # -> queries of the first rows (None: all), keys, values
    heads: int
    out: Callable[[Tensor, Tensor], Tensor]  # (output of attention, the query rows) -> their sum
    rest: Callable[[Tensor], Tensor]

    def __call__(
        self,
        x: Tensor,
        seen: Tensor | None = None,
        rows: int | None = None,
        prefix: Tensor | None = None,
        attention: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The block on x (B, S, W), and its map; with `rows` only the first rows are returned, but the map of all."""
        h, found = self.norm(x), None
        projected = self.project(h, rows)
        if attention:
            query, key, _ = projected if rows is None else self.project(h, None)
            found = shares(query, key, self.heads, seen, prefix)
        mixed = attend(*projected, self.heads, seen, prefix)
        return self.rest(self.out(mixed, x[:, :rows])), found


def joint(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor, int | None], Sequence[Tensor]]:
    """`project` of one layer (3 W, W) for queries, keys and values, as one product."""

    def project(h: Tensor, rows: int | None) -> Sequence[Tensor]:
        query, key, value = linear(h, weight, bias).chunk(3, dim=-1)
        return query[:, :rows], key, value

    return project


def split(layer: nn.Linear) -> Callable[[Tensor, int | None], Sequence[Tensor]]:
    """The same as two products, so that queries of rows that are not requested cost nothing."""

    def project(h: Tensor, rows: int | None) -> Sequence[Tensor]:
        sizes = [h.shape[-1], 2 * h.shape[-1]]
        (query, both), (first, others) = layer.weight.split(sizes), layer.bias.split(sizes)
        return linear(h[:, :rows], query, first), *linear(h, both, others).chunk(2, dim=-1)

    return project


def separate(attention) -> Callable[[Tensor, int | None], Sequence[Tensor]]:
    """`project` of a module with separate layers named query, key and value."""
    return lambda h, rows: (attention.query(h[:, :rows]), attention.key(h), attention.value(h))


def run(
    blocks: Sequence[Callable],
    x: Tensor,
    seen: Tensor | None = None,
    rows: int | None = None,
    prefixes: dict[int, Tensor] | None = None,
    attention: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """All blocks on x, and on request a map (B, heads, R, S) of each.

    A block takes (x, seen, attention=...), with a prefix also prefix=..., and the last one rows=....
    """
    maps = []
    for number, block in enumerate(blocks):
        more = {"prefix": prefixes[number]} if prefixes and number in prefixes else {}
        if rows is not None and number + 1 == len(blocks):
            more["rows"] = rows
        x, found = block(x, seen, attention=attention, **more)
        maps.append(found)
    return x, maps if attention else []
