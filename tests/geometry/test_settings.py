from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

from c3tools import geometry
from tests.golden import recorded


def test_thresholds_sample_sizes_and_defaults_are_the_published_ones() -> None:
    """docs/reference/geometry.md and the docstrings name them; one that changes gives all users other results."""
    found: dict[str, Any] = {}
    for module in walk_packages(geometry.__path__, "c3tools.geometry."):
        place = module.name.removeprefix("c3tools.geometry.")
        for name, value in sorted(vars(import_module(module.name)).items()):
            if (
                name.isupper()
                and isinstance(value, int | float | tuple | dict)
                and name not in ("PRESETS", "UNREADABLE")
            ):
                found[f"{place}.{name}"] = value
            elif inspect.isfunction(value) and value.__module__ == module.name:
                defaults = {key: own.default for key, own in inspect.signature(value).parameters.items()}
                numbers = {key: own for key, own in defaults.items() if isinstance(own, int | float)}
                found |= {f"{place}.{name}": numbers} if numbers else {}
    recorded(Path(__file__).parent / "golden" / "settings.json", found)
