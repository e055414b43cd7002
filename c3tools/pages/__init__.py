"""The pieces that every HTML page and figure of c3tools shares: one look, one base template, one
way to draw.

A page is one self-contained file: styles, figures and the script of a map are inline, nothing is
fetched. It follows the reader's light or dark setting, and prints. Text is escaped by the template
(autoescape), so captions and file names may hold anything.

Making a page::

    from c3tools.pages import figure_svg, new_figure, palette, render_page

    @styled
    def values_figure(values):
        figure, axes = new_figure(width=4.6, height=2.8)
        axes.hist(values, color=palette.FIRST)
        return figure

    html = render_page(
        Path(__file__).parent / "templates" / "mine.html",
        title="My page",
        chart=figure_svg(values_figure(values), name="values", label="Histogram of the values"),
    )

- ``@styled``: every function that draws is decorated with it; titles, labels and legends get the
  style only there.
- ``new_figure(width, height, rows=1, columns=1)``: a matplotlib figure in the shared style (no
  pyplot, no state).
- ``palette``: the colours to draw with; `figure_svg` turns each of them into a CSS variable of the
  page.
- ``figure_svg(figure, name=, label=)``: the figure as inline SVG (a `Markup` string); ``name`` must
  be unique in the page, ``label`` is what a screen reader says.
- ``save_figure(figure, path)``: the same figure as a PNG, SVG or PDF file of its own.
- ``render_page(template, **context)``: fill a template; it starts with ``{% extends "base.html"
  %}`` and fills the blocks ``title``, ``header``, ``content`` and ``footer``. Filters:
  ``number(digits)``, ``count``, ``interval(digits)``.
- ``Table``, ``Section``, ``FigureBlock``: a report as data, which pages, the terminal and notebooks
  show alike.
- Macros, by ``{% import "parts.html" as parts %}``: ``parts.figure(svg, caption)``,
  ``parts.table(table)``, ``parts.section(section)``.
- Classes of the style sheet: ``figures`` (a grid of figures), ``wide`` (a figure that scrolls
  rather than shrinks on a narrow screen), ``sheet`` (the hits of a search), ``note``, ``facts`` (a
  definition list), ``scroll`` (around a wide table), ``broad`` (a table that scrolls rather than
  folds on a narrow screen), ``num`` (a column of numbers), ``best``, ``muted``.
"""

from __future__ import annotations

from ..result_table import Table
from . import palette
from .figures import close_up, figure_svg, new_figure, save_figure, styled
from .render import FigureBlock, Section, render_page

__all__ = [
    "FigureBlock",
    "Section",
    "Table",
    "close_up",
    "figure_svg",
    "new_figure",
    "palette",
    "render_page",
    "save_figure",
    "styled",
]
