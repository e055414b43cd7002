"""Results that stand in a file, and are made anew by one command."""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

STYLE = (
    "label color facecolor edgecolor linewidth marker markersize alpha zorder sizes text "
    "position ha"
).split()
# made anew by ``C3_RECORD=1 pytest tests/cli/test_app.py``
INTERFACE = Path(__file__).parent / "cli" / "interface.txt"


def recorded(file: Path, value: Any, rel: float = 1e-5) -> None:
    """Compare a JSON value with a file, floats within ``rel``; with ``C3_RECORD=1`` it is written
    there first, but for floats that have not changed by more.

    Read the difference in review: a result has changed for all users.
    """
    if os.environ.get("C3_RECORD"):
        file.parent.mkdir(exist_ok=True)
        if file.exists():
            value = _without_noise(value, json.loads(file.read_text(encoding="utf-8")), rel)
        file.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found, golden = _flat(value), _flat(json.loads(file.read_text(encoding="utf-8")))
    differing = sorted(found.keys() ^ golden.keys())
    assert not differing, f"{file} lacks or has more than {differing}; C3_RECORD=1 writes it anew"
    for path, before in golden.items():
        assert _is_close(found[path], before, rel) or found[path] == before, path


def drawn(figure: Figure) -> list[Any]:
    """What a figure shows, as JSON: its size, its axes, and of everything in them the style and a
    sum of the points."""
    found: list[Any] = [figure.get_size_inches().tolist()]
    for axes in figure.axes:
        ticks = [
            axis.get_major_formatter().format_ticks([*axis.get_ticklocs()])
            for axis in (axes.xaxis, axes.yaxis)
        ]
        legend = axes.get_legend()
        words = (
            axes.get_title("left"),
            axes.get_xlabel(),
            axes.get_ylabel(),
            axes.get_yscale(),
            str(axes.get_aspect()),
        )
        found += [
            words,
            [*axes.get_xlim(), *axes.get_ylim()],
            ticks,
            [text.get_text() for text in legend.get_texts()] if legend else None,
        ]
        for artist in (*axes.lines, *axes.patches, *axes.collections, *axes.texts):
            style = [
                str(getattr(artist, f"get_{name}")())
                for name in STYLE
                if hasattr(artist, f"get_{name}")
            ]
            paths = (
                [artist.get_path()]
                if hasattr(artist, "get_path")
                else getattr(artist, "get_paths", list)()
            )
            shifts = [np.asarray(artist.get_offsets())] if hasattr(artist, "get_offsets") else []
            shifts += [np.array([artist.xy])] if isinstance(artist, Annotation) else []
            points = np.nan_to_num(
                np.concatenate([np.zeros((1, 2)), *(path.vertices for path in paths), *shifts])
            )
            found.append({"style": " ".join(style), "sum": [*(np.arange(len(points)) @ points)]})
    return found


def described(name: str, value: Any) -> str:
    """Return a line with the parameters of a function, or of a class, and their defaults."""
    plain = inspect.isclass(value) and issubclass(value, (dict, Exception))
    parameters = () if plain else inspect.signature(value).parameters.values()
    unannotated = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    said = f"{name}({', '.join(map(str, unannotated))})\n"
    return re.sub(r"<c3tools\.(\S+) object at \w+>", r"\1()", said)


def assert_interface(*functions: Callable[..., Any]) -> None:
    """The names and defaults of public functions are those on record."""
    for function in functions:
        assert described(function.__name__, function) in INTERFACE.read_text(encoding="utf-8")


def _is_close(value: Any, before: Any, rel: float) -> bool:
    return isinstance(before, float) and value == pytest.approx(before, rel=rel, abs=1e-7)


def _without_noise(value: Any, before: Any, rel: float) -> Any:
    """Return a JSON value with the floats of the one before where they are the same within
    ``rel``."""
    if isinstance(value, dict) and isinstance(before, dict):
        return {name: _without_noise(part, before.get(name), rel) for name, part in value.items()}
    if isinstance(value, list | tuple) and isinstance(before, list):
        return [_without_noise(*parts, rel) for parts in zip_longest(value, before[: len(value)])]
    return before if _is_close(value, before, rel) else value


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            key: leaf for name, item in items for key, leaf in _flat(item, f"{path}.{name}").items()
        }
    return {path: value}
