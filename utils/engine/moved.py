"""Modules that have moved: checkpoints name classes by module, and those written before a move can still be read."""

from typing import Any

MOVED = {  # modules, and single classes by their whole name
    "models.utils.continual_model.ForwardCounter": "models.utils.forward_counter.ForwardCounter",
    "utils.buffer": "utils.memory.buffer",
    "utils.buffer_strategies": "utils.memory.strategies",
    "utils.class_generator": "utils.generative.base",
    "utils.diffusion": "utils.generative.diffusion",
    "utils.exemplar_memory": "utils.memory.exemplar_memory",
    "utils.exemplars": "utils.memory.exemplars",
    "utils.gaussians": "utils.generative.gaussians",
    "utils.gss_buffer": "utils.memory.gss",
    "utils.masked_records": "utils.memory.records",
    "utils.masks": "utils.memory.masks",
    "utils.record_buffer": "utils.memory.record_buffer",
    "utils.ring_buffer": "utils.memory.ring",
    "utils.vae": "utils.generative.vae",
}


def new_name(name: str) -> str:
    """The current name of a class or function."""
    module, _, last = name.rpartition(".")
    return MOVED.get(name) or f"{MOVED.get(module, module)}.{last}"


def renamed(state: Any) -> Any:
    """A captured state with current names; its tensors are the same objects."""
    kind: Any = type(state)
    if isinstance(state, dict):
        return {k: new_name(v) if k == "class" and isinstance(v, str) else renamed(v) for k, v in state.items()}
    mark = state[0] if isinstance(state, (list, tuple)) and len(state) == 2 else None
    if isinstance(mark, str) and mark == "code":  # a pair may hold arrays, which do not compare to one truth value
        return kind(("code", new_name(state[1])))
    if isinstance(mark, str) and mark == "object":
        name, *rest = state[1]
        return kind(("object", [new_name(name), *map(renamed, rest)]))
    if kind in (list, tuple):
        return kind(map(renamed, state))
    return state
