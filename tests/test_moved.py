"""A checkpoint that was written before modules of utils/ moved is resumed by the current code."""

import gzip
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import fabricate
from tests.conftest import in_child, newest_record
from tests.test_resume import killed_at
from utils.engine.moved import MOVED, new_name, renamed

OLD = Path(__file__).parent / "fixtures" / "before_the_rooms.safetensors.gz"  # er, killed in its seventh step
COMMAND = (
    "--model er --dataset seq-mnist --backbone mnistmlp --mlp_hidden_size 2 --buffer_size 4 --lr 0.05 --n_epochs 1 "
    "--batch_size 8 --seed 3 --optim_mom 0.9 --non_verbose 1 --device cpu --resume auto --autosave 0.0001"
)


@pytest.mark.parametrize("old", MOVED)
def test_moved_modules_exist(old):
    module, _, name = MOVED[old].rpartition(".")
    parent = importlib.import_module(module)
    assert hasattr(parent, name) or importlib.import_module(MOVED[old])


def test_names_are_translated_where_a_state_names_classes_and_nowhere_else():
    tensor = torch.ones(2)
    state = {
        "class": "utils.vae.VAE",
        "note": ("plain", "utils.vae.VAE"),
        "memory": ("object", ["utils.buffer.Buffer", "f", tensor]),
    }
    new = renamed(state)
    assert new["class"] == "utils.generative.vae.VAE" and new["note"] == ("plain", "utils.vae.VAE")
    assert new["memory"][1][0] == "utils.memory.buffer.Buffer" and new["memory"][1][2] is tensor
    assert renamed(("code", "utils.masks.image_mask")) == ("code", "utils.memory.masks.image_mask")
    assert new_name("torch.nn.Linear") == "torch.nn.Linear"


def test_a_checkpoint_of_the_old_tree_is_resumed(tmp_path):
    content = gzip.decompress(OLD.read_bytes())
    assert b"utils.buffer.Buffer" in content
    fabricate.mnist(tmp_path / "data", 60, 30)

    def run(folder: str) -> int:
        import main

        return main.main(
            [*COMMAND.split(), "--base_path", str(tmp_path / "data"), "--results_path", str(tmp_path / folder)]
        )

    assert in_child(lambda: run("whole")) == 0
    assert in_child(lambda: (killed_at("step", 7), run("killed"))) != 0
    for saved in (tmp_path / "killed").glob("*/*/*/ckpt/*.safetensors"):
        saved.write_bytes(content)
    assert in_child(lambda: run("killed")) == 0
    whole, resumed = newest_record(tmp_path / "whole"), newest_record(tmp_path / "killed")
    last = [[row for row in rows if row["type"] == "task"][-1] for rows in (whole, resumed)]
    assert last[0]["task"] == 4 and all(last[0][k] == last[1][k] for k in ("scores", "per_class", "ece"))


def test_a_pair_of_arrays_is_not_taken_for_the_code_of_a_class():
    pair = [np.arange(3), torch.zeros(2)]
    found = renamed({"kept": pair})["kept"]
    assert (found[0] == pair[0]).all() and found[1] is pair[1]
