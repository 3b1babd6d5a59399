"""Texts are truncated at the context length of the text tower, for any CLIP."""

import json
import shutil
from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file, save_file

import main
from backbone.clip_files import TINY_DIR
from backbone.tiny_tokenizer import TinyTokenizer
from datasets.utils.tokens import context_length, tokenize
from tests import fabricate_mm as mm
from tests.conftest import newest_record
from utils.errors import UserError

LONG = " ".join(["cup"] * 31)  # with start and end 33 tokens; the tiny CLIP reads 32


def test_a_caption_of_33_tokens_keeps_its_first_31_and_its_end():
    words = TinyTokenizer.load(TINY_DIR / "vocab.json")
    ids = tokenize([LONG, "a fish"], Namespace(clip_backbone="tiny"), cut=77)
    cup = words.encode("cup")
    assert ids.shape == (2, 32) and ids[0].tolist() == [words.start, *cup * 30, words.end]
    assert int((ids[1] > 0).sum()) == 4
    with pytest.raises(UserError, match="text of 33 tokens, but the context length is 32"):
        tokenize([LONG], Namespace(clip_backbone="tiny"))


@pytest.mark.parametrize("form", ["folder", "file", "state dict"])
def test_the_length_is_read_from_the_weights(form, tmp_path):
    state = load_file(TINY_DIR / "model.safetensors")
    state["positional_embedding"] = state["positional_embedding"][:20].clone()
    if form == "state dict":
        path = tmp_path / "weights.pt"
        torch.save(state, path)
    else:
        path = tmp_path if form == "folder" else tmp_path / "model.safetensors"
        save_file(state, tmp_path / "model.safetensors")
        shutil.copy(TINY_DIR / "vocab.json", tmp_path)
    assert context_length(str(path)) == 20
    ids = tokenize([" ".join(["cup"] * 70)], Namespace(clip_backbone=str(path)), cut=77)
    assert ids.shape == (1, 20) and ids.argmax(1).item() == 19


def test_openai_names_read_77_tokens_and_weights_without_positions_are_refused(tmp_path):
    assert context_length("ViT-B/32") == 77
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="does not contain the text tower"):
        context_length(str(tmp_path))


@pytest.mark.parametrize("model", ["exemplar-masking", "clip"])
def test_a_run_on_long_captions(model, tmp_path):
    mm.mm_imagenet_r(tmp_path)
    path = tmp_path / "mm_imagenet_r" / "captions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("\n".join(json.dumps(row | {"caption": f"{LONG} {row['caption']}"}) for row in rows))
    argv = [
        "--model",
        model,
        "--dataset",
        "mm-imagenet-r",
        "--base_path",
        str(tmp_path),
        "--clip_backbone",
        "tiny",
        "--seed",
        "0",
        "--results_path",
        str(tmp_path / "runs"),
        "--stop_after",
        "0",
        "--debug_mode",
        "1",
        "--device",
        "cpu",
        "--non_verbose",
        "1",
    ]
    if model == "exemplar-masking":
        argv += [
            "--phases",
            "20",
            "--fusion_weights",
            "none",
            "--fusion_width",
            "16",
            "--fusion_layers",
            "1",
            "--fusion_heads",
            "2",
        ]
    assert main.main(argv) == 0
    assert newest_record(tmp_path / "runs")[-1]["type"] == "end"
