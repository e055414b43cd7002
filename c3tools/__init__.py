"""Connect, Collapse, Corrupt: cross-modal tasks from uni-modal data.

The public names are those that `__init__.pyi` imports. They are imported lazily: `import c3tools`
loads neither torch nor pyarrow.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

from .errors import explain_missing

_HOMES = {
    alias.name: node.module
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__version__ = "0.1.0"
__all__ = sorted(["__version__", *_HOMES])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with explain_missing(f"c3tools.{name}"):
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
