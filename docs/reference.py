"""Write reference/cli.md, the table of all commands, from the application.

    python docs/reference.py

A test compares the page with what this makes, so run it after a change of a command. `make docs`
also writes the help of every command to reference/help.md, which is not kept in git.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import typer
from c3tools.cli import app
from c3tools.cli._app import COMMANDS
from typer.cli import get_docs_for_click

FOLDER = Path(__file__).parent / "reference"
INTRODUCTION = """# Commands

Every command links to its help, which `c3 COMMAND --help` prints too: all options with their
defaults. Every command takes `--json`: it prints the result as JSON, or writes it to a file if a
path follows.
"""


def cli_page() -> str:
    """Return the page as Markdown: what each command does, with a link to its help."""
    rows = ["| command | what it does |", "|---|---|"]
    for name in COMMANDS:
        command: Any = typer.main.get_command(app)
        for word in name.split():
            command = command.get_command(None, word)
        summary = command.help.split("\n\n")[0].replace("\n", " ")
        anchor = f"c3-{name.replace(' ', '-')}"
        rows.append(f"| [`c3 {name}`](help.md#{anchor}) | {summary} |")
    return "\n".join([INTRODUCTION, *rows]) + "\n"


def help_page() -> str:
    """Return the help of every command as Markdown, as `typer c3tools.cli utils docs` makes it."""
    command = typer.main.get_command(app)
    page = get_docs_for_click(
        obj=command, ctx=typer.Context(command, info_name="c3"), name="c3", title="Help"
    )
    pieces = re.split(
        r"(```.*?```|`[^`\n]*`)", html.unescape(page).replace("*.tar", r"\*.tar"), flags=re.DOTALL
    )
    # else an en dash
    pieces[::2] = [re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", text) for text in pieces[::2]]
    return "".join(pieces)


if __name__ == "__main__":
    (FOLDER / "cli.md").write_text(cli_page(), encoding="utf-8")
