"""The replay memory with images stored as bytes: JPEG, or only the patches and words that the network attends to.

A record is made once, when its sample is stored, and never changes. Each sample offered draws a random key, and those
with the smallest keys are kept as long as they fit: a uniform sample of all that were offered, as in a reservoir.
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.flags import number, positive_int
from utils.memory.buffer import ATTRIBUTES, Buffer
from utils.memory.masks import image_mask, text_mask
from utils.memory.records import (
    GREY,
    RecordMemory,
    Tokens,
    fill_grid,
    full_tokens,
    patchify,
    special,
    to_bytes,
    unpatchify,
)
from utils.pair import Inputs, Pair
from utils.settings import option

CODECS = ("float", "uint8", "jpeg", "masked", "masked_jpeg")
QUALITY = 50  # of records that hold a JPEG
KEY_BYTES = 16  # of a record's key and place


def add_codec_args(parser: ArgumentParser, default: str = "float") -> None:
    """Flags for how a memory stores its images, and how many bytes it may use."""
    group = parser.add_argument_group("bytes of the replay buffer")
    group.add_argument(
        "--exemplar_codec",
        choices=CODECS,
        default=default,
        help="storage of images: floats, bytes, JPEG, or the patches "
        "(and words) that CLIP's towers attend to, as bytes or JPEG",
    )
    group.add_argument(
        "--jpeg_quality", type=number(int, 1, 95), help=f"quality of jpeg and masked_jpeg (default: {QUALITY})"
    )
    group.add_argument(
        "--buffer_bytes", type=positive_int, help="maximum bytes in memory (default: the size of --buffer_size samples)"
    )


def replay_buffer(args: Namespace, net: nn.Module, normalization: Callable | None, default: str = "float") -> Buffer:
    """The memory of `add_codec_args`; masks are computed by `net`, which has to expose its attention."""
    codec, most, quality = (
        option(args, "exemplar_codec", default),
        option(args, "buffer_bytes"),
        option(args, "jpeg_quality"),
    )
    if quality is not None and "jpeg" not in codec:
        raise UserError(
            f"--jpeg_quality: --exemplar_codec {codec} does not use JPEG; choose jpeg or masked_jpeg, or leave it out"
        )
    quality = quality or QUALITY
    if codec in {"float", "uint8"}:
        return Buffer(args.buffer_size, codec=codec, max_bytes=most)
    if codec == "jpeg":
        return RecordBuffer(args.buffer_size, most, quality=quality)
    if not hasattr(net, "attention"):
        raise UserError(
            f"--exemplar_codec {codec}: this network does not expose its attention; choose --backbone "
            "clip-visual, clip-fused "
            "or clip-fusion, or --exemplar_codec jpeg"
        )

    def attention(examples: Inputs) -> tuple[Tensor, Tensor | None]:
        image = examples.image if isinstance(examples, Pair) else examples
        image = image if normalization is None else normalization(image)
        device = next(net.parameters()).device
        return net.attention((Pair(image, examples.text) if isinstance(examples, Pair) else image).to(device))

    return RecordBuffer(args.buffer_size, most, attention, quality=quality if codec == "masked_jpeg" else None)


class RecordBuffer(Buffer):
    """At most `buffer_size` records and `max_bytes` bytes, including all attributes. `attention` maps samples to the
    attention of their patches (B, n) and words (B, L) or None; without it images are stored whole. With a `quality`
    they are JPEGs. When samples are read, dropped patches are gray and dropped words are removed."""

    def __init__(
        self,
        buffer_size: int,
        max_bytes: int | None = None,
        attention: Callable | None = None,
        device="cpu",
        quality: int | None = None,
    ):
        super().__init__(buffer_size, device, max_bytes=max_bytes)
        self.attention, self.quality = attention, quality or (QUALITY if attention is None else None)
        self.records: RecordMemory | None = None
        self.keys = np.zeros(0)
        self.limit = np.inf  # the smallest key that did not fit
        self.text_length = 0

    def __len__(self) -> int:
        return 0 if self.records is None else len(self.records)

    def is_full(self) -> bool:
        return np.isfinite(self.limit)

    @property
    def used_attributes(self) -> list[str]:
        return [name for name in ATTRIBUTES if name in self.data or (name == "examples" and len(self))]

    @property
    def nbytes(self) -> int:
        """Bytes of the records and all that is stored with them."""
        return int(self.records.sizes.sum()) + len(self) * self._rest() if len(self) else 0

    def _rest(self) -> int:
        """Additional bytes per record."""
        return KEY_BYTES + sum(t.element_size() * math.prod(t.shape[1:]) for t in self.data.values())

    # writing

    def add_data(
        self,
        examples: Inputs,
        labels=None,
        logits=None,
        task_labels=None,
        attention_maps=None,
        true_labels=None,
        sample_selection_scores=None,
    ) -> None:
        offered = {
            "labels": labels,
            "logits": logits,
            "task_labels": task_labels,
            "true_labels": true_labels,
            "attention_maps": attention_maps,
        }
        offered = {name: value for name, value in offered.items() if value is not None}
        for name, value in offered.items():
            if len(value) != len(examples):
                raise UserError(
                    f"add_data got {len(examples)} examples but {len(value)} {name}: pass one of each per sample"
                )
        keys = np.random.rand(len(examples))
        self.num_seen_examples += len(examples)
        chosen = torch.from_numpy(np.nonzero(keys < self.limit)[0])
        if not len(chosen):
            return
        fresh = self.encode(examples[chosen.to(examples.device)])
        values = {name: value[chosen.to(value.device)] for name, value in offered.items()}
        for name, value in values.items():
            if name not in self.data:
                self.data[name] = self._new(name, value, 0)
        every = np.concatenate([self.keys, keys[chosen.numpy()]])
        order = every.argsort(kind="stable")
        sizes = np.concatenate([self.records.sizes.numpy(), [len(r) for r in fresh]])[order] + self._rest()
        fits = np.arange(len(order)) < self.buffer_size
        if self.max_bytes is not None:
            fits &= sizes.cumsum() <= self.max_bytes
        count = int(fits.sum())  # fits is true up to here, and false from here on
        if not count:
            raise UserError(
                f"one sample takes {sizes[0]} bytes, more than the buffer's {self.max_bytes}: raise --buffer_bytes"
            )
        if count < len(order):
            self.limit = every[order[count]]
        self._put(np.sort(order[:count]), fresh, values, every)

    def _put(self, rows: np.ndarray, fresh: list[bytes], values: dict[str, Tensor], keys: np.ndarray) -> None:
        """Keep these rows of the stored ones, followed by the new ones."""
        held = len(self)
        old, new = rows[rows < held], rows[rows >= held] - held
        if len(old) < held:
            self.records.keep(torch.from_numpy(old))
        self.records.add([fresh[i] for i in new])
        for name, value in values.items():
            self.data[name] = torch.cat(
                [self.data[name][old], value[new].detach().to(self.device, self.data[name].dtype)]
            )
        self.keys = keys[rows]

    def encode(self, examples: Inputs) -> list[bytes]:
        """Records of plain [0, 1] images, or Pairs of them."""
        image = examples.image if isinstance(examples, Pair) else examples
        bytes_ = image.detach().cpu().mul(255).round().clamp(0, 255).to(torch.uint8)
        if bytes_.shape[1] != 3:
            raise UserError(
                f"records store color images, but these have {bytes_.shape[1]} channel: choose --exemplar_codec uint8"
            )
        patches, words = (None, None) if self.attention is None else self.attention(examples)
        side = bytes_.shape[-1] if patches is None else bytes_.shape[-1] // round(patches.shape[1] ** 0.5)
        ids = examples.text.cpu() if isinstance(examples, Pair) else None
        tokens = tokens_of(patchify(bytes_, side), ids)
        if self.records is None:
            self.records, self.text_length = RecordMemory(3 * side * side), 0 if ids is None else ids.shape[1]
        kept = tokens.seen if patches is None else image_mask(patches.cpu(), tokens.seen)
        if words is not None:
            own = tokens.word_seen & ~special(tokens)
            kept_words = text_mask(words.cpu(), words.cpu(), own, "class_only") | special(tokens)
            tokens = tokens._replace(word_seen=tokens.word_seen & kept_words)
        tokens, cells = tokens._replace(seen=kept), tokens.places.shape[1]
        kind = "jpeg" if patches is None else "masked_jpeg" if self.quality else "masked"
        return [to_bytes(tokens.rows(i), 0, cells, kind, self.quality or QUALITY) for i in range(len(bytes_))]

    def rewrite(self, keep: Tensor, fresh: dict[str, Inputs]) -> None:
        """Keep these rows unchanged, and add all of `fresh`, which are classes in order of importance.

        With a budget every class gets the same share of it, and drops its last samples first."""
        records = self.encode(fresh["examples"]) if fresh else []
        values = {name: value for name, value in fresh.items() if name != "examples"}
        for name, value in values.items():
            if name not in self.data:
                self.data[name] = self._new(name, value, 0)
        sizes = np.concatenate([self.records.sizes.numpy(), [len(r) for r in records]]) + self._rest()
        labels = torch.cat([part["labels"].to(self.device) for part in (self.data, values) if part]).cpu().numpy()
        rows = np.concatenate([keep.cpu().numpy(), len(self) + np.arange(len(records))])
        if self.max_bytes is not None:
            share = self.max_bytes // len(np.unique(labels[rows]))
            own = [rows[labels[rows] == c] for c in np.unique(labels[rows])]
            rows = np.sort(np.concatenate([r[sizes[r].cumsum() <= share] for r in own]))
            if len(np.unique(labels[rows])) < len(own):
                raise UserError(
                    f"{self.max_bytes} bytes cannot store a sample of each of {len(own)} classes: raise --buffer_bytes"
                )
        self._put(rows, records, values, np.zeros(len(labels)))
        self.num_seen_examples = len(self)

    def limit_places(self, offered: dict[str, Inputs]) -> None:
        """Does nothing: records do not have a fixed size, `rewrite` checks each."""

    def load(self, tensors: dict[str, Inputs]) -> None:
        self.empty()
        self.rewrite(torch.zeros(0, dtype=torch.long), tensors)

    def replace(self, places: Tensor, **values: Inputs) -> None:
        if "examples" in values:
            raise UserError("a stored record does not change: choose --exemplar_codec float or uint8")
        for name, value in values.items():
            self.data[name][places.to(self.device)] = value.detach().to(self.device, self.data[name].dtype)

    def empty(self) -> None:
        super().empty()
        self.records, self.keys, self.limit = None, np.zeros(0), np.inf

    # reading

    def _read(self, name: str, rows: Tensor, device) -> Inputs:
        return super()._read(name, rows, device) if name != "examples" else self.decode(rows.cpu()).to(device)

    def decode(self, rows: Tensor) -> Inputs:
        """Images in [0, 1] (or Pairs) of these records."""
        tokens = self.records.decode(rows)
        side = round((self.records.width / 3) ** 0.5)
        cells = int(self.records.cells(rows[:1]))
        images = unpatchify(fill_grid(tokens, cells, GREY).patches, side).float() / 255
        if not self.text_length:
            return images
        text = torch.zeros(len(rows), self.text_length, dtype=torch.long)
        text[:, : tokens.ids.shape[1]] = tokens.ids
        return Pair(images, text)

    def serialize(self, out_device="cpu") -> dict[str, Inputs]:
        every = torch.arange(len(self))
        return {name: self._read(name, every, out_device) for name in self.used_attributes}

    def state(self) -> dict:
        held = None if self.records is None else self.records.state()
        return super().state() | {
            "records": held,
            "keys": self.keys,
            "limit": float(self.limit),
            "text_length": self.text_length,
        }

    def load_state(self, state: dict) -> None:
        super().load_state(state)
        self.records = None
        if state["records"] is not None:
            self.records = RecordMemory(state["records"]["width"])
            self.records.load_state(state["records"])
        self.keys, self.limit, self.text_length = np.asarray(state["keys"]), state["limit"], state["text_length"]


def tokens_of(patches: Tensor, ids: Tensor | None) -> Tokens:
    """Tokens of patches (B, n, D) with words (B, L), or with none."""
    if ids is not None:
        return full_tokens(patches, ids)
    none = torch.zeros(len(patches), 0, dtype=torch.long)
    places = torch.arange(patches.shape[1]).expand(len(patches), -1)
    return Tokens(patches, places, torch.ones_like(places, dtype=torch.bool), none, none, none.bool())
