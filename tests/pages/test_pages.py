from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from matplotlib import rcParams, rcParamsDefault
from matplotlib.figure import Figure
from PIL import Image

from c3tools.errors import C3Error
from c3tools.pages import (
    Table,
    close_up,
    figure_svg,
    new_figure,
    palette,
    render_page,
    save_figure,
    styled,
)
from c3tools.pages.render import interval, number, signed
from tests.golden import recorded


@styled
def drawing(title: str = "Title") -> Figure:
    figure, axes = new_figure(3, 2)
    axes.plot([0, 1], [0, 1], color=palette.FIRST, label="line")
    axes.set_title(title)
    axes.legend()
    return figure


def test_figures_are_part_of_the_page_and_of_no_other_figure() -> None:
    svg = str(figure_svg(drawing("<b> & $x$"), name="a", label='"><script>'))
    assert svg.startswith(
        '<svg role="img" aria-label="&#34;&gt;&lt;script&gt;" viewBox="0 0 216 144">'
    )
    assert not re.search(r"#[0-9a-f]{6}|DejaVu|xlink|<style|<b>|<script>", svg)
    assert "var(--first)" in svg and "$x$" in svg
    assert svg.count("var(--sans)") == svg.count("<text") > 10
    ET.fromstring(svg)
    assert figure_svg(drawing("<b> & $x$"), name="a", label='"><script>') == svg
    other = str(figure_svg(drawing(), name="b", label="x"))
    ids, others = (set(re.findall(r'id="([^"]+)"', text)) for text in (svg, other))
    assert ids and not ids & others
    assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg)) <= ids


@styled
def test_all_figures_have_one_style() -> None:
    changed = {
        name: str(rcParams[name])
        for name in sorted(rcParams)
        if rcParams[name] != rcParamsDefault[name]
    }
    changed.pop("backend", None)
    recorded(Path(__file__).parent / "golden" / "style.json", changed)
    _, grid = new_figure(4, 3, rows=2, columns=3)
    assert grid.shape == (2, 3)
    tidy = grid[0, 2]
    close_up(tidy)
    assert (len(tidy.get_xticks()) > 1, tidy.yaxis.get_gridlines()[0].get_visible()) == (
        True,
        False,
    )
    close_up(tidy, ticks=False)
    assert len(tidy.get_xticks()) == len(tidy.get_yticks()) == 0


def test_figures_are_written_by_their_ending(tmp_path: Path) -> None:
    for ending, start in {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}.items():
        save_figure(drawing(), tmp_path / "deep" / f"f.{ending}")
        content = (tmp_path / "deep" / f"f.{ending}").read_bytes()
        assert (content.startswith(start), b"Software" in content) == (True, False)
    with Image.open(tmp_path / "deep" / "f.png") as image:
        assert image.size == (600, 400)
    with pytest.raises(C3Error, match="not f"):
        save_figure(drawing(), tmp_path / "f.bmp")


def test_pages_escape_what_they_show(tmp_path: Path) -> None:
    template = tmp_path / "t.html"
    template.write_text(
        '{% extends "base.html" %}{% block content %}{{ text }} {{ -1.5 | number(1) }} {{ 12345 | '
        "count }}\n"
        "  {% if text %}\n{{ none | number }} {{ none | count }}\n  {% endif %}\n"
        "{{ [1, 2] | interval(1) }}{% endblock %}"
    )
    html = render_page(template, title="<T>", text="<script>alert(1)</script>")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; −1.5 12\u202f345\n– –\n1.0 to 2.0</main>" in html
    assert "<title>&lt;T&gt;</title>" in html
    for scheme, colour in zip(
        ("", r"@media \(prefers-color-scheme: dark\) { "), palette.ROLES["ink"], strict=True
    ):
        assert re.search(rf"^{scheme}:root {{.* --ink: {colour};", html, re.MULTILINE)
    assert "http" not in html


_NARROW = """{% extends "base.html" %}{% import "parts.html" as parts %}{% block content %}
{{ parts.table(table) }}
{{ parts.figure(svg) }}
<div class="sheet">{% for number in range(30) %}
<figure><img src="data:,"><figcaption>A dog<span>photos/{{ "0" * 40 }}</span></figcaption></figure>
{% endfor %}</div>
{% endblock %}"""


def test_nothing_is_cut_on_a_narrow_screen(tmp_path: Path, browser: Any) -> None:
    row = ["all", "40,455", "at most 82.3%", "72.4% to 82.3%"]
    title = "/home/somebody/projects/museum_catalogue/embeddings"
    table = Table(["split", "pairs", "look unrelated", "95% interval"], [row], title)
    template = tmp_path / "narrow.html"
    template.write_text(_NARROW)
    svg = figure_svg(drawing(), name="a", label="x")
    page = tmp_path / "page.html"
    page.write_text(render_page(template, title="Narrow", table=table, svg=svg))
    size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(page.as_uri())
    cut = browser.execute_script(
        "return [...document.querySelectorAll('html, main :not(svg *)')]"
        ".filter(element => element.clientWidth && element.scrollWidth > element.clientWidth)"
        ".map(element => element.outerHTML)"
    )
    assert cut == []
    sheet = "document.querySelector('.sheet')"
    assert browser.execute_script(f"return {sheet}.offsetHeight") < 4000
    assert (
        browser.execute_script(
            f"return getComputedStyle({sheet}.querySelector('img')).backgroundColor"
        )
        == "rgba(0, 0, 0, 0)"
    )


def test_numbers_are_written_in_one_way() -> None:
    written = [number(-1234.5678), number(None), signed(0.125), signed(-1234), signed(None)]
    assert written == "−1,234.568 – +0.12 −1,234.00 –".split()
    written = [interval((0.25, -0.5)), interval((0.25, 0.5), 1, 100), interval(None)]
    assert written == ["0.250 to −0.500", "25.0 to 50.0", ""]
