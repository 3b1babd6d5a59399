"""Device, seeds and paths, under the names that method files expect."""

import warnings
from argparse import Namespace

import torch

from utils.errors import UserError
from utils.randomness import set_random_seed  # noqa: F401  (part of this module's interface)

_warned: set[str] = set()


def get_device(avail_devices: str | None = None) -> torch.device:
    """The named device, or the GPU with most free memory, or the CPU. A device that is not there is an error."""
    if avail_devices:
        name = str(avail_devices).split(",")[0].strip()
        name = f"cuda:{name}" if name.isdigit() else name
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"--device {avail_devices} cannot be used ({reason}); leave it out or say cpu") from None
        return device
    if torch.cuda.is_available():
        free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        return torch.device("cuda", free.index(max(free)))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def base_path(args: Namespace | None = None) -> str:
    """Root of the datasets."""
    return getattr(args, "base_path", None) or "./data/"


def warn_once(*messages) -> None:
    """A warning that is given once per process, whatever the number of calls."""
    text = " ".join(map(str, messages))
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=2)
