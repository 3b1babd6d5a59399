"""From argv to one Namespace in two passes, so that only the chosen model and dataset are imported."""

import argparse
import difflib
import functools
import inspect
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from utils import flags
from utils.cli import configs, plugins, preview, protocols, ranks, registry, signatures
from utils.cli.listing import config_table, help_text, listing
from utils.cli.stream_flags import add_stream_args
from utils.errors import UserError, shown


@dataclass
class Parsed:
    """The effective arguments, with the origin of each, and the two classes that were imported for them."""

    args: argparse.Namespace
    origins: dict[str, str]
    model_class: type
    dataset_class: type
    problems: list[str] = field(default_factory=list)
    argv: list[str] = field(default_factory=list)
    folder: str | None = None  # of the record, once there is one


def new_parser() -> argparse.ArgumentParser:
    """The parser with all flags of the framework and no method's."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        add_help=False,
        allow_abbrev=False,
        usage="python main.py --model NAME --dataset NAME [flags] "
        " (--model X --dataset Y --help shows their flags too)",
    )
    flags.add_first_args(parser)
    flags.add_experiment_args(parser)
    add_stream_args(parser)
    flags.add_management_args(parser)
    flags.add_sink_args(parser)
    return parser


def parse(argv: list[str], check: Callable[[Parsed], None] = lambda parsed: None) -> Parsed | None:
    """Read the command line and `check` it; None if it only asked for a text such as --help, which is then printed."""
    parser = new_parser()
    first, known_problems = first_pass(parser, argv)
    plugins.use(first.plugins)
    if first.list is not None:
        print(listing(*first.list))
        return None
    first.model = registry.current_name(first.model)
    if first.help and not (first.model and first.dataset):
        print(parser.format_help())
        return None
    problems = [
        f"--{kind} is missing; `python main.py --list {kind}s` shows the choices"
        for kind in ("model", "dataset")
        if not getattr(first, kind)
    ]
    for kind in ("model", "dataset", "backbone"):
        name = getattr(first, kind)
        if name == "" and kind == "backbone":
            problems.append("--backbone needs a name; `python main.py --list backbones` shows the choices")
        if name and not registry.exists(kind, name.split(":")[0] if kind == "backbone" else name):
            problems.append(str(registry.unknown(kind, name)))
    if problems:
        raise UserError("\n".join(problems + known_problems + misspelt(first, argv)))
    read = functools.partial(result, parser, first, argv, check)
    told = preview.answer(read, parser) if not first.plugins else None  # code of a plug-in is run only once
    found = read() if told is None else told.tell()
    if isinstance(found, Parsed):
        return found
    print(found)
    return None


def result(
    parser: argparse.ArgumentParser, first: argparse.Namespace, argv: list[str], check: Callable[[Parsed], None]
) -> Parsed | str:
    """What the command line, with model and dataset known, starts or asks for."""
    parsed = second_pass(parser, first, argv)
    if first.help:
        return help_text(parser)
    if parsed.problems:
        raise UserError("\n".join(parsed.problems))
    if first.show_config:
        return config_table(parsed.args, parsed.origins)
    check(parsed)
    return parsed


def first_pass(parser: argparse.ArgumentParser, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that decide what is imported, and what is wrong with the framework's own flags."""
    tokens, problems = check_tokens(parser, argv, unknown_is_wrong=False)
    deciding = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_first_args(deciding)
    try:
        return deciding.parse_known_args(tokens)[0], problems
    except (SystemExit, argparse.ArgumentError):
        raise UserError("\n".join(problems) or "the command line cannot be read; see --help") from None


