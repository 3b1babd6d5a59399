"""What `--list`, `--help` and `--show_config` print."""

import fnmatch
from argparse import ArgumentParser, Namespace

from utils.cli import protocols, registry
from utils.errors import UserError


def listing(*words: str) -> str:
    """One line for every name of a kind, `models` for example, or of all kinds; further words are patterns of names."""
    which = (
        words[0] if words and words[0] in {"all", "protocols", *(f"{kind}s" for kind in registry.PACKAGES)} else None
    )
    patterns = [registry.canonical(word) for word in words[which is not None :]]
    lines = []
    for kind in registry.PACKAGES:
        if which not in {None, "all", f"{kind}s"}:
            continue
        known = sorted(registry.index(kind).values(), key=lambda e: e.name)
        entries = [e for e in known if not patterns or any(fnmatch.fnmatch(e.name, p) for p in patterns)]
        width = max((len(e.name) for e in entries), default=0)
        count = f"{len(entries)} of {len(known)}" if patterns else len(known)
        if entries or not patterns:
            lines += [f"{kind}s ({count})"] + [f"  {e.name:<{width}}  {e.line}" for e in entries] + [""]
    if which in {"all", "protocols"} or (which is None and not patterns):  # a bare pattern looks for files
        known_lines = protocols.listing()
        chosen = [s for s in known_lines if not patterns or any(fnmatch.fnmatch(s.split()[0], p) for p in patterns)]
        count = f"{len(chosen)} of {len(known_lines)}" if patterns else len(known_lines)
        if chosen or not patterns:
            lines += [f"protocols ({count})", *chosen, ""]
    if not lines:
        raise UserError(
            f"--list: no {which[:-1] if which not in {None, 'all'} else 'name'} matches {' '.join(patterns)}; "
            "`python main.py --list` shows all"
        )
    return "\n".join(lines).rstrip()


def config_table(args: Namespace, origins: dict[str, str]) -> str:
    """Every effective value with the layer it came from."""
    rows = sorted(
        (k, repr(v), origins.get(k, "default"))
        for k, v in vars(args).items()
        if k not in {"help", "list", "show_config"}
    )
    width = max(len(k) for k, _, _ in rows), max(len(v) for _, v, _ in rows)
    return "\n".join(f"{k:<{width[0]}}  {v:<{min(width[1], 40)}}  {origin}" for k, v, origin in rows)


def help_text(parser: ArgumentParser) -> str:
    """The parser's help; a method's help texts may contain a bare % sign."""
    for action in parser._actions:
        try:
            action.help % (vars(action) | {"prog": parser.prog}) if action.help else None
        except (TypeError, ValueError, KeyError):
            action.help = (action.help or "").replace("%", "%%")
    return parser.format_help()
