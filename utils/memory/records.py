"""Pictures with texts as patches and words, and exemplars of them as bytes: kept patches, kept words, their places.

A record is what a file would hold, and a memory keeps records as they are, so its size is the size on disk:

    kind u8 | label u16 | cells u16 | patches n u16 | words m u16 | image | ids u16 x m | places u8 x m (masked only)

    raw     all patches, 3 P P bytes each
    masked  a bit for each cell, then the kept patches
    box     a bit for each cell, the patches inside the box, those outside at half the resolution (a quarter of the bytes)
    jpeg    length u32 and the patches, side by side, as JPEG; masked_jpeg the same with bits, of the kept patches
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.errors import UserError

KINDS = ("raw", "masked", "box", "jpeg", "masked_jpeg")
WITH_BITS = {"masked", "box", "masked_jpeg"}
WITH_PLACES = {"masked", "masked_jpeg"}  # of words
HEADER = 9


class Tokens(NamedTuple):
    """A batch of pictures with texts, padded; rows of `patches` are channels first, as a convolution reads them."""

    patches: Tensor  # (B, n, 3 P P) bytes, or floats as the network takes them
    places: Tensor  # (B, n) cell of each patch in the grid, row after row
    seen: Tensor  # (B, n) False at padding
    ids: Tensor  # (B, m) words with start and end of text
    word_places: Tensor  # (B, m) position in the text
    word_seen: Tensor  # (B, m)

    def rows(self, index) -> "Tokens":
        return Tokens(*(part[index] for part in self))

    def to(self, device) -> "Tokens":
        return Tokens(*(part.to(device) for part in self))


def patchify(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) -> patches (B, N, C * side * side), row after row."""
    b, c, h, w = images.shape
    parts = images.view(b, c, h // side, side, w // side, side)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(b, (h // side) * (w // side), c * side * side)


def unpatchify(patches: Tensor, side: int) -> Tensor:
    """The inverse of patchify, for square pictures."""
    b, cells, _ = patches.shape
    grid = round(cells**0.5)
    parts = patches.view(b, grid, grid, -1, side, side)
    return parts.permute(0, 3, 1, 4, 2, 5).reshape(b, -1, grid * side, grid * side)


def full_tokens(patches: Tensor, ids: Tensor) -> Tokens:
    """Tokens with every patch (B, N, D), and words (B, L) up to the end of text, which has the largest id."""
    b, n = patches.shape[:2]
    places = torch.arange(n, device=patches.device).expand(b, -1)
    words = torch.arange(ids.shape[1], device=ids.device).expand(b, -1)
    return Tokens(
        patches, places, torch.ones_like(places, dtype=torch.bool), ids, words, words <= ids.argmax(1, keepdim=True)
    )


def special(tokens: Tokens) -> Tensor:
    """(B, m): the first and the last word seen, which are start and end of text."""
    last = tokens.word_seen.sum(1, keepdim=True) - 1
    place = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)
    return (place == 0) | (place == last)


def packed(values: Sequence[Tensor], kept: Tensor) -> tuple[list[Tensor], Tensor]:
    """Rows of values (B, n, ...) that are kept (B, n), moved to the front and cut to the longest; and which are real."""
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    longest = int(kept.sum(1).max()) if len(kept) else 0
    order = order[:, :longest]
    row = torch.arange(len(kept), device=kept.device)[:, None]
    return [value[row, order] for value in values], kept[row, order]


def select(tokens: Tokens, patches: Tensor, words: Tensor) -> Tokens:
    """Only the kept patches (B, n) and words (B, m), at their places; what is dropped is gone."""
    (pixels, places), seen = packed((tokens.patches, tokens.places), patches & tokens.seen)
    (ids, word_places), word_seen = packed((tokens.ids, tokens.word_places), words & tokens.word_seen)
    return Tokens(pixels, places, seen, ids, word_places, word_seen)


def fill_grid(tokens: Tokens, cells: int, value: int) -> Tokens:
    """Every cell has a patch of bytes again: `value` where none was kept."""
    b = len(tokens.ids)
    grid = torch.full(
        (b, cells + 1, tokens.patches.shape[2]), value, dtype=tokens.patches.dtype, device=tokens.ids.device
    )
    place = tokens.places.masked_fill(~tokens.seen, cells)  # padding goes into a cell that is cut off
    grid.scatter_(1, place[..., None].expand(-1, -1, grid.shape[2]), tokens.patches)
    places = torch.arange(cells, device=tokens.ids.device).expand(b, -1)
    return tokens._replace(patches=grid[:, :-1], places=places, seen=torch.ones_like(places, dtype=torch.bool))


