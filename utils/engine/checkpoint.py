"""Checkpoints: any nested state in one .safetensors file, replaced atomically and restored bit for bit.

Tensors and arrays are entries of the file, readable with any safetensors tool; the structure around them is JSON in
the header's metadata under "state". Reading builds plain values and tensors only: nothing in a file is executed.
"""

import base64
import builtins
import contextlib
import json
import math
import os
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open

from utils import json_text
from utils.engine.module_state import capture, restore
from utils.errors import UserError, disk_errors
from utils.pair import Pair

__all__ = ["SCHEMA", "capture", "load", "restore", "rng_state", "save", "set_rng_state"]

SCHEMA = 2  # of the JSON structure; a file with a higher number is refused
SHARED_BYTES = 4096  # tensors of at least this size are compared to find equal ones
PEEK = 64  # bytes that are compared first
HEADER_STATE_BYTES = 2**24  # a longer structure becomes a separate entry: safetensors caps headers at 100 MB
STATE_ENTRY = "__state__"
NATIVE = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}  # other dtypes are stored as bytes (U8), with their name in the structure
FACTORIES = {"list", "dict", "set", "int", "float"}  # of a defaultdict
SEQUENCES = {"tuple": tuple, "set": set, "frozenset": frozenset, "size": torch.Size}
PHASES = {"begin", "train", "end", "done"}  # progress of a run within a task
COUNTERS = {"image_forwards", "question_forwards"}
MAPPINGS = {"dict": dict, "ordered": OrderedDict, "counter": Counter}


def save(path: str | os.PathLike, state: Any, *, model: str, schema: int = SCHEMA) -> None:
    """Write `state` to one file. A crash at any time leaves either the old file or the new one.

    `state`: None, bool, int, float, str, bytes, list, tuple, set, frozenset, dict (with any such keys), OrderedDict,
    Counter, defaultdict, deque, range, Pair, torch tensor, Parameter, dtype, device and Size, numpy array and scalar,
    arbitrarily nested. A tensor found twice is written once and is one tensor again after loading; other names for its
    memory share it again. Equal tensors are also written once, and are separate tensors again after loading. Raises
    TypeError with the location of a value of another kind.
    """
    write(path, *pack(state), model=model, schema=schema)


def pack(state: Any, copy: bool = False) -> tuple[str, dict[str, torch.Tensor], dict[str, str]]:
    """The structure of a state as JSON, its tensors by name, and which of them are equal; with `copy`, copied."""
    entries: dict[str, torch.Tensor] = {}
    text = json.dumps(_encode(state, "state", entries, {}), separators=(",", ":"), allow_nan=False)
    entries, same = distinct(entries)
    if copy:
        entries = {
            name: torch.empty_like(t, device="cpu", requires_grad=False).copy_(t.detach())
            for name, t in entries.items()
        }
    return text, entries, same


def distinct(entries: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The tensors without those that equal an earlier one bit for bit, and for each of these the name of that one."""
    kept: dict[str, torch.Tensor] = {}
    same: dict[str, str] = {}
    alike: dict[Any, list] = defaultdict(list)
    for name, tensor in entries.items():
        kept[name] = tensor
        if tensor.numel() * tensor.element_size() < SHARED_BYTES or not tensor.is_contiguous():
            continue
        bits = tensor.detach().reshape(-1).view(torch.uint8)
        peers = alike[tensor.dtype, tensor.shape, tensor.device, bits[: 2 * PEEK : 2].cpu().numpy().tobytes()]
        twin = next((other for other, theirs in peers if torch.equal(bits, theirs)), None)
        if twin is None:
            peers.append((name, bits))
        else:
            same[name] = twin
            del kept[name]
    return kept, same


def write(path: str | os.PathLike, text: str, entries: dict, same: dict, *, model: str, schema: int = SCHEMA) -> None:
    """Write what `pack` returned."""
    path = Path(path)
    if len(text) > HEADER_STATE_BYTES:
        entries[STATE_ENTRY] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        text = ""
    metadata = {"model": model, "schema": str(schema), "state": text, "same": json.dumps(same)}
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors(path, "save to another folder"):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                _write_safetensors(file, entries, metadata)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is reported
                temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the new name must also survive a power failure
        finally:
            os.close(folder)


def _write_safetensors(file: IO[bytes], entries: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """The safetensors format, one tensor in memory at a time (safetensors.torch.save_file holds a copy of all)."""
    header: dict[str, dict[str, Any]] = {"__metadata__": metadata}
    offset = 0
    for name, tensor in entries.items():
        native = tensor.dtype in NATIVE
        n_bytes = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": NATIVE.get(tensor.dtype, "U8"),
            "shape": list(tensor.shape) if native else [n_bytes],
            "data_offsets": [offset, offset + n_bytes],
        }
        offset += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for tensor in entries.values():
        if tensor.numel():
            flat = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)


def load(path: str | os.PathLike, *, model: str | None, device: torch.device | str = "cpu") -> Any:
    """The state in a file written by `save`. Tensors saved from a GPU go to `device`, all others to the CPU.

    Raises UserError for a file that is missing, damaged, of a newer version, or of another model than `model`
    (None: any).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; check the path, or train without it")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if not {"model", "schema", "state"} <= set(metadata):
                raise UserError(
                    f"{path} contains tensors but not the state of a run; pass a checkpoint written by this program"
                )
            schema, owner = int(metadata["schema"]), metadata["model"]
            if schema > SCHEMA:
                raise UserError(
                    f"{path} has version {schema}, newer than {SCHEMA}, the newest known here; update the program"
                )
            if model is not None and owner != model:
                raise UserError(f"{path} is a checkpoint of model {owner}, not {model}; pass --model {owner}")
            text = metadata["state"] or bytes(file.get_tensor(STATE_ENTRY).numpy()).decode()
            same = json_text.parse(metadata.get("same", "{}"))
            return _decode(json_text.parse(text), _Entries(file, same), torch.device(device), {})
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a damaged or crafted file can make any library fail
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}: {reason}); use an older one, or start over"
        ) from error


