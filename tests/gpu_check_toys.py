"""Parts for scripts/gpu_check.py that end well, fail, die or hang; without torch, so they start fast."""

import os
import subprocess
import time
from pathlib import Path

from utils.errors import UserError


def ready(args):
    return {"device": "toy"}


def refuse(args):
    raise UserError("no device here; take another")


def process(args):
    return [{"what": "process", "value": os.getpid(), "unit": "pid"}]


def broken(args):
    raise ZeroDivisionError("by hand")


def leaves(args):
    raise SystemExit("a bench gave up")


def dies(args):
    os._exit(3)


def hangs(args):
    child = subprocess.Popen(["sleep", "100"])
    Path(args.folder, "child").write_text(str(child.pid))
    time.sleep(100)
