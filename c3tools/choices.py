"""Types of options: those that have a few values, and ranges of numbers. `c3 COMMAND --help` shows
both, and other values are refused.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin

from .errors import InvalidOptionError

_Options = ParamSpec("_Options")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Range:
    """The numbers that an option may be, with their bounds.

    Attributes:
        least: the smallest.
        most: the largest; None if there is none.
    """

    least: int
    most: int | None = None

    def __contains__(self, value: float) -> bool:
        return self.least <= value and (self.most is None or value <= self.most)

    def __str__(self) -> str:
        if self.most is None:
            return f"at least {self.least}"
        return f"between {self.least} and {self.most}"


PositiveInt = Annotated[int, Range(1)]

NonNegativeInt = Annotated[int, Range(0)]

AtLeastTwo = Annotated[int, Range(2)]

AtLeastThree = Annotated[int, Range(3)]

NonNegativeFloat = Annotated[float, Range(0)]

Fraction = Annotated[float, Range(0, 1)]
"""Of rows, or a cosine."""

NumberFormat = Literal["float16", "float32"]
"""Of embeddings on disk."""

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of computations; auto is bf16 where the hardware computes in it, else fp32."""

EncoderPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""Of encoders, which can also run in int8 on a CPU."""

ExecutorName = Literal["local", "ray"]
"""Where work runs: on this machine, or on a Ray cluster."""

ExportFormat = Literal["parquet", "npy", "safetensors", "hf", "clip-retrieval"]
"""Of exported files; hf is a folder for datasets, clip-retrieval one for that program."""

ExportMetric = Literal["ip", "l2"]
"""Of searches among the rows of an export: the inner product, or L2 and cosine as well."""

ExportRole = Literal["auto", "training", "inference"]
"""Which rows of an export are training inputs."""

LongTexts = Literal["cut", "chunk", "mean"]
"""What is done with texts that are longer than the model reads."""

DecoderSize = Literal["tiny", "small", "base", "paper"]
"""Of decoders; paper is GPT-2."""

GeneratorSize = Literal["tiny", "small", "base"]
"""Of image generators."""

Monitor = Literal["text", "cross-modal"]
"""The validation loss that chooses the best epoch of a decoder."""

Steer = Literal["magic", "zerocap"]
"""How an encoder steers a decoder."""

TowerMode = Literal["lit", "full"]
"""Which towers are trained: that of texts, or both."""

HitKind = Literal["item", "row"]
"""What a hit of a search is: an item with its rows, or a row."""


def declared_type(annotation: str) -> Any:
    """Return the type of this module that an annotation names, or None.

    Args:
        annotation: of a parameter, as its source says.
    """
    for word in re.findall(r"\w+", annotation):
        declared = globals().get(word)
        if get_args(declared):
            return declared
    return None


def checked(verb: Callable[_Options, _Result]) -> Callable[_Options, _Result]:
    """Make a function refuse keyword arguments that the types of this module exclude.

    Numbers of numpy become those of Python.

    Raises:
        InvalidOptionError: when the function is called, before it does anything.
    """
    annotations = inspect.get_annotations(verb)

    @wraps(verb)
    def call(*args: _Options.args, **options: _Options.kwargs) -> _Result:
        for name, value in options.items():
            annotation = annotations.get(name, "")
            declared = declared_type(annotation)
            alternatives = annotation.split(" | ")
            if declared is None or (value is None and "None" in alternatives):
                continue

            # Words; an executor may be an object too
            if get_origin(declared) is Literal:
                is_executor = "Executor" in alternatives and not isinstance(value, str | None)
                if not (is_executor or (isinstance(value, str) and value in get_args(declared))):
                    raise InvalidOptionError(name, " or ".join(get_args(declared)), value)
                continue

            # Numbers
            kind, numbers = get_args(declared)
            if kind is int and not isinstance(value, Integral):
                raise InvalidOptionError(name, "a whole number", value)
            if kind is float and not (isinstance(value, Real) and math.isfinite(value)):
                raise InvalidOptionError(name, "a finite number", value)
            if value not in numbers:
                raise InvalidOptionError(name, str(numbers), value)
            options[name] = kind(value)
        return verb(*args, **options)

    return call
