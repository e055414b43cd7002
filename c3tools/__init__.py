"""Connect, Collapse, Corrupt: cross-modal tasks from uni-modal data.

The public names are imported lazily: `import c3tools` loads neither torch nor pyarrow.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "C3Error": "errors",
    "Moments": "moments",
    "Pipeline": "transforms",
    "Store": "store",
    "preset": "transforms",
}

__version__ = "0.1.0"
__all__ = ["C3Error", "Moments", "Pipeline", "Store", "__version__", "preset"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
