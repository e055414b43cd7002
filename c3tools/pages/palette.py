"""The colours of figures and pages, for light and for dark.

Figures are drawn in the light colours; inline in a page each becomes the CSS variable of its role,
so that one SVG serves both. The hues stay apart for colour-blind readers (blue, vermilion, green,
purple of Okabe and Ito, darkened for contrast on white).
"""

from __future__ import annotations

PAPER = "#fffffe"
INK = "#1c1e24"
MUTED = "#666b78"
RULE = "#d9dbe3"
FIRST = "#2364aa"
SECOND = "#c4501b"
THIRD = "#1b7f5c"
FOURTH = "#8e4a9e"
FIRST_SOFT = "#c3d7ee"
SECOND_SOFT = "#f3cfbd"
THIRD_SOFT = "#bfe2d5"

ROLES = {
    "paper": (PAPER, "#16181d"),
    "ink": (INK, "#e8e9ee"),
    "muted": (MUTED, "#9aa0ae"),
    "rule": (RULE, "#343843"),
    "first": (FIRST, "#74b0f4"),
    "second": (SECOND, "#f5935f"),
    "third": (THIRD, "#5fc9a0"),
    "fourth": (FOURTH, "#cf94de"),
    "first-soft": (FIRST_SOFT, "#27456a"),
    "second-soft": (SECOND_SOFT, "#6b3a22"),
    "third-soft": (THIRD_SOFT, "#1f5844"),
}
"""Role → (light, dark); the role names the CSS variable, without the leading dashes."""

SERIES = (FIRST, SECOND, THIRD, FOURTH, MUTED)
"""Colours for series, in order; the first two are the two modalities wherever there are two."""