def second_pass(parser: argparse.ArgumentParser, first: argparse.Namespace, argv: list[str]) -> Parsed:
    """Import model and dataset, add their flags, merge the layers of defaults, then parse."""
    dataset_class = registry.load("dataset", first.dataset)
    if flag := getattr(dataset_class, "VARIANT_FLAG", None):
        dataset_class = registry.variant(dataset_class, configs.given_value(argv, flag))
    model_class = registry.load("model", first.model)
    before = {a.dest: a.default for a in parser._actions}
    add_model_args(parser, model_class)
    from_model = {a.dest: a.default for a in parser._actions if a.dest in before and a.default != before[a.dest]}
    from_model |= {k: v for k, v in parser._defaults.items() if before.get(k, None) != v}
    for action in parser._actions:
        if action.dest in from_model and action.dest in before:
            action.default = before[action.dest]
    layers = [
        ("dataset", configs.dataset_defaults(dataset_class)),
        *configs.dataset_config(dataset_class, first.dataset_config, first.dataset),
        ("model", from_model),
        *configs.model_config(first.model, first.model_config, dataset_class.NAME, argv),
    ]
    preset = protocols.find(first.protocol, first.dataset) if first.protocol else None
    if preset is not None:
        layers.append((preset.origin, preset.flags))
    signatures.add_arguments(parser, dataset_class, f"dataset {first.dataset}")
    backbone = first.backbone or next((v["backbone"] for _, v in reversed(layers) if v.get("backbone")), None)
    if backbone:
        signatures.add_backbone_arguments(parser, str(backbone))
    fixed: dict[str, Any] = {}
    if preset is not None:
        protocols.check_method(preset, model_class, [a.dest for a in parser._actions])
        layers[-1] = (preset.origin, preset.fitting(a.dest for a in parser._actions))
    clip = getattr(dataset_class, "CLIP_BACKBONE", None)
    if clip and any(a.dest == "clip_backbone" for a in parser._actions):  # one for all methods of a stream
        layers.insert(0, ("dataset", {"clip_backbone": clip}))
    origins = apply_layers(parser, layers, set(before))
    if preset is not None:
        fixed = {a.dest: a.default for a in parser._actions if a.dest in layers[-1][1]}
    tokens, problems = check_tokens(parser, argv)
    problems += missing_required(parser, argv)
    if problems or first.help:
        return Parsed(first, origins, model_class, dataset_class, problems, argv)
    try:
        args = parser.parse_args(tokens, flags.Arguments())
    except (SystemExit, argparse.ArgumentError) as error:
        raise UserError(f"the command line cannot be read: {error}; see --help") from None
    option = {a.dest: a.option_strings for a in parser._actions}
    origins |= {d: "command line" for d, names in option.items() if any(t.split("=")[0] in names for t in tokens)}
    given = [d for d, origin in origins.items() if origin == "command line"]
    idle = idle_flags(model_class, given)
    if preset is not None:
        protocols.settle(preset, args, fixed, given)
    args.model, args.dataset = registry.plain_name("model", first.model), registry.plain_name("dataset", args.dataset)
    foreign = {
        kind: f"{path.name} sha256 {plugins.sha256(path)}"
        for kind in ("model", "dataset", "backbone")
        if plugins.used() and (path := registry.file_of(kind, getattr(args, kind) or "")) and plugins.owns(path)
    }
    if foreign:
        args.plugin_files = foreign  # a changed file is a different configuration
    return Parsed(args, origins, model_class, dataset_class, idle, argv)


def idle_flags(model_class: type, given: list[str]) -> list[str]:
    """Errors for given flags that the method declares to ignore."""
    own, name = dict(getattr(model_class, "IDLE_FLAGS", {})), getattr(model_class, "NAME", model_class.__name__)
    if getattr(model_class, "BUILDS_OWN_NET", False):
        own["backbone"] = "clip_backbone"
    return [
        f"--{flag} changes nothing with {name}: " + (f"use --{own[flag]}" if own[flag] else "leave the flag out")
        for flag in given
        if flag in own
    ]


