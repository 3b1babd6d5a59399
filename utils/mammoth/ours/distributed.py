"""Names that method files import for several GPUs; a run here uses one device, so calling them is refused."""

from torch import nn

from utils.errors import UserError


class CustomDP(nn.DataParallel):
    """The class that files check for; no network here is one."""

    def __init__(self, *args, **kwargs):
        raise _refusal("CustomDP")


def make_dp(model: nn.Module):
    raise _refusal("make_dp")


def make_ddp(model: nn.Module):
    raise _refusal("make_ddp")


def wait_for_master():
    raise _refusal("wait_for_master")


def _refusal(name: str) -> UserError:
    return UserError(f"{name}: several GPUs per run are not supported; start one run per GPU with --device")
