"""Choices and ranges of options, which public functions check."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import c3tools
from c3tools.choices import (
    EXCLUSIONS,
    ExecutorName,
    Fraction,
    NumberFormat,
    PositiveInt,
    Range,
    checked,
    declared_type,
)
from c3tools.errors import InvalidOptionError, StoreError, UnusedOptionError
from c3tools.executors import Executor


def wrong_values(declared: Any) -> list[Any]:
    """Return values that are just outside of a range, or a word that is no choice."""
    numbers = get_args(declared)[-1]
    if not isinstance(numbers, Range):
        return ["nonsense"]
    return [numbers.least - 1] if numbers.most is None else [numbers.least - 1, numbers.most + 1]


def public_functions() -> Iterator[tuple[str, Any]]:
    """Yield public functions, and public methods of public classes, by name."""
    for name in {*c3tools.__all__} - {"__version__"}:
        value = getattr(c3tools, name)
        if inspect.isfunction(value):
            yield name, value
        for key, method in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(method) and not key.startswith("_"):
                yield f"{name}.{key}", method


@checked
def options_of(
    text: str = "",
    *,
    count: PositiveInt = 1,
    share: Fraction | None = None,
    dtype: NumberFormat = "float16",
    executor: ExecutorName | Executor = "local",
) -> list[Any]:
    return [text, count, share, dtype, executor]


def test_values_that_are_allowed() -> None:
    executor = Executor([], 1)
    assert options_of("x", count=3, share=None, executor="ray") == ["x", 3, None, "float16", "ray"]
    assert options_of(executor=executor)[-1] is executor
    assert options_of(dtype="float32", share=1) == ["", 1, 1.0, "float32", "local"]
    converted = options_of(count=np.int64(3), share=np.float32(0.5))  # type: ignore[arg-type]
    assert converted[1:3] == [3, 0.5] and [type(x) for x in converted[1:3]] == [int, float]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("count", 0, "count must be at least 1, not 0."),
        ("count", np.int64(-2), "count must be at least 1, not {value!r}."),
        ("count", 2.5, "count must be a whole number, not 2.5."),
        ("count", "3", "count must be a whole number, not '3'."),
        ("count", None, "count must be a whole number, not None."),
        ("share", 1.5, "share must be between 0 and 1, not 1.5."),
        ("share", math.nan, "share must be a finite number, not nan."),
        ("share", "all", "share must be a finite number, not 'all'."),
        ("dtype", "float64", "dtype must be float16 or float32, not 'float64'."),
        ("dtype", np.float16, "dtype must be float16 or float32, not {value!r}."),
        ("dtype", None, "dtype must be float16 or float32, not None."),
        ("executor", "dask", "executor must be local or ray, not 'dask'."),
        ("executor", None, "executor must be local or ray, not None."),
    ],
)
def test_values_that_are_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(InvalidOptionError) as error:
        options_of(**{name: value})
    assert str(error.value) == said.replace("{value!r}", repr(value))


@pytest.mark.parametrize(("name", "function"), sorted(public_functions()))
def test_public_functions_check_what_their_signatures_say(name: str, function: Any) -> None:
    for parameter in inspect.signature(function).parameters.values():
        if declared := declared_type(str(parameter.annotation)):
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            with pytest.raises(InvalidOptionError, match=f"^{parameter.name} must be "):
                function(**{parameter.name: wrong_values(declared)[0]})


def excluded_options() -> Iterator[tuple[str, str, str]]:
    """Yield options that have no effect with another: public function, name, and the other."""
    for verb, exclusions in EXCLUSIONS.items():
        for name, others in exclusions.items():
            for other in others:
                yield verb, name, other


CHOSEN: dict[str, Any] = {
    "fractions": "0.6,0.2,0.2",
    "monitor": "cross-modal",
    "other": "audio=audio.npy",
    "size": "tiny",
    "steer": "magic",
    "train_fraction": 0.5,
    "without": ["image"],
}


@pytest.mark.parametrize(("verb", "name", "other"), list(excluded_options()))
def test_options_that_have_no_effect_with_others_are_refused(
    verb: str, name: str, other: str
) -> None:
    function = getattr(c3tools, verb)
    options = {each: CHOSEN.get(each, 1) for each in (name, other)}
    with pytest.raises(UnusedOptionError, match=rf"^{name} has no effect with {other}\.$"):
        function(**options)


def test_defaults_and_empty_lists_exclude_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no-store"):
        c3tools.split_store(tmp_path / "no-store", output=tmp_path, seed=0, file="splits.csv")
    with pytest.raises(StoreError, match="no-store"):
        c3tools.read_features(store=tmp_path / "no-store", image=None, other={})
    with pytest.raises(StoreError, match="no-vectors"):
        c3tools.caption_images([], embeddings=tmp_path / "no-vectors.npy")
    with pytest.raises(UnusedOptionError, match=r"^paths has no effect with embeddings\.$"):
        c3tools.caption_images("photo.jpg", embeddings=tmp_path / "no-vectors.npy")
