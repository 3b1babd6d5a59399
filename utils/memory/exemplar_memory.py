"""A memory of masked exemplars under a budget of bytes: flags, masks, selection, and statistics."""

import argparse
import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.flags import fraction, non_negative, number, positive_int
from utils.memory.exemplars import herd
from utils.memory.masks import (
    DIRECTIONS,
    IMAGE_RULES,
    MIN_PATCHES,
    TEXT_RULES,
    context_attention,
    guard,
    image_mask,
    text_mask,
)
from utils.memory.records import GREY, HEADER, RecordMemory, Tokens, fill_grid, select, special, to_bytes, unpatchify
from utils.picture_grid import plot_pictures

CODECS = ("masked", "masked_jpeg", "box", "jpeg", "raw")
MASKING, COMPRESSING = {"masked", "masked_jpeg"}, {"jpeg", "masked_jpeg"}
UNITS = ("bytes_raw", "bytes_jpeg", "tokens", "exemplars")
FULL_QUALITY, QUALITY = 95, 50  # of JPEGs if the unit is bytes_jpeg, and if the codec is JPEG
SHOWN = 6  # exemplars per task on the sheet


def samples_or_number(text) -> str:
    """Argument type: 5x (five samples' worth) or a number of units; stored as text."""
    value = str(text)
    try:
        good = float(value.removesuffix("x")) > 0
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(
            f"'{text}' is neither a number of samples such as 5x nor a number of bytes such as 40000"
        )
    return value


def mask_rule(text) -> str:
    """Argument type: mean, random, inverse, oracle, text_only, none, or scaled:<factor>, ratio:<share>, mass:<share>,
    random:<share>."""
    name, _, level = str(text).partition(":")
    high = {"ratio": 1.0, "mass": 1.0, "scaled": float("inf")} | ({"random": 1.0} if level else {})
    try:
        good = name in IMAGE_RULES and (0 < float(level) <= high[name] if name in high else not level)
    except ValueError:
        good = False
    if not good:
        raise argparse.ArgumentTypeError(
            f"'{text}' is not one of mean, random, inverse, oracle, text_only, none, scaled:1.5, ratio:0.25, "
            "mass:0.85, random:0.25"
        )
    return str(text)


def add_exemplar_args(parser: ArgumentParser) -> None:
    """The flags of an ExemplarMemory."""
    add = parser.add_argument_group("exemplar memory").add_argument
    add(
        "--buffer_bytes_per_class",
        type=samples_or_number,
        default="5x",
        help="budget per class: 5x (the size of five full samples) or a number of bytes",
    )
    add("--buffer_bytes", type=positive_int, help="budget for all classes together, instead")
    add(
        "--budget_unit",
        choices=UNITS,
        default="bytes_raw",
        help="what the budget counts: bytes of raw pixels or of JPEG, patches and words, or exemplars",
    )
    add(
        "--budget_fill",
        choices=["stop", "skip"],
        default="stop",
        help="after a record that does not fit: stop, or try the next ones",
    )
    add(
        "--exemplar_codec",
        choices=CODECS,
        default="masked",
        help="masked: kept patches and words; masked_jpeg: the patches as JPEG; "
        "box: what is outside the attention's box at half "
        "resolution; jpeg; raw: all",
    )
    add(
        "--mask_rule",
        type=mask_rule,
        default="mean",
        help="patches kept: mean, scaled:1.5, ratio:0.25, mass:0.85, none; controls: random (as many as mean), "
        "random:0.25, inverse (the least attended), oracle (the object's cells, where the stream gives them), "
        "text_only (no patches)",
    )
    add("--text_rule", choices=TEXT_RULES, default="union", help="words kept")
    add("--direction", choices=DIRECTIONS, default="i2t", help="attention between discarded patches and words")
    add("--sum_beta", type=non_negative, default=1.0, help="weight of the context with --text_rule sum")
    add("--herd_on", choices=["full", "masked"], default="full", help="features used for herding")
    add(
        "--jpeg_quality",
        type=number(int, 1, 95),
        help="JPEG quality of stored records (default: 50, or 95 if only --budget_unit asks for JPEG)",
    )
    add(
        "--box_threshold",
        type=fraction,
        default=0.6,
        help="attention threshold of the box, as a fraction of the largest attention",
    )


