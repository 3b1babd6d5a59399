"""The columns of a table: their groups, which direction is better, and how a number with its spread is written."""

import math
from collections.abc import Sequence

import numpy as np

from scripts.records import interval
from utils.engine.report import human, title_of

GROUPS = ("accuracy", "forgetting", "transfer", "cost", "other")
LOWER = ("forgetting", "ece", "bytes", "forwards", "wall_s", "drop", "gap", "parameters")  # ends: less is better
COSTS = ("bytes", "forwards", "wall_s", "parameters")
LOOKING_AHEAD = ("ci_", "seen_all", "future_unseen", "probe_")
BESIDE = ("ece", "mixed_gap", "route_acc", "oracle_route", "key_route", "nmi_")
SPREADS = {"std": "standard deviation", "ci": "half the 95 % interval"}
AT_LEAST = {"std": 2, "ci": 3}  # seeds


def group_of(key: str) -> str:
    if key.endswith(COSTS):
        return "cost"
    if key.startswith(BESIDE):
        return "other"
    if key.endswith(("forgetting", "bwt")):
        return "forgetting"
    return "transfer" if key.startswith(LOOKING_AHEAD) or key.endswith(("_transfer", "_fwt")) else "accuracy"


def less_is_better(key: str) -> bool:
    return key.endswith(LOWER)


def heading(key: str) -> str:
    return "trained parameters" if key == "trained_parameters" else title_of(key)


def number(key: str, value: float) -> str:
    if key.endswith("bytes") and value < 2**20:
        return f"{value / 1024:.1f} KiB"
    return f"{int(value)}" if key == "trained_parameters" else human(key, value)


def width(values: Sequence[float], kind: str) -> float:
    """The spread of a kind; NaN with too few seeds for it."""
    if len(values) < AT_LEAST[kind]:
        return math.nan
    return interval(values) if kind == "ci" else float(np.std(values, ddof=1))


def spread(key: str, values: Sequence[float], kind: str) -> str:
    """± the spread of a score; empty for costs and with too few seeds."""
    half = math.nan if group_of(key) == "cost" else width(values, kind)
    return "" if math.isnan(half) else f"± {half:.1f}"


def cell(key: str, values: Sequence[float], kind: str) -> str:
    return f"{number(key, float(np.mean(values)))} {spread(key, values, kind)}".rstrip() if values else ""
