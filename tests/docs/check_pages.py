"""The README, the guides and the concepts run as written, and print what they show."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from c3tools.cli._app import PANELS

from tests.docs.pages import ROOT, as_on_a_plain_install, run_page, same

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("start/*.md")),
    *sorted((ROOT / "docs").glob("guides/*.md")),
    *sorted((ROOT / "docs").glob("concepts/*.md")),
]
RUN = [
    page
    for page in PAGES
    if re.search(r"^```(console|python)$", page.read_text("utf-8"), re.MULTILINE)
]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", RUN, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_print_what_it_shows(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = path.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    as_on_a_plain_install(monkeypatch)
    wrong: list[str] = []

    def check(command: str, shown: str, printed: str) -> str:
        if not same(shown, printed):
            wrong.append(f"$ {command}\nshown:\n{shown}printed:\n{printed}")
        return printed

    run_page(page, check)
    fix = f"python -m tests.docs.pages {path.relative_to(ROOT)} writes what is printed."
    assert not wrong, "\n\n".join([*wrong, fix])


@pytest.mark.parametrize(
    ("shown", "printed", "equal"),
    [
        ("gap 1.02\n", "gap 1.03\n", True),
        ("gap 1.02\n", "gap 1.20\n", False),
        ("79 images\n", "80 images\n", False),
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\nd\n", "a\nb\nc\n", False),
        ("a ─── b", "a ───── b", True),
        ("found\n", "", False),
        ("  image   79   0   0   16.3   4.9\n", "  image   79   0   0   1.0   80\n", True),
    ],
)
def test_outputs_are_compared_word_by_word_with_tolerance_for_numbers(
    shown: str, printed: str, equal: bool
) -> None:
    assert same(shown, printed) == equal


def test_the_page_of_commands_is_made_from_the_application() -> None:
    module = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    page = (ROOT / "docs" / "reference" / "cli.md").read_text("utf-8")
    assert page == module["cli_page"](), "python docs/reference.py writes it anew"


def test_each_command_has_its_help_on_the_page_of_its_panel() -> None:
    pages = runpy.run_path(str(ROOT / "docs" / "reference.py"))["help_pages"]()
    assert len(pages) == len(PANELS)
    for page, (panel, commands) in zip(pages.values(), PANELS.items(), strict=True):
        assert page.startswith(f"# {panel}\n")
        assert re.findall(r"^#+ `c3 (.*)`$", page, re.MULTILINE) == list(commands)
        assert re.findall("…|<bool>|&[a-z]+;", page) == []


def test_every_public_name_is_in_the_reference() -> None:
    import c3tools

    page = (ROOT / "docs" / "reference" / "api.md").read_text("utf-8")
    assert set(re.findall(r"auto(?:class|function):: c3tools\.(\w+)", page)) == set(
        c3tools.__all__
    ) - {"__version__"}


def test_the_readme_is_short() -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    prose = re.sub(r"^```.*?^```$|\]\([^)]*\)|[|-]", "", page, flags=re.DOTALL | re.MULTILINE)
    assert len(prose.split()) <= 700
