"""Methods: one file each, found by name."""

import inspect
from argparse import Namespace

from utils.cli import plugins, registry

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
    """A new instance of the model that `args.model` names; an old constructor may not have the parameter `dataset`."""
    maker = get_model_class(args)
    taken = inspect.signature(maker).parameters.values()
    if len(taken) >= 5 or any(p.kind is p.VAR_POSITIONAL for p in taken):
        return maker(backbone, loss, args, transform, dataset)
    from models.utils.continual_model import ContinualModel

    ContinualModel.stream_at_hand = dataset
    try:
        return maker(backbone, loss, args, transform)
    finally:
        ContinualModel.stream_at_hand = None
