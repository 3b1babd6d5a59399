"""Grids of scripts/sweep.py: axes, blocks, seeds, exclusions; files of commands; protocols; what is wrong with one."""

import textwrap
from pathlib import Path

import pytest

from scripts.sweeps import grid
from utils.errors import UserError

GRID = """
about: four runs
flags: --dataset seq-tiny --device cpu
seeds: 2
axes:
  model: [ncm, slda]
"""


def lines_of(text: str, folder: Path, name: str = "g.yaml", seeds=None) -> list[str]:
    (folder / name).write_text(textwrap.dedent(text))
    return [" ".join(line.argv) for line in grid.read(str(folder / name), seeds).lines]


def test_axes_blocks_seeds_and_exclude(tmp_path):
    text = """
    flags: --dataset seq-tiny
    seeds: [3, 4]
    axes: {lr: [0.1, 0.01]}
    blocks:
      - --model sgd
      - {flags: "--model er --notes '{size} at {lr}'", axes: {size: {small: --buffer_size 5, large: --buffer_size 9}}}
      - {flags: --model lwf --lr 0.5, seeds: 1}
    exclude:
      - {model: er, lr: 0.1, size: large}
      - {model: sgd, seed: 4}
    """
    found = lines_of(text, tmp_path)
    assert found == [
        "--dataset seq-tiny --lr 0.1 --model sgd --seed 3",
        "--dataset seq-tiny --lr 0.01 --model sgd --seed 3",
        *(
            f"--dataset seq-tiny --lr {lr} --model er --notes {size} at {lr} --buffer_size {n} --seed {seed}"
            for seed in (3, 4)
            for lr, size, n in (("0.1", "small", 5), ("0.01", "small", 5), ("0.01", "large", 9))
        ),
        "--dataset seq-tiny --lr 0.5 --model lwf --seed 0",
        "--dataset seq-tiny --lr 0.5 --model lwf --seed 0",
    ]
    assert all(" --seed 7" in line for line in lines_of(GRID, tmp_path, seeds=[7]))
    assert lines_of("- --model a\n- --model b {seed}\n".replace(" {seed}", ""), tmp_path) == ["--model a", "--model b"]


WRONG = {
    "key 'axis' does not exist; closest: axes": "axis: {a: [1]}",
    "axes: lr is [], not a list of values": "axes: {lr: []}",
    "axes: lr has 0.1 twice": "axes: {lr: [0.1, 0.1]}",
    "axes: arm: x is 5, not a text": "axes: {arm: {x: 5}}",
    "seeds is 'three', not a int or list": "seeds: three",
    "seeds: [1, 1] is neither": "seeds: [1, 1]",
    "seeds is empty": "seeds: 0",
    "{seed} and {order:N} need `seeds`": "flags: --picture_seed {seed}",
    "{wave} stands for nothing": "flags: --notes {wave}",
    "exclude: axis 'modle' does not exist; closest: model": "exclude: [{modle: a}]\nflags: --model a",
    "exclude: {'model': 'b'} excludes nothing": "exclude: [{model: b}]\nflags: --model a",
    "it does not have a single run": "exclude: [{model: a}]\nflags: --model a",
    "block 2: key 'flag' does not exist": "blocks: [--model a, {flag: --model b}]",
    "line 2: ": "flags: [1\n",
    "'flags' is there twice": "flags: --model a\nflags: --model b",
    "is not a mapping or a list": "just words",
}


@pytest.mark.parametrize("told", WRONG)
def test_a_wrong_grid_is_told_in_one_line(told, tmp_path):
    with pytest.raises(UserError) as error:
        lines_of(WRONG[told], tmp_path)
    assert told in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_file_of_commands(tmp_path):
    text = """
    # two runs
    python main.py --model a --notes 'two words' \\
        --seed 1

    .venv/bin/python3 ./main.py --model b  # the second
    """
    assert lines_of(text, tmp_path, "runs.txt") == ["--model a --notes two words --seed 1", "--model b"]
    with pytest.raises(UserError) as error:
        lines_of("echo 1\nX=1 python main.py\npython main.py --notes 'a\n", tmp_path, "runs.txt")
    told = str(error.value).splitlines()
    assert [line.split(", ")[1].split(":")[0] for line in told] == ["line 1", "line 2", "line 3"]
    with pytest.raises(UserError, match="does not have a single command"):
        lines_of("# nothing\n", tmp_path, "empty.txt")
    with pytest.raises(UserError, match="is not a file"):
        grid.read(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="--seeds needs a YAML grid"):
        grid.read(str(tmp_path / "empty.txt"), [1])


def test_the_table_of_a_protocol():
    found = grid.read("protocol:tiny", [5])
    argv = [" ".join(line.argv) for line in found.lines]
    assert (
        found.results == "runs/paper_table/tiny" and "--protocol tiny --dataset seq-tiny --model ncm --seed 5" in argv
    )
    with pytest.raises(UserError, match="unknown protocol"):
        grid.read("protocol:tinny")
