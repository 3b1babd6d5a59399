"""External files besides ours: `--plugins PATH` names one file, a folder of files, or a whole checkout of Mammoth.

The folders are appended to the `__path__` of our packages, so the files keep their import lines: `from
utils.memory.buffer import Buffer` finds ours, `from models.foo_utils import bar` finds theirs. Names that a module of
ours lacks are taken from their module of the same name. Standard library only; nothing is imported until a name is
chosen.

Modules that only external files import (`utils.triplet`, `backbone.vit`) are in the folder `mammoth/`
of the package they are imported from. One rule says which file is used: a plug-in's own file wins over a file in
`mammoth/` (which is last on the `__path__`), and ours wins over a plug-in's everywhere else, `mammoth/ours/` included.
"""

import ast
import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from utils.errors import UserError

TOP = ("models", "datasets", "backbone", "utils")
EXTENDED = (*TOP, "models.utils", "datasets.utils", "datasets.transforms")
HOUSE = Path(__file__).resolve().parents[2]
REFUSED = {
    "utils.loggers": "is not available: results are in record.jsonl, and accs reach end_eval(dataset, accs)",
    "utils.wandb": "is not available: results are in record.jsonl",
    "utils.main": "is not available: start runs with python main.py",
    "utils.best_args": "is not available: write models/config/<model>.yaml and use --model_config best",
    "utils.buffer_lws": "is not available: it is the memory of one method, "
    "lws; pass the checkout that has it as --plugins",
    "utils.bias": "is not available: there is no biased-class-il stream here; "
    "pass the checkout that has it as --plugins",
}
PIP_NAMES = {
    "sklearn": "scikit-learn",
    "cv2": "opencv-python",
    "PIL": "pillow",
    "yaml": "pyyaml",
    "clip": "openai-clip",
    "open_clip": "open_clip_torch",
    "kmeans_pytorch": "kmeans-pytorch",
    "skimage": "scikit-image",
}
KIND_MARKS = {
    "dataset": re.compile(
        r"class\s+\w+\(.*(?:ContinualDataset|GCLDataset)|def get_data_loaders|@register_dataset|"
        r"^from datasets\.(?!utils|transforms)\w+ import .*\b(\w+)\b(?s:.*?)^class\s+\w+\(\1\)",
        re.M,  # of another set
    ),
    "model": re.compile(
        r"class\s+\w+\(.*(?:ContinualModel|FutureModel)|^\s+COMPATIBILITY\b|def observe\(|@register_model", re.M
    ),
    "backbone": re.compile(r"class\s+\w+\(.*MammothBackbone|@register_backbone"),
}
FOLDER_OF = {"models": "model", "datasets": "dataset", "backbone": "backbone"}

_roots: list[Path] = []
_folders: dict[str, list[Path]] = {}  # package -> folders that extend it
_single: list[Path] = []  # files given individually
_filled: list[tuple[ModuleType, str]] = []  # names taken from their module of the same name


def use(paths: list[str] | None) -> None:
    """Make `paths` the plug-ins of this process, replacing those of an earlier call."""
    if [Path(text).expanduser().resolve() for text in paths or []] == _roots:
        return
    _forget()
    for text in paths or []:
        path = Path(text).expanduser().resolve()
        if path in _roots:
            continue
        if path.is_dir():
            _add_folder(path, text)
        elif path.is_file() and path.suffix == ".py":
            refuse_unrecognized(path)
            _single.append(path)
        else:
            raise UserError(f"--plugins {text}: {'is not a .py file' if path.is_file() else 'no such file or folder'}")
        _roots.append(path)
    for package in _folders:
        if package in sys.modules:
            sys.modules[package].__path__ = search_path(package, list(sys.modules[package].__path__))
    if _roots and _REFUSALS not in sys.meta_path:
        sys.meta_path.append(_REFUSALS)
    importlib.invalidate_caches()


def _add_folder(path: Path, text: str) -> None:
    houses = [package for package in FOLDER_OF if (path / package).is_dir()]
    if not houses and not any(path.glob("*.py")):
        raise UserError(f"--plugins {text}: contains neither .py files nor a folder models, datasets or backbone")
    for package in EXTENDED:
        folder = path.joinpath(*package.split(".")) if houses else path
        if folder.is_dir() and (houses or package in TOP):
            _folders.setdefault(package, []).append(folder)


