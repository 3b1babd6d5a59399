"""Methods: one file each, found by name."""

from argparse import Namespace

from utils import plugins, registry

__path__ = plugins.search_path(__name__, __path__)


def register_model(name: str):
    """Decorator: make a model class available as `--model name`."""
    return registry.register("model", name)


def get_model_names() -> list[str]:
    """Names of all models, without importing them."""
    return registry.names("model")


def get_model_class(args: Namespace | str) -> type:
    """The class of `args.model`, or of a name."""
    return registry.load("model", args if isinstance(args, str) else args.model)


def get_model(args: Namespace, backbone, loss, transform, dataset):
    """A fresh instance of the model that `args.model` names."""
    return get_model_class(args)(backbone, loss, args, transform, dataset)