class _Entries:
    """The tensors of an open file; `same` maps a name to that of an equal stored one."""

    def __init__(self, file: Any, same: dict[str, str]) -> None:
        self.file, self.same = file, same

    def get_tensor(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self.file.get_tensor(self.same.get(name, name))
        return found


def load_run(path: str | os.PathLike, *, model: str | None, device: torch.device | str = "cpu") -> dict:
    """The state of a run, as `Run.state` makes it; UserError for a file with other content."""
    state: dict = load(path, model=model, device=device)
    if not _is_run(state):
        raise UserError(f"{path} does not contain the complete state of a run; use an older one, or start over")
    return state


def _is_run(state: Any) -> bool:
    """Whether a state has the parts of a run, each of the right type; random states are tried on new generators."""
    kinds = {
        "position": dict,
        "model": dict,
        "rng": dict,
        "rows": dict,
        "loop": dict,
        "wall_s": float,
        "record_bytes": int,
    }
    if not isinstance(state, dict) or not all(isinstance(state.get(k), kind) for k, kind in kinds.items()):
        return False
    place, forwards, matrices = state["position"], state.get("forwards", {}), state["rows"].get("matrices")
    counts = [*(place.get(k) for k in ("task", "epoch", "batch")), state["record_bytes"]]
    counts += forwards.values() if isinstance(forwards, dict) else [None]
    if (
        not all(type(n) is int and n >= 0 for n in counts)
        or place.get("phase") not in PHASES
        or not set(forwards) <= COUNTERS
    ):
        return False
    if (
        not math.isfinite(state["wall_s"])
        or not isinstance(matrices, dict)
        or not all(isinstance(m, np.ndarray) for m in matrices.values())
    ):
        return False
    try:
        random.Random().setstate(state["rng"]["python"])
        np.random.RandomState().set_state(state["rng"]["numpy"])
        torch.Generator().set_state(state["rng"]["torch"])
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError):
        return False
    return isinstance(state["rng"].get("cuda"), list)