def _forget() -> None:
    """Undo `use`, so that one process can run with other plug-ins, or none."""
    for package, folders in _folders.items():
        module = sys.modules.get(package)
        if module is not None:
            module.__path__ = [p for p in module.__path__ if Path(p) not in folders]
    for module, name in _filled:
        vars(module).pop(name, None)
    for name in [
        n for n, m in sys.modules.items() if n.split(".")[0] in TOP and replaceable(getattr(m, "__file__", None))
    ]:
        module = sys.modules.pop(name)
        parent, _, last = name.rpartition(".")
        if getattr(sys.modules.get(parent), last, None) is module:
            delattr(sys.modules[parent], last)
    for kept in (_roots, _folders, _single, _filled):
        kept.clear()


def search_path(package: str, own: list[str]) -> list[str]:
    """The `__path__` of a package of ours: itself, the folders of the plug-ins, its folder `mammoth/`."""
    theirs, last = [str(f) for f in _folders.get(package, [])], surface(package)
    return [*(p for p in own if p not in theirs and p not in last), *theirs, *last]


def surface(package: str) -> list[str]:
    """The folder of modules that only external files import, if the package has one."""
    folder = HOUSE.joinpath(*package.split("."), "mammoth")
    return [str(folder)] if folder.is_dir() else []


def replaceable(path: str | Path | None) -> bool:
    """Whether other plug-ins may replace this module; a folder without __init__.py does not have a path."""
    folder = Path(path).parent if path else None
    if folder is None or owns(path):
        return True
    rooms = folder.relative_to(HOUSE).parts if HOUSE in folder.parents else ()
    return "mammoth" in rooms and "ours" not in rooms


def used() -> bool:
    return bool(_roots)


def folders(package: str) -> list[Path]:
    return list(_folders.get(package, []))


def owns(path: str | Path | None) -> bool:
    """Whether a file or folder is part of a plug-in."""
    if not path or not _roots:
        return False
    path = Path(path).resolve()
    return any(path == root or root in path.parents for root in _roots)


def files(kind: str) -> list[Path]:
    """Plug-in files that may define a name of a kind: all of a checkout's folder, else those that look like it."""
    package = next(p for p, k in FOLDER_OF.items() if k == kind)
    found = list(_single)
    for folder in folders(package):
        found += [p for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")]
    return [p for p in found if defines(kind, package, p.read_text(encoding="utf-8", errors="replace"))]


def defines(kind: str, package: str, text: str) -> bool:
    """Whether a file looks like it defines a name of a kind: by its words, or by a class with a NAME whose base comes
    from our package of that kind."""
    if KIND_MARKS[kind].search(text):
        return True
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    ours = {
        alias.asname or alias.name
        for node in imports
        if node.module and node.module.split(".")[0] == package
        for alias in node.names
    }
    return any(
        isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).split(".")[0] in ours for base in node.bases)
        and re.search(r"^\s+NAME\b", ast.get_source_segment(text, node) or "", re.M)
        for node in tree.body
    )


def refuse_unrecognized(path: Path) -> None:
    """A file that was given individually must define something: it would be ignored otherwise."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if any(defines(kind, package, text) for package, kind in FOLDER_OF.items()):
        return
    try:
        ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"--plugins {path} cannot be read as Python ({one_line(error)}): fix the file") from None
    raise UserError(
        f"--plugins {path}: no model, dataset or backbone is recognized in it: a class needs NAME = '...' and one "
        "of our base classes (ContinualModel, ContinualDataset, CaptionedFiles, ...), or @register_model('...')"
    )


def sha256(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def loaded() -> dict[str, str]:
    """Every plug-in file imported so far, with its sha256: what a run's results depend on besides this checkout."""
    paths = {getattr(m, "__file__", None) or "" for n, m in list(sys.modules.items()) if n.split(".")[0] in TOP}
    return {str(p): sha256(p) for p in sorted(p for p in paths if owns(p))}


