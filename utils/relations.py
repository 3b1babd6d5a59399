"""A teacher's relations of a batch as rows of logits, a student's distance from them, and weights of teachers.

Tensors have a leading axis M of teachers. Features have unit length: images (M, B, D); class texts and visual
prototypes (M, n, D); `scale` is exp(logit_scale).
"""

import argparse

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from utils.distillation import row_divergence
from utils.flags import non_negative

IMAGE_ROWS = ("it", "vv")  # relations with a row per image; the others have one per class
BETA = {"it": 1.0, "ti": 1.0, "vv": 0.5, "tt": 0.5, "tv": 0.5}  # own weights
KINDS = tuple(BETA)


def relation_weights(text: str) -> dict[str, float]:
    """Argument type: relations with their weights, "it,ti,vv=1", or "none"."""
    found = {}
    for part in [] if text == "none" else str(text).split(","):
        kind, _, weight = part.strip().partition("=")
        if kind not in KINDS:
            raise argparse.ArgumentTypeError(f"'{kind}' is not a relation: {', '.join(KINDS)}, or none for no relation")
        found[kind] = non_negative(weight) if weight else BETA[kind]
    return found


def relation(
    kind: str, images: Tensor, texts: Tensor, columns: Tensor, rows: Tensor, right: Tensor, scale: Tensor
) -> Tensor:
    """Rows of logits of one kind:

    it  image against class texts        (B, n)      images . texts
    ti  class text against the images    (n, B)      texts . images
    vv  image against visual prototypes  (B, n)      images . columns
    tt  class text against other texts   (n, n - 1)  rows . right, without the diagonal
    tv  class text against prototypes    (n, n)      rows . columns
    """
    if kind == "it":
        return scale * images @ texts.mT
    if kind == "ti":
        return scale * texts @ images.mT
    if kind == "vv":
        return scale * images @ columns.mT
    if kind == "tt":
        return drop_diagonal(scale * rows @ right.mT)
    return scale * rows @ columns.mT


def drop_diagonal(square: Tensor) -> Tensor:
    """(..., n, n) -> (..., n, n - 1). Removed, not masked: 0 * -inf would be NaN in a divergence."""
    n = square.shape[-1]
    flat = square.flatten(-2)[..., 1:].unflatten(-1, (n - 1, n + 1))  # each row begins after a diagonal entry
    return flat[..., :-1].flatten(-2).unflatten(-1, (n, n - 1))


def divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)) of each row (..., C) -> (...)."""
    return temperature**2 * row_divergence(student, teacher, temperature)


def teacher_weights(
    rule: str,
    images: Tensor,
    texts: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    scale: Tensor,
    tau: float = 1.0,
    snd: tuple[float, float] = (6.0, 0.2),
) -> Tensor:
    """Share of each teacher for each image (M, B), summing to 1 over teachers.

    label    softmax of -cross-entropy / tau      entropy  softmax of -entropy / tau, label-free
    proto    softmax of x . (text + prototype of the label) / tau      const  equal
    snd      the second gets sigmoid(a (|x_1 - x_2| - b)), (a, b) = snd
    """
    M, B, _ = images.shape
    if M == 1 or rule == "const":
        return images.new_full((M, B), 1 / M)
    if rule == "snd":
        if M != 2:
            raise ValueError(f"the snd rule is between two teachers, not {M}")
        second = torch.sigmoid(snd[0] * ((images[0] - images[1]).norm(dim=1) - snd[1]))
        return torch.stack([1 - second, second])
    if rule == "proto":
        score = (images * (texts + prototypes)[:, labels]).sum(-1)
    else:
        logits = scale * images @ texts.mT  # (M, B, n)
        if rule == "label":
            score = -cross_entropy(logits.flatten(0, 1), labels.repeat(M), reduction="none").view(M, B)
        else:
            log_p = logits.log_softmax(-1)
            score = (log_p.exp() * log_p).sum(-1)
    return (score / tau).softmax(0)


def keep_floor(weights: Tensor, floor: float) -> Tensor:
    """Weights (M, ...) that sum to 1, moved so that none is below `floor` and the sum is kept."""
    return floor + (1 - len(weights) * floor) * weights


def trust(images: Tensor, texts: Tensor, labels: Tensor, scale: Tensor, gamma: float) -> Tensor:
    """(B,) probability of the true class under the better teacher, to the power gamma; all 1 with gamma 0."""
    log_p = (scale * images @ texts.mT).log_softmax(-1)  # (M, B, n)
    of_label = log_p.gather(-1, labels.expand(len(images), -1)[..., None])[..., 0]
    return (gamma * of_label.amax(0)).exp()


def blend(rows: Tensor, weights: Tensor) -> Tensor:
    """Unit sum over teachers of weight times row: (M, n, D), (M, n) -> (n, D)."""
    return normalize((weights[..., None] * rows).sum(0), dim=1)