def add_model_args(parser: argparse.ArgumentParser, model_class: type) -> None:
    """Call the method's get_parser; the old form without an argument is merged by destination."""
    if not hasattr(model_class, "get_parser"):
        return
    group = parser.add_argument_group(f"model {getattr(model_class, 'NAME', '')}")
    what = f"model {getattr(model_class, 'NAME', model_class.__name__)}: get_parser"
    try:
        if inspect.signature(model_class.get_parser).parameters:
            model_class.get_parser(parser)
        else:
            known = {a.dest for a in parser._actions}
            for action in model_class.get_parser()._actions:
                if action.dest not in known:
                    group._add_action(action)
    except argparse.ArgumentError as error:
        raise UserError(
            f"{what} adds a flag that already exists ({error}); use parser.set_defaults for its value"
        ) from error
    except UserError:
        raise
    except Exception as error:  # foreign code may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(f"{what} fails: {plugins.one_line(error)} ({place.filename}, line {place.lineno})") from error


def apply_layers(parser: argparse.ArgumentParser, layers: list[tuple[str, dict]], ours: set[str]) -> dict[str, str]:
    """Make each layer's values the parser's defaults, low to high, cast through the flags' own types.

    A stream's default for a flag that is not one of `ours` is skipped if the method that has the flag does not accept
    the value; a number set by a method's own file is not range-checked: lr=0 if the loop trains nothing.
    """
    actions = {a.dest: a for a in parser._actions}
    origins = {dest: "default" for dest in actions}
    extra: dict[str, object] = {}
    for origin, values in layers:
        for key, value in values.items():
            dest = key.replace("-", "_")
            if dest not in actions:
                if origin not in {"dataset", "model"}:
                    close = difflib.get_close_matches(dest, actions, n=1)
                    raise UserError(
                        f"{origin} sets '{shown(key)}', which is not a flag{f'; closest: {close[0]}' if close else ''}"
                    )
                extra[dest] = value
                continue
            try:
                actions[dest].default = cast(actions[dest], value, origin)
            except UserError:
                if origin == "dataset" and dest not in ours:
                    continue
                if (
                    (origin != "model" and (dest, value) != ("lr", 0))
                    or isinstance(value, bool)
                    or not isinstance(value, (int, float))
                    or actions[dest].choices
                ):
                    raise
                actions[dest].default = value
            actions[dest].required = False
            origins[dest] = origin
    parser.set_defaults(**extra)
    return origins


def cast_one(action: argparse.Action, value: Any) -> Any:
    """One value through the flag's type."""
    return action.type(value) if callable(action.type) else value


def cast(action: argparse.Action, value: object, origin: str) -> object:
    """A value from a file or a class, through the flag's type and choices."""
    if value is None or isinstance(value, dict) or action.nargs == 0:
        return value
    try:
        if action.nargs in {"+", "*"}:
            parts = value if isinstance(value, (list, tuple)) else str(value).replace(",", " ").split()
            return [cast_one(action, v) for v in parts]
        if action.type and not isinstance(value, (list, tuple)):
            value = cast_one(action, value if isinstance(value, (bool, int, float)) else str(value))
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{origin}: value of {action.dest}: {error}") from None
    if action.choices and value not in action.choices:
        raise UserError(
            f"{origin}: {action.dest} must be one of {', '.join(map(str, action.choices))}, not '{shown(value)}'"
        )
    return value


