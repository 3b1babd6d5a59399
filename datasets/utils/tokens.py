"""Texts of a stream as token ids of the CLIP, ViLT or BLIP that the run uses."""

import functools
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from backbone.clip_files import embedded, is_torchscript, openai_clip, read_safetensors, read_torch
from backbone.hub_flags import chosen, hub_tokens
from backbone.tiny_tokenizer import TinyTokenizer
from utils.errors import UserError
from utils.settings import option

OPENAI_CONTEXT = 77


def tokenize(texts: Sequence[str], args: Namespace, cut: int | None = None) -> torch.Tensor:
    """Ids (N, L) as `--clip_backbone`, or the network chosen in its place, numbers them, cut to the longest text, so no
    step has to search for text ends.

    A text of more tokens than the network reads, or than `cut`, loses its tail (the end token stays); without `cut` it
    is an error.
    """
    distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    if chosen(args) == "clip":
        ids = token_ids(list(distinct), option(args, "clip_backbone", "tiny"), cut)
    else:
        ids = hub_tokens(list(distinct), args, cut)
    ids = ids[:, : int(ids.argmax(dim=1).max()) + 1]
    return ids[torch.tensor([distinct[text] for text in texts])]


def token_ids(texts: list[str], clip_backbone: str, cut: int | None = None) -> torch.Tensor:
    """A folder with a vocabulary of its own (`tiny` is one) uses it; every other CLIP uses OpenAI's."""
    longest, vocabulary = context_length(clip_backbone), place_of(clip_backbone) / "vocab.json"
    length = min(cut or longest, longest)
    if vocabulary.is_file():
        return TinyTokenizer.load(vocabulary).tokenize(texts, length, truncate=cut is not None)
    try:
        return openai_clip().tokenize(texts, length, truncate=cut is not None).long()
    except RuntimeError as error:
        raise UserError(f"{error}; shorten the text") from None


def place_of(clip_backbone: str) -> Path:
    return embedded(clip_backbone) or Path(clip_backbone).expanduser()


@functools.lru_cache(maxsize=8)
def context_length(clip_backbone: str) -> int:
    """How many tokens the text tower of a CLIP reads: its number of positions; all of OpenAI's have 77."""
    if clip_backbone.startswith("open_clip:"):
        try:
            import open_clip
        except ImportError:
            raise UserError("open_clip: names need one more package: pip install open_clip_torch") from None
        config = open_clip.get_model_config(clip_backbone.removeprefix("open_clip:").rpartition("/")[0]) or {}
        return config.get("text_cfg", {}).get("context_length", OPENAI_CONTEXT)
    path = place_of(clip_backbone)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file() or (path.suffix != ".safetensors" and is_torchscript(path)):
        return OPENAI_CONTEXT  # a name of OpenAI's, or its archive
    state = read_safetensors(path, "").state if path.suffix == ".safetensors" else read_torch(path)
    if "positional_embedding" not in state:
        raise UserError(
            f"{path} does not contain the text tower of a CLIP (no positional_embedding): "
            "give other weights to --clip_backbone"
        )
    return len(state["positional_embedding"])
