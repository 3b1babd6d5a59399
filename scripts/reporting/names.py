"""What the rows of a table are called: by --notes, or by the method and the flags in which it differs from the others.

A flag that shapes the stream, or that all methods of the table have, is named wherever it differs; another one only
where it tells two rows of one method apart, with the values that were typed if that is enough.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from scripts import records
from scripts.reporting.arms import SEEDS, Arm
from utils.cli import parser, stream_flags
from utils.engine.record import VOLATILE, VOLATILE_PREFIX
from utils.escape import clean

PLACES = {"base_path", "device"}  # where a run is stored: in a name only if nothing else tells two arms apart
UNNAMED = {"model", "dataset", "notes"} | SEEDS | set(VOLATILE)
SHAPING = {"joint", "validation", "label_perc", "label_perc_by_class", "noise_type", "noise_rate", "permute_classes"}
SHAPING |= {"custom_task_order", "custom_class_order", "start_from", "stop_after", "debug_mode"}


class Name(NamedTuple):
    """The name, the lighter text beside it, both as one text, and all flags in which the row differs."""

    name: str
    added: str
    full: str
    flags: str


@cache
def framework_flags() -> tuple[set[str], set[str]]:
    """Flags of every run, and those of them that shape a stream."""
    shape = argparse.ArgumentParser(add_help=False)
    stream_flags.add_stream_args(shape)
    return {a.dest for a in parser.new_parser()._actions}, {a.dest for a in shape._actions} | SHAPING


def typed(arms: Iterable[Arm]) -> set[str]:
    """Flags that some command has."""
    words = (word for arm in arms for run in arm for word in run.start.get("argv", []) if word.startswith("--"))
    return {word[2:].partition("=")[0].replace("-", "_") for word in words}


def differing(arms: Sequence[Arm]) -> set[str]:
    """Arguments that are not the same in all arms."""
    keys = {key for arm in arms for key in arm[0].args} - UNNAMED
    values = {k: {json.dumps([k in arm[0].args, arm[0].args.get(k)], sort_keys=True) for arm in arms} for k in keys}
    return {k for k, found in values.items() if len(found) > 1 and not k.startswith(VOLATILE_PREFIX)}


def flags_text(run: records.Run, keys: Iterable[str]) -> str:
    given = ((k, run.args[k]) for k in sorted(keys) if k in run.args)
    return clean(" ".join(f"{k}={v if isinstance(v, (str, int, float)) else json.dumps(v)}" for k, v in given))


def common_flags(arms: Sequence[Arm]) -> set[str]:
    """Flags that differ in the table and that all its arms have, but for those of how any method trains."""
    everywhere, shaping = framework_flags()
    shared = set.intersection(*(set(arm[0].args) for arm in arms))
    return {k for k in differing(arms) & shared & typed(arms) if k in shaping or k not in everywhere}


def flags_of(arms: Sequence[Arm], common: set[str]) -> list[str]:
    """For each arm of a table the flags that tell it from the others: those of its own command if that is enough."""
    models: dict[str, list[int]] = {}
    for place, arm in enumerate(arms):
        models.setdefault(arm[0].args["model"], []).append(place)
    found = [""] * len(arms)
    for places in models.values():
        own = [arms[place] for place in places]
        apart = differing(own)
        for keys, only_typed in ((apart - PLACES, True), (apart - PLACES, False), (apart, False)):
            keys = keys | common
            texts = [flags_text(arm[0], keys & typed([arm]) if only_typed else keys) for arm in own]
            if len(set(texts)) == len(own):
                break
        for place, text in zip(places, texts, strict=True):
            found[place] = text
    return found


def names_of(arms: Sequence[Arm]) -> list[Name]:
    common, names = common_flags(arms), []
    for arm, flags in zip(arms, flags_of(arms, common), strict=True):
        run, model, notes = arm[-1], clean(arm[-1].args["model"]), clean(arm[-1].args.get("notes") or "")
        shared = flags_text(run, common & typed([arm]) - ({"joint"} if notes else set()))  # its row says: one task
        beside = f"{model} {shared}".strip() if notes else flags
        names.append(Name(notes or model, beside, f"{notes or model} {shared if notes else flags}".strip(), flags))
    seen = [name.full for name in names]
    return [
        name if seen.count(name.full) == 1 else name._replace(added=longer, full=f"{name.name} {longer}")
        for arm, name in zip(arms, names, strict=True)
        for longer in [
            f"{clean(arm[-1].args['model'])} {name.flags}".strip() if arm[-1].args.get("notes") else name.flags
        ]
    ]
