"""A small two-tower network, samples as tokens, and the flags of the memory."""

import functools
from argparse import Namespace

import torch

from backbone.clip import load_clip
from backbone.fusion import make_fusion
from backbone.multimodal import MultimodalNet
from utils.memory.records import (
    full_tokens,
    patchify,
    special,
)

CELLS, SIDE = 36, 8
TEXTS = ["a photo of a red cup in the sea.", "a fish.", "a picture of a striped green boat on snow."]


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@functools.cache
def net() -> MultimodalNet:
    clip = load_clip("tiny")
    torch.manual_seed(0)
    return MultimodalNet(clip, make_fusion(clip, "none", 16, 2, 2), 4, tune="none").eval()


def batch(n: int = 3, seed: int = 0):
    """Bytes of n images (n, 3, 48, 48) and their tokens."""
    images = torch.randint(0, 256, (n, 3, 48, 48), generator=draw(seed), dtype=torch.uint8)
    ids = load_clip("tiny").tokenize([TEXTS[i % 3] for i in range(n)])
    return images, full_tokens(patchify(images, SIDE), ids)


def some(tokens, seed: int = 1):
    """A choice of patches and words, special words among them."""
    patches = torch.rand(tokens.seen.shape, generator=draw(seed)) < 0.3
    words = (torch.rand(tokens.word_seen.shape, generator=draw(seed + 1)) < 0.5) | special(tokens)
    return patches, words & tokens.word_seen


def memory_args(**changes) -> Namespace:
    return Namespace(
        **{
            "buffer_bytes_per_class": "2x",
            "buffer_bytes": None,
            "budget_unit": "bytes_raw",
            "budget_fill": "stop",
            "exemplar_codec": "masked",
            "mask_rule": "mean",
            "text_rule": "union",
            "direction": "i2t",
            "sum_beta": 1.0,
            "jpeg_quality": None,
            "box_threshold": 0.6,
        }
        | changes
    )
