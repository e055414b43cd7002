"""Filling page templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from . import palette

_TEMPLATES = Path(__file__).parent / "templates"
_MISSING = "–"


def render_page(template: Path, **context: Any) -> str:
    """Fill a template with values, all text escaped.

    Args:
        template: a file that extends ``base.html``.
        context: what it shows.

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
    environment.filters.update(number=number, percent=percent, count=count, signed=signed)
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    return environment.get_template(template.name).render(
        style=Markup(style),
        light=Markup(palette.css_variables(dark=False)),
        dark=Markup(palette.css_variables(dark=True)),
        **context,
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number with so many decimals, or a dash where there is none."""
    return _MISSING if value is None else f"{value:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 2) -> str:
    """A number that always carries its sign."""
    return _MISSING if value is None else f"{value:+,.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as a percentage."""
    return _MISSING if value is None else f"{100 * value:.{digits}f} %".replace("-", "−")


def count(value: int | None) -> str:
    """A whole number with thin separators between thousands."""
    return _MISSING if value is None else f"{value:,}".replace(",", "\u202f")