def _encode(value: Any, name: str, entries: dict[str, torch.Tensor], seen: dict) -> Any:
    """Nested value to JSON: lists and finite numbers unchanged, anything else as {kind: content}."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, torch.Tensor):
        return {"tensor": _encode_tensor(value, name, entries, seen)}
    if kind is list:
        return [_encode(v, f"{name}.{i}", entries, seen) for i, v in enumerate(value)]
    for tag, known in SEQUENCES.items():
        if kind is known:
            return {tag: [_encode(v, f"{name}.{i}", entries, seen) for i, v in enumerate(value)]}
    for tag, known in MAPPINGS.items():
        if kind is known:
            return {tag: _encode_items(value, name, entries, seen)}
    if kind is defaultdict and getattr(value.default_factory, "__name__", "") in FACTORIES:
        return {"defaultdict": [value.default_factory.__name__, _encode_items(value, name, entries, seen)]}
    if kind is deque:
        return {"deque": [value.maxlen, _encode(list(value), name, entries, seen)]}
    if kind is Pair:
        return {
            "pair": [_encode(value.image, f"{name}.image", entries, seen)]
            + [_encode(value.text, f"{name}.text", entries, seen)]
        }
    return _encode_leaf(value, name, entries)


def _encode_leaf(value: Any, name: str, entries: dict[str, torch.Tensor]) -> dict:
    """A value that does not contain others."""
    kind = type(value)
    if kind is bytes:
        return {"bytes": base64.b64encode(value).decode()}
    if kind is range:
        return {"range": [value.start, value.stop, value.step]}
    if kind in (torch.dtype, torch.device):
        return {kind.__name__: str(value).removeprefix("torch.")}
    if isinstance(value, np.generic) and value.dtype.kind in "biufcSUmM":
        return {"scalar": [value.dtype.str, base64.b64encode(value.tobytes()).decode()]}
    if kind is np.ndarray and value.dtype.kind in "biufcSUmM":
        raw = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8) if value.size else torch.zeros(0).byte()
        return {"array": [_new_entry(raw, name, entries), value.dtype.str, list(value.shape)]}
    raise TypeError(f"{name} is of type {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold")


def _encode_items(value: Any, name: str, entries: dict, seen: dict) -> list:
    return [
        [_encode(k, f"{name}.key{i}", entries, seen), _encode(v, f"{name}.{k}", entries, seen)]
        for i, (k, v) in enumerate(value.items())
    ]


def _encode_tensor(tensor: torch.Tensor, name: str, entries: dict, seen: dict) -> dict:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise TypeError(f"{name} is a tensor without plain storage, which a checkpoint cannot hold")
    place = (
        (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel()
        else id(tensor)
    )
    if place not in seen:
        seen[place] = _new_entry(tensor, name, entries)
    what = {"entry": seen[place]}
    if tensor.dtype not in NATIVE:
        what |= {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if isinstance(tensor, torch.nn.Parameter):
        what["parameter"] = tensor.requires_grad
    elif tensor.requires_grad and tensor.is_leaf:
        what["leaf"] = True
    if tensor.device.type != "cpu":
        what["moved"] = True
    return what


def _new_entry(tensor: torch.Tensor, name: str, entries: dict[str, torch.Tensor]) -> str:
    """A free name for a tensor; names repeat if a dict has the keys 1 and "1"."""
    unique = name if name not in entries else f"{name}#{len(entries)}"
    entries[unique] = tensor
    return unique


def _decode(value: Any, file: Any, device: torch.device, seen: dict) -> Any:
    """The inverse of `_encode`."""
    if isinstance(value, list):
        return [_decode(v, file, device, seen) for v in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tensor":
        entry, kind = content["entry"], (content.get("parameter"), content.get("leaf"))
        if entry not in seen:
            seen[entry] = {kind: _decode_tensor(content, file.get_tensor(entry), device)}
        elif kind not in seen[entry]:  # the same memory as a parameter and as a plain tensor
            seen[entry][kind] = _as_kind(next(iter(seen[entry].values())).detach(), content)
        return seen[entry][kind]
    if tag in SEQUENCES:
        return SEQUENCES[tag](_decode(v, file, device, seen) for v in content)
    if tag in MAPPINGS:
        return MAPPINGS[tag](_decode_items(content, file, device, seen))
    if tag == "defaultdict":
        if content[0] not in FACTORIES:
            raise ValueError(f"unknown factory {content[0]}")
        return defaultdict(getattr(builtins, content[0]), _decode_items(content[1], file, device, seen))
    if tag == "array":
        entry, dtype, shape = content
        return np.frombuffer(file.get_tensor(entry).numpy().tobytes(), np.dtype(dtype)).reshape(shape).copy()
    simple: dict[str, Callable] = {
        "float": float,
        "deque": lambda c: deque(_decode(c[1], file, device, seen), c[0]),
        "bytes": base64.b64decode,
        "range": lambda c: range(*c),
        "dtype": _dtype,
        "device": torch.device,
        "pair": lambda c: Pair(*_decode(c, file, device, seen)),
        "scalar": lambda c: np.frombuffer(base64.b64decode(c[1]), np.dtype(c[0]))[0],
    }
    return simple[tag](content)


def _decode_items(items: list, file: Any, device: torch.device, seen: dict) -> dict:
    return {_decode(k, file, device, seen): _decode(v, file, device, seen) for k, v in items}


def _decode_tensor(what: dict, stored: torch.Tensor, device: torch.device) -> torch.Tensor:
    tensor = stored.clone()  # copied out of the mapped file
    if "dtype" in what:
        tensor = tensor.view(_dtype(what["dtype"])).reshape(what["shape"])
    if what.get("moved"):
        tensor = tensor.to(device)
    return _as_kind(tensor, what)


def _as_kind(tensor: torch.Tensor, what: dict) -> torch.Tensor:
    if "parameter" in what:
        return torch.nn.Parameter(tensor, requires_grad=what["parameter"])
    return tensor.requires_grad_(what.get("leaf", False))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"unknown dtype {name}")
    return dtype


def rng_state() -> dict:
    """State of every global random stream: Python's, numpy's, torch's on the CPU and on each GPU."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict) -> None:
    """Restore what `rng_state` returned. GPUs that this machine does not have are skipped."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    for index, cuda_state in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(cuda_state, index)
