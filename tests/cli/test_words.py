"""What commands print: answers/ what they say, refusals/ what they refuse.

C3_RECORD=1 pytest tests/cli/test_words.py    # makes the files anew; a new line "$ c3 ..." is a new
case
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from c3tools.cli._app import COMMANDS, app
from c3tools.cli._console import err, out, print_table

from c3tools import machine
from c3tools.result_table import Table
from tests.conftest import C3, contents, unwritten_keys

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
ANSWERS, REFUSALS = (sorted((FOLDER / name).glob("*.txt")) for name in ("answers", "refusals"))
# numbers with a decimal point, except percentages, times and rates depend on the machine, and so
# does the advice on speed
VARIES = re.compile(
    r"-?[\d,]*\d\.\d+\b(?!%)(e[+-]?\d+)?|\d+:\d+(:\d+)?|[\d,]+ *$|\d{4}-\d\d-\d\d"
    r"|^.* took \d+% of the time(?s:.*?)\.$",
    re.MULTILINE,
)


def compare(file: Path, said: str) -> None:
    if os.environ.get("C3_RECORD"):
        file.write_text(said, encoding="utf-8")
    assert said == file.read_text(encoding="utf-8"), f"C3_RECORD=1 writes {file.name} anew"


def answers(c3: C3, file: Path, tidy: Callable[[str], str]) -> str:
    """Run the commands of a file, and return them with what they print."""
    said = ""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("$ c3 "):
            result = c3(*shlex.split(line)[2:])
            assert "Traceback" not in result.output, result.output
            text = re.sub(r"[│╭╮╰╯─━]", " ", result.output).replace(f"{ROOT}/", "")
            said += f"{line}\n[{result.exit_code}] {tidy(text)}\n"
    return said


def lines_of(text: str) -> str:
    """Return the lines, without what varies and the width of columns."""
    lines = (re.sub(r"  +", "  ", line).strip() for line in VARIES.sub("#", text).splitlines())
    return "\n".join(filter(None, lines))


def error_of(text: str) -> str:
    """Return the error that ends a text, on one line."""
    return " ".join(text[text.index("Error") :].split()) if "Error" in text else ""


@pytest.mark.parametrize("file", ANSWERS, ids=lambda file: file.stem)
def test_commands_say_what_they_made(
    c3: C3,
    workplace: Path,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    values_written: list[tuple[str, Any]],
) -> None:
    for console in (out, err):
        monkeypatch.setattr(console, "width", 110)
    # A busy machine prints the progress of what takes a moment elsewhere
    monkeypatch.setattr("c3tools.terminal._SECONDS_BETWEEN_LINES", math.inf)
    monkeypatch.setattr("c3tools.metrics.java_metrics.missing_java", lambda: "it needs Java")
    monkeypatch.setattr(
        machine, "describe_machine", lambda: json.loads((FOLDER / "machine.json").read_text())
    )
    said = answers(c3, file, lines_of)
    for command, value in values_written:
        assert (command, unwritten_keys(command, value)) == (command, set())
    compare(file, said)


@pytest.mark.parametrize("file", REFUSALS, ids=lambda file: file.stem)
def test_a_refusal_is_one_message_and_changes_nothing(
    c3: C3, workplace: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    before = contents(workplace)
    compare(file, answers(c3, file, error_of))
    assert contents(workplace) == before


@pytest.mark.parametrize("file", [*ANSWERS, *REFUSALS], ids=lambda file: file.stem)
def test_no_sentence_ends_in_two_full_stops(file: Path) -> None:
    assert re.findall(r".*[^.]\.\.(?: .*)?$", file.read_text("utf-8"), re.MULTILINE) == []


def test_commands_are_listed_in_panels_each_on_one_line(
    c3: C3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = c3("--help").stdout
    assert said.strip() == c3().output.strip()
    assert said.rstrip().endswith("New here? c3 demo")
    *_, listed = said.partition("--help")
    compare(FOLDER / "commands.txt", lines_of(re.sub("[│╭╮╰╯─]", "", listed)) + "\n")
    names = {words.split()[0] for words in COMMANDS}
    assert set(re.findall(r"^│ ([a-z-]+)  +\S.*[.] +│$", listed, re.MULTILINE)) == names


@pytest.mark.parametrize("group", ["connect", "means", "simulate"])
def test_the_commands_of_a_group_have_a_line_each(
    c3: C3, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    listed = c3(group, "--help").stdout.partition("Commands")[2]
    names = {words.split()[1] for words in COMMANDS if words.split()[0] == group}
    assert set(re.findall(r"^│ ([a-z-]+)  +\S.*[.] +│$", listed, re.MULTILINE)) == names


def test_a_table_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers and headings are broken at spaces alone; where the words do not fit beside each
    other, each cell has a line."""
    columns = ["name", "words", "number"]
    names = {"a" * 12: "b", "a" * 13: "b", "1%": "2"}
    monkeypatch.setattr(out, "quiet", False)  # as another command may have left it
    monkeypatch.setattr(out, "width", 25)
    for name, other in names.items():
        print_table(
            Table(columns, [[name, "two words", "yes"], [other, "", "10"]], "Title", ["words"])
        )
    print_table(Table(["1", "a"], [[f"{n}", "x"] for n in range(7)]), 5)
    compare(FOLDER / "tables.txt", "".join(capsys.readouterr()))
    monkeypatch.setattr(out, "record", True)
    print_table(Table(["name", "verdict"], [["yes", "yes"], ["[red]", "1"]]))
    styled = out.export_text(styles=True)
    assert re.findall(r"\x1b\[32m *(\w+)", styled) == ["yes"] and "[red]" in styled


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_says_what_each_option_does(c3: C3, command: str) -> None:
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.get_command(None, word)
    assert [option.name for option in found.params if len(option.help.split()) < 2] == []
    said = c3(*command.split(), "--help").stdout
    assert "Usage: c3" in said
    assert re.findall("<bool>|range>", said) == []
