"""Protocols: datasets/protocols/<name>.yaml fixes the flags with which a published table was made.

about     one line for --list
source    where the facts are from
weights   flag: allowed values, the first is the default; `needed: false` where methods without the flag also fit
flags     flag: value, for every data set; a flag that a method or stream does not have is left out
variants  names, the first is the default: --protocol NAME/VARIANT
datasets  name: {flags, variant: {flags}, first_task: {variant: raw labels}}
table     models and seeds of scripts/sweep.py protocol:NAME
"""

import argparse
import difflib
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from utils.cli import registry
from utils.cli.configs import read_yaml
from utils.errors import UserError, shown

FOLDER = registry.ROOT / "datasets" / "protocols"
KEYS = {"about", "source", "weights", "needed", "flags", "variants", "datasets", "table"}
# flags that change what is compared: one given against the protocol, or beside it, is a deviation
AXES = (
    "first_classes classes_per_task classes class_order_list class_order_direction permute_classes class_order_seed "
    "custom_class_order custom_task_order joint shots shots_seed imbalance imbalance_shuffle blurry image_transform "
    "templates underscores merge_names prompt_template noise_rate label_perc label_perc_by_class validation"
).split()
PINNED = (  # what a run prints, in this order
    "clip_backbone backbone image_transform class_order_list class_order_direction permute_classes first_classes "
    "classes_per_task classes templates underscores accuracy_weighting mtil_scoring merge_names split shots buffer_size"
).split()


@dataclass(frozen=True)
class Preset:
    """A protocol for one data set."""

    name: str  # with the variant
    dataset: str
    flags: dict[str, Any]
    weights: dict[str, list[str]]
    needed: bool
    first_task: list[int] | None

    @property
    def origin(self) -> str:
        return f"protocol {self.name}"

    @property
    def sha256(self) -> str:
        """Of everything that is fixed, lists of classes included."""
        listed = FOLDER / "orders" / f"{self.flags.get('class_order_list')}.txt"
        order = listed.read_text(encoding="utf-8").split() if listed.is_file() else None
        fixed = {"protocol": self.name, "dataset": self.dataset, "flags": self.flags, "order": order}
        return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:12]

    def fitting(self, dests: Iterable[str]) -> dict[str, Any]:
        """The flags that this method and stream have."""
        known = set(dests)
        return {flag: value for flag, value in self.flags.items() if flag in known}


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def content(name: str) -> dict[str, Any]:
    """The file of a protocol; its own errors are one line each."""
    path = FOLDER / f"{registry.canonical(name)}.yaml"
    if registry.canonical(name) not in names():
        close = difflib.get_close_matches(name, names(), n=2)
        hint = f" Closest: {', '.join(close)}." if close else ""
        raise UserError(
            f"unknown protocol '{shown(name)}'.{hint} `python main.py --list protocols` shows all {len(names())}."
        )
    found = read_yaml(path)
    strange = sorted(found.keys() - KEYS)
    if strange or not isinstance(found.get("datasets"), dict):
        raise UserError(f"{path}: {f'unknown key {strange[0]}' if strange else 'it does not list datasets'}")
    return found


def find(text: str, dataset: str) -> Preset:
    """What --protocol NAME or NAME/VARIANT fixes for a data set."""
    name, _, variant = text.partition("/")
    found = content(name)
    entries, dataset = found["datasets"], registry.canonical(dataset)
    if dataset not in entries:
        raise UserError(f"protocol {name} does not have data set {dataset}; it has {', '.join(sorted(entries))}")
    entry = entries[dataset] or {}
    known = entry.get("variants") or found.get("variants") or []
    if variant and variant not in known:
        raise UserError(
            f"protocol {name} does not have variant '{shown(variant)}' of {dataset}; "
            f"it has {', '.join(known) or 'none'}"
        )
    chosen = variant or (known[0] if known else "")
    weights = {flag: list(values) for flag, values in (found.get("weights") or {}).items()}
    flags = {flag: values[0] for flag, values in weights.items()} | (found.get("flags") or {})
    flags |= (entry.get("flags") or {}) | (entry.get(chosen) or {})
    first = entry.get("first_task") or {}
    return Preset(
        f"{registry.canonical(name)}{'/' * bool(chosen)}{chosen}",
        dataset,
        flags,
        weights,
        bool(found.get("needed", True)),
        first.get(chosen) if isinstance(first, dict) else first,
    )


def check_method(preset: Preset, model_class: type, dests: Iterable[str]) -> None:
    """Refuse a method that does not read the weights of the protocol."""
    name, known = getattr(model_class, "NAME", model_class.__name__), set(dests)
    own_net = getattr(model_class, "BUILDS_OWN_NET", False)
    read = [f for f in preset.weights if f in known and not (f == "backbone" and own_net)]
    if preset.weights and preset.needed and not read:
        wanted = " or ".join(f"--{flag} {values[0]}" for flag, values in preset.weights.items())
        raise UserError(
            f"protocol {preset.name} is for methods on {wanted}, which model {name} does not read; "
            "choose another method or protocol"
        )


def settle(preset: Preset, args: argparse.Namespace, fixed: dict[str, Any], given: Iterable[str]) -> None:
    """Refuse weights that the protocol does not know; note its name, its hash and what the command changes."""
    for flag, allowed in preset.weights.items():
        value = getattr(args, flag, None)
        if value is not None and flag in fixed and str(value) not in allowed:
            raise UserError(
                f"protocol {preset.name} does not allow --{flag} {shown(value)}; it knows {', '.join(allowed)}"
            )
    args.protocol, args.protocol_sha256 = preset.name, preset.sha256
    args.protocol_deviations = {
        flag: {"protocol": fixed.get(flag), "given": getattr(args, flag)}
        for flag in sorted(given)
        if (flag in fixed and fixed[flag] != getattr(args, flag))
        or (flag in AXES and flag not in fixed and getattr(args, flag))
    }


def pinned(args: argparse.Namespace) -> str:
    """One line about what a run compares: the axes on which published tables differ."""

    def told(value: Any) -> str:
        return f"{value[0]!r} (1 of {len(value)})" if isinstance(value, list) and value else str(value)

    flags = [flag for flag in PINNED if flag != "backbone" or not hasattr(args, "clip_backbone")]
    axes = [f"{flag} {told(getattr(args, flag))}" for flag in flags if getattr(args, flag, None) not in (None, False)]
    changed = ", ".join(args.protocol_deviations) or "none"
    return f"protocol {args.protocol} {args.protocol_sha256}: {'; '.join(axes)}; deviations: {changed}"


def listing() -> list[str]:
    """A line per protocol: its name, what it is, its data sets and their variants."""
    lines = []
    for name in names():
        found = content(name)
        sets = []
        for dataset, entry in sorted(found["datasets"].items()):
            variants = (entry or {}).get("variants") or found.get("variants") or []
            sets.append(f"{dataset} ({', '.join(variants)})" if variants else dataset)
        lines.append((name, f"{found.get('about', '')} | {'; '.join(sets)}"))
    width = max((len(name) for name, _ in lines), default=0)
    return [f"  {name:<{width}}  {about}" for name, about in lines]


def table(name: str, what: str) -> list[str]:
    """What scripts/sweep.py protocol:NAME runs: the data sets, models or seeds of a protocol's table."""
    found = content(name.partition("/")[0])
    if what == "datasets":
        return [d for d in found["datasets"] if registry.exists("dataset", d)]
    return [str(value) for value in (found.get("table") or {}).get(what, [])]
