"""Which patches and words of an image with its text are kept: pure functions of attention, batched.

Image: a patch stays where the class token's attention to it exceeds the mean over the patches of its image.
Text: words that the class token attends to (class words), and words that the discarded patches attend to (context).
"""

import torch
from torch import Tensor

MIN_PATCHES, MIN_WORDS = 4, 2  # minimum kept, if there are as many
IMAGE_RULES = ("mean", "scaled", "ratio", "mass", "random", "inverse", "oracle", "text_only", "none")
TEXT_RULES = ("union", "class_only", "context_only", "sum", "random", "none")
DIRECTIONS = ("i2t", "t2i", "both")


def mean_of(values: Tensor, seen: Tensor) -> Tensor:
    """(B, 1): mean of values (B, n) where seen (B, n)."""
    return (values * seen).sum(1, keepdim=True) / seen.sum(1, keepdim=True).clamp(min=1)


def ranks(values: Tensor, seen: Tensor) -> Tensor:
    """(B, n): 0 for the largest value of a row among those seen, then 1, ...; ties by position."""
    order = values.masked_fill(~seen, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1)


def guard(kept: Tensor, values: Tensor, seen: Tensor, least: int) -> Tensor:
    """`kept`, with the `least` largest values added if fewer are kept."""
    few = kept.sum(1, keepdim=True) < least
    return (kept | (few & (ranks(values, seen) < least))) & seen


def random_like(kept: Tensor, seen: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """As many places of each row as `kept` has, drawn at random among those seen."""
    drawn = torch.rand(kept.shape, generator=rng).to(kept.device)
    return ranks(drawn, seen) < kept.sum(1, keepdim=True)


def image_mask(
    attention: Tensor,
    seen: Tensor,
    rule: str = "mean",
    level: float = 1.0,
    rng: torch.Generator | None = None,
    least: int = MIN_PATCHES,
) -> Tensor:
    """Kept patches (B, N) of class-token attention (B, N); padding (not seen) is never kept nor counted.

    mean: a > mean a. scaled: a > level * mean a. ratio: the share `level` with the largest a. mass: the fewest patches
    with at least the share `level` of the attention. random: as many as mean keeps, drawn, or the share `level` if that
    is below 1. inverse: as many as mean keeps, those with the smallest a. none: all.
    """
    if rule == "none":
        return seen.clone()
    total = seen.sum(1, keepdim=True)
    if rule == "ratio" or (rule == "random" and level < 1):
        kept = ranks(attention, seen) < (level * total).round()
    elif rule == "mass":
        visible = attention * seen
        order = visible.argsort(dim=1, descending=True, stable=True)
        sizes = visible.gather(1, order)
        before = sizes.cumsum(1) - sizes  # the sum of the larger ones
        kept = (before < level * sizes.sum(1, keepdim=True)).gather(1, order.argsort(dim=1))
    else:
        kept = attention > (level if rule == "scaled" else 1.0) * mean_of(attention, seen)
    kept = guard(kept & seen, attention, seen, least)
    if rule == "inverse":
        return (ranks(-attention, seen) < kept.sum(1, keepdim=True)) & seen
    return random_like(kept, seen, rng) & seen if rule == "random" else kept


def context_attention(discarded: Tensor, i2t: Tensor, t2i: Tensor, direction: str = "i2t") -> Tensor:
    """(B, m): attention between the discarded patches (B, n) and each word; i2t (B, n, m), t2i (B, m, n).

    Mean over the discarded patches of their attention to the word (i2t), of the word's to them (t2i), or both.
    """
    weight = discarded.to(i2t) / discarded.sum(1, keepdim=True).clamp(min=1)
    ways = {
        "i2t": lambda: torch.einsum("bn,bnm->bm", weight, i2t),
        "t2i": lambda: torch.einsum("bn,bmn->bm", weight, t2i),
    }
    return (ways["i2t"]() + ways["t2i"]()) / 2 if direction == "both" else ways[direction]()


def text_mask(
    attention: Tensor,
    context: Tensor,
    words: Tensor,
    rule: str = "union",
    beta: float = 1.0,
    rng: torch.Generator | None = None,
    least: int = MIN_WORDS,
) -> Tensor:
    """Kept words (B, m): class-token attention (B, m), context attention (B, m), words (B, m) without special tokens.

    class_only: attention above its mean. context_only: context above its mean. union: either. sum: both scaled to sum
    to 1, attention + beta * context above its mean. random: as many as union keeps, drawn. none: all.
    """
    if rule == "none":
        return words.clone()
    share = [v * words / (v * words).sum(1, keepdim=True).clamp(min=1e-12) for v in (attention, context)]
    strength = share[0] + beta * share[1]
    by_class, by_context = (v > mean_of(v, words) for v in share)
    kept = {
        "class_only": by_class,
        "context_only": by_context,
        "sum": strength > mean_of(strength, words),
    }.get(rule, by_class | by_context)
    kept = guard(kept & words, strength, words, least)
    return random_like(kept, words, rng) & words if rule == "random" else kept
