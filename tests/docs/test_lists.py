"""The tables of the documentation name what the tables of the code name, and have whole rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path

import pytest
from c3tools.cli._app import COMMANDS

import c3tools
from c3tools.encoders.backends import BACKENDS
from c3tools.metrics.caption_scores import METRICS
from c3tools.transforms import PRESETS
from c3tools.transforms.pipeline import step_kinds
from tests.conftest import documented_keys

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("presets.md", PRESETS),
        ("exports.md", step_kinds()),
        ("embedding.md", BACKENDS),
        ("decoders.md", METRICS),
    ],
)
def test_page_names_every_row(page: str, names: Iterable[str]) -> None:
    text = (REFERENCE / page).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_page_of_python_has_a_row_for_each_command_and_names_what_is_there() -> None:
    page = (REFERENCE / "api.md").read_text(encoding="utf-8")
    cells = dict(re.findall(r"^\| `c3 (.*?)` \| (.*) \|$", page, re.MULTILINE))
    assert list(cells) == list(COMMANDS)
    for command, source in COMMANDS.items():
        names = re.findall(r"`([\w.]+)`", cells[command])
        assert names
        assert not set(source.verbs) - set(names)
        for name in names:
            assert name.partition(".")[0] in c3tools.__all__
            assert callable(attrgetter(name)(c3tools))


@pytest.mark.parametrize("path", sorted(REFERENCE.parent.rglob("*.md")), ids=lambda path: path.name)
def test_rows_of_a_table_have_the_cells_of_its_header(path: Path) -> None:
    """A ``|`` inside of a cell, also in code, begins another cell unless a ``\\`` precedes it."""
    cells_before = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line)) if line.startswith("|") else 0
        assert cells == cells_before or 0 in (cells, cells_before), line
        cells_before = cells


def test_the_page_of_json_has_a_row_for_each_command() -> None:
    assert [name for name in documented_keys() if not name.endswith(" --list")] == list(COMMANDS)
