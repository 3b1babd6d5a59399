"""Download the files of a dataset: `python scripts/prepare_data.py seq-cifar10 --base_path ./data/`."""

import argparse
import sys
from pathlib import Path

# dataset -> torchvision class, whose root is <base_path>/<class name in capitals>
SOURCES = {
    "seq-mnist": "MNIST",
    "perm-mnist": "MNIST",
    "rot-mnist": "MNIST",
    "mnist-360": "MNIST",
    "seq-cifar10": "CIFAR10",
    "seq-cifar100": "CIFAR100",
}


def prepare(dataset: str, base_path: Path) -> Path:
    """Fetch, check and unpack; does nothing where the files are there and whole."""
    from torchvision import datasets

    name = SOURCES[dataset]
    root = base_path / name
    root.mkdir(parents=True, exist_ok=True)
    for train in (True, False):
        getattr(datasets, name)(str(root), train=train, download=True)
    return root


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=lambda name: name.replace("_", "-"), choices=list(SOURCES))
    parser.add_argument("--base_path", type=Path, default=Path("./data/"))
    args = parser.parse_args()
    try:
        root = prepare(args.dataset, args.base_path)
    except (OSError, RuntimeError) as error:  # no network, a full disk, or a checksum that differs
        print(f"error: {args.dataset} could not be fetched: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(f"{args.dataset}: ready under {root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
