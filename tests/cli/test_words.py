"""What commands answer to what they refuse. The answers stand in refusals/, one file a command.

C3_RECORD=1 pytest tests/cli/test_refusals.py    # makes the files anew; a new line "$ c3 ..." is a new case
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from c3tools.cli._app import COMMANDS, app

from tests.conftest import C3

ROOT = Path(__file__).parents[2]
FILES = sorted((Path(__file__).parent / "refusals").glob("*.txt"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_refusal_is_one_message_and_changes_nothing(
    c3: C3, workplace: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    before, said = contents(workplace), ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("$ c3 "):
            result = c3(*shlex.split(line)[2:])
            assert result.exit_code in (1, 2), (line, result.output)
            assert "Traceback" not in result.output, line
            text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).replace(f"{ROOT}/", "").split())
            said += f"{line}\n[{result.exit_code}] {text[text.find('Error') :]}\n"
    if os.environ.get("C3_RECORD"):
        file.write_text(said, encoding="utf-8")
    assert said == file.read_text(encoding="utf-8")
    assert contents(workplace) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command(command: str) -> None:
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.get_command(None, word)
    lines = [found.help, ""]
    for option in found.params:
        default = "" if option.default in (None, False, []) else f" [default: {option.default}]"
        expert = " (expert)" if option.rich_help_panel else ""
        names = [*option.opts, *option.secondary_opts]
        lines.append(f"{' '.join(names)} {option.metavar or ''}{expert}: {option.help}{default}")
    shown, file = "\n".join(lines) + "\n", Path(__file__).parent / "help" / f"{command.replace(' ', '-')}.txt"
    if os.environ.get("C3_RECORD"):
        file.write_text(shown, encoding="utf-8")
    assert shown == file.read_text(encoding="utf-8")
