"""Write reference/cli.md, the table of all commands and their everyday options, from the
application.

    python docs/reference.py

A test compares the page with what this makes, so run it after a change of an option. `make docs`
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

`c3 COMMAND --help` explains every option with its default. Every command takes `--json`: it prints
the result as JSON, or writes it to a file if a path follows. Options for experts and clusters are
in the help alone.
"""


def cli_page() -> str:
    """Return the page as Markdown: what each command does, and the names of its options."""
    rows = ["| command | what it does | options |", "|---|---|---|"]
    for name in COMMANDS:
        command: Any = typer.main.get_command(app)
        for word in name.split():
            command = command.get_command(None, word)
        options = [
            p for p in command.params if p.param_type_name == "option" and not p.rich_help_panel
        ]
        names = ", ".join(f"`{p.opts[0]}`" for p in options if p.name not in ("json", "help"))
        summary = command.help.split("\n\n")[0].replace("\n", " ")
        rows.append(f"| `c3 {name}` | {summary} | {names} |")
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
