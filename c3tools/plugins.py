"""Classes that other packages add to c3tools: encoders, pipeline steps and caption metrics.

A package names its class as an entry point:

    [project.entry-points."c3tools.steps"]
    NAME = "package.module:Class"

The groups are ``c3tools.encoders`` (`c3tools.encoders.plugins` says what such a class has to do),
``c3tools.steps`` (a dataclass that is a `Step`, whose ``kind`` is NAME) and ``c3tools.metrics`` (a
`CaptionMetric`). What c3tools has itself cannot be replaced.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from .errors import C3Error, reason_of

_Base = TypeVar("_Base")


def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name."""
    return {entry.name: entry for entry in entry_points(group=group)}


def load_plugin(entry: EntryPoint, base: type[_Base]) -> type[_Base]:
    """Import the class of an entry point.

    Raises:
        C3Error: if it cannot be imported, or is no subclass of ``base``.
    """
    package = entry.dist.name if entry.dist else entry.value
    try:
        loaded = entry.load()
    except Exception as error:
        raise C3Error(
            f"The package {package} adds {entry.name} to {entry.group}, but {entry.value} cannot "
            f"be imported: {reason_of(error)}.",
            remedy=f"Update {package}, or uninstall it.",
        ) from error
    if not isinstance(loaded, type) or not issubclass(loaded, base):
        raise C3Error(
            f"The package {package} adds {entry.name} to {entry.group}, but {entry.value} is not a "
            f"subclass of {base.__module__}.{base.__name__}.",
            remedy=f"Report this to the maintainer of {package}, or uninstall it.",
        )
    return loaded
