"""Runs as rows of tables: which runs are repeats, which rows share a table, and which columns it has.

Runs that differ only in their seeds are one arm. The arms of a table share a protocol (its hash and the flags given
against it) and one set of weights.
"""

import json
import re
from collections.abc import Iterable, Sequence

from scripts import records, reported
from scripts.reporting.columns import GROUPS, group_of
from utils import json_text
from utils.engine.record import VOLATILE, VOLATILE_PREFIX
from utils.engine.report import ordered_titles
from utils.escape import clean

Arm = list[records.Run]

SEEDS = {"seed", "picture_seed", "class_order_seed", "class_order"}  # runs that differ only in these are repeats
OWN_TASKS = ("_avg", "_avg_images")  # ends of scores that average over tasks, which one task does not have
SHORT = [
    "class_il_last",
    "class_il_avg",
    "class_il_last_images",
    "class_il_avg_images",
    "class_il_forgetting",
    "vqa_last",
    "vqa_avg",
    "vqa_forgetting",
    "mtil_transfer",
    "mtil_avg",
    "mtil_last",
    "odcl_transfer",
    "odcl_avg",
    "odcl_last",
    "ci_transfer",
    "ci_harmonic",
    "stored_bytes",
    "wall_s",
]  # columns on the terminal; the page has all


def kind_of(run: records.Run) -> str:
    """Same text = same configuration but for seeds."""
    args = {
        k: v for k, v in run.args.items() if k not in SEEDS and k not in VOLATILE and not k.startswith(VOLATILE_PREFIX)
    }
    return json.dumps([args, table_of(run)], sort_keys=True)


def table_of(run: records.Run) -> list:
    """What the runs of one table share: protocol, hash, deviations, weights."""
    preset, weights = reported.preset_of(run), reported.weights_of(run) if run.start.get("weights_sha256") else ""
    deviations = json.dumps(preset.get("deviations") or {}, sort_keys=True)
    return [preset.get("name") or "", preset.get("sha256") or "", deviations, weights, run.start.get("weights_sha256")]


def heading_of(run: records.Run) -> str:
    """One line about the table of a run."""
    name, sha256, deviations, weights, digest = table_of(run)
    parts = [f"protocol {name} {sha256}" if name else "no protocol"]
    if deviations != "{}":
        parts.append(f"but {', '.join(f'--{flag}' for flag in json_text.parse(deviations))}")
    if digest:
        parts.append(f"weights {weights} {str(digest)[:12]}")
    return clean("; ".join(parts))


def grouped(runs: Iterable[records.Run]) -> dict[str, list[Arm]]:
    """dataset -> arms -> finished runs, the latest of each seed."""
    arms: dict[str, dict[str, dict]] = {}
    for run in runs:
        if run.summary is not None:
            arms.setdefault(run.args["dataset"], {}).setdefault(kind_of(run), {})[run.seed] = run
    return {dataset: [list(seeds.values()) for seeds in kinds.values()] for dataset, kinds in sorted(arms.items())}


def tables(arms: Iterable[Arm]) -> list[list[Arm]]:
    """The arms of a data set by table: those of one protocol and one set of weights."""
    found: dict[str, list[Arm]] = {}
    for arm in arms:
        found.setdefault(json.dumps(table_of(arm[0])), []).append(arm)
    return list(found.values())


def one_task(run: records.Run) -> bool:
    """Joint training, or a stream of one task: an upper bound beside methods that see one task after another."""
    return bool(run.args.get("joint")) or len(run.tasks) == 1


def values_of(run: records.Run) -> dict[str, float]:
    """Scores and costs of a finished run that a table shows."""
    trained = [v for task in run.tasks if (v := (task.get("parameters") or {}).get("trainable")) is not None]
    found = (run.summary or {}) | ({"trained_parameters": float(max(trained))} if trained else {})
    return {k: v for k, v in found.items() if not (one_task(run) and k.endswith(OWN_TASKS))}


def columns_of(arms: Sequence[Arm], wanted: Iterable[str] | None = None, groups: Sequence[str] = GROUPS) -> list[str]:
    """Scores that any arm has, the protocol's own weighting first; those of probes, named by a command, at the end."""
    present = {k for arm in arms for run in arm for k in values_of(run)}
    order = [*ordered_titles(arms[0][0].args), "trained_parameters"]
    keys = [k for k in order if k in present and (wanted is None or k in set(wanted))]
    probes = sorted(k for k in present if k.startswith("probe_"))
    keys += [k for k in probes if wanted is None or not re.search(r"_r(1|5|10)_", k)]
    return [k for k in keys if group_of(k) in groups]
