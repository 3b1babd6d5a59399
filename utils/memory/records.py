"""Images with texts as patches and words, and exemplars of them as bytes: kept patches, kept words, their places.

A record has the bytes of a file, and a memory stores records unchanged, so its size is the size on disk:

    kind u8 | label u16 | cells u16 | patches n u16 | words m u16 | image | ids u16 x m | places of words (masked only)

    raw     all patches, 3 P P bytes each
    masked  a bit for each cell, then the kept patches
    box     a bit for each cell, the patches inside the box, the others at half the resolution (a quarter of the bytes)
    jpeg    quality u8 and the patches, in a grid, as JPEG; masked_jpeg the same with bits, of the kept patches
    places  a bit for each position of the text, and how many bytes these take, u8: 0 where no position is missing

All JPEGs of one size and quality begin with the same tables, 600 bytes or more; they are rebuilt when a record is read.
"""

import functools
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from utils.errors import UserError

CODES = {"raw": 0, "box": 2, "masked": 5, "jpeg": 6, "masked_jpeg": 7}  # 1, 3 and 4 were earlier layouts
KINDS = tuple(CODES)
WITH_BITS = {"masked", "box", "masked_jpeg"}
WITH_PLACES = {"masked", "masked_jpeg"}  # of words
HEADER = 9
START_OF_SCAN, JPEG_END = 0xDA, b"\xff\xd9"
LONGEST = 8 * 255  # positions of a text
GREY = 127  # where a patch was dropped


class Tokens(NamedTuple):
    """A batch of images with texts, padded; rows of `patches` are channels first, as a convolution reads them."""

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
    """The inverse of patchify, for square images."""
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
    """Rows of values (B, n, ...) that are kept (B, n), moved to the front, cut to the longest; and the mask of real
    rows."""
    order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)
    longest = int(kept.sum(1).max()) if len(kept) else 0
    order = order[:, :longest]
    row = torch.arange(len(kept), device=kept.device)[:, None]
    return [value[row, order] for value in values], kept[row, order]


def select(tokens: Tokens, patches: Tensor, words: Tensor) -> Tokens:
    """Only the kept patches (B, n) and words (B, m), at their places; the rest is removed."""
    (pixels, places), seen = packed((tokens.patches, tokens.places), patches & tokens.seen)
    (ids, word_places), word_seen = packed((tokens.ids, tokens.word_places), words & tokens.word_seen)
    return Tokens(pixels, places, seen, ids, word_places, word_seen)


def fill_grid(tokens: Tokens, cells: int, value: int) -> Tokens:
    """Every cell gets a patch of bytes again: `value` where none was kept."""
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
    if len(ids) and (int(ids.max()) > 65535 or int(word_places.max()) >= LONGEST):
        raise UserError(
            f"exemplar records store word ids below 65536 and texts of at most {LONGEST} words: shorten the texts"
        )
    bits = torch.zeros(cells, dtype=torch.bool)
    bits[places] = True
    n = len(patches)
    if kind == "box":
        bits, n = inside.cpu(), int(inside.sum())
        image = patches[bits].numpy().tobytes() + halve(patches[~bits]).numpy().tobytes()
    elif kind in {"jpeg", "masked_jpeg"}:
        image = bytes([quality]) + encode_jpeg(patches, quality)
    else:
        image = patches.numpy().tobytes()
    numbers = np.array([label, cells, n, len(ids)], dtype="<u2").tobytes()
    bits = np.packbits(bits.numpy()).tobytes() if kind in WITH_BITS else b""
    text = ids.numpy().astype("<u2").tobytes()
    text += places_to_bytes(word_places) if kind in WITH_PLACES and len(ids) else b""
    return bytes([CODES[kind]]) + numbers + bits + image + text


def places_to_bytes(places: Tensor) -> bytes:
    """Ascending positions (m,) of words: a bit each, and how many bytes those are; nothing but a 0 for 0 .. m - 1."""
    if int(places[-1]) + 1 == len(places):
        return bytes([0])
    bits = torch.zeros(int(places[-1]) + 1, dtype=torch.bool)
    bits[places] = True
    packed_bits = np.packbits(bits.numpy()).tobytes()
    return packed_bits + bytes([len(packed_bits)])


def unpack(data: Tensor) -> Tensor:
    """Bits (B, 8 n) of bytes (B, n), the highest first."""
    return (data[..., None] >> torch.arange(7, -1, -1, dtype=torch.uint8) & 1).flatten(1).bool()


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


def jpeg_grid(n: int) -> tuple[int, int]:
    """Rows and columns of the grid in which n patches are compressed."""
    columns = math.ceil(n**0.5)
    return math.ceil(n / columns), columns


