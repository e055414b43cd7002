"""Named sizes of models, with settings that ``--set NAME=VALUE`` changes, and checks of such
settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from ..errors import C3Error

S = TypeVar("S", bound=Any)


def load_named_size(
    sizes: Mapping[str, S],
    name: str,
    overrides: Sequence[str],
    fixed: Sequence[str],
    *,
    error: type[C3Error],
) -> S:
    """Return a size by name, with some of its settings changed.

    Args:
        sizes: dataclasses by name; the field ``training`` of each contains the settings of its
            training.
        name: a key of ``sizes``.
        overrides: ``setting=value``, for fields of the size or of its training.
        fixed: fields that may not be changed.
        error: what is raised.

    Raises:
        C3Error: of the type ``error``, if there is no such setting, or a value is not of the
            setting's type or out of its range.
    """
    size = sizes[name]
    # Which of the two has a setting: the size, or its training
    owners: dict[str, Any] = {}
    for owner in (size.training, size):
        for field in fields(owner):
            if field.name not in (*fixed, "training"):
                owners[field.name] = owner

    size_changes: dict[str, Any] = {}
    training_changes: dict[str, Any] = {}
    for override in overrides:
        setting, equals, text = override.partition("=")
        if not equals or setting not in owners:
            raise error(
                f"The size {name!r} has no setting {override!r}.",
                remedy=f"Use --set NAME=VALUE with one of: {', '.join(sorted(owners))}.",
            )
        current = getattr(owners[setting], setting)
        try:
            value = _parsed_like(current, text)
        except (ValueError, KeyError):
            raise error(
                f"{setting} needs a value of type {type(current).__name__}, for example "
                f"{current}, not {text!r}."
            ) from None
        changes = size_changes if owners[setting] is size else training_changes
        changes[setting] = value

    # Change all at once, since one may be valid only with another
    training = replace(size.training, **training_changes)
    return replace(size, training=training, **size_changes)


def _parsed_like(current: Any, text: str) -> Any:
    """Return a value of the type of ``current`` from its text."""
    if isinstance(current, bool):
        return {"true": True, "false": False}[text.lower()]
    return type(current)(text)


def require_valid(
    settings: Any,
    *,
    positive: Sequence[str] = (),
    not_negative: Sequence[str] = (),
    fractions: Sequence[str] = (),
    shares: Sequence[str] = (),
    error: type[C3Error],
) -> None:
    """Refuse settings that are out of range, or no finite number.

    Args:
        settings: a dataclass; each float of it has to be finite.
        positive: fields that have to be above 0.
        not_negative: fields that have to be at least 0.
        fractions: fields that have to be at least 0 and below 1.
        shares: fields that have to be between 0 and 1.
        error: what is raised.

    Raises:
        C3Error: of the type ``error``, with the first of them.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in positive and not value > 0:
            raise error(f"{field.name} must be greater than 0, not {value}.")
        if field.name in not_negative and not value >= 0:
            raise error(f"{field.name} must be at least 0, not {value}.")
        if field.name in fractions and not 0 <= value < 1:
            raise error(f"{field.name} must be at least 0 and below 1, not {value}.")
        if field.name in shares and not 0 <= value <= 1:
            raise error(f"{field.name} must be between 0 and 1, not {value}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise error(f"{field.name} must be a finite number, not {value}.")
