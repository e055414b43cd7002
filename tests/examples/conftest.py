from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def script(path: str, package: str) -> Any:
    """A script of the examples, where the package that it needs is installed."""
    pytest.importorskip(package, reason=f"{package} is not installed", exc_type=ImportError)
    spec = importlib.util.spec_from_file_location(Path(path).stem, EXAMPLES / path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
