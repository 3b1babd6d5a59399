"""Defaults from dataset classes and from yaml files, as layers of (origin, values)."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

from utils.cli import registry
from utils.errors import UserError

if TYPE_CHECKING:
    from datasets.utils.continual_dataset import ContinualDataset

# method of a dataset class -> flag whose default it returns
METHOD_OF_FLAG = {
    "n_epochs": "get_epochs",
    "batch_size": "get_batch_size",
    "n_iters": "get_iters",
    "backbone": "get_backbone",
}
# keys of a dataset yaml that set class fields instead of flags
FIELDS = {
    "NAME",
    "SETTING",
    "N_CLASSES_PER_TASK",
    "N_TASKS",
    "SIZE",
    "N_CLASSES",
    "AVAIL_SCHEDS",
    "MEAN",
    "STD",
    "TRANSFORM",
    "TEST_TRANSFORM",
}
HARMLESS = {"model", "dataset"}
MOST_VALUES = 20_000  # in a yaml file
# dataset name -> flag -> default, filled by the decorator set_default_from_args
DEFAULT_ARGS: dict[str, dict[str, object]] = {}


def dataset_defaults(dataset_class: "type[ContinualDataset]") -> dict:
    """Flag defaults that the class itself declares, by the DEFAULTS table or by methods in the older style."""
    values = dict(getattr(dataset_class, "DEFAULTS", {}))
    values |= DEFAULT_ARGS.get(registry.canonical(dataset_class.NAME), {})
    for flag, method in METHOD_OF_FLAG.items():
        function = inspect.getattr_static(dataset_class, method, None)
        if flag in values or function is None or getattr(function, "abstract_default", False):
            continue
        own = getattr(dataset_class, method)
        try:
            values[flag] = own() if isinstance(function, staticmethod) else own(None)
        except (TypeError, AttributeError):
            continue
    return {k: v for k, v in values.items() if v is not None}


def read_yaml(path: Path) -> dict:
    """A mapping from a yaml file; a broken one is a UserError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        check_size(content)
    except RecursionError:
        raise UserError(f"{path} cannot be read as yaml: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as yaml: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path} must contain a mapping of names to values")
    return content


def check_size(content: object) -> None:
    """Refuse what a few lines can expand to with anchors: values count as often as they are referenced."""
    left, todo = MOST_VALUES, [content]
    while todo:
        value, left = todo.pop(), left - 1
        if left < 0:
            raise ValueError(f"it contains more than {MOST_VALUES:,} values")
        todo += (
            [*value, *value.values()]
            if isinstance(value, dict)
            else value
            if isinstance(value, (list, tuple, set))
            else []
        )


def _find(folder: Path, stem: str) -> Path | None:
    plain = stem.lower().replace("-", "").replace("_", "")
    for path in sorted(folder.glob("*.y*ml")) if folder.is_dir() else []:
        if path.stem.lower().replace("-", "").replace("_", "") == plain:
            return path
    return None


def dataset_config(
    dataset_class: "type[ContinualDataset]", name: str | None, dataset: str | None = None
) -> list[tuple[str, dict]]:
    """datasets/configs/<dataset>/<name>.yaml: class fields are set on the class, the rest are flag defaults."""
    homes = registry.config_folders("dataset", dataset or dataset_class.NAME)
    folders = [f / "configs" / registry.canonical(dataset_class.NAME) for f in homes]
    path = next((p for p in (_find(f, name or "default") for f in folders) if p), None)
    if path is None:
        if name is None:
            return []
        have = sorted(p.stem for f in folders if f.is_dir() for p in f.glob("*.yaml"))
        raise UserError(
            f"unknown dataset config '{name}' for {dataset_class.NAME}; existing: {', '.join(have) or 'none'}"
        )
    content = read_yaml(path)
    dataset_class.set_fields({k: v for k, v in content.items() if k in FIELDS})
    return [(str(path.name), {k: v for k, v in content.items() if k not in FIELDS | HARMLESS})]


def model_config(model: str, which: str, dataset: str, argv: list[str]) -> list[tuple[str, dict]]:
    """models/config/<model>.yaml: block `default`, the dataset's part of `default_for`, and with `best` the dataset's
    own block and its buffer size's; a block's `source` says where its values were published."""
    homes, model = registry.config_folders("model", model), model.removeprefix(registry.PLUGIN)
    path = next((p for p in (_find(f / "config", model) for f in homes) if p), None)
    if path is None:
        if which == "best":
            raise UserError(f"--model_config best: models/config/{model}.yaml does not exist; leave the flag out")
        return []
    content = read_yaml(path)
    layers = [(path.name, dict(content.get("default") or {}))]
    for name, values in (content.get("default_for") or {}).items():
        if registry.canonical(str(name)) == registry.canonical(dataset):
            layers.append((f"{path.name} (default for {dataset})", dict(values or {})))
    if which == "best":
        blocks = {registry.canonical(str(k)): v for k, v in content.items()}
        if registry.canonical(dataset) not in blocks:
            have = ", ".join(sorted(set(blocks) - {"default", "default-for"})) or "no dataset"
            raise UserError(f"--model_config best: {path.name} does not have values for {dataset}, only for {have}")
        block = dict(blocks[registry.canonical(dataset)] or {})
        source = f"; {block.pop('source')}" if "source" in block else ""
        by_size = {k: block.pop(k) for k in list(block) if isinstance(k, int)}
        layers.append((f"{path.name} ({dataset}{source})", block))
        if by_size:
            size = _buffer_size(argv, block)
            if size not in by_size:
                raise UserError(
                    f"--model_config best: {path.name} has values for --buffer_size "
                    f"{', '.join(map(str, sorted(by_size)))}, not for {size}"
                )
            layers.append((f"{path.name} ({dataset}, buffer {size}{source})", dict(by_size[size] or {})))
    return [(origin, {k: v for k, v in values.items() if k not in HARMLESS}) for origin, values in layers]


def _buffer_size(argv: list[str], block: dict) -> int | None:
    given = given_value(argv, "buffer_size") or ""
    return int(given) if given.isdigit() else block.get("buffer_size")


def given_value(argv: list[str], flag: str) -> str | None:
    """What follows a flag on the command line, before it is parsed."""
    for token, following in zip(argv, argv[1:] + [""], strict=True):
        name, _, value = token.partition("=")
        if name.startswith("-") and name.lstrip("-").replace("-", "_") == flag:
            return value or following
    return None
