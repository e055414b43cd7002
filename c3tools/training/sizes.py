"""Named sizes of models, with settings that ``--set NAME=VALUE`` changes, and checks of such settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ..errors import C3Error

S = TypeVar("S", bound=Any)


def load_named_size(
    sizes: Mapping[str, S],
    name: str,
    overrides: Sequence[str],
    settings: Callable[[Any], list[str]],
    *,
    kind: str,
    error: type[C3Error],
) -> S:
    """Return a size by name, with some of its settings changed.

    Args:
        sizes: dataclasses by name; the field ``training`` of each contains the settings of its training.
        name: a key of ``sizes``.
        overrides: ``setting=value``, for fields of the size or of its training.
        settings: returns the names of the fields, of a size or of its training, that may be changed.
        kind: of the model, as messages call it.
        error: what is raised.

    Raises:
        C3Error: of the type ``error``, if there is no such size or setting, or a value is not of the setting's type.
    """
    if name not in sizes:
        raise error(f"There is no {kind} size {name!r}.", remedy=f"Choose from {', '.join(sizes)}.")
    chosen = sizes[name]
    for override in overrides:
        setting, equals, text = override.partition("=")
        part: Any = chosen if setting in settings(chosen) else chosen.training
        if not equals or setting not in settings(part):
            known = ", ".join(sorted({*settings(chosen), *settings(chosen.training)}))
            raise error(
                f"The size {name!r} has no setting {override!r}.", remedy=f"Use --set NAME=VALUE with one of: {known}."
            )
        changed = replace(part, **{setting: _parse(setting, text, getattr(part, setting), error)})
        chosen = changed if part is chosen else replace(chosen, training=changed)
    return chosen


def require_positive(settings: object, *names: str, error: type[C3Error]) -> None:
    """Refuse settings of which one of these is not above 0.

    Raises:
        C3Error: of the type ``error``, with the first of them.
    """
    for name in names:
        if not getattr(settings, name) > 0:
            raise error(f"{name} must be greater than 0, not {getattr(settings, name)}.")


def _parse(setting: str, text: str, current: object, error: type[C3Error]) -> Any:
    """Return ``text`` as the type of the setting's current value."""
    try:
        if isinstance(current, bool):
            return {"true": True, "false": False}[text.lower()]
        return type(current)(text)  # type: ignore[call-arg]
    except (ValueError, KeyError):
        raise error(
            f"{setting} needs a value of type {type(current).__name__}, for example {current}, not {text!r}."
        ) from None
