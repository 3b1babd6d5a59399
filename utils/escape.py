"""User text for a figure, a page, a Markdown table or a terminal: shown as it is, never interpreted."""

import html

LONGEST = 300  # characters of one text; a longer one is truncated


def clean(text, longest: int = LONGEST) -> str:
    """Printable text of one line: no control characters, no lone surrogates, not longer than `longest`."""
    text = str(text)
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    text = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in text)


def on_figure(text, longest: int = LONGEST) -> str:
    """For matplotlib, which reads text between two dollar signs as a formula and hides labels that begin with _."""
    lines = [clean(line, longest) for line in str(text).split("\n")]
    shown = "\n".join(lines).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def in_html(text, longest: int = 10 * LONGEST) -> str:
    """For a page, inside an element or a quoted attribute."""
    return html.escape(clean(text, longest), quote=True)


def in_markdown(text, longest: int = LONGEST) -> str:
    """For a cell of a table: bars do not end it, and HTML is escaped."""
    return html.escape(clean(text, longest), quote=False).replace("|", "\\|")
