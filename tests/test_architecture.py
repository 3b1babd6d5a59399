"""Rules about the code itself: who imports whom, how long a file or function may be, what starts without torch."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ["utils", "backbone", "datasets", "models"]
MAY_IMPORT = {
    "utils": {"utils"},
    "backbone": {"backbone", "utils"},
    "datasets": {"datasets", "utils"},
    "models": {"models", "backbone", "utils"},
}
# a model without a dataset makes one, as Mammoth's does; a stream of texts numbers tokens as the CLIP at hand does; the
# picture world is reference data
# the prompt templates of data sets are kept with the data sets
# utils.args names ContinualModel and get_model_names, as Mammoth's does, fetched when asked for
ALLOWED = {
    ("utils/mammoth/ours/args.py", "models"),
    ("utils/mammoth/prompt_templates.py", "datasets"),
    ("models/utils/continual_model.py", "datasets"),
    ("datasets/utils/tokens.py", "backbone"),
    ("models/utils/reference.py", "datasets"),
}
FILES = sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")) + [ROOT / "main.py"]


# who may not import which room of utils/
CLOSED = {
    "utils/cli/": ("utils.engine", "utils.memory", "utils.generative", "torch", "numpy"),
    "utils/memory/": ("utils.engine", "utils.cli"),
    "utils/generative/": ("utils.engine", "utils.cli"),
    "models/": ("utils.engine",),
    "backbone/": ("utils.engine", "utils.memory.buffer"),
}


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything a file imports: `from utils import flags` is utils.flags. What the type checker alone
    imports is none of it."""
    found, tree = set(), ast.parse(path.read_text())
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    if package == "main.py":
        return
    imported = imported_modules(path)
    forbidden = {m.split(".")[0] for m in imported} & (set(PACKAGES) | {"main"}) - MAY_IMPORT[package]
    name = str(path.relative_to(ROOT))
    assert not {f for f in forbidden if (name, f) not in ALLOWED}
    for room, closed in CLOSED.items():
        doors = [m for m in imported for c in closed if name.startswith(room) and f"{m}.".startswith(f"{c}.")]
        assert not doors, f"{name} imports {doors}"


def circle(folder: Path, root: Path) -> list[str]:
    """Modules of a package that import each other in a cycle, at the top of the file or in a function; else empty."""

    def name(path: Path) -> str:
        return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")

    files = {name(path): path for path in folder.rglob("*.py")}

    def file_of(imported: str) -> str:
        while imported and imported not in files:
            imported = imported.rpartition(".")[0]
        return imported

    graph = {m: {file_of(i) for i in imported_modules(path)} - {m, ""} for m, path in files.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("package", PACKAGES)
def test_files_of_a_package_import_each_other_in_no_circle(package):
    assert not circle(ROOT / package, ROOT)


@pytest.mark.parametrize("indent", ["", "def late():\n    "])
def test_a_circle_is_found(indent, tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text("")
    (tmp_path / "room" / "one.py").write_text("from room.two import b\n")
    (tmp_path / "room" / "two.py").write_text("import os\n")
    assert circle(tmp_path / "room", tmp_path) == []
    (tmp_path / "room" / "two.py").write_text(f"{indent}from room import one\n")
    assert set(circle(tmp_path / "room", tmp_path)) == {"room.one", "room.two"}


def test_the_hall_of_utils_stays_small():
    """A file directly in utils/ is a tool of a method's author; the rest has a room."""
    assert len(list((ROOT / "utils").glob("*.py"))) <= 26


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_length(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{node.name} is longer than 60 lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_assert_outside_tests_and_no_unsafe_loading(path):
    tree = ast.parse(path.read_text())
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"eval", "exec", "pickle.load", "pickle.loads"}:
            raise AssertionError(f"{path}:{node.lineno} executes what a file holds")


@pytest.mark.parametrize("argv", [["--help"], ["--list"], ["--model", "cgli", "--dataset", "seq-mnist"]])
def test_starts_without_torch(argv):
    code = (
        f"import sys, main; main.main({argv!r}); print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1] == "False False"


def test_a_broken_file_concerns_itself_only(tmp_path, monkeypatch):
    """Listing reads text, so a method that cannot be imported does not stop another."""
    from utils.cli import registry

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "broken.py").write_text(
        '"""Broken."""\nimport no_such_package\n\n\nclass B:\n    NAME = "broken"\n'
    )
    monkeypatch.setattr(registry, "search_folders", lambda kind: [ROOT / registry.PACKAGES[kind], tmp_path / "models"])
    assert "broken" in registry.index("model") and "er" in registry.index("model")
    assert registry.load("model", "er").NAME == "er"


def test_only_the_chosen_model_and_dataset_are_imported():
    code = (
        "import sys; from utils.cli import registry; registry.load('model', 'er');"
        "print(sorted(m for m in sys.modules if m.startswith('models.') and m.count('.') == 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['models.er', 'models.utils']"


def test_a_run_on_pictures_imports_nothing_about_questions(tmp_path):
    argv = "--model ncm --dataset seq-tiny --debug_mode 1 --stop_after 1 --device cpu --non_verbose 1".split()
    argv += ["--base_path", str(tmp_path), "--results_path", str(tmp_path / "runs")]
    code = f"""
import sys, torch, main
from datasets.tiny_world import streams
label = torch.arange(len(streams.seq_tiny_names())).repeat(2)
streams.seq_tiny = lambda *_: {{"images": torch.zeros(len(label), 3, 48, 48, dtype=torch.uint8), "labels": label}}
code = main.main({argv!r})
print(code, *sys.modules)"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    code, *modules = done.stdout.splitlines()[-1].split()
    assert code == "0" and {"datasets.seq_tiny", "models.ncm", "backbone.clip"} <= set(modules)
    questions = {f"datasets.utils.{name}" for name in ("tiny_questions", "vqa", "answers", "tokens")}
    assert sorted(set(modules) & (questions | {"backbone.vilt", "backbone.blip"})) == []


def test_missing_package_is_named(tmp_path, monkeypatch):
    from utils.cli import registry
    from utils.errors import UserError

    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "needs_it.py").write_text(
        '"""Needs something."""\nimport no_such_package_xyz\n\n\nclass N:\n    NAME = "needs-it"\n'
    )
    import models

    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    with pytest.raises(UserError, match="pip install no_such_package_xyz"):
        registry.load("model", "needs-it")