def whole_jpeg(image: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()


@functools.lru_cache(maxsize=1024)
def jpeg_tables(height: int, width: int, quality: int) -> bytes:
    """All that comes before the pixels in a JPEG of this size and quality, independent of its content."""
    data, at = whole_jpeg(np.zeros((height, width, 3), dtype=np.uint8), quality), 2
    while data[at + 1] != START_OF_SCAN:  # each segment: 255, its kind, its length in two bytes
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return data[: at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]


def encode_jpeg(patches: Tensor, quality: int) -> bytes:
    """Patches (n, 3 P P) as one JPEG without its tables; the last one is repeated to the end of the grid."""
    side, (rows, columns) = patch_side(patches.shape[1]), jpeg_grid(len(patches))
    full = torch.cat([patches, patches[-1:].expand(rows * columns - len(patches), -1)])
    image = full.view(rows, columns, 3, side, side).permute(0, 3, 1, 4, 2).reshape(rows * side, columns * side, 3)
    return whole_jpeg(image.numpy(), quality)[len(jpeg_tables(rows * side, columns * side, quality)) : -len(JPEG_END)]


def decode_jpeg(data: bytes, n: int, width: int, quality: int) -> Tensor:
    """The inverse of encode_jpeg, up to what JPEG loses."""
    if not 1 <= quality <= 95:
        raise UserError(f"an exemplar's JPEG has quality {quality}: its memory is damaged, start the run again")
    side, (rows, columns) = patch_side(width), jpeg_grid(n)
    whole = jpeg_tables(rows * side, columns * side, quality) + data + JPEG_END
    try:
        image = torch.from_numpy(np.array(Image.open(io.BytesIO(whole)).convert("RGB")))
    except (OSError, SyntaxError) as error:
        raise UserError(
            f"an exemplar's JPEG cannot be read ({error}): its memory is damaged, start the run again"
        ) from None
    parts = image.view(rows, side, columns, side, 3)
    return parts.permute(0, 2, 4, 1, 3).reshape(rows * columns, width)[:n]


# many records


class RecordMemory:
    """Concatenated records; `width` is that of a patch, 3 P P."""

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
        """Patches of the whole images of these records."""
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
        codes = self.data[start].unique().tolist()
        if len(codes) != 1 or codes[0] not in CODES.values():
            raise UserError("the exemplar memory contains records of several or unknown kinds: start the run again")
        kind = next(name for name, code in CODES.items() if code == codes[0])
        cells, n, m = (self._number(start, offset) for offset in (3, 5, 7))
        bits, at = None, start + HEADER
        if kind in WITH_BITS:
            count = (int(cells.max()) + 7) // 8
            bits = unpack(self.data[at[:, None] + torch.arange(count)])[:, : int(cells.max())]
            at = at + count
        end, column = self.starts[rows + 1], torch.arange(int(m.max()))  # the text is at the end of a record
        word_places, word_seen = column.expand(len(rows), -1), column < m[:, None]
        if kind in WITH_PLACES and len(column):
            word_places, end = self._word_places(end, m, column, word_seen)
        text = end - 2 * m
        index = (text[:, None] + 2 * column).masked_fill(~word_seen, 0)
        ids = (self.data[index].long() + 256 * self.data[index + 1].long()).masked_fill(~word_seen, 0)
        return Tokens(*self._image(kind, at, text, n, cells, bits), ids, word_places, word_seen)

    def _word_places(self, end: Tensor, m: Tensor, column: Tensor, word_seen: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (B, m) of words whose records end at `end`, and where the ids of the words end."""
        listed = m > 0
        size = torch.where(listed, self.data[end - 1].long(), 0)  # bytes of the bits
        end = end - listed.long() - size
        place = torch.arange(int(size.max()))
        real = place < size[:, None]
        bits = unpack(self.data[(end[:, None] + place).masked_fill(~real, 0)] * real)
        bits = torch.nn.functional.pad(bits, (0, max(0, len(column) - bits.shape[1])))
        bits[:, : len(column)] |= (size == 0)[:, None] & word_seen  # no position is missing
        ((places,), _) = packed((torch.arange(bits.shape[1]).expand_as(bits),), bits)
        return places.masked_fill(~word_seen, 0), end

    def _image(self, kind, at, end, n, cells, bits):
        """Patches (B, n, width), their places and which are real, of images from byte `at` to `end`."""
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
        for b, (begin, after) in enumerate(zip(at.tolist(), end.tolist(), strict=True)):
            if kind == "box":
                split = begin + int(n[b]) * self.width
                rest = int(cells[b] - n[b]) * self.width // 4
                patches[b, bits[b]] = self.data[begin:split].view(-1, self.width)
                patches[b, ~bits[b]] = double(self.data[split : split + rest].view(-1, self.width // 4))
            else:
                data, count = self.data[begin + 1 : after].numpy().tobytes(), int(number[b])
                patches[b, :count] = decode_jpeg(data, count, self.width, int(self.data[begin]))
        return patches, places, seen
