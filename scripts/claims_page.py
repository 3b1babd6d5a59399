"""The page of a table of arms: verdicts first, then one figure, the scores, the differences, and how they were made.

A seed is the unit: worlds of one seed that the table pools are averaged first. A claim is about the differences of two
arms on the same seed, d_s = better - worse (their ratio with `ratio: true`; the other sign for columns in which less is
better), with the 95 % interval of Student's t:

    holds            the whole interval is above `by`
    does not hold    the whole interval is below `by`
    not told apart   `by` is inside the interval, or there is one seed
    not run          no seed has both arms
"""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from scripts import claims_figure
from scripts.claims_table import Claim, Job, Table
from scripts.records import Run, averages, interval, markdown, spread
from utils.errors import disk_errors
from utils.escape import clean, in_markdown

HOLDS, FAILS, OPEN, NOT_RUN = "holds", "does not hold", "not told apart", "not run"
ORDER = (FAILS, OPEN, HOLDS, NOT_RUN)  # on the page: first what fails
Scores = dict[tuple[str, str], dict[int, dict[str, float]]]  # (arm, group) -> seed -> column -> value


class Part(NamedTuple):
    """One arm of a claim against the better one, on one group of worlds."""

    claim: Claim
    worse: str
    group: str
    gaps: dict[int, float]
    verdict: str


def value_of(run: Run, key: str, cpu: Mapping[str, float]) -> float | None:
    """A number of a run: of its summary, `<score>_avg`, `<score>@<test set>` at the end, or cpu_s."""
    if key == "cpu_s":
        return cpu.get(run.start.get("config_hash") or "")
    if "@" in key:
        score, _, place = key.partition("@")
        row = run.tasks[-1]["scores"].get(score, []) if run.tasks else []
        return row[int(place)] if place.isdigit() and int(place) < len(row) else None
    return (averages(run.tasks) | (run.summary or {})).get(key)


def cpu_seconds(rows: Iterable[dict]) -> dict[str, float]:
    """CPU seconds of each run, over all processes that worked on it."""
    total: dict[str, float] = {}
    for row in rows:
        total[row["config"]] = total.get(row["config"], 0.0) + row["cpu_s"]
    return total


def scores_of(table: Table, jobs: Iterable[Job], runs: Mapping[str, Run], cpu: Mapping[str, float]) -> Scores:
    """Every column of each arm, group of worlds and seed; a pooled group needs all of its worlds."""
    single = {(job.arm, job.world, job.seed): runs[job.config] for job in jobs if job.config in runs}
    seeds = sorted({job.seed for job in jobs})
    found: Scores = {}
    for arm in table.arms:
        for group, members in table.groups.items():
            for seed in seeds:
                parts = [single.get((arm, world, seed)) for world in members]
                if any(run is None for run in parts):
                    continue
                row = {}
                for column, key in table.measures.items():
                    values = [value_of(run, key, cpu) for run in parts if run is not None]
                    if all(v is not None for v in values):
                        row[column] = float(np.mean([v for v in values if v is not None]))
                found.setdefault((arm, group), {})[seed] = row
    return found


def gaps_of(claim: Claim, worse: str, group: str, scores: Scores, lower: Sequence[str]) -> dict[int, float]:
    """Seed -> better minus worse, or their ratio; positive is what the claim says."""
    first, other = scores.get((claim.better, group), {}), scores.get((worse, group), {})
    found = {}
    for seed in sorted(first.keys() & other.keys()):
        a, b = first[seed].get(claim.on), other[seed].get(claim.on)
        if a is None or b is None or (claim.ratio and not b):
            continue
        gap = a / b if claim.ratio else a - b
        found[seed] = -gap if claim.on in lower and not claim.ratio else gap
    return found


def verdict_of(gaps: Sequence[float], by: float) -> str:
    if not gaps:
        return NOT_RUN
    half = interval(gaps)
    if math.isnan(half):
        return OPEN
    middle = float(np.mean(gaps))
    return HOLDS if middle - half > by else FAILS if middle + half < by else OPEN


