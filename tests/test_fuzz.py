"""Random input with fixed seeds: only a value or a UserError with one line per fact, in bounded time.

560 cases in the suite, ten times as many with `-m slow`. A case that failed is found by its seed in the test's name.
"""

import json
import random
import time

import numpy as np
import pytest
from PIL import Image

from datasets.seq_folder import SequentialFolder, read_list
from models import get_model_names
from tests import contract
from utils import cli
from utils.cli import configs
from utils.cli import parser as cli_parser
from utils.errors import UserError
from utils.flags import Arguments

CASES = 20  # of one seed
SECONDS = 10  # for one case, on a busy machine
WORDS = [
    "",
    " ",
    "0",
    "1",
    "-1",
    "2",
    "0.5",
    "1e-3",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 30,
    "9" * 5000,
    "true",
    "no",
    "None",
    "null",
    "{}",
    "{",
    "{0}",
    "{x}",
    "%s",
    "%",
    "a b",
    "a,b",
    "0,1",
    "1-0",
    "--lr",
    "-",
    "--",
    "=",
    "../..",
    "/",
    "/dev/null",
    "~",
    "~nobody-x",
    "\0",
    "\n",
    "\x1b[2J",
    "é",
    "\u202e",
    "\ud800",
    "\udcff",
    "x" * 300,
    "x" * 10**5,
    "cpu",
    "cuda:99",
    "all",
    "tiny",
    "[]",
    "[1]",
    "&a",
    "*a",
    "!!python/name:os",
    "<script>",
    "$x^$",
    "0x10",
    "1_000",
    "٣",
    "1.",
    ".",
    "1,",
    ",",
    "２",
]
SUITE = [*range(7), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(7, 77))]


def told(error: UserError) -> None:
    """As main prints it."""
    lines = str(error).splitlines()
    assert lines and all(0 < len(line) < 2500 for line in lines), lines


def bounded(function) -> None:
    begun = time.monotonic()
    try:
        function()
    except UserError as error:
        told(error)
    assert time.monotonic() - begun < SECONDS


def command_line(draw: random.Random) -> list[str]:
    """A command of a random method and stream, with random flags that the two know and values of which few fit."""
    model, dataset = (
        draw.choice(get_model_names()),
        draw.choice(["seq-mnist", "seq-tiny", "seq-folder", "mtil-tiny", "mnist-360"]),
    )
    parser = cli.new_parser()
    cli.add_model_args(parser, contract.model_class(model))
    argv = ["--model", model, "--dataset", dataset]
    for action in draw.sample(parser._actions, draw.randint(0, 6)):
        if not action.option_strings or action.dest in {"model", "dataset", "plugins"} and draw.random() < 0.8:
            continue
        option = draw.choice(action.option_strings)
        fits = [contract.sample_value(action)] if draw.random() < 0.5 else []
        values = [
            value
            for value in fits or [draw.choice(WORDS) for _ in range(draw.choice([0, 1, 1, 1, 1, 3]))]
            if value is not None
        ]
        argv += [f"{option}={values[0]}"] if values and draw.random() < 0.2 else [option, *values]
    for _ in range(draw.choice([0, 0, 1])):
        argv.insert(draw.randrange(len(argv) + 1), draw.choice(WORDS))
    return argv


@pytest.mark.parametrize("seed", SUITE)
def test_command_lines(seed, capsys):
    draw = random.Random(f"command lines {seed}")
    for _ in range(CASES):
        argv = command_line(draw)
        bounded(lambda argv=argv: cli.parse(argv))


def yaml_text(draw: random.Random) -> str:
    """Lines of flags with values, some of them broken by hand."""
    names = [action.dest for action in cli.new_parser()._actions] + ["", "no_flag", "? x", "1", "null", "[a]"]
    lines = []
    for _ in range(draw.randint(0, 6)):
        value = (
            draw.choice(WORDS)
            if draw.random() < 0.8
            else f"{{{draw.choice(WORDS)}: [{draw.choice(WORDS)}, {draw.choice(WORDS)}]}}"
        )
        lines.append(f"{draw.choice(names)}{draw.choice([': ', ': ', ': ', ':', ' '])}{value}")
    text = draw.choice(["\n", "\n", "\n", "\n\t"]).join(lines)
    cut = draw.randrange(len(text) + 1)
    return text if draw.random() < 0.7 else text[:cut] + draw.choice(WORDS) + text[cut:]


