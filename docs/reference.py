"""Write reference/cli.md, the table of all commands, from the application.

    python docs/reference.py

A test compares the page with what this makes, so run it after a change of a command. `make docs`
also writes the help of every command, one page per panel of `c3 --help`, to reference/commands/,
which is not kept in git.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import typer
from c3tools.cli import app
from c3tools.cli._app import PANELS
from typer.cli import get_docs_for_click

FOLDER = Path(__file__).parent / "reference"
INTRODUCTION = """# Commands

The links lead to the help of each command, which `c3 COMMAND --help` prints too. These pages exist
only in the site that `make docs` builds. `c3 --help` lists all commands, and every command takes
[`--json`](outputs.md#json).
"""


def cli_page() -> str:
    """Return the page as Markdown: the commands of each panel, with links to their help."""
    lines = [INTRODUCTION, "| to | commands |", "|---|---|"]
    for panel, commands in PANELS.items():
        page = f"commands/{_slug(panel)}.md"
        links = [f"[`{name}`]({page}#{_slug(f'c3 {name}')})" for name in commands]
        lines.append(f"| [{panel}]({page}) | {', '.join(links)} |")
    pages = [f"commands/{_slug(panel)}" for panel in PANELS]
    return "\n".join([*lines, "", "```{toctree}", ":hidden:", "", *pages, "```", ""])


def help_pages() -> dict[str, str]:
    """Return a page as Markdown for each panel, by its file name: the help of its commands, as
    `typer c3tools.cli utils docs` makes it.
    """
    return {f"{_slug(panel)}.md": _help_page(panel) for panel in PANELS}


def _help_page(panel: str) -> str:
    root = typer.main.get_command(app)
    page = f"# {panel}\n\n"
    for name in PANELS[panel]:
        *group, _ = name.split()
        page += get_docs_for_click(
            obj=_command(name),
            ctx=typer.Context(root, info_name="c3"),
            indent=1,
            call_prefix=" ".join(["c3", *group]),
        )
    pieces = re.split(
        r"(```.*?```|`[^`\n]*`)", html.unescape(page).replace("*.tar", r"\*.tar"), flags=re.DOTALL
    )
    # options as code, and no <str> taken for HTML
    pieces[::2] = [re.sub(r"(?<![\w-])--[a-z][\w-]*", r"`\g<0>`", text) for text in pieces[::2]]
    return "".join(pieces)


def _command(name: str) -> Any:
    command: Any = typer.main.get_command(app)
    for word in name.split():
        command = command.get_command(None, word)
    return command


def _slug(words: str) -> str:
    return words.lower().replace(" ", "-")


if __name__ == "__main__":
    (FOLDER / "cli.md").write_text(cli_page(), encoding="utf-8")
