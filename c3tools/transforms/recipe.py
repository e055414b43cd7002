"""Recipes: pipelines on disk, and pipelines that users write by hand, as plain data.

A saved pipeline is a folder with two files. ``transform.json`` contains the steps, their settings, the provenance
and two checksums (of the tensors, and of itself); ``transform.safetensors`` contains the fitted tensors in the
dtype they are used in, so that a loaded pipeline gives the same bits. The json is written last: a folder
without it contains no pipeline. `Pipeline` builds itself from what is read here.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..errors import MissingExtraError, TransformError
from ..identity import ModelIdentity
from ..io.files import read_json, read_limited, write_atomically
from ..io.hub import Card
from . import mapping, memory, steps
from .sigma import RULES
from .steps import Step

JSON_NAME = "transform.json"
TENSORS_NAME = "transform.safetensors"
_FORMAT = "c3tools.transform"
_VERSION = 1

STEPS: Mapping[str, type[Step]] = {
    step.kind: step
    for module in (steps, mapping, memory)
    for step in vars(module).values()
    if isinstance(step, type) and issubclass(step, Step) and step.kind
}


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
    record = {
        "format": _FORMAT,
        "version": _VERSION,
        **config,
        "dim": dim,
        "provenance": provenance,
        "tensors": {"file": TENSORS_NAME, "sha256": hashlib.sha256(payload).hexdigest()},
    }
    record = json.loads(json.dumps(record))  # as a reader of the JSON sees it: tuples are lists there
    record["checksum"] = checksum(record)
    return record, payload


def describe_steps(steps: Sequence[Step]) -> list[list[str]]:
    """Return a row for each step: its kind, and its settings in words."""
    return [
        [step.kind, ", ".join(f"{name} {value}" for name, value in step.settings.items() if value is not None)]
        for step in steps
    ]


def recipe_card(record: Mapping[str, Any], steps: Sequence[Step]) -> Card:
    """Return the facts of a pipeline's card on the hub, from its record and its steps."""
    model = ModelIdentity(record["provenance"].get("model") or {})
    facts = {
        "encoder": model,
        "dimensions": record["dim"],
        **{f"fitted on {name} rows": n for name, n in record["provenance"].get("n", {}).items()},
        **{f"step {place}": " ".join(row).strip() for place, row in enumerate(describe_steps(steps), start=1)},
    }
    return Card(
        f"A fitted pipeline, `{record['name']}`, for embeddings of `{model.name}`: numpy applies it.",
        'import c3tools\n\npipeline = c3tools.Pipeline.from_pretrained("{name}")\n'
        'pipeline.transform(embeddings, modality="image")  # float32 (n, d)',
        facts,
        tags=("embeddings", "CLIP", "modality-gap"),
    )


def write_recipe(directory: Path, record: Mapping[str, Any], payload: bytes) -> None:
    """Write the content that `make_recipe` returned to a folder or a URL, each file complete or not at all."""
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    for name, content in ((TENSORS_NAME, payload), (JSON_NAME, text.encode())):
        write_atomically(directory / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]


def read_recipe(directory: Path) -> tuple[dict[str, Any], list[Step]]:
    """Read a saved pipeline from a folder, or from the path of its ``transform.json``: the record and the fitted steps.

    Raises:
        TransformError: if a file is missing, damaged, changed by hand, or of a newer version.
    """
    directory = directory.parent if directory.name == JSON_NAME else directory
    path = directory / JSON_NAME
    record = _read_record(path)
    tensors = _read_tensors(directory / TENSORS_NAME, record)
    fitted: list[Step] = parse_config({key: record[key] for key in ("name", "strict", "steps")})["steps"]
    for key, value in tensors.items():
        position, _, name = key.partition("/")
        memory = tensors.get(f"{position}/memory") if name == "items" else None  # its rows have an item each
        kind = "f" if memory is None else "i"
        if not (position.isdecimal() and int(position) < len(fitted) and value.dtype.kind == kind):
            raise _damaged(path, f"the tensor {key!r} belongs to no step")
        if memory is not None and value.shape != memory.shape[:1]:
            raise _damaged(path, f"the tensor {key!r} has shape {value.shape}, but its memory {memory.shape}")
        if memory is None and value.ndim and value.shape[-1] != record["dim"]:
            raise _damaged(
                path, f"the tensor {key!r} has shape {value.shape}, but the pipeline has {record['dim']} dimensions"
            )
        fitted[int(position)].state[name] = value
    if not all(step.fitted for step in fitted):
        raise _damaged(path, "the tensors of a step are missing")
    return record, fitted


