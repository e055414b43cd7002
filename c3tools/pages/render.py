"""Fill page templates; tables and sections of a report, as pages, the terminal and notebooks all
show them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from ..result_table import Table
from . import palette

_TEMPLATES = Path(__file__).parent / "templates"
_MISSING = "–"


class FigureBlock(NamedTuple):
    """A figure on a page: inline SVG (`figure_svg`), the caption below it, and whether it takes the
    full width.
    """

    svg: Markup
    caption: str
    wide: bool


class Section(NamedTuple):
    """A part of a report under a heading: paragraphs, tables, and on a page figures with a note."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[FigureBlock] = ()
    note: str = ""


def render_page(template: Path, **context: Any) -> str:
    """Fill a template with values, all text escaped.

    Args:
        template: a file that extends ``base.html``.
        context: the variables of the template.

    Returns:
        One self-contained HTML document.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, count=count, interval=interval)
    light = " ".join(f"--{role}: {colour};" for role, (colour, _) in palette.ROLES.items())
    dark = " ".join(f"--{role}: {colour};" for role, (_, colour) in palette.ROLES.items())
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    shared = {"style": Markup(style), "light": Markup(light), "dark": Markup(dark)}
    return environment.get_template(template.name).render(**shared, **context)


def number(value: float | None, digits: int = 3) -> str:
    """Return a number with so many decimals, or a dash if there is none."""
    return _MISSING if value is None else f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number that always carries its sign."""
    return _MISSING if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def count(value: int | None) -> str:
    """Return a whole number with thin spaces between thousands."""
    return _MISSING if value is None else f"{value:,}".replace(",", "\u202f")


def interval(ends: Sequence[float] | None, digits: int = 3, scale: float = 1) -> str:
    """Return the two ends of an interval, multiplied by ``scale``; nothing if there is none."""
    if ends is None:
        return ""
    return " to ".join(number(scale * end, digits) for end in ends)
