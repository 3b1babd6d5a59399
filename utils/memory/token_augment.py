"""Augmentation of masked exemplars: pure functions of Tokens with missing patches and words.

Every function keeps the row's label: partners are of the same class, or provide only their background.
"""

import torch
from torch import Tensor

from utils.memory.records import Tokens, packed, special

AUGMENTATIONS = ("none", "swap", "mix_patches", "background", "token_drop")


def partners(labels: Tensor, rows: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """For each row (B,) of a memory with labels (R,): another row of its class, or itself if there is none."""
    same = labels[rows][:, None] == labels  # (B, R)
    same[torch.arange(len(rows)), rows] = False
    drawn = torch.rand(same.shape, generator=rng).masked_fill(~same, -1.0)
    return torch.where(same.any(1), drawn.argmax(1), rows)


def choose(first: Tensor, second: Tensor, use: Tensor) -> Tensor:
    """Rows of `second` where `use` (B,), else of `first`; the shorter one is padded with zeros."""
    length = max(first.shape[1], second.shape[1])
    first, second = (
        torch.nn.functional.pad(t, (0, 0) * (t.dim() - 2) + (0, length - t.shape[1])) for t in (first, second)
    )
    return torch.where(use.view(-1, *[1] * (first.dim() - 1)), second, first)


def swap(own: Tokens, other: Tokens, use: Tensor) -> Tokens:
    """The row's own image with the other's text, where `use` (B,)."""
    text = {name: choose(getattr(own, name), getattr(other, name), use) for name in ("ids", "word_places", "word_seen")}
    return own._replace(**text)


def mix_patches(own: Tokens, other: Tokens, use: Tensor, longest: int) -> Tokens:
    """Where `use`: both images' patches, the row's own if both have one, and both texts' words in order of position."""
    taken = ((other.places[:, :, None] == own.places[:, None]) & own.seen[:, None]).any(2)
    extra = other.seen & ~taken & use[:, None]
    joined = [torch.cat([getattr(own, n), getattr(other, n)], dim=1) for n in ("patches", "places")]
    (patches, places), seen = packed(joined, torch.cat([own.seen, extra], dim=1))
    more = other.word_seen & ~special(other) & use[:, None]
    joined = [torch.cat([getattr(own, n), getattr(other, n)], dim=1) for n in ("ids", "word_places")]
    word_seen = torch.cat([own.word_seen, more], dim=1)
    # the row's own end of text stays last, for any places of the other's words
    end = torch.cat([special(own) & (own.word_places > 0), torch.zeros_like(more)], dim=1)
    order = joined[1].masked_fill(end, joined[1].max() + 1).argsort(dim=1, stable=True)
    row = torch.arange(len(order))[:, None]
    (ids, word_places), word_seen = packed([value[row, order] for value in joined], word_seen[row, order])
    if ids.shape[1] > longest:
        kept = word_seen & ((torch.arange(ids.shape[1]) < longest - 1) | last(word_seen))
        (ids, word_places), word_seen = packed((ids, word_places), kept)
    return Tokens(patches, places, seen, ids, word_places, word_seen)


def last(seen: Tensor) -> Tensor:
    """(B, m): the last place seen of each row."""
    return torch.arange(seen.shape[1], device=seen.device) == seen.sum(1, keepdim=True) - 1


def background(own: Tokens, patches: Tensor, spare: Tensor, use: Tensor) -> Tokens:
    """Empty cells filled with another image's patches (B, N, D) where those are `spare` (B, N), where `use` (B,)."""
    cells = patches.shape[1]
    taken = torch.zeros(len(patches), cells + 1, dtype=torch.bool)
    taken.scatter_(1, own.places.masked_fill(~own.seen, cells), True)
    free = spare & ~taken[:, :-1] & use[:, None]
    places = torch.arange(cells).expand(len(patches), -1)
    joined = torch.cat([own.patches, patches], dim=1), torch.cat([own.places, places], dim=1)
    (patches, places), seen = packed(joined, torch.cat([own.seen, free], dim=1))
    return own._replace(patches=patches, places=places, seen=seen)


def token_drop(own: Tokens, p: float, rng: torch.Generator | None = None) -> Tokens:
    """Each patch and word is dropped with probability p; the first patch, and start and end of text, stay."""
    stay = torch.rand(own.seen.shape, generator=rng) >= p
    stay[:, :1] = True
    words = (torch.rand(own.word_seen.shape, generator=rng) >= p) | special(own)
    (patches, places), seen = packed((own.patches, own.places), own.seen & stay)
    (ids, word_places), word_seen = packed((own.ids, own.word_places), own.word_seen & words)
    return Tokens(patches, places, seen, ids, word_places, word_seen)
