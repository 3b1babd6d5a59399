"""Can a mask win or lose on mm-tiny? Measured with the frozen towers and fusion, without training them.

Exemplars are selected by herding and stored under the bytes of five full samples per class, as ExemplarMasking does; a
linear probe is then trained on what the records hold and tested on whole images with whole captions.

python scripts/tiny_world_masks.py --seeds 3      # the rows of docs/tiny_world.md
"""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy, layer_norm, normalize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from backbone.clip import load_clip
from backbone.clip_visual import fuse
from backbone.fusion import make_fusion
from backbone.multimodal import MultimodalNet
from datasets.tiny_world import streams
from datasets.tiny_world.cluttered import PATCH
from scripts.records import spread
from utils.memory.exemplar_memory import ExemplarMemory
from utils.memory.records import Tokens, full_tokens, patchify

STREAM, ROWS = "mm-tiny", 200
FLAGS = {
    **{"exemplar_codec": "masked", "budget_unit": "bytes_raw", "mask_rule": "mean", "text_rule": "union"},
    **{"direction": "i2t", "sum_beta": 1.0, "jpeg_quality": None, "box_threshold": 0.6, "budget_fill": "stop"},
    **{"buffer_bytes": None, "buffer_bytes_per_class": "5x"},
}
ARMS = {  # name -> flags of an ExemplarMemory; words are kept whole in all, so that only the patches differ
    "full": {"exemplar_codec": "raw"},
    "attention": {"text_rule": "none"},
    "random": {"mask_rule": "random", "text_rule": "none"},
    "oracle": {"mask_rule": "oracle", "text_rule": "none"},
    "random, the object's share": {"mask_rule": "random:0.16", "text_rule": "none"},
    "inverse": {"mask_rule": "inverse", "text_rule": "none"},
    "text only": {"mask_rule": "text_only", "text_rule": "none"},
    "attention, union of words": {},
}
PARTS = ("all", *streams.MM_EVIDENCE)


def tokens_of(net: MultimodalNet, stream: dict) -> Tokens:
    ids = net.clip.tokenize(stream["captions"])
    return full_tokens(patchify(stream["images"], PATCH), ids[:, : int(ids.argmax(1).max()) + 1])


@torch.no_grad()
def features(net: MultimodalNet, tokens: Tokens) -> torch.Tensor:
    """(N, D) the fusion's class state beside both towers' pooled features: no layer of it is untrained."""
    found = []
    for rows in torch.arange(len(tokens.ids)).split(ROWS):
        part = tokens.rows(rows)
        image, _, seen = net.image_states(part)
        text, _ = net.text_states(part)
        state, _ = net.fused(image, seen, text, part.word_seen)
        end = text[torch.arange(len(text)), part.word_seen.sum(1) - 1]
        pooled = fuse(net.clip.project_image(image[:, 0]), net.clip.project_text(end))
        found.append(torch.cat([layer_norm(state, state.shape[1:]), pooled], 1))
    return torch.cat(found)


@torch.no_grad()
def attended(net: MultimodalNet, tokens: Tokens):
    """The attention by which ExemplarMasking makes its masks, of all samples."""
    parts = [net.attend(tokens.rows(r), "mean", "mean", "mean")[1] for r in torch.arange(len(tokens.ids)).split(ROWS)]
    return type(parts[0])(*(torch.cat(column) for column in zip(*parts, strict=True)))


