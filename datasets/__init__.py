"""Sequential datasets: one file each, found by name."""

from argparse import Namespace

from utils.cli import plugins, registry

__path__ = plugins.search_path(__name__, __path__)


def register_dataset(name: str):
    """Decorator: make a dataset class available as `--dataset name`."""
    return registry.register("dataset", name)


def get_dataset_names() -> list[str]:
    """Names of all datasets, without importing them."""
    return registry.names("dataset")


def get_dataset_class(args: Namespace | str) -> type:
    """The class of `args.dataset`, or of a name."""
    if isinstance(args, str):
        return registry.load("dataset", args)
    found = registry.load("dataset", args.dataset)
    return registry.variant(found, getattr(args, getattr(found, "VARIANT_FLAG", ""), None))


def get_dataset(args: Namespace):
    """A new instance of the dataset that `args.dataset` names."""
    from utils.cli.signatures import arguments_for

    dataset_class = get_dataset_class(args)
    made = dataset_class(args, **arguments_for(dataset_class, args))
    return made.complete() if hasattr(made, "complete") else made
