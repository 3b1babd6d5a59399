"""OpenAI's BPE tokenizer with a small vocabulary: any text can still be tokenized, with at most a few hundred ids.

A piece that the small vocabulary lacks is split back along the merge that made it, down to single bytes if need be,
and all bytes are kept. Id 0 is only padding; the start and end tokens are the two largest ids, the end
the largest, because clip.model.CLIP finds the end of a text by argmax.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from utils import json_text
from utils.errors import UserError


@functools.lru_cache(maxsize=1)
def _bpe():
    from clip.simple_tokenizer import SimpleTokenizer  # reads the merges file; not at import

    return SimpleTokenizer()


@functools.lru_cache(maxsize=1)
def _halves() -> dict[str, tuple[str, str]]:
    """Piece -> the two pieces whose merge makes it (the earliest merge where several do)."""
    halves: dict[str, tuple[str, str]] = {}
    for pair in _bpe().bpe_ranks:
        halves.setdefault("".join(pair), pair)
    return halves


def full_pieces(text: str) -> list[str]:
    """The pieces OpenAI's tokenizer makes of a text."""
    return [_bpe().decoder[i] for i in _bpe().encode(text)]


def build_pieces(texts: Sequence[str]) -> list[str]:
    """The small vocabulary for these texts: every byte alone and at a word's end, then the pieces used, sorted."""
    single = list(_bpe().byte_encoder.values())
    used = {piece for text in texts for piece in full_pieces(text)}
    base = single + [b + "</w>" for b in single]
    return base + sorted(used - set(base))


class TinyTokenizer:
    """Tokenizer over `pieces`; ids 1..n in their order, then start and end."""

    def __init__(self, pieces: Sequence[str]):
        self.pieces = list(pieces)
        self.ids = {piece: i + 1 for i, piece in enumerate(self.pieces)}
        self.start, self.end = len(self.pieces) + 1, len(self.pieces) + 2
        self.vocab_size = self.end + 1

    @classmethod
    def load(cls, path: str | Path) -> TinyTokenizer:
        return cls(json_text.parse(Path(path).read_text()))

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.pieces, indent=0) + "\n")

    def _split(self, piece: str) -> list[int]:
        if piece in self.ids:
            return [self.ids[piece]]
        left, right = _halves()[piece]
        return self._split(left) + self._split(right)

    def encode(self, text: str) -> list[int]:
        """Ids without start, end and padding."""
        return [i for piece in full_pieces(text) for i in self._split(piece)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text (lower case, single spaces) of ids; start, end and padding are omitted."""
        text = "".join(self.pieces[i - 1] for i in ids if 0 < i < self.start)
        words = [bytearray(_bpe().byte_decoder[c] for c in word) for word in text.split("</w>")]
        return " ".join(word.decode("utf-8", errors="replace") for word in words).strip()

    def tokenize(self, texts: str | Sequence[str], context_length: int, truncate: bool = False) -> torch.Tensor:
        """int64 ids (B, context_length), padded with 0."""
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.zeros(len(texts), context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.encode(text), self.end]
            if len(ids) > context_length and not truncate:
                raise UserError(
                    f"text of {len(ids)} tokens, but the context length is {context_length}: {text!r}; "
                    "shorten it or pass truncate=True"
                )
            ids = ids[: context_length - 1] + ids[-1:] if len(ids) > context_length else ids
            row[: len(ids)] = torch.tensor(ids)
        return rows
