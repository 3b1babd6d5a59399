"""Weights that another program saved, or a run on another stream: what fits is taken."""

import os

import torch

from utils.errors import UserError


def read_mammoth(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(weights by name, tensors of the memory) of a .pt file; tensors and plain values only, nothing is executed."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises classes of several libraries for a file it cannot read
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path} cannot be read as tensors and plain values ({type(error).__name__}: {reason}); "
            "save it there with --save_checkpoint_mode safe"
        ) from error
    content = content if isinstance(content, dict) else {}
    weights = content.get("model", content.get("state_dict", content))
    weights = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)} if isinstance(weights, dict) else {}
    memory = content.get("buffer") or {}
    memory = {k: v for k, v in memory.items() if isinstance(v, torch.Tensor)} if isinstance(memory, dict) else {}
    if not weights:
        raise UserError(f"{path} does not contain weights; pass a checkpoint of a finished task, or a state dict")
    return weights, memory


@torch.no_grad()
def fill_weights(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: str | os.PathLike) -> list[str]:
    """Copy `weights` into the model, or into its network for a bare state dict; returns the names left over.

    Every parameter and statistic of the network must be given in the same shape; else UserError, and nothing changes.
    """
    prefixes = ("module.", "_orig_mod.", "wrappee.")
    for prefix in prefixes:
        weights = {k.replace(prefix, ""): v for k, v in weights.items()}
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)}
    if not any(k in weights for k in own):
        weights = {f"net.{k}": v for k, v in weights.items()}
    needed = [k for k in own if k.startswith("net.")]
    absent = [k for k in needed if k not in weights]
    if absent:
        raise UserError(
            f"{path} lacks {len(absent)} of the network's {len(needed)} tensors, the first is {absent[0]}; "
            "use the --backbone it was trained with"
        )
    for name, value in own.items():
        if name in weights and weights[name].shape != value.shape:
            raise UserError(
                f"{path}: {name} is {tuple(weights[name].shape)} there and {tuple(value.shape)} here; "
                "use the --dataset, --backbone and flags it was trained with"
            )
    for name, value in own.items():
        if name in weights:
            value.copy_(weights[name])
    return [name for name in weights if name not in own]