@pytest.mark.parametrize("seed", SUITE)
def test_yaml(seed, tmp_path):
    draw = random.Random(f"yaml {seed}")

    def read(path):
        content = configs.read_yaml(path)
        parser = cli.new_parser()
        cli_parser.apply_layers(parser, [(path.name, content)], set())
        parser.parse_args([], Arguments())

    for case in range(CASES):
        path = tmp_path / f"{case}.yaml"
        path.write_bytes(yaml_text(draw).encode(errors="surrogatepass"))
        bounded(lambda path=path: read(path))


def cell(draw: random.Random):
    return draw.choice(
        [*WORDS, "i.png", "i.png", "i.png", "a", "b", "train", "test", "val", 1, None, [1], {"a": 1}, 1e300, True]
    )


def jsonl(draw: random.Random) -> bytes:
    rows = []
    for _ in range(draw.randint(0, 6)):
        good = {"path": "i.png", "label": draw.choice("ab"), "split": draw.choice(["train", "test"])}
        bad = {name: cell(draw) for name in draw.sample(["path", "label", "split", "more"], draw.randint(0, 2))}
        line = json.dumps(draw.choice([good, good | bad]))
        rows.append(line if draw.random() < 0.9 else line[: draw.randrange(len(line))] + draw.choice(WORDS))
    return "\n".join(rows).encode(errors="surrogatepass")


def csv(draw: random.Random) -> bytes:
    rows = [
        draw.choice(
            ["path,label,split"] * 8 + ["label,path,split", "path,label", "", "path,path,split", '"path,label,split']
        )
    ]
    for _ in range(draw.randint(0, 6)):
        row = ["i.png", draw.choice("ab"), draw.choice(["train", "test"])]
        row[draw.randrange(3)] = str(cell(draw)) if draw.random() < 0.4 else row[0]
        rows.append(",".join(row) + draw.choice(["", "", "", ",", '"', "\r"]))
    return draw.choice(["\n", "\n", "\r\n", "\r"]).join(rows).encode(errors="surrogatepass")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lists")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "i.png")
    return folder


@pytest.mark.parametrize("write", [jsonl, csv], ids=["jsonl", "csv"])
@pytest.mark.parametrize("seed", SUITE)
def test_lists(seed, write, images):
    draw = random.Random(f"lists {seed}")

    def read(path):
        read_list(path)
        stream = SequentialFolder(
            Arguments(seed=0, joint=0), folder_path=str(path), n_tasks=draw.randint(1, 3), image_size=8
        )
        stream.check_samples()
        stream.get_data_loaders()

    for _ in range(CASES):
        path = images / f"l.{write.__name__}"
        path.write_bytes(write(draw))
        bounded(lambda path=path: read(path))


def test_the_generators_make_good_input_too(images, capsys):
    """Fuzz input that is refused by the first check does not test the later ones."""
    draw, good = random.Random("share"), {"lines": 0, "yaml": 0, "jsonl": 0, "csv": 0}
    for kind, tried in (("lines", 40), ("yaml", 100), ("jsonl", 100), ("csv", 100)):
        for _ in range(tried):
            try:
                if kind == "lines":
                    cli.parse(command_line(draw))
                elif kind == "yaml":
                    (images / "f.yaml").write_bytes(yaml_text(draw).encode(errors="surrogatepass"))
                    configs.read_yaml(images / "f.yaml")
                else:
                    path = images / f"m.{kind}"
                    path.write_bytes({"jsonl": jsonl, "csv": csv}[kind](draw))
                    read_list(path)
                good[kind] += 1
            except UserError:
                pass
    assert all(good.values()) and sum(good.values()) > 20, good
