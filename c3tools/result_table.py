"""Tables of results, which the terminal, HTML pages and notebooks show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Table:
    """A table of text cells, the first of each row being its name.

    Attributes:
        columns: the headings.
        rows: cells, as many as there are columns. A cell ``yes``, ``partly``, ``no`` or ``unknown``
            is a verdict and gets its colour.
        title: above the table; empty for none.
        left: headings of the columns that contain words, aligned left like the first one; the
            others hold numbers.
        note: what a reader of a page should know about the numbers.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    left: Sequence[str] = ()
    note: str = ""

    def _repr_html_(self) -> str:
        """Return the table as HTML without a page around it, as a notebook shows it; all text is
        escaped.
        """
        head = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
            for row in self.rows
        )
        return f"<table><caption>{escape(self.title)}</caption><tr>{head}</tr>{body}</table>"