def parts_of(claim: Claim, scores: Scores, lower: Sequence[str]) -> list[Part]:
    found = []
    for group in claim.groups:
        for worse in claim.worse:
            gaps = gaps_of(claim, worse, group, scores, lower)
            found.append(Part(claim, worse, group, gaps, verdict_of(list(gaps.values()), claim.by)))
    return found


def whole(parts: Sequence[Part]) -> str:
    """A claim holds if every part holds, and does not if one does not."""
    verdicts = {part.verdict for part in parts}
    return next(v for v in (FAILS, NOT_RUN, OPEN, HOLDS) if v in verdicts)


def gap_text(part: Part) -> str:
    gaps, digits = list(part.gaps.values()), 2 if part.claim.ratio else 1
    if not gaps:
        return NOT_RUN
    half = interval(gaps)
    shown = f"{np.mean(gaps):{'' if part.claim.ratio else '+'}.{digits}f}"
    return shown + (" (one seed)" if math.isnan(half) else f" ± {half:.{digits}f}")


def verdict_lines(table: Table, every: list[list[Part]]) -> list[str]:
    """One entry per claim, those that fail first, with its differences."""
    lines = []
    for verdict in ORDER:
        for number, parts in ((n, p) for n, p in enumerate(every, 1) if whole(p) == verdict):
            claim = parts[0].claim
            lines.append(f"- **{verdict.capitalize()}**, claim {number}: {clean(claim.say, 1000)}")
            found = [part for part in parts if part.verdict != NOT_RUN]
            if not found:
                continue
            what = "ratio" if claim.ratio else "difference"
            lines.append(f"  {in_markdown(claim.better)}, {what} of `{claim.on}`, more than {claim.by:g} needed:")
            for part in parts:
                on = f" on {part.group}" if len(table.groups) > 1 else ""
                seeds = f", {len(part.gaps)} seeds, {part.verdict}" if part in found else ""
                lines.append(in_markdown(f"  - against {part.worse}{on}: {gap_text(part)}{seeds}"))
    return lines


def score_tables(table: Table, scores: Scores) -> list[str]:
    lines = []
    for group, members in table.groups.items():
        rows = []
        for arm in table.arms:
            seeds = scores.get((arm, group), {})
            if not seeds:
                continue
            cells = [[s[c] for s in seeds.values() if c in s] for c in table.measures]
            rows.append([arm, len(seeds), *map(spread, cells)])
        if len(table.groups) > 1:
            lines += [f"### {clean(group)}", ""]
        if len(members) > 1:
            lines += [f"The mean of {', '.join(members)}, taken for each seed.", ""]
        lines += [markdown(["arm", "seeds", *table.measures], rows) if rows else "*Not run.*\n"]
    return lines


def gap_table(every: list[list[Part]]) -> str:
    rows = []
    for number, parts in enumerate(every, 1):
        for part in parts:
            gaps, digits = part.gaps.values(), 2 if part.claim.ratio else 1
            each = " ".join(f"{g:{'' if part.claim.ratio else '+'}.{digits}f}" for g in gaps)
            needed = f"> {part.claim.by:g}"
            names = [number, part.claim.better, part.worse, part.group, part.claim.on]
            rows.append([*names, each, gap_text(part), needed, part.verdict])
    head = ["claim", "better", "worse", "world", "on", "per seed", "mean ± 95 %", "needed", "verdict"]
    return markdown(head, rows)


