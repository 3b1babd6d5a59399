"""Random networks of a few thousand weights in the folders that transformers writes: a ViLT and a BLIP."""

import functools
import tempfile
from argparse import Namespace
from pathlib import Path

import torch

WORDS = """a an the of in on with and is are it there what which where how many color colour shape photo picture image
big small red green blue yellow cup star fish key apple boat tree bell moon sea snow night forest desert left right
striped dotted plain . , ? !""".split()
LETTERS = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789"]
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS,
    *[c for c in LETTERS if c not in WORDS],
    *[f"##{c}" for c in LETTERS],
]
TEXT = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 160,
    "initializer_range": 0.3,
}


@functools.cache
def kept() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="tiny_hub_")


def save(net, name: str) -> Path:
    folder = Path(kept().name) / name
    net.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folder


@functools.cache
def vilt_folder(**changes) -> Path:
    """Images of 48 pixels in 9 patches of 16."""
    from transformers import ViltConfig, ViltModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ViltModel(ViltConfig(**TEXT | {"image_size": 48, "patch_size": 16} | changes))
        for parameter in (net.embeddings.cls_token, net.embeddings.position_embeddings):  # zeros in a fresh network
            torch.nn.init.normal_(parameter, std=0.3)
        return save(net, "vilt" + "".join(map(str, changes.values())))


@functools.cache
def blip_folder() -> Path:
    """Images of 32 pixels in 4 patches of 16; the image tower is wider than the question encoder. Behind the words come
    [DEC] and [ENC]."""
    from transformers import BlipConfig, BlipForQuestionAnswering

    text = TEXT | {
        "vocab_size": len(VOCABULARY) + 2,
        "encoder_hidden_size": 24,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
    }
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 16,
        "initializer_range": 0.3,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save(BlipForQuestionAnswering(BlipConfig(text_config=text, vision_config=vision)), "blip")


def flags(kind: str, **changes) -> Namespace:
    """What the loaders read of a command line."""
    folder = vilt_folder() if kind == "vilt" else blip_folder()
    return Namespace(**{"vqa_backbone": kind, f"{kind}_weights": str(folder)} | changes)
