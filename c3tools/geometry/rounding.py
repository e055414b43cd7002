"""The numbers of reports, as their JSON has them."""

from __future__ import annotations

from math import isfinite
from typing import Any


def rounded(value: Any) -> Any:
    """Return a JSON value whose numbers have 9 significant digits, in lists and objects too.

    The last bits of a number, which differ between machines, then do not show. NaN and infinity,
    which JSON does not have, become None.
    """
    if isinstance(value, float):
        return float(f"{value:.9g}") if isfinite(value) else None
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    return value