def made_by(table: Table, jobs: list[Job], runs: Mapping[str, Run], cpu: Mapping[str, float]) -> list[str]:
    """Commit, machine, CPU hours and choices of the runs on the page."""
    found = [runs[job.config] for job in jobs if job.config in runs]
    if not found:
        return ["No run is finished."]
    commits = sorted({str(run.start.get("git_commit"))[:8] for run in found})
    places = sorted({f"{r.start.get('device')}, {r.start.get('threads')} thread(s)" for r in found})
    torch = sorted({str((run.start.get("versions") or {}).get("torch")) for run in found})
    counted = [cpu[job.config] for job in jobs if job.config in runs and job.config in cpu]
    seeds = sorted({job.seed for job in jobs if job.config in runs})
    lines = [
        f"*Reproduced* by `python scripts/claims.py {table.name}`: {len(found)} of {len(jobs)} runs, seeds "
        f"{', '.join(map(str, seeds))}, at commit {', '.join(commits)}; {'; '.join(places)}, {processor()}, torch "
        f"{', '.join(torch)}. CPU hours of these runs: {sum(counted) / 3600:.2f}"
        + (f" (of {len(counted)} of them)." if len(counted) < len(found) else ".")
    ]
    return lines + (["", f"**What was chosen, and where.** {table.chosen.strip()}"] if table.chosen else [])


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def command_table(table: Table) -> str:
    flags = [["of all runs", f"`{table.common}`"]] if table.common else []
    flags += [[f"world: {w}", f"`{text}`"] for w, text in table.worlds.items()]
    return markdown(["arm", "flags of `main.py`"], flags + [[arm, f"`{text}`"] for arm, text in table.arms.items()])


def missing(jobs: list[Job], runs: Mapping[str, Run], rows: list[dict]) -> list[str]:
    """The runs that a page lacks, by arm and world, with the error of those that failed."""
    failed = {row["config"]: row.get("error") for row in rows}
    groups: dict[tuple[str, str, str], list[int]] = {}
    for job in jobs:
        if job.config not in runs:
            groups.setdefault((job.arm, job.world, failed.get(job.config) or ""), []).append(job.seed)
    return [
        f"- *not run*: {in_markdown(arm)}, {in_markdown(world)}, seeds {', '.join(map(str, seeds))}"
        + (f"; failed: {in_markdown(error)}" if error else "")
        for (arm, world, error), seeds in groups.items()
    ]


def text_of(table: Table, jobs: list[Job], runs: Mapping[str, Run], rows: list[dict], figure: str | None) -> str:
    cpu = cpu_seconds(rows)
    scores = scores_of(table, jobs, runs, cpu)
    every = [parts_of(claim, scores, table.lower) for claim in table.claims]
    lines = [f"# {clean(table.title)}", ""]
    lines += ["## Verdicts", "", *verdict_lines(table, every), ""]
    lines += [table.about.strip(), ""] if table.about else []
    lines += [f"![{clean(table.title)}]({figure})", ""] if figure else []
    lines += ["## Scores", "", "Mean over seeds ± half of the 95 % interval (Student's t).", ""]
    lines += score_tables(table, scores)
    lines += ["## Differences", "", "Paired over seeds.", ""]
    lines += [
        gap_table(every),
        "## How it was measured",
        "",
        *made_by(table, jobs, runs, cpu),
        "",
        command_table(table),
    ]
    if table.reported:
        lines += ["*Reported* elsewhere, not by us:", "", *(f"- {clean(line, 1000)}" for line in table.reported), ""]
    absent = missing(jobs, runs, rows)
    lines += ["## Not run", "", *(absent or ["Every run of the table is finished."])]
    lines += ["", f"<!-- written by scripts/claims.py {table.name}; the table is scripts/claims/{table.name}.yaml -->"]
    return "\n".join(lines) + "\n"


def write(table: Table, jobs: list[Job], runs: Mapping[str, Run], rows: list[dict], page: Path, figure: Path) -> None:
    """The page and its figure; without anything to draw, the page has none."""
    cpu = cpu_seconds(rows)
    with disk_errors(page, "choose another --page"):
        page.parent.mkdir(parents=True, exist_ok=True)
        drawn = claims_figure.draw(table, jobs, runs, scores_of(table, jobs, runs, cpu), figure)
        link = Path(*[".."] * len(page.parent.relative_to(root := common(page, figure)).parts)) / figure.relative_to(
            root
        )
        page.write_text(text_of(table, jobs, runs, rows, link.as_posix() if drawn else None), encoding="utf-8")


def common(page: Path, figure: Path) -> Path:
    """The innermost folder that holds both."""
    return next(p for p in page.absolute().parents if p in figure.absolute().parents)
