"""Random input for tests/test_fuzz.py: each function makes one case from a source of random choices.

The source has the methods of random.Random; Hypothesis makes its choices, so that a failing case is shrunk.
"""

import copy
import io
import json
import random
import tarfile
import zipfile

from models import get_model_names
from tests import contract
from utils import cli

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
LARGE = [0, 1, 255, 2**31, 2**63 - 1, 2**64 - 1]  # written as eight bytes


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
            ["path,label,split"] * 8
            + [
                "label,path,split",
                "path,label",
                "image,label,task",
                "image,label,text",
                "",
                "path,path,split",
                '"path,label,split',
            ]
        )
    ]
    for _ in range(draw.randint(0, 6)):
        row = ["i.png", draw.choice("ab"), draw.choice(["train", "test"])]
        if draw.random() < 0.15:
            row[draw.randrange(3)] = str(cell(draw))
        rows.append(",".join(row) + draw.choice([""] * 12 + [",", '"', "\r"]))
    return draw.choice(["\n", "\n", "\r\n", "\r"]).join(rows).encode(errors="surrogatepass")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes of a file with one to three places changed, cut, repeated or overwritten."""
    for _ in range(draw.randint(1, 3)):
        a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + 64)
        data = draw.choice(
            [
                data[:a] + bytes([draw.randrange(256)]) + data[a + 1 :],
                data[:a] + data[b:],
                data[:a],
                data[:b] + data[a:],
                data[:a] + draw.choice(LARGE).to_bytes(8, "little") + data[a + 8 :],
                data[:a] + draw.choice(WORDS[:40]).encode(errors="surrogatepass")[:400] + data[a:],
            ]
        )
    return data


def places(node, path: tuple = ()):
    """Every place below the top of a nested value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


def replaced(node, draw: random.Random, values: list):
    """A copy of a JSON value in which one or two places are removed or hold another value."""
    node = json.loads(json.dumps(node))
    for _ in range(draw.choice([1, 1, 2])):
        *way, last = draw.choice(list(places(node)) or [(None,)])
        if last is None:
            break
        inner = node
        for key in way:
            inner = inner[key]
        if draw.random() < 0.2:
            del inner[last]
        else:
            inner[last] = copy.deepcopy(draw.choice(values))  # the next change may be within it
    return node


VALUES = [None, True, -1, 10**400, 0.5, "", "x", "<script>", "$^$", [], {}, [None], {"x": "y"}, "a" * 1000, "\ud800", 2]
DEEP = "[" * 10**5
RECORD = [
    {"type": "start", "schema": 1, "args": {"model": "er", "dataset": "seq-x", "seed": 0}, "argv": ["--model", "er"]},
    {"type": "task", "task": 0, "scores": {"class_il": [60.0, None]}, "seconds": {"train": 1.0}, "wall_s": 1.0},
    {"type": "warning", "text": "a warning"},
    {"type": "task", "task": 1, "scores": {"class_il": [50, 40]}, "seconds": {}, "wall_s": 2.0},
    {"type": "end", "status": "done", "summary": {"class_il_last": 45.0, "wall_s": 2.0}},
]


def record(draw: random.Random) -> bytes:
    """Lines of a record.jsonl with other values, lines in another order, bytes changed, or nested deep."""
    rows = replaced(RECORD, draw, VALUES)
    if draw.random() < 0.1:
        draw.shuffle(rows)
    lines = [json.dumps(row) for row in rows]
    if draw.random() < 0.1:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice([DEEP, DEEP.replace("[", '{"a":'), "9" * 5000]))
    text = "".join(line + "\n" for line in lines).encode()
    return mutated(text, draw) if draw.random() < 0.3 else text


QUESTIONS = [
    {"image_source": "vg", "image_id": 7, "question": "what is it", "answers": ["a cup"] * 10},
    {"image_source": "vg", "image_id": "7", "question": "is it red", "answers": ["yes", "no"] * 5},
]
CAPTIONS = [{"file": "a.jpg", "caption": "a cup"}, {"file": "b/c.jpg", "caption": "a fish on a plate"}]


def questions(draw: random.Random) -> bytes:
    """A file of questions in the layout of CLOVE."""
    text = json.dumps(replaced(QUESTIONS, draw, VALUES)).encode()
    return mutated(text, draw) if draw.random() < 0.3 else draw.choice([text] * 19 + [DEEP.encode()])


def captions(draw: random.Random) -> bytes:
    """A file of captions: one object per line, or one object."""
    rows = replaced(CAPTIONS, draw, VALUES)
    whole = {"a.jpg": "a cup", "b.jpg": draw.choice(VALUES)}
    text = json.dumps(whole) if draw.random() < 0.3 else "\n".join(map(json.dumps, rows))
    return mutated(text.encode(), draw) if draw.random() < 0.3 else draw.choice([text] * 19 + [DEEP]).encode()


def archive(draw: random.Random) -> tuple[str, bytes]:
    """Name and bytes of an archive with damaged bytes or names that lead elsewhere."""
    kind, buffer = draw.choice(["a.zip", "a.tar", "a.tgz"]), io.BytesIO()
    names = [draw.choice(["in/b.txt", "c", "../x", "/tmp/x", "a\\..\\b", " ", "d/", "x" * 300, "é"]) for _ in range(2)]
    if kind == "a.zip":
        with zipfile.ZipFile(buffer, "w", draw.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
            for name in dict.fromkeys(names):
                file.writestr(name, b"some text " * 20)
    else:
        with tarfile.open(fileobj=buffer, mode="w" if kind == "a.tar" else "w:gz") as file:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size, member.type = 200, draw.choice([tarfile.REGTYPE] * 6 + [tarfile.SYMTYPE, tarfile.FIFOTYPE])
                file.addfile(member, io.BytesIO(b"some text " * 20))
    data = buffer.getvalue()
    return kind, mutated(data, draw) if draw.random() < 0.7 else data
