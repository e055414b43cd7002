"""Write reference/cli.md, the options of every command, from the Typer application.

    python docs/reference.py

A test compares the page with what this makes, so run it after a change of an option or of its help.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

import typer
from c3tools.cli import app
from typer.cli import get_docs_for_click

PAGE = Path(__file__).parent / "reference" / "cli.md"


def cli_page() -> str:
    """Return the page as Markdown, as `typer c3tools.cli utils docs` makes it, with whole sentences in its lists."""
    command = typer.main.get_command(app)
    page = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name="c3"), name="c3", title="Commands")
    # a command that has run in this process lists -h too
    page = re.sub(r"\n\* `(-h, )?--help`: Show this message and exit\.", "", html.unescape(page))
    page = re.sub(r"\*\*Options\*\*:\n(?=\n(#|\*\*Commands|$))", "", page)
    for name, summary in _summaries(command):
        line = f"* `{name}`: {summary}".replace("\\", r"\\")  # a backslash would begin an escape
        page = re.sub(rf"^\* `{name}`: .*", line, page, flags=re.MULTILINE)
    page = re.sub(r"\n{3,}", "\n\n", page).rstrip()
    pieces = re.split(r"(```.*?```|`[^`\n]*`)", page.replace("*.tar", r"\*.tar"), flags=re.DOTALL)
    pieces[::2] = [re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", text) for text in pieces[::2]]  # else an en dash
    return "".join(pieces) + "\n"


def _summaries(group: object) -> list[tuple[str, str]]:
    pairs = []
    for name, command in getattr(group, "commands", {}).items():
        pairs.append((name, (command.help or "").split("\n\n")[0].replace("\n", " ")))
        pairs.extend(_summaries(command))
    return pairs


if __name__ == "__main__":
    PAGE.write_text(cli_page(), encoding="utf-8")
