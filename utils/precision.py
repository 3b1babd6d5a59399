"""-O: TF32 products, bf16 products inside the network, compiled modules. What a method computes outside its network,
such as losses, statistics and closed-form solutions, stays in fp32."""

from argparse import Namespace

import torch
from torch import nn

from utils.errors import UserError
from utils.settings import option


def set_speed(args: Namespace, model) -> None:
    """Level 1 TF32 matrix products, 2 also bf16 in the network (`mix`), 3 also compiled modules."""
    level = option(args, "code_optimization", 0)
    if level >= 1:
        torch.set_float32_matmul_precision("high" if level == 1 else "medium")
    if level >= 3:
        parts = model.compiled_parts()
        if not parts:
            raise UserError(
                f"-O 3 compiles modules, but model {model.NAME} does not call any as a whole here: use -O 2"
            )
        for part in parts:
            compiled(part, model.device)


class Mixed:
    """Hooks of every module of a network: the outermost call enters autocast and returns fp32.

    Each such call has its own cache of cast weights, so that a step of an optimizer between two of them is seen.
    """

    def __init__(self, device: torch.device):
        self.kind = device.type
        self.outermost: list[tuple[nn.Module, torch.autocast]] = []

    def enter(self, module: nn.Module, inputs: tuple) -> None:
        if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(self.kind):
            region = torch.autocast(self.kind, dtype=torch.bfloat16)
            region.__enter__()
            self.outermost.append((module, region))

    def leave(self, module: nn.Module, inputs: tuple, outputs):
        if not torch.compiler.is_compiling() and self.outermost and self.outermost[-1][0] is module:
            self.outermost.pop()[1].__exit__(None, None, None)
            return in_fp32(outputs)
        return None

    def __deepcopy__(self, memo: dict) -> "Mixed":
        return self


def compiled(part: nn.Module, device: torch.device) -> None:
    """Compile a module; its products are in bf16, by one autocast region around it instead of the hooks."""
    part.compile()
    run = part._compiled_call_impl

    def call(*args, **kwargs):
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return in_fp32(run(*args, **kwargs))

    part._compiled_call_impl = call


def mix(net: nn.Module, device: torch.device) -> None:
    """bf16 products in `net`, whichever of its modules are called; modules added since get their hooks."""
    hooks = vars(net).setdefault("bf16_products", Mixed(device))
    for module in net.modules():
        if not any(getattr(hook, "__self__", None) is hooks for hook in module._forward_pre_hooks.values()):
            module.register_forward_pre_hook(hooks.enter)
            module.register_forward_hook(hooks.leave, always_call=True)


def in_fp32(value):
    """Tensors in bf16 as fp32, also in containers."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if isinstance(value, dict):
        return {key: in_fp32(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(in_fp32, value))
    return type(value)(map(in_fp32, value)) if isinstance(value, (list, tuple)) else value
