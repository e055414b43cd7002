"""Captions and references as files: this project's, COCO's, and plain lists."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import MetricError
from ..io.files import read_csv, read_json
from ..io.limits import limited_lines

_KEY_NAMES = ("key", "image_id", "image", "file_name", "image_key")
_LAYOUTS = 'Use rows of {"key", "caption"} or {"image_id", "caption"} (COCO results), or {key: caption}.'
_REFERENCE_LAYOUTS = (
    'Use rows of {"image", "captions": [...]} or {"image", "caption"}, {"images", "annotations"} as COCO\'s, '
    '{"images"} with "sentences" as Karpathy\'s, or {key: [captions]}.'
)


def read_predictions(path: Path) -> dict[str, str]:
    """Read one caption per key from a .json, .jsonl, .csv or .tsv file, keys as they are in the file.

    Raises:
        MetricError: if the file is missing, of another layout, or has two captions for one key.
    """
    value = _read(path)
    if isinstance(value, dict) and isinstance(value.get("captions"), list | dict):
        value = value["captions"]  # a result of c3 evaluate --json
    pairs: Iterable[tuple[str, Any]]
    try:
        pairs = value.items() if isinstance(value, dict) else [(_key(row), row["caption"]) for row in value]
        captions: dict[str, str] = {}
        for key, caption in pairs:
            if not isinstance(caption, str):
                raise TypeError(f"the caption of {key} is {type(caption).__name__}")
            if key in captions:
                raise MetricError(f"{path} has two captions for {key}.", remedy="Keep one caption per image.")
            captions[str(key)] = caption
    except (KeyError, TypeError, AttributeError) as error:
        raise MetricError(f"{path} is not a file of captions ({error}).", remedy=_LAYOUTS) from error
    if not captions:
        raise MetricError(f"{path} contains no captions.", remedy=_LAYOUTS)
    return captions


def read_references(path: Path) -> dict[str, list[str]]:
    """Read reference captions by key from a .json, .jsonl, .csv or .tsv file, also of COCO and Karpathy.

    Raises:
        MetricError: if the file is missing or of another layout.
    """
    value = _read(path)
    references: dict[str, list[str]] = {}
    try:
        if isinstance(value, dict) and "annotations" in value:
            names = {image["id"]: str(image.get("file_name", image["id"])) for image in value.get("images", [])}
            for annotation in value["annotations"]:
                image = annotation["image_id"]
                references.setdefault(names.get(image, str(image)), []).append(str(annotation["caption"]))
        elif isinstance(value, dict) and isinstance(value.get("images"), list):
            for image in value["images"]:
                own = references.setdefault(str(image["filename"]), [])
                own += [str(sentence["raw"]) for sentence in image["sentences"]]
        else:
            rows = (
                value.items()
                if isinstance(value, dict)
                else [(_key(r), r["captions" if "captions" in r else "caption"]) for r in value]
            )
            for key, texts in rows:
                listed = [texts] if isinstance(texts, str) else [str(text) for text in texts]
                references.setdefault(str(key), []).extend(listed)
    except (KeyError, TypeError, AttributeError) as error:
        raise MetricError(f"{path} is not a file of references ({error}).", remedy=_REFERENCE_LAYOUTS) from error
    if not references:
        raise MetricError(f"{path} contains no references.", remedy=_REFERENCE_LAYOUTS)
    return references


def align_keys(wanted: Iterable[str], known: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return the references of each wanted key that has some, although the two files may name images differently.

    A key matches itself. Otherwise it matches the only key with the same name without folder and suffix, or the
    only one with the same number, if one of the two names is just that number: COCO's image_id 397133 is
    000000397133.jpg, but dog_1.jpg is not cat_1.jpg.
    """
    aliases: dict[str, list[str]] = {}
    for key in known:
        for alias in {_stem(key), _number(key)} - {""}:
            aliases.setdefault(alias, []).append(key)
    found: dict[str, Sequence[str]] = {}
    for key in wanted:
        matches = [key] if key in known else aliases.get(_stem(key)) or aliases.get(_number(key)) or []
        stems = {_stem(match) for match in (key, *matches)}
        if len(matches) == 1 and (len(stems) == 1 or any(map(str.isdigit, stems))):
            found[key] = known[matches[0]]
    return found


def coco_results(captions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return captions as COCO's evaluation reads them; image ids are numbers if the keys end in different ones."""
    numbers = {key: int(number) for key in captions if (number := _number(key))}
    ids: Mapping[str, int | str] = numbers if len({*numbers.values()}) == len(numbers) else {}
    return [{"image_id": ids.get(key, key), "caption": caption} for key, caption in captions.items()]


def _read(path: Path) -> Any:
    suffix = path.suffix.lower()
    try:
        if suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as text:
                rows = read_csv(limited_lines(text), suffix)
                return [_whole(row, f"{path}, line {rows.line_num}") for row in rows]
        if suffix != ".jsonl":
            return read_json(path)
        with path.open("rb") as file:
            return [json.loads(line) for line in limited_lines(file) if line.strip()]
    except OSError as error:
        raise MetricError(f"{path} cannot be read ({error}).", remedy="Check the path.") from error
    except (ValueError, RecursionError, csv.Error) as error:
        kind = "CSV" if suffix in (".csv", ".tsv") else "JSON"
        raise MetricError(
            f"{path} is not {kind} ({error}).", remedy="Use a .json, .jsonl, .csv or .tsv file."
        ) from error


def _whole(row: dict[str, Any], where: str) -> dict[str, Any]:
    if any(row.pop(None, ())):  # type: ignore[call-overload]  # the key of further cells
        raise MetricError(
            f"{where} has more cells than the header names columns.",
            remedy="Put double quotes around captions that contain the delimiter.",
        )
    return row


def _key(row: Mapping[str, Any]) -> str:
    for name in _KEY_NAMES:
        if name in row:
            return str(row[name])
    raise KeyError(f"no {', '.join(_KEY_NAMES)} in a row")


def _stem(key: str) -> str:
    name = PurePosixPath(key).name
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix and not suffix[1:].isdigit() else name


def _number(key: str) -> str:
    """Return the number in a name such as ``000000397133.jpg``, or after its last underscore, without leading zeros."""
    last = _stem(key).rpartition("_")[2]
    return str(int(last)) if last.isascii() and last.isdigit() else ""
