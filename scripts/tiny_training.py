"""Optimizers and checkpoints of the training of the tiny CLIPs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


class Muon(torch.optim.Optimizer):
    """Momentum whose update is brought near to an orthogonal matrix by Newton-Schulz steps (for weight matrices)."""

    def __init__(self, params, lr: float, dtype=torch.float32, momentum: float = 0.95, weight_decay: float = 0.1):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype  # of the Newton-Schulz steps

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["velocity"] = torch.zeros_like(p)
                velocity = state["velocity"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(velocity, group["momentum"]).to(self.dtype)).to(p.dtype)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape)))  # rms of an AdamW update


def orthogonal(m: torch.Tensor) -> torch.Tensor:
    """Singular values pushed towards 1 by five quintic steps."""
    tall = m.shape[0] > m.shape[1]
    x = (m.T if tall else m) / (m.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def build_optimisers(
    model: nn.Module, heads: nn.Module, lr: float, matrices: str, dtype: torch.dtype = torch.float32
) -> list[torch.optim.Optimizer]:
    """Matrices of the blocks by Muon or AdamW, everything else by AdamW; weight decay on matrices only."""
    blocks, decayed, plain = [], [], []
    for name, p in [*model.named_parameters(), *heads.named_parameters()]:
        inside = "resblocks" in name and p.ndim == 2 and matrices == "muon"
        (blocks if inside else decayed if p.ndim >= 2 and "embedding" not in name else plain).append(p)
    groups = [dict(params=decayed, weight_decay=0.1), dict(params=plain, weight_decay=0.0)]
    out = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))]
    return out + ([Muon(blocks, lr, dtype)] if blocks else [])


def save_checkpoint(path: Path, model: nn.Module, heads: nn.Module, optimisers: list, step: int) -> None:
    """Model, heads and optimizer state in one safetensors file, renamed into place."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"heads.{k}": v for k, v in heads.state_dict().items()}
    for i, optimiser in enumerate(optimisers):
        for j, p in enumerate(p for group in optimiser.param_groups for p in group["params"]):
            tensors |= {f"opt.{i}.{j}.{k}": torch.as_tensor(v) for k, v in optimiser.state[p].items()}
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step)})
    os.replace(temporary, path)


def load_checkpoint(path: Path, model: nn.Module, heads: nn.Module, optimisers: list) -> int:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        step = int(file.metadata()["step"])
    tensors = load_file(path)
    for prefix, module in (("model.", model), ("heads.", heads)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    for i, optimiser in enumerate(optimisers):
        for j, p in enumerate(p for group in optimiser.param_groups for p in group["params"]):
            prefix = f"opt.{i}.{j}."
            state = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            optimiser.state[p] = {k: v if k == "step" else v.to(p.device) for k, v in state.items()}
    return step