def load(path: Path, package: str, what: str) -> ModuleType:
    """Import one plug-in file; `what` names it in messages. Names missing in our modules are taken from theirs."""
    for _ in range(100):  # each round fills one name
        with _told(path, what) as gap:
            return _import(path, package)
        _fill(*gap, path, what)
    raise UserError(
        f"{what}: {path} imports more than 100 names that are not available here; pass the code it was written for"
    )


def _import(path: Path, package: str) -> ModuleType:
    """Under its usual name if that is free, else under a name next to ours."""
    name = f"{package}.{path.stem}"
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin and Path(spec.origin).resolve() == path:
        return importlib.import_module(name)
    importlib.import_module(package)
    return _execute(name if spec is None else f"{name}__plugin", path)


def _execute(name: str, path: Path) -> ModuleType:
    if name in sys.modules and Path(sys.modules[name].__file__ or "").resolve() == path:
        return sys.modules[name]
    within = [str(path.parent)] if path.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, path, submodule_search_locations=within)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a file that Python can import")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextlib.contextmanager
def _told(path: Path, what: str) -> Iterator[list]:
    """Turn any error of a foreign import into one line; a name missing in one of our modules is added to the list."""
    gap: list = []
    try:
        yield gap
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise missing_package(error, what, path) from error
    except ImportError as error:
        found = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
        if not found or "partially initialized" in str(error):
            raise UserError(f"{what}: {path} cannot be imported: {one_line(error)}") from error
        gap += found.groups()
    except SyntaxError as error:
        raise UserError(f"{what}: {error.filename}, line {error.lineno}: {error.msg}; fix the file") from error
    except Exception as error:  # importing a foreign file may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{what}: {path} cannot be imported: {one_line(error)} ({place.filename}, line {place.lineno})"
        ) from error


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def missing_package(error: ModuleNotFoundError, what: str, path: Path | None = None) -> UserError:
    """The message for a failed import: a package to install, or a module of Mammoth that is not here."""
    package = (error.name or "").split(".")[0]
    if package in TOP or not package:
        return UserError(
            f"{what}: {path} imports {error.name}, which exists neither here nor under --plugins: "
            "pass the folder that contains it, or the whole checkout"
        )
    return UserError(
        f"{what} needs the package '{package}', which is not installed: pip install {PIP_NAMES.get(package, package)}"
    )


def _fill(name: str, module: str, path: Path, what: str) -> None:
    """Give our `module` the `name` of their module of the same name; an error if theirs does not have it either."""
    ours, (parent, _, last) = sys.modules.get(module), module.rpartition(".")
    candidates = [f / tail for f in folders(parent) for tail in (f"{last}.py", f"{last}/__init__.py")] if parent else []
    if module == "utils":
        candidates = [folder / "__init__.py" for folder in folders("utils")]
    for theirs in candidates:
        if ours is not None and not owns(getattr(ours, "__file__", None)) and theirs.is_file():
            found = (
                load(theirs, parent, what)
                if parent and theirs.name != "__init__.py"
                else _execute(f"{module}__plugin", theirs)
            )
            if hasattr(found, name):
                setattr(ours, name, getattr(found, name))
                _filled.append((ours, name))
                return
    raise UserError(
        f"{what}: {path} imports {name} from {module}, which does not provide it (docs/migration.md lists what is "
        "available); pass a checkout that has it as --plugins"
    )


class _Refusals(importlib.abc.MetaPathFinder):
    """The last finder, for modules of our packages without a file: refusals with a reason."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name in REFUSED:
            raise UserError(f"module {name} {REFUSED[name]}")
        return None


_REFUSALS = _Refusals()


def fail_in_plugin(error: Exception) -> int:
    """A traceback that ends with the file at fault; an error without a frame in a plug-in is ours and is re-raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if owns(f.filename)]
    if not frames:
        raise error
    traceback.print_exception(error)
    place = frames[-1]
    print(
        f"error: the plug-in {place.filename} failed in line {place.lineno}, {place.name}: {one_line(error)}",
        file=sys.stderr,
    )
    return 1
