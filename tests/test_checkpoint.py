import math
import multiprocessing
import os
import pickle
import random
import time
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from utils.engine import checkpoint
from utils.errors import UserError
from utils.pair import Pair


def same(a, b) -> bool:
    """Equal in type, structure and every bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        meta = ("shape", "dtype", "requires_grad")
        if any(getattr(a, m) != getattr(b, m) for m in meta):
            return False
        a, b = (t.detach().resolve_conj().contiguous().reshape(-1) for t in (a, b))
        return not a.numel() or torch.equal(a.view(torch.uint8), b.view(torch.uint8))
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, Pair):
        return same(a.image, b.image) and same(a.text, b.text)
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return math.copysign(1, a) == math.copysign(1, b) and (a == b or (math.isnan(a) and math.isnan(b)))
    return a == b


def round_trip(state, tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", state, model="toy")
    return checkpoint.load(tmp_path / "a.safetensors", model="toy")


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint8, torch.bool, torch.complex64, torch.complex128, torch.uint16, torch.float8_e4m3fn),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_of_every_kind(dtype, tmp_path):
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (4, 3, 16), generator=torch.Generator().manual_seed(0))
    base = raw.byte().view(dtype)
    views = {
        "base": base,
        "transposed": base.transpose(0, 1),
        "slice": base[1:, :, ::2],
        "scalar": base[0, 0, 0],
        "empty": base[:0],
        "expanded": base[:1].expand(5, -1, -1),
    }
    assert same(round_trip(views, tmp_path), views)


def test_plain_values(tmp_path):
    state = {
        "float": [0.1, -0.0, 1e-323, 1.7976931348623157e308, math.nan, math.inf, -math.inf, 2.0],
        "int": [0, -1, 10**40, True, False, None],
        "text": ["", "é\n\"'\\ \ud800 \x00", "$tensor"],
        "bytes": [b"", bytes(range(256))],
        "keys": {1: "int", "1": "text", (2, "x"): "tuple", None: 0, 1.5: 1, b"b": 2, True + 1: 3},
        "looks like a tag": {"tensor": {"entry": "x"}, "float": "nan"},
        "sets": [set(), {1, "a"}, frozenset({(1, 2)})],
        "queues": [deque([1, 2, 3], maxlen=3), deque([])],
        "maps": [OrderedDict(b=1, a=2), Counter("aab"), defaultdict(list, {3: [1]})],
        "numpy": [
            np.float32(0.1),
            np.int64(-3),
            np.bool_(True),
            np.datetime64("2026-01-02"),
            np.array(3),
            np.array(["ab"]),
        ],
        "arrays": [np.arange(6.0).reshape(2, 3).T[::-1], np.zeros((0, 3), np.int8), np.array([1, 2], ">i4")],
        "torch": [torch.float16, torch.device("cuda:1"), torch.Size([2, 3]), nn.Parameter(torch.ones(2), False)],
        "pair": Pair(torch.rand(2, 3), torch.arange(2)),
        "range": range(5, 0, -2),
        "leaf": torch.ones(2, requires_grad=True),
        "empty": [[], (), {}],
    }
    loaded = round_trip(state, tmp_path)
    for key in state:
        assert same(loaded[key], state[key]), key
    assert loaded["queues"][0].maxlen == 3 and loaded["maps"][2]["new"] == []
    loaded["arrays"][0][0] = 1  # arrays are writable


def random_state(rng: random.Random, depth: int):
    kind = rng.randrange(9 if depth else 6)
    if kind == 0:
        return rng.choice([None, True, "x", "tensor", b"\x00\xff", torch.int8])
    if kind == 1:
        return rng.choice([rng.gauss(0, 1e10), rng.getrandbits(80) - 2**79, math.nan, math.inf, -0.0])
    if kind == 2:
        shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
        return (torch.rand(shape) * 99).to(rng.choice(DTYPES[:10]))
    if kind == 3:
        return np.random.rand(rng.randrange(4), 2).astype(rng.choice(["f4", "f8", "i2", "?", "c8"]))
    if kind == 4:
        return rng.choice([np.float16(1.5), np.uint8(7)])
    if kind == 5:
        return {rng.randrange(9), "s", (1, 2.5)}
    children = [random_state(rng, depth - 1) for _ in range(rng.randrange(5))]
    if kind == 6:
        return rng.choice([list, tuple, deque])(children)
    keys = [rng.choice([i, str(i), (i, "k"), float(i) + 0.5]) for i in range(len(children))]
    return rng.choice([dict, OrderedDict])(zip(keys, children, strict=True))


def test_random_structures(tmp_path):
    torch.manual_seed(0)
    np.random.seed(0)
    rng = random.Random(0)
    for _ in range(60):
        state = [random_state(rng, 4) for _ in range(3)]
        assert same(round_trip(state, tmp_path), state)


def test_file_is_readable_safetensors_and_shares_tensors(tmp_path, monkeypatch):
    tensor = torch.arange(6.0).reshape(2, 3)
    state = {"a": tensor, "b": [tensor, tensor.t()], 1: torch.zeros(1), "1": torch.ones(1)}
    loaded = round_trip(state, tmp_path)
    assert loaded["a"] is loaded["b"][0] and loaded["b"][1] is not loaded["a"] and same(loaded, state)
    entries = load_file(tmp_path / "a.safetensors")
    assert (
        len(entries) == 4 and torch.equal(entries["state.a"], tensor) and torch.equal(entries["state.b.1"], tensor.t())
    )
    monkeypatch.setattr(checkpoint, "HEADER_STATE_BYTES", 10)  # a long structure takes an entry of its own
    assert same(round_trip(state, tmp_path), state)
    assert len(load_file(tmp_path / "a.safetensors")) == 5


def test_unknown_value_is_named_and_leaves_the_old_file(tmp_path):
    round_trip({"a": 1}, tmp_path)
    for bad in (lambda: 0, object(), torch.ones(2).to_sparse(), np.array([None]), [1, {"x": open}]):
        with pytest.raises(TypeError, match=r"state\.k"):
            checkpoint.save(tmp_path / "a.safetensors", {"k": bad}, model="toy")
    assert checkpoint.load(tmp_path / "a.safetensors", model="toy") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, monkeypatch):
    round_trip({"a": 1}, tmp_path)

    def half(file, entries, metadata):
        file.write(b"half a file")
        raise RuntimeError("broken off")

    monkeypatch.setattr(checkpoint, "_write_safetensors", half)
    with pytest.raises(RuntimeError, match="broken off"):
        checkpoint.save(tmp_path / "a.safetensors", {"a": 2}, model="toy")
    assert checkpoint.load(tmp_path / "a.safetensors", model="toy") == {"a": 1}
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_bad_files_are_user_errors(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(path, model="er")
    checkpoint.save(path, {"x": torch.arange(50.0), "y": [1, math.nan]}, model="er")
    whole = path.read_bytes()
    with pytest.raises(UserError, match="of model er, not sgd"):
        checkpoint.load(path, model="sgd")
    assert checkpoint.load(path, model=None)["y"][0] == 1
    for size in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(path, model="er")
    path.write_bytes(whole + b"more")
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, model="er")
    checkpoint.save(path, {}, model="er", schema=checkpoint.SCHEMA + 1)
    with pytest.raises(UserError, match="newer"):
        checkpoint.load(path, model="er")
    from safetensors.torch import save_file

    save_file({"w": torch.ones(1)}, path)
    with pytest.raises(UserError, match="not the state of a run"):
        checkpoint.load(path, model="er")
    for text in (
        '{"tensor": {"entry": "gone"}}',
        '{"eval": "1"}',
        "[",
        '{"defaultdict": ["eval", []]}',
        '{"dtype": "save"}',
    ):
        save_file({"w": torch.ones(1)}, path, {"model": "er", "schema": "1", "state": text})
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(path, model="er")


class Bomb:
    def __reduce__(self):
        return os.mkdir, (Bomb.path,)


def test_renamed_pickle_is_refused_unread(tmp_path):
    Bomb.path = str(tmp_path / "executed")
    path = tmp_path / "a.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, model="er")
    torch.save({"x": Bomb()}, path)
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(path, model="er")
    assert not os.path.exists(Bomb.path)
    pickle.loads(pickle.dumps(Bomb()))
    assert os.path.exists(Bomb.path)  # it does go off where pickles are read


def save_for_ever(path, pipe):
    torch.set_num_threads(1)
    for i in range(10**9):
        checkpoint.save(path, {"i": i, "x": torch.full((300_000,), i)}, model="toy")
        pipe.send(i)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_kill_during_save_leaves_a_whole_file(tmp_path):
    path, rng, fork, unfinished = tmp_path / "a.safetensors", random.Random(0), multiprocessing.get_context("fork"), 0
    for _ in range(12):
        ours, theirs = fork.Pipe(duplex=False)
        writer = fork.Process(target=save_for_ever, args=(path, theirs), daemon=True)
        writer.start()
        theirs.close()
        reported = ours.recv()
        time.sleep(rng.uniform(0.0, 0.05))
        writer.kill()
        writer.join()
        while ours.poll():
            try:
                reported = ours.recv()
            except EOFError:
                break
        state = checkpoint.load(path, model="toy")
        assert (state["x"] == state["i"]).all()
        assert state["i"] in (reported, reported + 1)  # what was reported as saved is there
        unfinished += len(os.listdir(tmp_path)) - 1
    assert unfinished > 0  # some kills did fall into a write
    checkpoint.save(path, {}, model="toy")
    assert os.listdir(tmp_path) == [path.name]  # and the next save clears up


def test_rng_state(tmp_path):
    def draw():
        return [random.random(), np.random.rand(), np.random.randn(), random.gauss(0, 1), torch.rand(3)]

    draw()
    np.random.randn()  # leaves a second Gaussian in numpy's state
    state = round_trip(checkpoint.rng_state(), tmp_path)
    first = draw()
    checkpoint.set_rng_state(state)
    assert same(draw(), first)
