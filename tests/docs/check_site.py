"""The build of the documentation site fails where a link is broken or a page loads something from
elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .pages import ROOT

pytest.importorskip("furo", reason="the extra docs is not installed")
GOOD = (
    "# Top\n\n[other](other.md#here), [above](#top)\n\n![A "
    "figure](figure.svg)\n\n```{toctree}\nother\n```\n"
)
OTHER = "# Other\n\n## Here\n\n| a | b |\n|---|---|\n| 1.0 ± 0.1 | words |\n"
FIGURE = """<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 100"><path fill="#2364aa"/></svg>
"""


def build(folder: Path, page: str) -> subprocess.CompletedProcess[str]:
    """Build a site of two pages as `make docs` does."""
    source = folder / "docs"
    shutil.copytree(ROOT / "docs" / "_static", source / "_static")
    shutil.copy(ROOT / "docs" / "conf.py", source)
    for name, text in {"index.md": page, "other.md": OTHER, "figure.svg": FIGURE}.items():
        (source / name).write_text(text, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-E",
        "-a",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(source),
    ]
    return subprocess.run(
        [*command, str(folder / "site")], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_figures_follow_the_theme_and_numbers_stay_on_one_line(tmp_path: Path) -> None:
    built = build(tmp_path, GOOD)
    assert (built.returncode, built.stderr) == (0, "")
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / "site" / "other.md").read_text("utf-8") == OTHER
    listed = (tmp_path / "site" / "llms.txt").read_text("utf-8")
    assert "- [Top](index.md): [other](other.md#here), [above](#top)\n" in listed
    for part in ('<path fill="var(--c3-first)"/>', 'aria-label="A figure"', 'class="wide"'):
        assert part in page
    assert (
        "number"
        in (tmp_path / "site" / "other.html")
        .read_text(encoding="utf-8")
        .partition("1.0 ± 0.1")[0][-40:]
    )


def test_a_broken_page_fails_the_build(tmp_path: Path) -> None:
    warnings = {
        "[gone](gone.md)": "target not found: 'gone.md'",
        "[gone](../c3tools/gone.py)": "target not found: '../c3tools/gone.py'",
        "![gone](gone.svg)": "image file not readable: gone.svg",
        '<img src="https://example.org/a.png">': (
            "index.html loads https://example.org/a.png from another server"
        ),
    }
    built = build(tmp_path, GOOD.replace("# Top\n", "\n\n".join(["# Top", *warnings, ""])))
    assert built.returncode == 1
    for warning in warnings.values():
        assert re.search(f"WARNING: .*{re.escape(warning)}", built.stderr)
