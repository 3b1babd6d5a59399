"""Texts of a stream as token ids of the CLIP, ViLT or BLIP that the run uses."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from backbone.clip_files import TINY_DIR, openai_clip
from backbone.hub import chosen, hub_tokens
from backbone.tiny_tokenizer import TinyTokenizer
from utils.errors import UserError
from utils.settings import option

OPENAI_CONTEXT = 77
LONGEST = 512  # tokens; the network refuses what exceeds its own context


def tokenize(texts: Sequence[str], args: Namespace, cut: int | None = None) -> torch.Tensor:
    """Ids (N, L) as `--clip_backbone`, or the network chosen in its place, numbers them, cut to the longest text, so no step has to look for text ends.

    With `cut`, texts of more tokens lose their tail (the end token stays); without, they are an error.
    """
    distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if chosen(args) == "clip":
        ids = token_ids(list(distinct), option(args, "clip_backbone", "tiny"), cut)
    else:
        ids = hub_tokens(list(distinct), args, cut)
    ids = ids[:, : int(ids.argmax(dim=1).max()) + 1]
    return ids[torch.tensor([distinct[text] for text in texts])]


def token_ids(texts: list[str], clip_backbone: str, cut: int | None = None) -> torch.Tensor:
    """A folder with a vocabulary of its own (`tiny` is one) uses that; every other CLIP uses OpenAI's."""
    vocabulary = (TINY_DIR if clip_backbone == "tiny" else Path(clip_backbone).expanduser()) / "vocab.json"
    if vocabulary.is_file():
        return TinyTokenizer.load(vocabulary).tokenize(texts, cut or LONGEST, truncate=cut is not None)
    try:
        return (
            openai_clip().tokenize(texts, min(cut or OPENAI_CONTEXT, OPENAI_CONTEXT), truncate=cut is not None).long()
        )
    except RuntimeError as error:
        raise UserError(f"{error}; shorten the text") from None