class ExemplarMemory:
    """Records in herding order, class after class; a mask is computed once and its record never changes."""

    def __init__(self, args: Namespace, width: int, cells: int):
        self.args, self.cells = args, cells
        self.records = RecordMemory(width)
        self.notes = torch.zeros(0, 4)  # (R, 4) cost in budget units, kept share of patches, words, attention
        if args.exemplar_codec == "jpeg" and args.budget_unit == "tokens":
            raise UserError("--exemplar_codec jpeg does not drop tokens: choose --budget_unit bytes_raw or bytes_jpeg")
        if args.mask_rule == "text_only" and "jpeg" in args.exemplar_codec + args.budget_unit:
            raise UserError("--mask_rule text_only keeps no patches to store as JPEG: leave JPEG out")
        as_jpeg = args.budget_unit == "bytes_jpeg" and args.exemplar_codec in {"masked", "raw"}
        if args.jpeg_quality is not None and args.exemplar_codec not in COMPRESSING and not as_jpeg:
            raise UserError(
                f"--jpeg_quality: --exemplar_codec {args.exemplar_codec} with {args.budget_unit} does not "
                "make a JPEG; choose "
                "masked_jpeg or jpeg, or leave the flag out"
            )

    def __len__(self) -> int:
        return len(self.records)

    @property
    def nbytes(self) -> int:
        return self.records.nbytes + self.notes.numel() * self.notes.element_size()

    def state(self) -> dict:
        return {"records": self.records.state(), "notes": self.notes}

    def load_state(self, state: dict) -> None:
        self.records.load_state(state["records"])
        self.notes = state["notes"]

    # masks

    def masks(self, attention, tokens: Tokens, cells: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Kept patches (B, n) and kept words (B, m), the special ones among them; of a box, the patches inside.

        `cells` (B, n) are those of the object, which --mask_rule oracle keeps; the most attended ones if there is none.
        """
        args, words = self.args, tokens.word_seen & ~special(tokens)
        if args.exemplar_codec in {"raw", "jpeg"} or not tokens.patches.shape[1]:
            patches = tokens.seen.clone()
        elif args.exemplar_codec == "box":
            patches = box(attention.image, args.box_threshold)
        else:
            name, _, level = args.mask_rule.partition(":")
            if name == "text_only":
                patches = torch.zeros_like(tokens.seen)
            elif name == "oracle":
                patches = guard(cells, attention.image, tokens.seen, MIN_PATCHES)
            else:
                patches = image_mask(attention.image, tokens.seen, name, float(level or 1))
        if args.exemplar_codec not in MASKING:
            return patches, tokens.word_seen.clone()
        discarded = tokens.seen & ~patches
        context = context_attention(discarded, attention.i2t, attention.t2i, args.direction)
        return patches, text_mask(attention.text, context, words, args.text_rule, args.sum_beta) | special(tokens)

    def masked(self, tokens: Tokens, patches: Tensor, words: Tensor) -> Tokens:
        """What a record of these tokens contains, before compression."""
        return select(tokens, patches, words) if self.args.exemplar_codec in MASKING else tokens

    # selection

    def record(self, tokens: Tokens, label: int, patches: Tensor, words: Tensor) -> bytes:
        """The record of one sample (tokens without batch dimension)."""
        codec, as_jpeg = self.args.exemplar_codec, self.args.budget_unit == "bytes_jpeg"
        if codec in MASKING:
            tokens = tokens._replace(seen=tokens.seen & patches, word_seen=tokens.word_seen & words)
        kind = {"masked": "masked_jpeg", "raw": "jpeg"}.get(codec, codec) if as_jpeg else codec
        quality = self.args.jpeg_quality or (QUALITY if codec in COMPRESSING else FULL_QUALITY)
        return to_bytes(tokens, label, tokens.places.shape[0], kind, quality, patches)

    def full_costs(self, tokens: Tokens) -> Tensor:
        """(B,) budget units that these samples cost unmasked."""
        unit, words = self.args.budget_unit, tokens.word_seen.sum(1)
        if unit == "exemplars":
            return torch.ones(len(words))
        if unit == "tokens":
            return tokens.seen.sum(1) + words
        if unit == "bytes_jpeg":
            rows, cells = range(len(words)), tokens.places.shape[1]
            return torch.tensor([len(to_bytes(tokens.rows(i), 0, cells, "jpeg", FULL_QUALITY)) for i in rows])
        return HEADER + tokens.patches.shape[1] * self.records.width + 2 * words

    def budget(self, tokens: Tokens, order: Tensor, n_seen: int) -> float:
        """The budget of a class, in budget units: with 5x, the full size of the first five in herding order."""
        if self.args.buffer_bytes:
            return self.args.buffer_bytes / n_seen
        text = self.args.buffer_bytes_per_class
        if not text.endswith("x"):
            return float(text)
        worth, first = float(text.removesuffix("x")), order[: math.ceil(float(text.removesuffix("x")))]
        return float(self.full_costs(tokens.rows(first)).sum()) * (worth / len(first))

    def add_class(
        self, full: Tokens, label: int, features: Tensor, patches: Tensor, words: Tensor, attention: Tensor, n_seen: int
    ) -> None:
        """Add records of a class in herding order until its budget is used up."""
        order, chosen, notes = herd(features, len(features)).to(full.ids.device), [], []
        left = self.budget(full, order, n_seen)
        all_words = (full.word_seen & ~special(full)).sum(1).clamp(min=1)
        kept_words = (words & full.word_seen & ~special(full)).sum(1)
        shares = torch.stack(
            [
                patches.sum(1) / full.seen.sum(1).clamp(min=1),
                kept_words / all_words,
                (attention * patches).sum(1) / attention.sum(1).clamp(min=1e-12),
            ],
            dim=1,
        )
        for row in order.tolist():
            record = self.record(full.rows(row), label, patches[row], words[row])
            count = int(patches[row].sum() + (words[row] & full.word_seen[row]).sum())
            cost = {"tokens": count, "exemplars": 1}.get(self.args.budget_unit, len(record))
            if cost <= left:
                left -= cost
                chosen.append(record)
                notes.append([cost, *shares[row].tolist()])
            elif self.args.budget_fill == "stop":
                break
        if not chosen:
            raise UserError(
                f"the budget of class {label} is less than one exemplar: raise --buffer_bytes_per_class "
                "or --buffer_bytes"
            )
        self.records.add(chosen)
        self.notes = torch.cat([self.notes, torch.tensor(notes)])

    def make_room(self, n_seen: int) -> None:
        """With a total budget: old classes drop their last exemplars, so that `n_seen` classes share it."""
        if not self.args.buffer_bytes or not len(self):
            return
        labels, costs = self.records.labels, self.notes[:, 0]
        share = self.args.buffer_bytes / n_seen
        used = torch.zeros_like(costs)
        for label in labels.unique():
            own = labels == label
            used[own] = costs[own].cumsum(0)
        keep = (used <= share).nonzero().flatten()
        if len(labels[keep].unique()) < len(labels.unique()):
            raise UserError(
                f"--buffer_bytes {self.args.buffer_bytes} leaves some of {n_seen} classes without an exemplar: raise it"
            )
        self.records.keep(keep)
        self.notes = self.notes[keep]

    # what is reported

    def statistics(self, offsets: list[tuple[int, int]]) -> dict[str, list[float]]:
        """For each task: exemplars per class, bytes per exemplar, and percent of patches, words and attention kept."""
        labels, names = self.records.labels, ("kept_patches", "kept_words", "kept_attention")
        found: dict[str, list[float]] = {name: [] for name in ("exemplars", "exemplar_bytes", *names)}
        for first, end in offsets:
            own = (labels >= first) & (labels < end)
            found["exemplars"].append(float(own.sum()) / (end - first))
            found["exemplar_bytes"].append(float(self.records.sizes[own].float().mean()))
            for name, value in zip(names, self.notes[own, 1:].mean(0).tolist(), strict=True):
                found[name].append(100 * value)
        return found

    def draw(self, path: Path, dataset, words_of: Callable[[list[int]], str]) -> None:
        """A sheet of exemplars of every task: holes are gray, with the kept words and the kept fractions below."""
        labels, images, texts, names = self.records.labels, [], [], dataset.get_class_names()
        for task in range(len(dataset.test_loaders)):
            first, end = dataset.get_offsets(task)
            rows = ((labels >= first) & (labels < end)).nonzero().flatten()
            for row in rows[torch.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).long()].tolist():
                tokens = self.records.decode(torch.tensor([row]))
                if not tokens.patches.shape[1]:
                    return  # texts alone
                grid = fill_grid(tokens, self.cells, GREY).patches
                images.append(unpatchify(grid, round((self.records.width / 3) ** 0.5))[0])
                kept = tokens.ids[0, tokens.word_seen[0]].tolist()
                share = f"{100 * self.notes[row, 1]:.0f} % of patches, {100 * self.notes[row, 3]:.0f} % of attention"
                texts.append([names[int(labels[row])], words_of(kept), share])
        plot_pictures(images, texts, SHOWN, path, f"exemplars on {dataset.NAME}: kept patches and words, by task")


def box(attention: Tensor, threshold: float) -> Tensor:
    """(B, N): the smallest rectangle of cells that encloses all with at least `threshold` of the largest attention."""
    grid = round(attention.shape[1] ** 0.5)
    strong = (attention >= threshold * attention.amax(1, keepdim=True)).view(-1, grid, grid)
    inside = []
    for axis in (2, 1):
        line = strong.any(axis)  # (B, grid): rows, then columns, that hold any
        inside.append((line.cumsum(1) > 0) & (line.flip(1).cumsum(1).flip(1) > 0))
    return (inside[0][:, :, None] & inside[1][:, None]).flatten(1)