def parse_config(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """Return ``name``, ``strict`` and ``steps`` (unfitted) of a pipeline from a mapping, or from a YAML or JSON file.

    Raises:
        TransformError: if the file, a step or a setting is unknown.
        MissingExtraError: if the file is YAML and pyyaml is not installed.
    """
    config = source if isinstance(source, Mapping) else _read_config(Path(source))
    place = "the pipeline" if isinstance(source, Mapping) else str(source)
    listed = config.get("steps")
    if not isinstance(listed, list):
        raise TransformError(
            f"{place} has no list of steps.",
            remedy="Write for example: steps: [{step: normalize}, {step: collapse}, ...].",
        )
    unknown = sorted(map(str, set(config) - {"name", "strict", "steps"}))
    if unknown:
        raise TransformError(f"{place} has the unknown keys {', '.join(unknown)}.")
    name = config.get("name", "custom")
    if not isinstance(name, str):
        raise TransformError(f"{place} has the name {reprlib.repr(name)}, but a name must be text.")
    return {
        "name": name,
        "strict": bool(config.get("strict", True)),
        "steps": [_step(entry, place) for entry in listed],
    }


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
            f"{place} has unknown settings for the step {kind.kind}: {', '.join(unknown)}.",
            remedy=f"Its settings are {', '.join(known)}.",
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
        fine = fine or (value in RULES and str(value) in annotation)
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
        text = read_limited(path).decode("utf-8")
    except (OSError, ValueError) as error:
        raise TransformError(f"{path} cannot be read as a pipeline ({error}).") from error
    language, parse = "JSON", json.loads
    failures: tuple[type[Exception], ...] = (ValueError, RecursionError)
    if path.suffix.lower() in (".yaml", ".yml"):
        try:
            import yaml
        except ImportError:
            raise MissingExtraError("pyyaml", extra="yaml", purpose="Reading a pipeline from YAML") from None
        language, parse, failures = "YAML", yaml.safe_load, (yaml.YAMLError, *failures)
    try:
        value = parse(text)
    except failures as error:
        raise TransformError(f"{path} is not valid {language} ({error}).") from error
    if not isinstance(value, dict):
        raise TransformError(
            f"{path} does not contain a mapping.", remedy="Write for example: steps: [{step: normalize}, ...]."
        )
    return value


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = read_json(path)
    except FileNotFoundError:
        raise TransformError(
            f"There is no saved pipeline at {path.parent} ({path.name} is missing).",
            remedy="Save one with Pipeline.save(folder), or with `c3 export`.",
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        raise _damaged(path, f'"format" is not "{_FORMAT}"')
    if record.get("version") != _VERSION:
        raise TransformError(
            f"{path} has format version {record.get('version')}, but this version of c3tools reads version {_VERSION}.",
            remedy="Upgrade c3tools.",
        )
    if record.get("checksum") != checksum(record):
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
        raise _damaged(path, f"{wrong[0]} is not valid")
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


def checksum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record without its ``checksum``."""
    body = {key: value for key, value in record.items() if key != "checksum"}
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _damaged(path: Path, why: str) -> TransformError:
    return TransformError(
        f"{path} is not a valid saved pipeline: {why}.",
        remedy="Save the pipeline again. To change steps by hand, write a pipeline in YAML or JSON instead.",
    )
