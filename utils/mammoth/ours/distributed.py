"""Names that method files import for several GPUs. With --distributed ddp every call of a network is dealt already."""

from torch import nn

from utils.errors import UserError
from utils.ranks import barrier


class CustomDP(nn.DataParallel):
    """The class that files check for; no network here is one."""

    def __init__(self, *args, **kwargs):
        raise _refusal("CustomDP")


def make_dp(model: nn.Module):
    raise _refusal("make_dp")


def make_ddp(model: nn.Module) -> nn.Module:
    """The network as it is: the rows of its calls are dealt to the ranks."""
    return model


def wait_for_master() -> None:
    """Wait for all ranks."""
    barrier()


def _refusal(name: str) -> UserError:
    return UserError(f"{name}: one process cannot drive several GPUs here; use torchrun and --distributed ddp")
