"""How a program exits to its shell: a closed pipe and Ctrl-C are not errors and leave no traceback."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from utils.cli.ranks import processes

FINISHING = b"finishing this step; again to quit now\n"
waits = False  # a first signal will be noticed at the end of a step: the answer to it must not wait
CLOSED_PIPE = 128 + signal.SIGPIPE
ECHO_S = 5.0  # torchrun passes the signal of a terminal on to ranks that have it already
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def exits(program: Callable[[], int]) -> int:
    """Run a whole program; its exit code, 141 if its reader exited (`| head -1`), 130 after Ctrl-C."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a path that is not UTF-8 is shown as well as possible
    with stops_at_once(), second_signal_quits():
        try:
            try:
                code = program()
            except SystemExit as end:  # argparse after --help
                code = end.code if isinstance(end.code, int) else 1
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)  # the interpreter flushes both again on exit
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            return CLOSED_PIPE


@contextlib.contextmanager
def stops_at_once() -> Iterator[None]:
    """Ctrl-C ends the process at once with one line: a library that is being imported may swallow an exception.
    A training run has its own handlers."""

    def handle(number: int, frame: object) -> None:
        os.write(2, b"stopped by signal %d; nothing was being trained\n" % number)
        os._exit(128 + number)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def second_signal_quits() -> Iterator[None]:
    """Handlers run between Python instructions, which a long tensor operation delays; this thread does not wait."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        first = None
        while number := os.read(reader, 1):
            if number[0] in STOPS and first is not None and time.monotonic() - first > ECHO_S * (processes() > 1):
                os._exit(128 + number[0])
            if number[0] in STOPS and first is None:
                first = time.monotonic()
                if waits:
                    os.write(2, FINISHING)

    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
