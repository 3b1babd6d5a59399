"""Reading Mammoth's logs.pyd: no evaluation, nothing lost silently, averages by hand."""

import json
import math

import pytest

from scripts.import_mammoth_logs import main, matrix_of, parse

LINE = (
    "{'dataset': 'seq-cifar10', 'model': 'er', 'lr': 0.1, 'device': device(type='cpu'), 'seed': None, "
    "'conf_jobnum': 'JOB', 'optim_wd': -0.0, 'class_order': None, 'accmean_task1': 90.0, 'accmean_task2': 70.0, "
    "'accuracy_1_task1': 90.0, 'accuracy_1_task2': 60.0, 'accuracy_2_task2': 80.0, 'forward_transfer': nan, "
    "'cpu_memory_usage': [1.5, 2.5], 'gpu_memory_usage': {0: inf}}"
)


def write(folder, setting: str, *lines: str):
    path = folder / setting / "seq-cifar10" / "er" / "logs.pyd"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def records(folder) -> list[list[dict]]:
    return [[json.loads(x) for x in p.read_text().splitlines()] for p in sorted(folder.rglob("record.jsonl"))]


def test_values_without_evaluation(tmp_path):
    row = parse(LINE)
    assert row["device"] == "device(type='cpu')" and math.isnan(row["forward_transfer"])
    assert row["gpu_memory_usage"] == {0: math.inf}
    text = (
        "{'a': tensor([1., 2.]), 'b': np.float64(3.5), 'c': PosixPath('/x'), 'd': -inf, 'e': (1, {2}), "
        "'f': __import__('os')}"
    )
    assert parse(text) == {
        "a": [1.0, 2.0],
        "b": 3.5,
        "c": "PosixPath('/x')",
        "d": -math.inf,
        "e": [1, [2]],
        "f": "__import__('os')",
    }
    harm = tmp_path / "harm"
    parse(f"{{'a': open({str(harm)!r}, 'w').write('x')}}")
    assert not harm.exists()


@pytest.mark.parametrize("line", ["{'a': 1", "[1, 2]", "{'accuracy_1_task1': 'high'}", "{'lr': 1}", "\x00"])
def test_what_cannot_be_read_is_a_value_error(line):
    with pytest.raises(ValueError):
        matrix_of(parse(line))


def test_records_with_averages_by_hand(tmp_path, capsys):
    masked = LINE.replace("'accuracy_1_task2': 60.0", "'accuracy_1_task2': 88.0")
    write(tmp_path / "results", "class-il", LINE)
    write(tmp_path / "results", "task-il", masked)
    argv = [str(tmp_path / "results"), "--results_path", str(tmp_path / "runs")]
    assert main(argv) == 0
    (rows,) = records(tmp_path / "runs")
    assert [r["type"] for r in rows] == ["start", "task", "task", "end"] and rows[0]["args"]["lr"] == 0.1
    summary = rows[-1]["summary"]
    assert (
        summary["class_il_last"] == 70.0 and summary["class_il_avg"] == 80.0 and summary["class_il_forgetting"] == 30.0
    )
    assert summary["task_il_last"] == 84.0
    assert main(argv) == 0 and len(records(tmp_path / "runs")) == 1
    assert "0 runs imported" in capsys.readouterr().out.splitlines()[-1]


def test_malformed_lines_are_named_and_counted(tmp_path, capsys):
    path = write(
        tmp_path, "class-il", LINE, LINE[:200], "", "{'lr': 1}", LINE.replace("JOB", "other").replace("0.1,", "0.2,")
    )
    assert main([str(path), "--results_path", str(tmp_path / "runs")]) == 1
    out, err = capsys.readouterr()
    assert "2 runs imported" in out and "2 lines skipped" in out
    assert f"{path}, line 2: not a Python literal" in err and f"{path}, line 4: no accuracy_<j>_task<i>" in err
    assert len(records(tmp_path / "runs")) == 2


def test_nothing_there(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2 and main([str(tmp_path / "no")]) == 2
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines())
