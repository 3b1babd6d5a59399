"""Hooks of mkdocs.yml: pages that stand outside of docs/ become part of the site, with their links."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}


def inside(text: str) -> str:
    """Links of a page of the repository's root, as a page of docs/ has them; to other files: no link."""
    text = re.sub(r"\]\(docs/([^)\s]+)\)", r"](\1)", text)
    for name, page in OUTSIDE.items():
        text = text.replace(f"]({name}", f"]({page}")
    return re.sub(
        r"\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)", lambda m: m.group(0) if page_or_image(m) else m.group(1), text
    )


def page_or_image(link: re.Match) -> bool:
    name = link.group(2).partition("#")[0]
    return name in OUTSIDE.values() or (ROOT / "docs" / name).exists()


def on_files(files, config):
    from mkdocs.structure.files import File  # not in the environment of the tests

    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=inside((ROOT / name).read_text())))
    return files


def on_page_markdown(markdown, page, config, files):
    for name, own in OUTSIDE.items():
        markdown = markdown.replace(f"](../{name}", f"]({own}")
    return markdown
