"""Device, seeds and paths, under the names that method files expect."""

import functools
import warnings
from argparse import Namespace

import torch

from utils.errors import UserError
from utils.randomness import set_random_seed  # part of this module's interface

_warned: set[str] = set()
_of_run: dict = {"device": None, "base_path": None, "checkpoint_path": None, "max_memory_gb": None}  # set by `remember`


def remember(args: Namespace) -> None:
    """What get_device(), base_path() and get_checkpoint_path() give without an argument, as method files call them."""
    _of_run.update({name: getattr(args, name, None) for name in _of_run})


def of_run(name: str):
    """A remembered value of the run; None outside of one."""
    return _of_run[name]


def get_device(avail_devices: str | None = None) -> torch.device:
    """The named device, or the GPU with most free memory, or the CPU. A missing device is an error."""
    avail_devices = avail_devices or _of_run["device"]
    if avail_devices:
        name = str(avail_devices).split(",")[0].strip()
        name = f"cuda:{name}" if name.isdigit() else name
        try:
            device = torch.device(name)
            torch.empty(1, device=device).fill_(0).item()  # the device `meta` computes nothing
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"--device {avail_devices} cannot be used ({reason}); leave it out or use cpu") from None
        return device
    if torch.cuda.is_available():
        free = [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
        return torch.device("cuda", free.index(max(free)))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def base_path(args: Namespace | None = None) -> str:
    """Root of the datasets; args may also be the path itself."""
    given = args if isinstance(args, str) else getattr(args, "base_path", None)
    return given or _of_run["base_path"] or "./data/"


def get_checkpoint_path() -> str:
    """Folder for files that a method writes."""
    return _of_run["checkpoint_path"] or "./checkpoints/"


def worker_init_fn(worker_id: int, num_workers: int = 1, seed: int = 0) -> None:
    """Give each worker of a DataLoader its own random states."""
    set_random_seed(num_workers * seed + worker_id)


def create_seeded_dataloader(args: Namespace, dataset, non_verbose: bool = True, **options):
    """A DataLoader whose order depends only on --seed, not on earlier draws."""
    seed = getattr(args, "seed", None) or 0
    options.setdefault("num_workers", getattr(args, "num_workers", None) or 0)
    options.setdefault("generator", torch.Generator().manual_seed(seed))
    workers = options["num_workers"]
    options.setdefault("worker_init_fn", functools.partial(worker_init_fn, num_workers=workers, seed=seed))
    return torch.utils.data.DataLoader(dataset, **options)


def warn_once(*messages) -> None:
    """A warning that is shown once per process, regardless of the number of calls."""
    text = " ".join(map(str, messages))
    if text not in _warned:
        _warned.add(text)
        warnings.warn(text, stacklevel=2)