def check_tokens(
    parser: argparse.ArgumentParser, argv: list[str], unknown_is_wrong: bool = True
) -> tuple[list[str], list[str]]:
    """Rewrite names to their exact spelling and find all errors, not only the first."""
    options = {o.lstrip("-").replace("-", "_"): (o, a) for a in parser._actions for o in a.option_strings}
    tokens: list[str] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    position = 0
    while position < len(argv):
        token, position = argv[position], position + 1
        if not is_flag(token):
            if unknown_is_wrong:
                problems.append(f"'{shown(token)}' does not belong to a flag; see --help")
            continue
        name, equals, value = token.partition("=")
        if token.startswith("-O") and not token.startswith("--") and len(token) > 2 and not equals:
            name, value = "-O", token[2:]
        values = [value] if value or equals else []
        while position < len(argv) and not is_flag(argv[position]) and not equals:
            values.append(argv[position])
            position += 1
        key = name.lstrip("-").replace("-", "_")
        if key not in options:
            refused = refusal(key, values)
            if refused or (unknown_is_wrong and key not in flags.REFUSED):
                problems.append(refused or unknown_flag(name, options))
            continue
        option, action = options[key]
        if action.dest in seen and not isinstance(action, argparse._AppendAction):
            earlier = seen[action.dest]
            problems.append(
                f"{option} is given twice"
                if earlier == option
                else f"{earlier} and {option} set the same value; use one"
            )
        seen[action.dest] = option
        problem = check_values(option, action, values)
        if problem:
            problems.append(problem)
        else:
            tokens += [option, *values]
    return tokens, problems


def is_flag(token: str) -> bool:
    """Whether a token names a flag rather than a (possibly negative) value."""
    if not token.startswith("-") or token in {"-", "--"}:
        return False
    try:
        float(token)
    except ValueError:
        return True
    return False


def check_values(option: str, action: argparse.Action, values: list[str]) -> str | None:
    """The error in the values of one flag, or None."""
    if action.nargs == 0:
        return f"{option} does not take a value, got '{shown(values[0])}'" if values else None
    if not values:
        return None if action.nargs in {"?", "*"} else f"{option} needs a value"
    if action.nargs in {None, "?"} and len(values) > 1:
        return f"{option} takes one value, got {len(values)}: {shown(' '.join(values))}"
    for value in values:
        try:
            value = cast_one(action, value)
        except (ValueError, TypeError):
            return f"{option}: '{shown(value)}' is not of type {getattr(action.type, '__name__', action.type)}"
        except argparse.ArgumentTypeError as error:
            return f"{option}: {error}"
        if action.choices and value not in action.choices:
            return f"{option}: '{shown(value)}' is not one of {', '.join(map(str, action.choices))}"
    return None


def refusal(key: str, values: list[str]) -> str | None:
    """Why a flag of Mammoth is not accepted here; None if its value requests nothing."""
    if key not in flags.REFUSED or (values and values[0] in flags.REFUSED_BUT.get(key, set())):
        return None
    return f"--{key} {flags.REFUSED[key]}"


def unknown_flag(name: str, options: dict) -> str:
    close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), options, n=2, cutoff=0.6)
    hint = f" Closest: {', '.join('--' + c for c in close)}." if close else ""
    return f"unknown flag '{shown(name)}'.{hint} --model X --dataset Y --help shows all."


def misspelt(first: argparse.Namespace, argv: list[str]) -> list[str]:
    """Flags that look like a missing --model or --dataset."""
    wanted = [kind for kind in ("model", "dataset") if not getattr(first, kind)]
    given = [t.partition("=")[0] for t in argv if is_flag(t)]
    known = {name.replace("-", "_") for action in new_parser()._actions for name in action.option_strings}
    near = [
        t
        for t in given
        if t.replace("-", "_") not in known and difflib.get_close_matches(t.lstrip("-"), wanted, 1, 0.6)
    ]
    return [unknown_flag(t, dict.fromkeys(wanted)) for t in near]


def missing_required(parser: argparse.ArgumentParser, argv: list[str]) -> list[str]:
    """Flags without a default in any layer that were not given, not even with a wrong value."""
    given = {t.partition("=")[0].lstrip("-").replace("-", "_") for t in argv if is_flag(t)}
    return [
        f"{a.option_strings[0]} is missing: this model and dataset need it"
        for a in parser._actions
        if a.required and not given & {o.lstrip("-").replace("-", "_") for o in a.option_strings}
    ]


def fail(error: UserError) -> int:
    """Print a user error, one line per fact, and return the exit code."""
    for line in ranks.told(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2
