"""What frozen features of the tiny CLIP reach on each tiny stream: the table of docs/tiny_world.md.

python scripts/tiny_world_ladder.py                                       # about two minutes on one core
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from train_tiny_clip import CONTEXT, build_model, image_features, normalise, text_features

from backbone.tiny_tokenizer import TinyTokenizer
from datasets.tiny_world import streams

ASSETS = Path(__file__).resolve().parents[1] / "backbone" / "assets" / "tiny_clip"


class Encoder:
    """Unit-length image and text features of the shipped weights."""

    def __init__(self, folder: Path):
        self.tokenizer = TinyTokenizer.load(folder / "vocab.json")
        shape = json.loads((folder / "config.json").read_text())["model"]
        size = "wide" if shape["vision_width"] == 192 else "small"
        self.model = build_model(size, self.tokenizer.vocab_size)[0]
        self.model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})

    @torch.no_grad()
    def images(self, pictures: torch.Tensor) -> torch.Tensor:
        parts = [image_features(self.model, normalise(part))[1] for part in pictures.split(128)]
        return F.normalize(torch.cat(parts), dim=1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self.tokenizer.tokenize(texts, CONTEXT)
        return F.normalize(torch.cat([text_features(self.model, part) for part in tokens.split(256)]), dim=1)

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        return F.normalize(sum(self.texts([t.format(name) for name in names]) for t in templates), dim=1)


def percent(guess: torch.Tensor, label: torch.Tensor) -> float:
    return 100 * float((guess == label).float().mean())


def probe(train: torch.Tensor, y: torch.Tensor, test: torch.Tensor, yt: torch.Tensor, decay: float = 1e-4) -> float:
    """Accuracy of a linear layer trained jointly on standardised features: 40 epochs of AdamW."""
    torch.manual_seed(0)
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    layer = torch.nn.Linear(train.shape[1], int(y.max()) + 1)
    steps = 40 * (len(y) // 128 + 1)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=5e-3, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        pick = torch.randint(0, len(y), (128,))
        loss = F.cross_entropy(layer(train[pick]), y[pick])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return percent(layer(test).argmax(1), yt)


def zero_shot(encoder: Encoder, test: dict) -> float:
    names = encoder.classifier(test["names"], test["templates"])
    return percent((encoder.images(test["images"]) @ names.T).argmax(1), test["labels"])


def class_row(encoder: Encoder, train: dict, test: dict) -> str:
    features = [encoder.images(part["images"]) for part in (train, test)]
    joint = probe(features[0], train["labels"], features[1], test["labels"])
    chance = 100 / len(test["names"])
    return f"chance {chance:.1f} | zero-shot {zero_shot(encoder, test):.1f} | joint linear probe {joint:.1f}"


def vqa_row(encoder: Encoder, train: dict, test: dict) -> str:
    """Exact-match accuracy of the most frequent answer, of a linear layer on the question, and on image, question
    and their product."""
    answers = {a: i for i, a in enumerate(sorted(set(train["answer"] + test["answer"])))}
    y, yt = (torch.tensor([answers[a] for a in part["answer"]]) for part in (train, test))
    image = [encoder.images(part["images"]) for part in (train, test)]
    text = [encoder.texts(part["questions"]) for part in (train, test)]
    both = [torch.cat([i, t, i * t], 1) for i, t in zip(image, text, strict=True)]
    majority = percent(y.bincount().argmax().expand_as(yt), yt)
    blind, seeing = probe(text[0], y, text[1], yt, 0.1), probe(both[0], y, both[1], yt, 0.3)
    return f"majority {majority:.1f} | question only {blind:.1f} | linear {seeing:.1f}"


def mm_row(encoder: Encoder, train: dict, test: dict) -> str:
    image = [encoder.images(part["images"]) for part in (train, test)]
    text = [encoder.texts(part["captions"]) for part in (train, test)]
    both = [torch.cat(pair, 1) for pair in zip(image, text, strict=True)]
    y, yt = train["labels"], test["labels"]
    rows = [probe(f[0], y, f[1], yt, 0.1) for f in (image, text, both)]
    return f"image {rows[0]:.1f} | text {rows[1]:.1f} | both {rows[2]:.1f}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ASSETS, help="folder with model.safetensors and vocab.json")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    encoder = Encoder(args.weights)
    for seed in range(3):
        row = class_row(encoder, streams.seq_tiny(True, seed), streams.seq_tiny(False, seed))
        print(f"seq-tiny seed {seed} | {row}", flush=True)
    for domain in streams.MTIL_DOMAINS:
        row = class_row(encoder, streams.mtil_tiny(domain, True), streams.mtil_tiny(domain, False))
        print(f"mtil-tiny {domain} | {row}", flush=True)
    for build in (streams.clove_tiny_function, streams.clove_tiny_scene):
        function = build is streams.clove_tiny_function
        for task, name in enumerate(streams.QUESTION_KINDS if function else streams.CLOVE_SCENES):
            print(f"{build.__name__} {name} | {vqa_row(encoder, build(task, True), build(task, False))}", flush=True)
    print(f"mm-tiny | {mm_row(encoder, streams.mm_tiny(True), streams.mm_tiny(False))}")


if __name__ == "__main__":
    main()
