from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from c3tools.errors import C3Error
from c3tools.pages import figure_svg, new_figure, palette, render_page, save_figure, styled


@styled
def drawing(title: str = "Title") -> Figure:
    figure, axes = new_figure(3, 2)
    axes.plot([0, 1], [0, 1], color=palette.FIRST, label="line")
    axes.set_title(title)
    axes.legend()
    return figure


def test_figures_take_their_colours_from_the_page() -> None:
    svg = str(figure_svg(drawing(), name="one", label="a line"))
    assert "var(--first)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)
    assert svg.startswith('<svg role="img" aria-label="a line"')
    ET.fromstring(svg)


def test_ids_of_two_figures_do_not_meet() -> None:
    ids = [set(re.findall(r'id="([^"]+)"', str(figure_svg(drawing(), name=name, label="x")))) for name in ("a", "b")]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert figure_svg(drawing(), name="a", label="x") == figure_svg(drawing(), name="a", label="x")
    svg = str(figure_svg(drawing(), name="a", label="x"))
    assert set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg)) <= ids[0]


def test_text_in_figures_and_labels_is_text() -> None:
    svg = str(figure_svg(drawing("<b> & $x$"), name="a", label='"><script>'))
    assert "<b>" not in svg
    assert "<script>" not in svg
    assert "$x$" in svg
    ET.fromstring(svg)


def test_figures_are_written_by_their_ending(tmp_path: Path) -> None:
    for ending, start in {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}.items():
        save_figure(drawing(), tmp_path / "deep" / f"f.{ending}")
        assert (tmp_path / "deep" / f"f.{ending}").read_bytes().startswith(start)
    with pytest.raises(C3Error, match="not f"):
        save_figure(drawing(), tmp_path / "f.bmp")


def test_pages_escape_what_they_show(tmp_path: Path) -> None:
    template = tmp_path / "t.html"
    template.write_text(
        '{% extends "base.html" %}{% block content %}{{ text }} {{ -1.5 | number(1) }} {{ 12345 | count }} '
        "{{ none | number }}{% endblock %}"
    )
    html = render_page(template, title="<T>", text="<script>alert(1)</script>")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; −1.5 12\u202f345 –" in html
    assert "<title>&lt;T&gt;</title>" in html
    assert "prefers-color-scheme: dark" in html
    assert "http" not in html
