"""Random input: only success or a UserError with one line per fact, in bounded time.

About 2,000 cases in the suite, 50,000 with `-m slow`. Hypothesis makes them, the same ones each time, and shrinks
one that fails; nothing is written beside the tests.
"""

import functools
import hashlib
import json
import shutil
import tempfile
import time
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, configuration, given, settings
from hypothesis import strategies as st
from PIL import Image

from datasets.seq_folder import SequentialFolder
from datasets.utils import clove_files, mm_files
from datasets.utils.own_list import read_list
from scripts import prepare_data, records
from tests import fuzz_input as make
from tests import test_features as kept
from utils import cli
from utils.cli import configs, registry
from utils.cli import parser as cli_parser
from utils.engine import checkpoint
from utils.errors import UserError
from utils.features import FeatureStore
from utils.flags import Arguments

SECONDS = 5  # of computation for one case
TIERS = [pytest.param(1, id="suite"), pytest.param(25, id="long", marks=pytest.mark.slow)]
tier = pytest.mark.parametrize("times", TIERS)
configuration.set_hypothesis_home_dir(tempfile.gettempdir())  # its tables of characters


def hunt(cases: int, check, allowed: type[Exception] = UserError) -> dict[str, int]:
    """Call `check(draw)` for so many cases; how many ended well and how many were refused."""
    ended = {"well": 0, "refused": 0}

    @settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def case(draw):
        begun = time.process_time()
        try:
            check(draw)
            ended["well"] += 1
        except allowed as error:
            lines = str(error).splitlines()  # as main prints it
            assert lines and all(0 < len(line) < 2500 for line in lines), lines
            ended["refused"] += 1
        assert time.process_time() - begun < SECONDS

    case()
    assert ended["well"] > 0 < ended["refused"], f"input of one kind alone tests little: {ended}"
    return ended


@tier
def test_command_lines(times, capsys, monkeypatch):
    monkeypatch.setattr(registry, "_scan_file", functools.cache(registry._scan_file))  # the files stay as they are
    hunt(120 * times, lambda draw: cli.parse(make.command_line(draw)))


@tier
def test_yaml(times, tmp_path):
    path = tmp_path / "some.yaml"

    def read(draw):
        path.write_bytes(make.yaml_text(draw).encode(errors="surrogatepass"))
        parser = cli.new_parser()
        cli_parser.apply_layers(parser, [(path.name, configs.read_yaml(path))], set())
        parser.parse_args([], Arguments())

    hunt(300 * times, read)


@tier
@pytest.mark.parametrize("write", [make.jsonl, make.csv], ids=["jsonl", "csv"])
def test_lists(times, write, tmp_path):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "i.png")
    path = tmp_path / f"l.{write.__name__}"

    def read(draw):
        path.write_bytes(write(draw))
        read_list(path)
        stream = SequentialFolder(
            Arguments(seed=0, joint=0), folder_path=str(path), n_tasks=draw.randint(1, 3), image_size=8
        )
        stream.check_samples()
        stream.get_data_loaders()

    hunt(200 * times, read)


@tier
def test_records(times, tmp_path):
    path = tmp_path / "record.jsonl"

    def read(draw):
        path.write_bytes(make.record(draw))
        found = records.read(path)
        assert found.args["model"] and all(task["scores"] is not None for task in found.tasks)

    hunt(400 * times, read)


def state_of_a_run() -> dict:
    weights = {"w": torch.arange(12.0).view(3, 4), "b": torch.zeros(2, dtype=torch.bfloat16)}
    return {
        "position": {"task": 1, "phase": "train", "epoch": 0, "batch": 3},
        "model": {"weights": weights, "seen": {1, 2}, "more": (1, 2.5, None, b"x", np.arange(3))},
        "rng": checkpoint.rng_state(),
        "rows": {"matrices": {"class_il": np.full((2, 2), np.nan)}},
        "loop": {},
        "wall_s": 1.0,
        "record_bytes": 10,
        "forwards": {"image_forwards": 5},
    }


def with_other_structure(data: bytes, draw) -> bytes:
    """A checkpoint whose JSON says something else, with the right lengths around it."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    values = [*make.VALUES, {"tensor": {"entry": "state.model.weights.w"}}, {"range": [0, 1, 0]}, {"float": "nan"}]
    if draw.random() < 0.7:
        structure = make.replaced(json.loads(header["__metadata__"]["state"]), draw, values)
        header["__metadata__"]["state"] = draw.choice([json.dumps(structure)] * 9 + [make.DEEP])
    else:
        header = make.replaced(header, draw, values)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


@tier
def test_checkpoints(times, tmp_path):
    path = tmp_path / "some.safetensors"
    checkpoint.save(path, state_of_a_run(), model="toy")
    whole = path.read_bytes()

    def read(draw):
        change = with_other_structure if draw.random() < 0.6 else make.mutated
        path.write_bytes(change(whole, draw))
        assert isinstance(checkpoint.load_run(path, model="toy"), dict)

    hunt(300 * times, read)


@tier
def test_segments(times, tmp_path):
    """A damaged segment is computed again; one with other content under its right checksum gives finite features."""
    rows = torch.arange(kept.N)
    FeatureStore(tmp_path / "whole").rows(kept.Samples(), rows, kept.Encoder())
    (segment,) = (tmp_path / "whole").rglob("*.rows")
    whole, folder = segment.read_bytes(), tmp_path / "tried"
    counts = {"damaged": 0}

    def read(draw):
        shutil.rmtree(folder, ignore_errors=True)
        place = folder / segment.parent.name
        place.mkdir(parents=True)
        data = make.mutated(whole, draw)
        renamed = draw.random() < 0.4
        name = f"{hashlib.blake2b(data, digest_size=16).hexdigest()}.rows" if renamed else segment.name
        (place / name).write_bytes(data)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = FeatureStore(folder).rows(kept.Samples(), rows, kept.Encoder())
        counts["damaged"] += bool(told)
        assert found.isfinite().all() if renamed else torch.equal(found, kept.expected(rows))
        if draw.random() < 0.5:
            raise UserError("counted as refused")  # nothing here is

    hunt(180 * times, read)
    assert counts["damaged"] > 20


@tier
def test_questions(times, tmp_path):
    path = tmp_path / "questions.json"

    def read(draw):
        path.write_bytes(make.questions(draw))

        def broken(where, reason):
            return UserError(f"{where} is damaged: {reason}")

        assert clove_files.read_questions(path, lambda source, image: tmp_path / f"{image}.jpg", broken)

    hunt(150 * times, read)


@tier
def test_captions(times, tmp_path):
    path = tmp_path / "captions.jsonl"

    def read(draw):
        path.write_bytes(make.captions(draw))
        found = mm_files.read_captions(path)
        assert all(isinstance(text, str) for pair in found.items() for text in pair)

    hunt(150 * times, read)


@tier
def test_archives(times, tmp_path):
    folder = tmp_path / "here"

    def read(draw):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        name, data = make.archive(draw)
        (folder / name).write_bytes(data)
        try:
            prepare_data.unpack(folder / name, folder / "to")
        finally:
            assert {p.name for p in folder.iterdir()} <= {name, "to"}
            assert all(p.is_dir() or p.is_file() and not p.is_symlink() for p in folder.rglob("*"))

    hunt(150 * times, read, OSError)
