"""scripts/claims.py: the tables, verdicts from fabricated records, and runs that are stopped, repeated or fail."""

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from scripts import claims, claims_page, claims_table
from scripts.claims_page import FAILS, HOLDS, NOT_RUN, OPEN, verdict_of
from scripts.sweeps import grid, ledger, plan
from utils.errors import UserError

TABLE = """
title: Which is better
seeds: [0, 1, 2]
common: --dataset seq-tiny --picture_seed {seed} --device cpu
worlds: {I: --style stitched, II: --style noisy}
arms:
  zero: --model clip
  shrunk: --model slda --shrinkage 0.5
  plain: --model slda
measure: {last: class_il_last, first task: class_il@0, average: class_il_avg, seconds: cpu_s}
lower: [seconds]
claims:
  - {say: Plain wins., better: plain, worse: [zero, shrunk], on: last, by: 2, worlds: [I, II]}
figure:
  - {kind: curves, world: I}
  - {kind: bars, measure: last}
  - {kind: against, x: seconds, y: last, lines: {all: [zero, plain]}}
"""


def table(folder, text=TABLE, name="t"):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)
    return claims_table.read_table(name, folder)


def put(results, job, scores, status="done", commit="abcdef1234+"):
    """A record of a job with two tasks, whose last score is the mean of `scores`."""
    folder = results / "seq-tiny" / f"{job.arm}-{job.world}-{job.seed}-{status}"
    folder.mkdir(parents=True)
    start = {"type": "start", "config_hash": job.config, "argv": job.argv, "git_commit": commit, "device": "cpu"}
    start |= {"threads": 1, "args": {"model": "slda", "dataset": "seq-tiny", "seed": job.seed, "notes": job.arm}}
    rows = [start]
    rows += [{"type": "task", "task": t, "scores": {"class_il": scores[: t + 1] + [None] * (1 - t)}} for t in (0, 1)]
    rows.append({"type": "end", "status": status, "summary": {"class_il_last": float(np.mean(scores))}})
    (folder / "record.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def page(found, jobs, results, tmp_path):
    path = tmp_path / "docs" / "claims" / "t.md"
    figure = tmp_path / "docs" / "img" / "t.png"
    claims_page.write(found, jobs, claims.finished(results), ledger.read(results), path, figure)
    return path.read_text()


@pytest.mark.parametrize(
    "gaps, by, verdict",
    [
        # mean 3, deviation 1, t(2) = 4.3027: 3 -+ 4.3027 / sqrt(3) = .516 to 5.484
        ([2, 3, 4], 0, HOLDS),
        ([2, 3, 4], 0.51, HOLDS),
        ([2, 3, 4], 0.52, OPEN),
        ([2, 3, 4], 5.48, OPEN),
        ([2, 3, 4], 5.49, FAILS),
        ([-2, -3, -4], 0, FAILS),
        ([-2, -3, -4], -6, HOLDS),
        ([5], 0, OPEN),
        ([], 0, NOT_RUN),
        ([0, 0, 0], 0, OPEN),
    ],
)
def test_a_verdict_is_about_the_whole_interval(gaps, by, verdict):
    assert verdict_of(gaps, by) == verdict


def test_a_page_says_verdicts_first_and_pairs_by_seed(tmp_path):
    found = table(tmp_path / "tables")
    results = tmp_path / "results"
    jobs = claims_table.jobs_of(found, results, found.seeds)
    assert len(jobs) == 3 * 2 * 3 and len({job.config for job in jobs}) == len(jobs)
    level = {"zero": 10.0, "plain": 20.0, "shrunk": 19.0}
    for job in jobs:
        if job.arm != "shrunk" or job.world == "I":
            noise = [0.0, 1.0, -1.0][job.seed] if job.arm == "plain" else 0.0
            shift = 50.0 * job.seed  # of a seed: gone in paired differences
            put(results, job, [level[job.arm] + shift + noise - 1, level[job.arm] + shift + noise + 1])
    put(results, jobs[0], [99.0, 99.0], status="interrupted")
    (results / ledger.LEDGER).write_text(
        'nonsense\n{"config": 5}\n'
        + "".join(json.dumps({"config": j.config, "cpu_s": 1800.0}) + "\n" for j in jobs[:4])
    )
    text = page(found, jobs, results, tmp_path)
    lines = text.splitlines()
    # plain - zero = 10, 11, 9: 10 -+ 2.48; plain - shrunk = 1, 2, 0: 1 -+ 2.48
    assert lines[4] == "- **Not run**, claim 1: Plain wins."
    assert "  - against zero on I: +10.0 ± 2.5, 3 seeds, holds" in lines[5:10]
    assert "  - against shrunk on I: +1.0 ± 2.5, 3 seeds, not told apart" in lines[5:10]
    assert "  - against shrunk on II: not run" in lines[5:10]
    assert "| zero | 3 | 60.0 ± 124.2 | 59.0 ± 124.2 |" in text and "99" not in text
    assert "CPU hours of these runs: 2.00" in text and "abcdef12" in text
    assert "*not run*: shrunk, II, seeds 0, 1, 2" in text and "../img/t.png" in text
    assert (tmp_path / "docs/img/t.png").read_bytes().startswith(b"\x89PNG")


def test_pooled_worlds_of_a_seed_count_once(tmp_path):
    found = table(tmp_path / "tables", TABLE.replace("arms:", "pool: {both: [I, II]}\narms:"))
    results = tmp_path / "results"
    jobs = claims_table.jobs_of(found, results, found.seeds, arms=["zero", "plain"])
    for job in jobs:
        if (job.arm, job.world, job.seed) != ("plain", "II", 2):
            score = {"zero": 1.0, "plain": 5.0}[job.arm] + (10.0 if job.world == "II" and job.arm == "plain" else 0.0)
            put(results, job, [score, score])
    scores = claims_page.scores_of(found, jobs, claims.finished(results), {})
    assert scores["plain", "both"].keys() == {0, 1} and scores["plain", "both"][0]["last"] == 10.0
    (part, _) = claims_page.parts_of(found.claims[0], scores, found.lower)
    assert part.group == "both" and part.gaps == {0: 9.0, 1: 9.0}


def test_less_is_better_and_ratios(tmp_path):
    text = TABLE.replace("on: last, by: 2", "on: last, by: 1.5, ratio: true")
    scores = {("plain", "I"): {0: {"last": 6.0}, 1: {"last": 8.0}}, ("zero", "I"): {0: {"last": 3.0}, 1: {"last": 4.0}}}
    ratio = table(tmp_path / "a", text).claims[0]
    assert claims_page.gaps_of(ratio, "zero", "I", scores, ()) == {0: 2.0, 1: 2.0}
    plain = table(tmp_path / "b").claims[0]
    assert claims_page.gaps_of(plain, "zero", "I", scores, ()) == {0: 3.0, 1: 4.0}
    assert claims_page.gaps_of(plain, "zero", "I", scores, ("last",)) == {0: -3.0, 1: -4.0}


WRONG = {
    "no such table": None,
    "line 2: expected": "title: [1\n",
    "'zero' is there twice": TABLE.replace("  plain: --model slda\n", "  zero: --model slda\n"),
    "key 'clams' does not exist; closest: claims": TABLE.replace("claims:", "clams:"),
    "seeds is missing": TABLE.replace("seeds: [0, 1, 2]", ""),
    "not all whole numbers": TABLE.replace("[0, 1, 2]", "[0, one]"),
    "claim 1: arm 'plane' does not exist; closest: plain": TABLE.replace("better: plain", "better: plane"),
    "claim 1: column 'lost' does not exist; closest: last": TABLE.replace("on: last", "on: lost"),
    "claim 1: world 'III' does not exist": TABLE.replace("worlds: [I, II]}", "worlds: [III]}"),
    "claim 1: by is 'much', not a number": TABLE.replace("by: 2", "by: much"),
    "figure 2 needs a kind": TABLE.replace("kind: bars", "kind: pie"),
    "arms: zero is 5, not a text": TABLE.replace("zero: --model clip", "zero: 5"),
    "--shrinkag": TABLE.replace("--shrinkage", "--shrinkag"),
    "{waves} stands for nothing": TABLE.replace("--shrinkage 0.5", "{waves}"),
    "are the same run": TABLE.replace(" --shrinkage 0.5", ""),
}


@pytest.mark.parametrize("told", WRONG)
def test_a_wrong_table_starts_nothing(told, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(claims_table.read_table, "__defaults__", (tmp_path,))
    monkeypatch.setattr(claims, "launch", lambda *args: pytest.fail("a run was started"))
    if WRONG[told] is not None:
        (tmp_path / "t.yaml").write_text(WRONG[told])
    told = "there is no" if told == "no such table" else told
    assert claims.main(["t", "--results_path", str(tmp_path / "r")]) == 2
    out, err = capsys.readouterr()
    assert told in err and all(line.startswith("error: ") for line in err.splitlines()) and len(err) < 2000


def test_shared_flags_and_later_ones_win(tmp_path):
    text = TABLE.replace("arms:", "flags: {half: --shrinkage 0.5 --normalize 0}\narms:")
    found = table(tmp_path, text.replace("--model slda --shrinkage 0.5", "--model slda {half} --shrinkage 0.25"))
    argv = claims_table.jobs_of(found, tmp_path, [4], ["shrunk"], ["II"])[0].argv
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    assert (given["--shrinkage"], given["--normalize"], given["--style"]) == ("0.25", "0", "noisy")
    assert given["--picture_seed"] == given["--seed"] == "4" and grid.filled("--a {order:3}", 1) != [
        "--a",
        "0,1,2",
    ]
    assert sorted(grid.filled("{order:3}", 1)[0]) == [",", ",", "0", "1", "2"]


def test_all_errors_are_told_at_once(tmp_path):
    with pytest.raises(UserError) as told:
        table(tmp_path, TABLE.replace("better: plain", "better: plane").replace("on: last", "on: lost"))
    assert len(str(told.value).splitlines()) == 2


STUB = """
import json, os, pathlib, sys, time
argv = sys.argv[1:]
value = {argv[i]: argv[i + 1] for i in range(0, len(argv), 2)}
name = value["--notes"] + value["--seed"]
with open(os.environ["STARTED"], "a") as file:
    file.write(name + "\\n")
if value["--notes"] == os.environ.get("SLOW"):
    time.sleep(60)
if value["--notes"] == "shrunk":
    sys.exit("error: it does not shrink")
start = {"type": "start", "config_hash": name, "argv": argv,
         "args": {"model": "m", "dataset": "d", "seed": int(value["--seed"])}}
rows = [start, {"type": "task", "task": 0, "scores": {"class_il": [float(value["--seed"])]}},
        {"type": "end", "status": "done", "summary": {"class_il_last": 1.0}}]
folder = pathlib.Path(value["--results_path"]) / "d" / "m" / f"t_{name}_1"
folder.mkdir(parents=True)
(folder / "record.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A main.py that only writes a record; what it was started for is listed in a file."""
    (tmp_path / "main.py").write_text(STUB)
    (tmp_path / "t.yaml").write_text(TABLE.replace(", II: --style noisy", "").replace(", worlds: [I, II]", ""))
    monkeypatch.setattr(claims_table.read_table, "__defaults__", (tmp_path,))
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    name = lambda a: a[a.index("--notes") + 1] + a[a.index("--seed") + 1]  # noqa: E731
    monkeypatch.setattr(plan, "parsed", lambda argv: plan.Config(name(argv), "d", "m"))
    return lambda: (tmp_path / "started").read_text().split()


def test_finished_runs_are_not_started_again_and_a_failed_arm_is_named(stub, tmp_path, capsys):
    argv = ["t", "--results_path", str(tmp_path / "r"), "--seeds", "0"]
    assert claims.main(argv) == 1
    assert stub() == ["zero0", "shrunk0", "plain0"]
    assert "shrunk | I | seed 0: failed (1): error: it does not shrink" in capsys.readouterr().out
    text = (tmp_path / "docs/claims/t.md").read_text()
    assert "*not run*: shrunk, I, seeds 0; failed: error: it does not shrink" in text
    assert "*not run*: plain, I, seeds 1, 2" in text
    assert claims.main([*argv, "--arms", "zero|plain"]) == 0
    assert claims.main([*argv, "--arms", "shrunk", "--jobs", "0"]) == 0
    assert len(stub()) == 3
    rows = ledger.read(tmp_path / "r")
    assert [row["code"] for row in rows] == [0, 1, 0] and all(row["cpu_s"] > 0 for row in rows)


def test_a_quick_run_and_foreign_seeds_have_pages_of_their_own(stub, tmp_path):
    argv = ["t", "--results_path", str(tmp_path / "r"), "--arms", "zero"]
    assert claims.main([*argv, "--quick"]) == 0
    assert claims.main([*argv, "--seeds", "7"]) == 0
    assert stub() == ["zero0", "zero7"] and not (tmp_path / "docs").exists()
    assert "seeds 7" in (tmp_path / "r/t.md").read_text()


def test_worlds_can_be_chosen(stub, tmp_path, capsys):
    (tmp_path / "t.yaml").write_text(TABLE)
    argv = ["t", "--results_path", str(tmp_path / "r"), "--seeds", "0", "--arms", "zero|plain"]
    assert claims.main([*argv, "--worlds", "^II$"]) == 0
    assert [row["world"] for row in claims.ledger.read(tmp_path / "r")] == ["II", "II"]
    assert claims.main([*argv, "--worlds", "III"]) == 2
    assert "--worlds III: no match in the worlds of t; there are" in capsys.readouterr().err


def test_a_stopped_command_stops_its_runs_and_goes_on_when_repeated(stub, tmp_path, monkeypatch):
    argv = ["t", "--results_path", str(tmp_path / "r"), "--seeds", "0", "--arms", "zero|pl"]

    def stop():
        until = time.monotonic() + 60
        while time.monotonic() < until and not ((tmp_path / "started").exists() and "plain0" in stub()):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as changed:
        changed.setenv("SLOW", "plain")
        thread = threading.Thread(target=stop)
        thread.start()
        assert claims.main(argv) == 128 + signal.SIGTERM
        thread.join()
    assert [row["code"] for row in ledger.read(tmp_path / "r")] == [0, -signal.SIGTERM]
    assert claims.main(argv) == 0
    assert stub() == ["zero0", "plain0", "plain0"]


@pytest.mark.parametrize("name", claims_table.names())
def test_every_run_of_a_table_is_understood(name, tmp_path):
    found = claims_table.read_table(name)
    if name.endswith("_tuning"):
        assert found.seeds == [100] and "--validation" in found.common and not found.claims
    else:
        assert len(found.seeds) >= 5 and 100 not in found.seeds  # 100 is the seed of choices
    jobs = claims_table.jobs_of(found, tmp_path, found.seeds[:1])
    assert {job.arm for job in jobs} == set(found.arms)
    if more := found.quick.get("more"):
        assert claims_table.jobs_of(found, tmp_path, found.seeds[:1], found.quick.get("arms"), more=more)