# one record


def to_bytes(
    tokens: Tokens, label: int, cells: int, kind: str, quality: int = 95, inside: Tensor | None = None
) -> bytes:
    """The record of one exemplar (tokens without batch dimension); `inside` (cells,) is the box of kind box."""
    patches, places = tokens.patches[tokens.seen].cpu(), tokens.places[tokens.seen].cpu()
    ids, word_places = tokens.ids[tokens.word_seen].cpu(), tokens.word_places[tokens.word_seen].cpu()
    if len(ids) and (int(ids.max()) > 65535 or int(word_places.max()) > 255):
        raise UserError("exemplar records hold word ids below 65536 and texts of at most 256 words: cut the texts")
    bits = torch.zeros(cells, dtype=torch.bool)
    bits[places] = True
    n = len(patches)
    if kind == "box":
        bits, n = inside.cpu(), int(inside.sum())
        image = patches[bits].numpy().tobytes() + halve(patches[~bits]).numpy().tobytes()
    elif kind in {"jpeg", "masked_jpeg"}:
        image = encode_jpeg(patches, quality)
    else:
        image = patches.numpy().tobytes()
    numbers = np.array([label, cells, n, len(ids)], dtype="<u2").tobytes()
    bits = np.packbits(bits.numpy()).tobytes() if kind in WITH_BITS else b""
    text = ids.numpy().astype("<u2").tobytes()
    text += word_places.numpy().astype("u1").tobytes() if kind in WITH_PLACES else b""
    return bytes([KINDS.index(kind)]) + numbers + bits + image + text


def halve(patches: Tensor) -> Tensor:
    """Patches (n, 3 P P) of bytes at half the resolution (n, 3 P P / 4)."""
    side = patch_side(patches.shape[1])
    if side % 2:
        raise UserError(f"box records halve the patches, whose side of {side} is odd: choose another CLIP")
    pooled = torch.nn.functional.avg_pool2d(patches.view(-1, 3, side, side).float(), 2)
    return pooled.round().to(torch.uint8).flatten(1)


def double(patches: Tensor) -> Tensor:
    """Patches at twice the resolution, by repeating pixels."""
    small = patches.view(-1, 3, *[patch_side(patches.shape[1])] * 2)
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3).flatten(1)


def patch_side(width: int) -> int:
    return round((width / 3) ** 0.5)


def encode_jpeg(patches: Tensor, quality: int) -> bytes:
    """Patches (n, 3 P P) as one JPEG, a square of them where n is a square number, else a strip; with its length."""
    n, side = len(patches), patch_side(patches.shape[1])
    columns = round(n**0.5) if round(n**0.5) ** 2 == n else n
    image = patches.view(-1, columns, 3, side, side).permute(0, 3, 1, 4, 2).reshape(-1, columns * side, 3)
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "JPEG", quality=quality)
    return np.array([file.tell()], dtype="<u4").tobytes() + file.getvalue()


