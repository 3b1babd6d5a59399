"""scripts/gpu_check.py on a machine without a GPU: what is counted, and what becomes of parts that fail."""

import json
import subprocess
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import gpu_check_toys as toys
import pytest
import torch
from torch.autograd import DeviceType

from scripts import gpu_check
from scripts.gpu_check import Part, Plan, Watch
from utils.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
DRY = Namespace(device="cpu", tiny=True)


def test_overlapping_kernels_count_once():
    assert gpu_check.union_s([(5e6, 6e6), (0, 2e6), (1e6, 3e6), (1.5e6, 1.6e6)]) == 4.0
    assert gpu_check.union_s([]) == 0.0


def test_kernels_are_those_of_the_device_without_annotations():
    def event(kind, start, end, **more):
        return SimpleNamespace(device_type=kind, time_range=SimpleNamespace(start=start, end=end), **more)

    events = [
        event(DeviceType.CUDA, 0, 1e6, is_user_annotation=False),
        event(DeviceType.CUDA, 0, 9e6, is_user_annotation=True),
        event(DeviceType.CPU, 2e6, 7e6, is_user_annotation=False),
    ]
    assert (gpu_check.busy_s(events, True), gpu_check.busy_s(events, False)) == (1.0, 5.0)


def test_a_watch_times_blocks_and_leaves_out_the_first_and_the_profiled_steps(monkeypatch):
    now, watch, ran = [0.0], Watch("cpu", Plan(warm=2, blocks=3, per_block=2, profiled=1)), []
    monkeypatch.setattr(watch, "clock", lambda: now[0])

    def step():
        """0 to 9 seconds, and matrix products for the profiler to see."""
        now[0] += len(ran)
        ran.append(torch.ones(300, 300) @ torch.ones(300, 300))

    row = watch.run(step).row("steps", 10, "images/s")
    assert len(ran) == 9 and watch.seconds == [(2 + 3) / 2, (4 + 5) / 2, (6 + 7) / 2]
    assert (row["value"], row["low"], row["high"]) == (10 / 4.5, 10 / 6.5, 10 / 2.5)
    assert row["ms_per_step"] == 4500 and 0 < row["kernel_share"] < 1 and row["peak_mib"] > 1


def test_a_row_of_too_few_steps_is_refused():
    with pytest.raises(RuntimeError, match="0 of 4 steps"):
        Watch("cpu", gpu_check.TINY).row("x", 1, "steps/s")


def test_the_rest_goes_on_after_parts_that_fail_die_or_hang(tmp_path):
    order = ["process", "process", "broken", "leaves", "dies", "hangs", "process"]
    parts = {f"{k} {name}": Part(2 if name == "hangs" else 60, getattr(toys, name)) for k, name in enumerate(order)}
    facts, results = gpu_check.measure_all(parts, toys.ready, Namespace(folder=tmp_path))
    assert facts == {"device": "toy"} and list(results) == list(parts)
    first, second, last = (results[f"{k} process"]["found"][0]["value"] for k in (0, 1, 6))
    assert first == second != last, "a fresh process only after an error"
    errors = [results[f"{k} {order[k]}"]["error"] for k in (2, 3, 4, 5)]
    assert errors[:2] == ["ZeroDivisionError: by hand", "SystemExit: a bench gave up"]
    assert errors[2:] == ["the process ended with exit code 3", "no result within 2 s"]
    assert "def" not in errors[0] and "broken" in results["2 broken"]["traceback"]
    stat = Path("/proc", (tmp_path / "child").read_text(), "stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z", "what a hanging part has started ends with it"


def test_no_cuda_device_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"sees no CUDA device.*--device cpu --tiny"):
        gpu_check.machine(Namespace(device="cuda"))
    monkeypatch.setattr(gpu_check, "machine", toys.refuse)
    assert gpu_check.main(["--json", str(tmp_path / "new.json")]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "gpu_check: no device here; take another\n") and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "argv, said", [(["--device", "cpu"], "add --tiny"), (["--device", "cpu", "--tiny"], "choose another --json")]
)
def test_bad_calls_are_refused_before_anything_runs(argv, said, tmp_path, capsys):
    (tmp_path / "old.json").write_text("kept")
    assert gpu_check.main([*argv, "--json", str(tmp_path / "old.json")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and (tmp_path / "old.json").read_text() == "kept"


def test_a_failed_part_is_named_in_the_table_the_file_and_the_exit_code(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "machine", toys.ready)
    monkeypatch.setattr(gpu_check, "PARTS", {"good": Part(60, toys.process), "bad": Part(60, toys.broken)})
    path = tmp_path / "new" / "out.json"
    assert gpu_check.main(["--json", str(path)]) == 1
    assert "FAILED bad: ZeroDivisionError: by hand" in capsys.readouterr().out
    told = json.loads(path.read_text())
    assert set(told["parts"]) == {"good", "bad"} and told["parts"]["good"]["found"][0]["unit"] == "pid"
    assert told["machine"]["command"] == f"bash scripts/gpu_check.sh --json {path}" and not told["machine"]["tiny"]
    assert gpu_check.main(["--only", "good", "--json", str(tmp_path / "good.json")]) == 0


def test_a_profiler_that_sees_nothing_fails_the_part_and_keeps_its_rows():
    row = {"what": "x", "value": 1.0, "unit": "fits/s", "ms_per_step": 1.0, "kernel_share": None, "peak_mib": 1.0}
    blind = gpu_check.complete({"found": [row]})
    assert blind == {"found": [row], "error": "the profiler saw no kernel: x"} and " - " in gpu_check.table(
        {"a": blind}
    )
    assert "error" not in gpu_check.complete({"found": [row | {"kernel_share": 0.5}]})
    assert "error" not in gpu_check.complete({"found": [{"what": "tests", "value": 6, "unit": "tests"}]})


def test_all_parts_together_end_within_eight_minutes():
    assert gpu_check.TOTAL_S <= 475 and all(0 < part.limit_s < gpu_check.TOTAL_S for part in gpu_check.PARTS.values())


@pytest.mark.parametrize("name", ["vae", "extract"])
def test_a_part_at_tiny_sizes(name):
    for row in gpu_check.PARTS[name].measure(DRY):
        assert row["low"] <= row["value"] <= row["high"] and row["kernel_share"] > 0, row


@pytest.mark.slow
def test_the_whole_dry_form(tmp_path):
    path = tmp_path / "dry.json"
    command = ["bash", "scripts/gpu_check.sh", "--device", "cpu", "--tiny", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(path.read_text())
    assert list(told["parts"]) == list(gpu_check.PARTS) and told["machine"]["device"] == "cpu"
    rows = [row for part in told["parts"].values() for row in part["found"]]
    assert len(rows) == 9 and all(row["value"] > 0 and row["what"] in done.stdout for row in rows)
    assert all(row["kernel_share"] > 0 for row in rows if "ms_per_step" in row)
    assert "-m gpu tests collected, none run" in done.stdout
