"""Recipes: pipelines on disk, and pipelines that users write by hand, as plain data.

A saved pipeline is a folder with two files. ``transform.json`` contains the steps, their settings, the provenance and
two checksums (of the tensors, and of itself); ``transform.safetensors`` contains the fitted tensors in the dtype they
are used in, so that a loaded pipeline gives the same bits. The json is written last: a folder without it contains no
pipeline. `Pipeline` builds itself from what is read here.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import MissingExtraError, TransformError
from ..io.files import read_limited, write_atomically
from . import memory, steps
from .steps import Step

JSON_NAME = "transform.json"
TENSORS_NAME = "transform.safetensors"

STEPS: Mapping[str, type[Step]] = {
    step.kind: step
    for module in (steps, memory)
    for step in vars(module).values()
    if isinstance(step, type) and issubclass(step, Step) and step.kind
}


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """An unfitted pipeline, as users write it: each step is its kind, or ``{"step": kind, ...settings}``."""

    steps: list[Any]
    name: str = "custom"
    strict: bool = True


class Record(msgspec.Struct, kw_only=True):
    """The content of transform.json; ``tensors`` is the SHA-256 of the other file."""

    name: str
    strict: bool
    steps: list[dict[str, Any]]
    dim: Annotated[int, msgspec.Meta(gt=0)] | None
    provenance: dict[str, Any]
    tensors: str
    checksum: str


def make_recipe(
    config: Mapping[str, Any], steps: Sequence[Step], dim: int | None, provenance: Mapping[str, Any]
) -> tuple[dict[str, Any], bytes]:
    """Return the content of both files of a fitted pipeline: the JSON object, and the tensors as safetensors.

    Args:
        config: name, strict and the steps' settings, as `parse_config` takes them.
        steps: the fitted steps.
        dim: dimension of the embeddings; None if the pipeline takes any.
        provenance: where the statistics come from.
    """
    tensors = {
        f"{position}/{key}": np.ascontiguousarray(value).reshape(value.shape)
        for position, step in enumerate(steps)
        for key, value in step.state.items()
    }
    payload: bytes = save_tensors(tensors)
    content = {**config, "dim": dim, "provenance": provenance, "tensors": hashlib.sha256(payload).hexdigest()}
    record = json.loads(json.dumps(content))  # as a reader of the JSON sees it: tuples are lists there
    return {**record, "checksum": _checksum(record)}, payload


def write_recipe(directory: Path, record: Mapping[str, Any], payload: bytes) -> None:
    """Write the content that `make_recipe` returned to a folder or a URL, each file complete or not at all."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_atomically(directory / TENSORS_NAME, lambda path: path.write_bytes(payload))
    write_atomically(directory / JSON_NAME, lambda path: path.write_bytes(text.encode()))


def read_recipe(directory: Path) -> tuple[Record, list[Step]]:
    """Read a saved pipeline from a folder, or from the path of its ``transform.json``: the record and the fitted steps.

    Raises:
        TransformError: if a file is missing, damaged, or changed by hand.
    """
    directory = directory.parent if directory.name == JSON_NAME else directory
    path = directory / JSON_NAME
    try:
        content = read_limited(path)
        record = msgspec.json.decode(content, type=Record)
        if record.checksum != _checksum(json.loads(content)):
            raise ValueError("its checksum does not match its content")
        path = directory / TENSORS_NAME
        payload = path.read_bytes()
        if hashlib.sha256(payload).hexdigest() != record.tensors:
            raise ValueError("its checksum does not match the one in the recipe")
        fitted = [_step(entry, str(path)) for entry in record.steps]
        for key, value in load_tensors(payload).items():
            position, _, name = key.partition("/")
            fitted[int(position)].state[name] = value
            of_rows = name == "items"  # one hash for each row of a memory
            if value.dtype.kind != ("i" if of_rows else "f") or not (
                of_rows or value.ndim == 0 or value.shape[-1] == record.dim
            ):
                raise ValueError(f"its tensor {key} has shape {value.shape}, but the pipeline {record.dim} dimensions")
        for step in fitted:
            if not step.fitted:
                raise ValueError(f"tensors of the step {step.kind} are missing")
            if "items" in step.state and step.state["items"].shape != step.state["memory"].shape[:1]:
                raise ValueError(f"the step {step.kind} does not have an item for each row of its memory")
    except FileNotFoundError as error:
        raise TransformError(
            f"There is no saved pipeline at {directory} ({path.name} is missing).",
            remedy="Save one with Pipeline.save(folder), or with `c3 export`.",
        ) from error
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise TransformError(
            f"{path} is not a valid saved pipeline: {error}.",
            remedy="Save the pipeline again. To change steps by hand, write a pipeline in YAML or JSON instead.",
        ) from error
    return record, fitted


def parse_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return ``name``, ``strict`` and ``steps`` (unfitted) of a pipeline from a mapping, or from a YAML or JSON file.

    Raises:
        TransformError: if the file, a step or a setting is unknown.
        MissingExtraError: if the file is YAML and pyyaml is not installed.
    """
    place = "the pipeline" if isinstance(source, Mapping) else str(source)
    try:
        config = msgspec.convert(source if isinstance(source, Mapping) else _read_config(Path(source)), Config)
    except msgspec.ValidationError as error:
        raise TransformError(
            f"{place} cannot be read as a pipeline: {error}.",
            remedy="Write for example: steps: [{step: normalize}, {step: collapse}, ...].",
        ) from error
    return {
        "name": config.name,
        "strict": config.strict,
        "steps": [_step({"step": entry} if isinstance(entry, str) else entry, place) for entry in config.steps],
    }


def _step(entry: object, place: str) -> Step:
    name = entry.get("step") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(name, str) or name not in STEPS:
        # shortened: a few lines of YAML can stand for billions of entries
        raise TransformError(
            f"{place} has an unknown step {reprlib.repr(entry)}.", remedy=f"Steps: {', '.join(STEPS)}."
        )
    kind = STEPS[name]
    given = {key: value for key, value in entry.items() if key != "step"}
    known = [setting.name for setting in fields(kind)]
    unknown = sorted(map(str, given.keys() - {*known}))
    if unknown:
        raise TransformError(
            f"{place} has unknown settings for the step {name}: {', '.join(unknown)}.",
            remedy=f"Its settings are {', '.join(known)}.",
        )
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise TransformError(f"{place} has a wrong setting for the step {name}: {error}.") from error


def _read_config(path: Path) -> object:
    language, parse = "JSON", json.loads
    failures: tuple[type[Exception], ...] = (ValueError, RecursionError)
    try:
        text = read_limited(path).decode("utf-8")
        if path.suffix.lower() in (".yaml", ".yml"):
            import yaml

            language, parse, failures = "YAML", yaml.safe_load, (yaml.YAMLError, *failures)
    except ImportError:
        raise MissingExtraError("pyyaml", extra="yaml", purpose="Reading a pipeline from YAML") from None
    except (OSError, ValueError) as error:
        raise TransformError(f"{path} cannot be read as a pipeline ({error}).") from error
    try:
        return parse(text)
    except failures as error:
        raise TransformError(f"{path} is not valid {language} ({error}).") from error


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record without its ``checksum``."""
    body = {key: value for key, value in record.items() if key != "checksum"}
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
