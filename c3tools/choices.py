"""Types of options with a fixed set of values or a range of numbers. `c3 COMMAND --help` shows
them, and other values are rejected. So are options that have no effect with others.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin

from .errors import InvalidOptionError, UnusedOptionError

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
"""Of computations; auto is bf16 if the hardware computes in it, otherwise fp32."""

EncoderPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""Of encoders, which can also run in int8 on a CPU."""

ExecutorName = Literal["local", "ray"]
"""The place where work runs: this machine, or a Ray cluster."""

ExportFormat = Literal["parquet", "npy", "safetensors", "hf"]
"""Of exported files; hf is a folder for datasets."""

ExportMetric = Literal["ip", "l2"]
"""Of searches among the rows of an export: the inner product, or L2 and cosine as well."""

ExportRole = Literal["auto", "training", "inference"]
"""The rows of an export that are training inputs."""

DecoderSize = Literal["tiny", "small", "base", "paper"]
"""Of decoders; paper is GPT-2."""

GeneratorSize = Literal["tiny", "small", "base"]
"""Of image generators."""

Monitor = Literal["text", "cross-modal"]
"""The validation loss that chooses the best epoch of a decoder."""

Steer = Literal["magic", "zerocap"]
"""How an encoder steers a decoder."""

TowerMode = Literal["lit", "full"]
"""The towers to train: the text tower, or both."""

MarkSplits = Literal["train", "all"]
"""The splits whose rows are marked for c3 leave-out."""

HitKind = Literal["item", "row"]
"""The kind of hit of a search: an item with its rows, or a row."""

# by public function and option: the options that leave it without effect
EXCLUSIONS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "build_index": {"preset": ("pipeline",)},
    "caption_images": dict.fromkeys(
        ("paths", "txt", "xmp", "html", "model", "random_init", "follow_symlinks"), ("embeddings",)
    ),
    "cluster": dict.fromkeys(("k", "split", "modalities", "seed", "overwrite"), ("assign",)),
    "evaluate_captions": {
        **dict.fromkeys(("decoder", "pipeline", "split", "limit", "without"), ("captions",)),
        **dict.fromkeys(("beams", "length_penalty", "top_p", "steer"), ("captions",)),
    },
    "export_store": dict.fromkeys(("preset", "sigma"), ("pipeline",)),
    "import_embeddings": dict.fromkeys(("text_meta", "image_key_column"), ("ids",)),
    "read_features": dict.fromkeys(
        ("store", "second_store", "modalities"), ("image", "text", "other")
    ),
    "split_store": dict.fromkeys(("fractions", "seed"), ("file",)),
    # ESPER has its own settings, and a language model reads no embedding
    "train_captioner": {
        **dict.fromkeys(("pipeline", "sigma", "pairs"), ("esper", "unconditional")),
        **dict.fromkeys(("unconditional", "set", "patience", "train_fraction"), ("esper",)),
        "preset": ("esper", "unconditional", "pipeline"),
        "pseudo_pairs": ("esper", "unconditional", "pairs"),
        "monitor": ("esper", "unconditional", "pseudo_pairs"),
        "start": ("unconditional",),
        "size": ("start",),
    },
}


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
    """Make a function refuse keyword arguments that the types of this module exclude, and options
    that have no effect with others.

    Numbers of numpy become those of Python. An option with its default is as if it were left out.

    Raises:
        InvalidOptionError: when the function is called, before it does anything.
        UnusedOptionError: likewise.
    """
    annotations = inspect.get_annotations(verb)
    parameters = inspect.signature(verb).parameters
    exclusions = EXCLUSIONS.get(verb.__name__, {})

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

        # Options that have no effect with others
        values = {**dict(zip(parameters, args, strict=False)), **options}
        for name, others in exclusions.items():
            for other in others:
                if _is_given(name, values, parameters) and _is_given(other, values, parameters):
                    raise UnusedOptionError(name, f"with {other}")
        return verb(*args, **options)

    return call


def _is_given(
    name: str, values: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]
) -> bool:
    """Return whether an option has another value than its default; a collection without elements
    is as good as none.
    """
    default = parameters[name].default
    value = values.get(name, default)
    if isinstance(value, list | tuple | set | dict):
        return len(value) > 0
    return value is not None if default is None else bool(value != default)
