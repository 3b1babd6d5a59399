"""Reports which method files of a checkout run here: python scripts/try_mammoth.py CHECKOUT [--only NAME ...]

Each name that a models/*.py of the checkout defines is run through `--plugins` as `plugin:<name>` in a process of its
own: two tasks of a few batches of 32 x 32 noise images. It prints one line per name (runs, needs weights, needs
package, fails) and the counts. Required flags get small values by type. That a file runs does not mean that its
accuracy is right.
"""

import argparse
import inspect
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils import cli  # noqa: E402
from utils.cli import plugins, registry, shell  # noqa: E402
from utils.errors import UserError  # noqa: E402

STREAM = ROOT / "scripts" / "assets" / "noise_streams.py"
STREAMS = {
    "class-il": "noise-classes",
    "task-il": "noise-classes",
    "cssl": "noise-classes",
    "domain-il": "noise-domains",
    "general-continual": "noise-general",
}
VALUES = {"int": "2", "natural": "2", "float": "0.5", "str": "a"}
BY_NAME = {"buffer_size": "20", "minibatch_size": "4", "n_epochs": "1"}
WEIGHTS = re.compile(
    r"weights|pretrained|huggingface|hf\.co|URLError|HTTPError|ConnectionError|LocalEntryNotFound|"
    r"OfflineMode|MaxRetry|getaddrinfo|NameResolution|download|urlopen|No such file",
    re.I,
)
PACKAGE = re.compile(
    r"needs the package '([\w.-]+)'|No module named '([\w.]+)'|pip install ([\w-]+)|([\w-]+) is not installed"
)


def one(checkout: str, name: str, folder: str) -> int:
    """Run one method in this process."""
    import main

    plugins.use([checkout, str(STREAM)])
    model = registry.load("model", name)
    fits = [STREAMS[s] for s in getattr(model, "COMPATIBILITY", []) if s in STREAMS]
    if not fits:
        raise UserError(f"no stream of {', '.join(model.COMPATIBILITY)} to try it on")
    argv = [
        "--plugins",
        checkout,
        "--plugins",
        str(STREAM),
        "--model",
        name,
        "--dataset",
        fits[0],
        "--seed",
        "0",
        "--device",
        "cpu",
        "--debug_mode",
        "1",
        "--non_verbose",
        "1",
        "--disable_log",
        "1",
        "--base_path",
        folder,
        "--lr",
        "0.01",
        "--batch_size",
        "8",
        "--stop_after",
        "0" if fits[0] == "noise-general" else "1",
    ]
    if "true_labels" in inspect.signature(model.observe).parameters:
        argv += ["--noise_rate", "0.2"]
    parser = cli.new_parser()
    own = {a.dest for a in parser._actions}
    cli.add_model_args(parser, model)
    for action in parser._actions:
        if action.dest not in own and action.dest in BY_NAME or (action.required and action.dest not in {"lr"}):
            kind = getattr(action.type, "__name__", "str")
            value = BY_NAME.get(action.dest) or (
                str(next(iter(action.choices))) if action.choices else VALUES.get(kind, "1")
            )
            argv += [action.option_strings[0], value]
    os.chdir(folder)  # files written to relative paths stay there
    return main.main(argv)


def verdict(code: int | None, text: str) -> tuple[str, str]:
    """(class, last line) of a run's output."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith(("warning:", " ", "\r"))]
    last = lines[-1] if lines else ""
    if code is None:
        return "fails", "out of time"
    if code == 0:
        return "runs", ""
    package = PACKAGE.search(last)
    if package:
        return "needs package", next(filter(None, package.groups()))
    return ("needs weights" if WEIGHTS.search(last) else "fails"), last.removeprefix("error: ")[:160]


def names_of(checkout: str) -> list[str]:
    plugins.use([checkout])
    return sorted(registry.plugin_index("model"))


def command_line(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkout")
    parser.add_argument("--only", nargs="+", help="names to try (default: all)")
    parser.add_argument("--limit_s", type=float, default=120, help="seconds for one name")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    try:
        if args.one:
            return one(args.checkout, args.one, args.folder)
        known = names_of(args.checkout)
    except UserError as error:
        return cli.fail(error)
    chosen = [registry.canonical(n) for n in args.only] if args.only else known
    if not chosen or set(chosen) - set(known):
        print(
            f"error: {args.checkout} does not have a method {', '.join(sorted(set(chosen) - set(known)))}".rstrip(),
            file=sys.stderr,
        )
        return 2
    counts = dict.fromkeys(("runs", "needs weights", "needs package", "fails"), 0)
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            found, why = tried(args, name, folder)
            counts[found] += 1
            print(f"{name:<28} {found:<14} {why}".rstrip(), flush=True)
    print("  ".join(f"{what}: {count}" for what, count in counts.items()))
    return 1 if counts["fails"] else 0


def tried(args: argparse.Namespace, name: str, folder: str) -> tuple[str, str]:
    key = registry.PLUGIN + name
    command = [sys.executable, __file__, str(Path(args.checkout).resolve()), "--one", key, "--folder", folder]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=args.limit_s, env=environment)
    except subprocess.TimeoutExpired:
        return verdict(None, "")
    return verdict(done.returncode, done.stderr)


if __name__ == "__main__":
    sys.exit(shell.exits(command_line))
