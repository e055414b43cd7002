"""Recipes: pipelines on disk, and pipelines that users write by hand.

A saved pipeline is a folder with two files. ``transform.json`` holds the steps, their settings, the provenance
and two checksums (of the tensors, and of itself); ``transform.safetensors`` holds the fitted tensors in the
dtype they are used in, so that a loaded pipeline gives the same bits. The json is written last: a folder
without it holds no pipeline.
"""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import MissingExtraError, TransformError
from .pipeline import STEPS, Pipeline
from .steps import Step

JSON_NAME = "transform.json"
TENSORS_NAME = "transform.safetensors"
_FORMAT = "c3tools.transform"
_VERSION = 1


def save_pipeline(pipeline: Pipeline, directory: Path) -> Path:
    """Write a fitted pipeline to ``directory``, both files atomically; returns the directory.

    Raises:
        TransformError: if the pipeline is not fitted.
    """
    record, payload = pipeline_record(pipeline)
    directory.mkdir(parents=True, exist_ok=True)
    _write_atomically(directory / TENSORS_NAME, payload)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    _write_atomically(directory / JSON_NAME, text.encode())
    return directory


def pipeline_record(pipeline: Pipeline) -> tuple[dict[str, Any], bytes]:
    """The content of both files of a fitted pipeline.

    Raises:
        TransformError: if the pipeline is not fitted.
    """
    if not pipeline.fitted:
        raise TransformError(
            f"The pipeline {pipeline.name!r} is not fitted, so there is nothing to save.",
            remedy="Call fit(moments) first; unfitted pipelines are written by hand, as YAML or JSON.",
        )
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    for position, step in enumerate(pipeline.steps):
        for key, value in step.state.items():
            tensors[f"{position}/{key}"] = np.ascontiguousarray(value).reshape(value.shape)
    payload = save_tensors(tensors)
    record: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        **pipeline.config(),
        "dim": pipeline.dim,
        "provenance": pipeline.provenance,
        "tensors": {"file": TENSORS_NAME, "sha256": hashlib.sha256(payload).hexdigest()},
    }
    # what a reader of the JSON will see: tuples are lists there
    record = json.loads(json.dumps(record))
    record["checksum"] = _checksum(record)
    return record, payload


def load_pipeline(directory: Path) -> Pipeline:
    """Read a fitted pipeline from ``directory``, or from the path of its ``transform.json``.

    Raises:
        TransformError: if a file is missing, damaged, changed by hand, or of a newer version.
    """
    directory = directory.parent if directory.name == JSON_NAME else directory
    path = directory / JSON_NAME
    record = _read_record(path)
    payload = _read_tensors(directory / TENSORS_NAME, record)
    pipeline = pipeline_from_config({key: record[key] for key in ("name", "strict", "steps")})
    pipeline.dim = record["dim"]
    pipeline.provenance = record["provenance"]
    for key, value in payload.items():
        position, _, name = key.partition("/")
        if not (position.isdecimal() and int(position) < len(pipeline.steps) and value.dtype.kind == "f"):
            raise _damaged(path, f"it has a tensor {key!r} that belongs to no step")
        if value.ndim and value.shape[-1] != pipeline.dim:
            raise _damaged(path, f"the tensor {key!r} has shape {value.shape}, the pipeline {pipeline.dim} dimensions")
        pipeline.steps[int(position)].state[name] = value
    if not pipeline.fitted:
        raise _damaged(path, "the tensors of a step are missing")
    return pipeline


def pipeline_from_config(source: str | Path | Mapping[str, Any]) -> Pipeline:
    """An unfitted pipeline from a mapping or a file; see `Pipeline.from_config`."""
    config = source if isinstance(source, Mapping) else _read_config(Path(source))
    place = "the pipeline" if isinstance(source, Mapping) else str(source)
    listed = config.get("steps")
    if not isinstance(listed, list):
        raise TransformError(
            f"{place} has no list of steps.", remedy="Write steps: [{step: normalize}, {step: collapse}, ...]."
        )
    unknown = sorted(map(str, set(config) - {"name", "strict", "steps"}))
    if unknown:
        raise TransformError(f"{place} has the unknown keys {', '.join(unknown)}.")
    name = config.get("name", "custom")
    if not isinstance(name, str):
        raise TransformError(f"{place} has the name {reprlib.repr(name)}, which is no text.")
    return Pipeline(
        [_step(entry, place) for entry in listed],
        name=name,
        strict=bool(config.get("strict", True)),
    )


