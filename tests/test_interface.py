"""The public interface: names and defaults, which change on purpose only.

C3_RECORD=1 pytest tests/test_interface.py    # writes interface.txt anew
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path
from typing import Any

import c3tools

RECORD = Path(__file__).with_name("interface.txt")


def described(name: str, value: Any) -> str:
    """Return a line with the parameters of a function, or of a class, and their defaults."""
    plain = inspect.isclass(value) and issubclass(value, (dict, Exception))
    parameters = () if plain else inspect.signature(value).parameters.values()
    return f"{name}({', '.join(str(each.replace(annotation=inspect.Parameter.empty)) for each in parameters)})\n"


def test_names_and_defaults_are_those_on_record() -> None:
    said = ""
    values = {name: getattr(c3tools, name) for name in c3tools.__all__ if name != "__version__"}
    for name, value in values.items():
        said += described(name, value)
        if inspect.isclass(value):
            own = {key: getattr(value, key) for key in sorted(vars(value)) if not key.startswith("_")}
            said += "".join(described(f"{name}.{key}", method) for key, method in own.items() if callable(method))
    said = re.sub(r"<c3tools\.(\S+) object at \w+>", r"\1()", said)
    if os.environ.get("C3_RECORD"):
        RECORD.write_text(said, encoding="utf-8")
    assert said == RECORD.read_text(encoding="utf-8")
