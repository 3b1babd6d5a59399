"""Captions for a folder of images, one JSON line each.

    python scripts/caption_images.py data/imagenet-r data/mm_imagenet_r/captions.jsonl

The captioner sees the image and one fixed prompt, never a class or file name. Lines are appended as they are made and
synced to disk, so a run that was killed continues where it stopped; a partial last line is dropped. Needs
`pip install transformers` and the model's weights.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils import json_text

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}
PROMPTS = {"instructblip": "Describe the image in detail.", "blip": ""}
Captioner = Callable[[list[Image.Image]], list[str]]


class Problem(Exception):
    """An error of the user: what to do, in one line."""


def done_so_far(path: Path, model: str, prompt: str) -> set[str]:
    """Files that have a caption; a partial last line left by a killed run is cut off. Different settings
    are refused: one set of captions comes from one model."""
    if not path.exists():
        return set()
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    found = set()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            row = json_text.parse(line)
            name, made_by = row["file"], (row["model"], row["prompt"])
        except (ValueError, KeyError, TypeError) as error:
            raise Problem(f"{path} line {number} is not a caption ({error}): fix or remove it") from None
        if made_by != (model, prompt):
            raise Problem(
                f"{path} line {number} was made by {made_by[0]} with prompt {made_by[1]!r}: name another file"
            )
        found.add(name)
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return found


def images_below(root: Path) -> list[str]:
    """Paths below `root`, sorted."""
    if not root.is_dir():
        raise Problem(f"{root} does not exist: name a folder of images")
    names = sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not names:
        raise Problem(f"{root} does not contain images")
    return names


def opened(root: Path, names: list[str]) -> list[Image.Image]:
    pictures = []
    for name in names:
        try:
            with Image.open(root / name) as image:
                pictures.append(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise Problem(f"image {root / name} cannot be read ({error}): replace or remove it") from None
    return pictures


def caption_all(
    root: Path, out: Path, captioner: Captioner, model: str, prompt: str, batch_size: int = 8
) -> Iterator[int]:
    """Append the missing captions; yields how many are done after each batch."""
    names, done = images_below(root), done_so_far(out, model, prompt)
    missing = [name for name in names if name not in done]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a", encoding="utf-8") as file:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            texts = captioner(opened(root, batch))
            if len(texts) != len(batch):
                raise Problem(f"the captioner gave {len(texts)} captions for {len(batch)} images")
            for name, text in zip(batch, texts, strict=True):
                row = {"file": name, "caption": " ".join(text.split()), "model": model, "prompt": prompt}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            yield len(names) - len(missing) + start + len(batch)


def load_captioner(model: str, kind: str, prompt: str, device: str, max_new_tokens: int, beams: int) -> Captioner:
    """BLIP or InstructBLIP from transformers."""
    try:
        import torch
        import transformers
    except ImportError:
        raise Problem("captions need transformers: pip install transformers") from None
    names = {
        "instructblip": ("InstructBlipProcessor", "InstructBlipForConditionalGeneration"),
        "blip": ("BlipProcessor", "BlipForConditionalGeneration"),
    }[kind]
    half = torch.float16 if device.startswith("cuda") else torch.float32
    try:
        processor = getattr(transformers, names[0]).from_pretrained(model)
        net = getattr(transformers, names[1]).from_pretrained(model, torch_dtype=half).to(device).eval()
    except OSError as error:
        raise Problem(f"{model} could not be loaded: {' '.join(str(error).split())[:200]}") from None

    @torch.no_grad()
    def caption(pictures: list[Image.Image]) -> list[str]:
        text = {"text": [prompt] * len(pictures)} if prompt else {}
        inputs = processor(images=pictures, return_tensors="pt", **text).to(device)
        inputs = {k: v.to(half) if v.is_floating_point() else v for k, v in inputs.items()}
        ids = net.generate(**inputs, num_beams=beams, max_new_tokens=max_new_tokens, do_sample=False)
        return processor.batch_decode(ids, skip_special_tokens=True)

    return caption


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder of images")
    parser.add_argument("out", type=Path, help="captions.jsonl to write or continue")
    parser.add_argument("--model", default="Salesforce/instructblip-vicuna-7b", help="name or folder of the weights")
    parser.add_argument("--kind", choices=sorted(PROMPTS), help="default: instructblip if its name says so, else blip")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--beams", type=int, default=5)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    kind = args.kind or ("instructblip" if "instructblip" in args.model.lower() else "blip")
    try:
        images_below(args.root)
        done_so_far(args.out, args.model, PROMPTS[kind])
        captioner = load_captioner(args.model, kind, PROMPTS[kind], args.device, args.max_new_tokens, args.beams)
        for done in caption_all(args.root, args.out, captioner, args.model, PROMPTS[kind], args.batch_size):
            print(f"\r{done} captions", end="", file=sys.stderr)
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    print(f"{args.out}: captions of {len(images_below(args.root))} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