def _step(entry: object, place: str) -> Step:
    settings = {"step": entry} if isinstance(entry, str) else entry
    name = settings.get("step") if isinstance(settings, Mapping) else None
    if not isinstance(settings, Mapping) or not isinstance(name, str) or name not in STEPS:
        # shortened: a few lines of YAML can stand for billions of entries
        raise TransformError(
            f"{place} has an unknown step {reprlib.repr(entry)}.", remedy=f"Steps: {', '.join(STEPS)}."
        )
    kind = STEPS[name]
    known = {f.name: f.type for f in fields(kind)}
    given = {key: value for key, value in settings.items() if key != "step"}
    unknown = sorted(map(str, set(given) - set(known)))
    if unknown:
        raise TransformError(
            f"{place} gives the step {kind.kind} the unknown settings {', '.join(unknown)}.",
            remedy=f"It has {', '.join(known)}.",
        )
    for key, value in given.items():
        _check_type(value, str(known[key]), f"{place}: {kind.kind}.{key}")
    if isinstance(given.get("modalities"), list):
        given["modalities"] = tuple(given["modalities"])
    return kind(**given)


def _check_type(value: object, annotation: str, place: str) -> None:
    if value is None:
        fine = "None" in annotation
    elif annotation.startswith("float"):
        fine = isinstance(value, (int, float)) and not isinstance(value, bool)
    elif annotation.startswith("int"):
        fine = isinstance(value, int) and not isinstance(value, bool)
    elif annotation.startswith("tuple"):
        fine = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
    else:
        fine = isinstance(value, str)
    if not fine:
        raise TransformError(f"{place} is {reprlib.repr(value)}, not {annotation}.")


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TransformError(f"{path} cannot be read as a pipeline ({error}).") from error
    if path.suffix.lower() in (".yaml", ".yml"):
        try:
            import yaml
        except ImportError:
            raise MissingExtraError("pyyaml", extra="yaml", purpose="Reading a pipeline from YAML") from None
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise TransformError(f"{path} is not valid YAML ({error}).") from error
    else:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise TransformError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(value, dict):
        raise TransformError(f"{path} holds no mapping.", remedy="Write steps: [{step: normalize}, ...].")
    return value


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TransformError(
            f"There is no saved pipeline at {path.parent} ({path.name} is missing).",
            remedy="Save one with Pipeline.save(folder), or with `c3 export`.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise _damaged(path, f'it does not say "format": "{_FORMAT}"')
    if record.get("version") != _VERSION:
        raise TransformError(
            f"{path} has the format version {record.get('version')}; this c3tools reads version {_VERSION}.",
            remedy="Upgrade c3tools.",
        )
    if record.get("checksum") != _checksum(record):
        raise _damaged(path, "its checksum does not match its content")
    sensible = {
        "name": isinstance(record.get("name"), str),
        "strict": isinstance(record.get("strict"), bool),
        "steps": isinstance(record.get("steps"), list),
        "dim": record.get("dim", 0) is None or (type(record.get("dim")) is int and record["dim"] > 0),
        "provenance": isinstance(record.get("provenance"), dict),
        "tensors": isinstance(record.get("tensors"), dict) and isinstance(record["tensors"].get("sha256"), str),
    }
    wrong = [name for name, fine in sensible.items() if not fine]
    if wrong:
        raise _damaged(path, f"{wrong[0]} makes no sense")
    return record


def _read_tensors(path: Path, record: Mapping[str, Any]) -> dict[str, npt.NDArray[np.generic]]:
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise _damaged(path, str(error)) from error
    if hashlib.sha256(payload).hexdigest() != record["tensors"]["sha256"]:
        raise _damaged(path, "its checksum does not match the one in the recipe")
    try:
        tensors: dict[str, npt.NDArray[np.generic]] = load_tensors(payload)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    return tensors


def _checksum(record: Mapping[str, Any]) -> str:
    body = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(
        json.dumps(body, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


def _damaged(path: Path, why: str) -> TransformError:
    return TransformError(
        f"{path} is not an intact saved pipeline: {why}.",
        remedy="Save the pipeline again; recipes are not edited by hand, pipelines in YAML or JSON are.",
    )


def _write_atomically(path: Path, payload: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