def probe(rows: torch.Tensor, labels: torch.Tensor, tests: torch.Tensor) -> torch.Tensor:
    """Predictions (N,) of a logistic regression with a small penalty, to convergence."""
    mean, scale = rows.mean(0), rows.std(0) + 1e-3
    rows, tests = (rows - mean) / scale, (tests - mean) / scale
    weight = torch.zeros(streams.MM_CLASSES, rows.shape[1] + 1, requires_grad=True)
    solver = torch.optim.LBFGS([weight], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = cross_entropy(rows @ weight[:, :-1].T + weight[:, -1], labels) + 3e-3 * weight[:, :-1].square().sum()
        value.backward()
        return value

    solver.step(loss)
    with torch.no_grad():
        return (tests @ weight[:, :-1].T + weight[:, -1]).argmax(1)


def parts_right(guess: torch.Tensor, stream: dict) -> list[float]:
    """Percent right on the whole test set and on each kind of evidence."""
    right, own = (guess == stream["labels"]).float(), stream["evidence"]
    return [100 * float(v.mean()) for v in (right, *(right[own == i] for i in range(len(streams.MM_EVIDENCE))))]


@torch.no_grad()
def pooled_features(clip, stream: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled features (N, D) of the images and of the captions."""
    images = [clip.encode_image(clip.normalize_images(part)) for part in stream["images"].split(ROWS)]
    ids = clip.tokenize(stream["captions"])
    return torch.cat(images), torch.cat([clip.encode_text(part) for part in ids.split(ROWS)])


def read_by_towers(seed: int) -> dict[str, list[float]]:
    """What each tower alone tells by a probe on the training samples that it can tell: accuracy by PARTS."""
    clip, train, test = load_clip("tiny-cluttered"), streams.mm_tiny(True, seed), streams.mm_tiny(False, seed)
    found, rows, tests = {}, pooled_features(clip, train), pooled_features(clip, test)
    for name, own, tested, mute in (("image tower", rows[0], tests[0], 1), ("text tower", rows[1], tests[1], 0)):
        use = train["evidence"] != mute
        found[name] = parts_right(probe(own[use], train["labels"][use], tested), test)
    found["object"] = [100 * float(train["cells"][train["evidence"] != 1].float().mean())]
    found["words"] = [f(len(text.split()) for text in train["captions"]) for f in (min, max)]
    return found


def stored(net: MultimodalNet, train: dict, tokens: Tokens, selected: torch.Tensor, attention, flags: dict):
    """The memory of an arm after all classes, filled as ExemplarMasking fills it."""
    memory = ExemplarMemory(Namespace(**FLAGS | flags), net.patch_width, net.cells)
    unit = normalize(selected, dim=1)
    for label in range(streams.MM_CLASSES):
        rows = (train["labels"] == label).nonzero().flatten()
        own, maps = tokens.rows(rows), type(attention)(*(part[rows] for part in attention))
        masks = memory.masks(maps, own, train["cells"][rows])
        memory.add_class(own, label, unit[rows], *masks, maps.image, streams.MM_CLASSES)
    return memory


def measure(seed: int, arms: dict[str, dict] = ARMS, clip: str = "tiny-cluttered") -> dict[str, list[float]]:
    """Name -> accuracy by PARTS, exemplars per class, bytes of a record; and facts about the stream."""
    torch.manual_seed(seed)
    loaded = load_clip(clip)
    net = MultimodalNet(loaded, make_fusion(loaded), streams.MM_CLASSES, "none").eval()
    train, test = streams.mm_tiny(True, seed), streams.mm_tiny(False, seed)
    tokens = tokens_of(net, train)
    rows, tests = features(net, tokens), features(net, tokens_of(net, test))
    attention, shown = attended(net, tokens), train["evidence"] != 1
    found = {"all data": [*parts_right(probe(rows, train["labels"], tests), test), 0.0, 0.0]}
    kept = attention.image > attention.image.mean(1, keepdim=True)
    found |= read_by_towers(seed)
    found["attention keeps"] = [
        100 * float(kept[shown].float().mean()),
        100 * float(kept[shown][train["cells"][shown]].float().mean()),
    ]
    for name, flags in arms.items():
        memory = stored(net, train, tokens, rows, attention, flags)
        held = memory.records.decode(torch.arange(len(memory)))
        guess = probe(features(net, held), memory.records.labels, tests)
        each = len(memory) / streams.MM_CLASSES
        found[name] = [*parts_right(guess, test), each, float(memory.records.sizes.float().mean())]
        words = (2 * held.word_seen.sum(1)).float()
        found[f"text of {name}"] = [100 * float((words / memory.records.sizes).mean())]
    return found


def over_seeds(found: list[dict[str, list[float]]], first: str, second: str | None = None, part: int = 0) -> str:
    """Mean and half the 95 % interval of a score, or of the difference of two, seed by seed."""
    values = [f[first][part] - (f[second][part] if second else 0.0) for f in found]
    return spread(values, "+" if second else "")


def rows_of_towers(found: list[dict[str, list[float]]]) -> list[list[str]]:
    """Property, wanted, measured: of the images, the captions, and of each tower alone."""
    words = f"{min(f['words'][0] for f in found)} to {max(f['words'][1] for f in found)}"
    return [
        ["object's share of the patches, where it is shown", "8 to 20", over_seeds(found, "object")],
        ["words of a caption", "20 to 40", words],
        ["image tower, probe where only the image tells", "at least 70", over_seeds(found, "image tower", part=1)],
        ["text tower, probe where only the caption tells", "", over_seeds(found, "text tower", part=2)],
    ]


def rows_of_masks(seeds: int) -> list[list[str]]:
    """Rows for the table of scripts/tiny_world.py: stream, property, wanted, measured, command."""
    found, note = [measure(seed) for seed in range(seeds)], "`scripts/tiny_world_masks.py`"
    rows = [
        *rows_of_towers(found),
        ["attention above its mean: patches kept", "", over_seeds(found, "attention keeps")],
        ["attention above its mean: object's patches kept", "", over_seeds(found, "attention keeps", part=1)],
    ]
    for i, part in enumerate(PARTS):
        name = f"probe of both on all training data, {part.replace('_', ' ')}"
        rows.append([name, "", over_seeds(found, "all data", part=i)])
    pairs = [
        ("oracle", "random", "at least +5"),
        ("oracle", "random, the object's share", ""),
        ("inverse", "random", "at most -5"),
        ("attention", "random", ""),
        ("attention", "full", ""),
        ("attention", "text only", ""),
        ("attention, union of words", "attention", ""),
    ]
    for first, second, goal in pairs:
        both = f"{over_seeds(found, first, second)}; {over_seeds(found, first, second, 1)}"
        rows.append([f"equal bytes, probe: {first} minus {second}; image only", goal, both])
    for arm in ARMS:
        parts = ", ".join(over_seeds(found, arm, part=i) for i in range(len(PARTS)))
        count, size = (over_seeds(found, arm, part=len(PARTS) + i) for i in range(2))
        rows.append([f"{arm}: all, image only, caption only, both; exemplars", "", f"{parts}; {count} of {size} bytes"])
    for arm in ("full", "attention"):
        rows.append([f"text's share of a record's bytes, {arm}", "", over_seeds(found, f"text of {arm}")])
    return [[STREAM, *row, note] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="each has images of its own")
    parser.add_argument("--towers", action="store_true", help="only what the images hold and what the towers read")
    args = parser.parse_args()
    torch.set_num_threads(1)
    towers = rows_of_towers([read_by_towers(seed) for seed in range(args.seeds)]) if args.towers else None
    for row in towers or rows_of_masks(args.seeds):
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