def decode_jpeg(data: bytes, n: int, width: int) -> Tensor:
    """The inverse of encode_jpeg, up to what JPEG loses."""
    side = patch_side(width)
    try:
        image = torch.from_numpy(np.array(Image.open(io.BytesIO(data)).convert("RGB")))
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"an exemplar's JPEG cannot be read ({error}): its memory is damaged, start the run again"
        ) from None
    parts = image.view(image.shape[0] // side, side, image.shape[1] // side, side, 3)
    return parts.permute(0, 2, 4, 1, 3).reshape(n, width)


# many records


class RecordMemory:
    """Records one behind another; `width` is that of a patch, 3 P P."""

    def __init__(self, width: int):
        self.width = width
        self.data, self.starts = torch.zeros(0, dtype=torch.uint8), torch.zeros(1, dtype=torch.long)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def nbytes(self) -> int:
        """All bytes in memory: the records and where each starts."""
        return self.data.numel() + 8 * self.starts.numel()

    @property
    def sizes(self) -> Tensor:
        """(R,) bytes of each record."""
        return self.starts.diff()

    @property
    def labels(self) -> Tensor:
        """(R,) class of each record."""
        return self._number(self.starts[:-1], 1)

    def cells(self, rows: Tensor) -> Tensor:
        """Patches of the whole pictures of these records."""
        return self._number(self.starts[rows], 3)

    def _number(self, start: Tensor, offset: int) -> Tensor:
        low, high = self.data[start + offset], self.data[start + offset + 1]
        return low.long() + 256 * high.long()

    def add(self, records: Sequence[bytes]) -> None:
        if records:
            fresh = torch.frombuffer(bytearray(b"".join(records)), dtype=torch.uint8)
            sizes = torch.tensor([len(r) for r in records])
            self.data, self.starts = (
                torch.cat([self.data, fresh]),
                torch.cat([self.starts, self.starts[-1] + sizes.cumsum(0)]),
            )

    def record(self, row: int) -> bytes:
        return self.data[self.starts[row] : self.starts[row + 1]].numpy().tobytes()

    def keep(self, rows: Tensor) -> None:
        """Only these rows stay, in this order."""
        starts = torch.cat([self.starts[:1], self.sizes[rows].cumsum(0)])
        shift = (self.starts[rows] - starts[:-1]).repeat_interleave(self.sizes[rows])  # of each byte that stays
        self.data, self.starts = self.data[torch.arange(len(shift)) + shift], starts

    def state(self) -> dict:
        return {"data": self.data, "starts": self.starts, "width": self.width}

    def load_state(self, state: dict) -> None:
        self.data, self.starts, self.width = state["data"], state["starts"], state["width"]

    def decode(self, rows: Tensor) -> Tokens:
        """Patches as bytes and words of these records, padded to the longest; rows of one kind."""
        start = self.starts[rows]
        kinds = self.data[start].unique().tolist()
        if len(kinds) != 1 or kinds[0] >= len(KINDS):
            raise UserError("the exemplar memory holds records of several or unknown kinds: start the run again")
        kind = KINDS[kinds[0]]
        cells, n, m = (self._number(start, offset) for offset in (3, 5, 7))
        bits, at = None, start + HEADER
        if kind in WITH_BITS:
            count = (int(cells.max()) + 7) // 8
            byte = self.data[at[:, None] + torch.arange(count)]  # (B, count)
            bits = (
                (byte[..., None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1)
                .flatten(1)[:, : int(cells.max())]
                .bool()
            )
            at = at + count
        patches, places, seen = self._image(kind, at, n, cells, bits)
        after = self.starts[rows + 1] - m * (3 if kind in WITH_PLACES else 2)  # the text is at the end of a record
        column = torch.arange(int(m.max()))
        word_seen = column < m[:, None]
        index = (after[:, None] + 2 * column).masked_fill(~word_seen, 0)
        ids = (self.data[index].long() + 256 * self.data[index + 1].long()).masked_fill(~word_seen, 0)
        word_places = column.expand(len(rows), -1)
        if kind in WITH_PLACES:
            index = (after[:, None] + 2 * m[:, None] + column).masked_fill(~word_seen, 0)
            word_places = self.data[index].long().masked_fill(~word_seen, 0)
        return Tokens(patches, places, seen, ids, word_places, word_seen)

    def _image(self, kind, at, n, cells, bits):
        """Patches (B, n, width), their places and which are real."""
        whole = kind in {"raw", "jpeg", "box"}
        number = cells if whole else n
        column = torch.arange(int(number.max()))
        seen = column < number[:, None]
        places = (
            column.expand(len(n), -1) if whole else packed((torch.arange(bits.shape[1]).expand_as(bits),), bits)[0][0]
        )
        places = places.masked_fill(~seen, 0)
        if kind in {"raw", "masked"}:
            if not len(column):  # texts alone
                return torch.zeros(len(n), 0, self.width, dtype=torch.uint8), places, seen
            index = (at[:, None] + self.width * column).masked_fill(~seen, 0)  # (B, n)
            return self.data.unfold(0, self.width, 1)[index] * seen[..., None], places, seen
        patches = torch.zeros(len(n), len(column), self.width, dtype=torch.uint8)
        for b, begin in enumerate(at.tolist()):
            if kind == "box":
                split = begin + int(n[b]) * self.width
                rest = int(cells[b] - n[b]) * self.width // 4
                patches[b, bits[b]] = self.data[begin:split].view(-1, self.width)
                patches[b, ~bits[b]] = double(self.data[split : split + rest].view(-1, self.width // 4))
            else:
                length = int.from_bytes(self.data[begin : begin + 4].numpy().tobytes(), "little")
                data = self.data[begin + 4 : begin + 4 + length].numpy().tobytes()
                patches[b, : int(number[b])] = decode_jpeg(data, int(number[b]), self.width)
        return patches, places, seen
