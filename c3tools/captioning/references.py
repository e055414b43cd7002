"""Captions and references as files: this project's, COCO's, and plain lists."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ..corpus.captions import read_records
from ..corpus.tables import IMAGE_KEY, pick
from ..errors import MetricError
from ..io.files import read_json

_LAYOUTS = (
    'Use rows of {"key", "caption"}, {"image_id", "caption"} (COCO results) or {"image", '
    '"captions": [...]}, '
    '{key: caption or [captions]}, {"images", "annotations"} as COCO\'s, or {"images"} with '
    '"sentences" as Karpathy\'s.'
)


def read_predictions(captions: Mapping[str, str] | str | Path) -> dict[str, str]:
    """Return one caption per key: those given, or of a file as `read_references` takes it, keys as
    in the file.

    Raises:
        MetricError, CorpusError: as `read_references`, and if a file has two captions for one key.
    """
    if isinstance(captions, Mapping):
        return dict(captions)
    found = read_references(captions)
    for key, own in found.items():
        if len(own) != 1:
            raise MetricError(
                f"{captions} has {len(own)} captions for {key}.",
                remedy="Keep one caption per image.",
            )
    return {key: own[0] for key, own in found.items()}


def read_references(path: str | Path) -> dict[str, list[str]]:
    """Read captions by key from a .json, .jsonl, .csv or .tsv file, also of COCO, Karpathy and `c3
    evaluate --json`.

    Raises:
        MetricError, CorpusError: if the file is missing or of another layout, or a row of it is
            malformed.
    """
    value, found = _read(Path(path)), dict[str, list[str]]()
    rows: Iterable[tuple[Any, Any]]
    try:
        match value:
            case {"captions": list() | dict() as value}:  # a result of c3 evaluate --json
                pass
        match value:
            case {"annotations": annotations}:
                names = {
                    image["id"]: image.get("file_name", image["id"])
                    for image in value.get("images", [])
                }
                rows = [
                    (names.get(row["image_id"], row["image_id"]), row["caption"])
                    for row in annotations
                ]
            case {"images": list(images)}:
                rows = [
                    (image["filename"], [row["raw"] for row in image["sentences"]])
                    for image in images
                ]
            case dict():
                rows = value.items()
            case _:
                rows = []
                for row in value:
                    key_column, caption_column = _columns(tuple(row))
                    rows.append((row[key_column], row[caption_column]))
        for key, texts in rows:
            for text in [texts] if isinstance(texts, str) else texts:
                if not isinstance(text, str):
                    raise TypeError(f"a caption of {key} is {type(text).__name__}")
                found.setdefault(str(key), []).append(text)
    except (LookupError, TypeError, AttributeError) as error:
        raise MetricError(
            f"{path} is not a file of captions ({error}).", remedy=_LAYOUTS
        ) from error
    if not found:
        raise MetricError(f"{path} contains no captions.", remedy=_LAYOUTS)
    return found


def align_keys(
    wanted: Iterable[str], known: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Return the references of each wanted key that has some, although the two files may name
    images differently.

    A key matches itself. Otherwise it matches the only key with the same name without folder and
    suffix, or the only one with the same number, if one of the two names is just that number:
    COCO's image_id 397133 is 000000397133.jpg, but dog_1.jpg is not cat_1.jpg.
    """
    aliases: dict[str, list[str]] = {}
    for key in known:
        for alias in {_stem(key), _number(key)} - {""}:
            aliases.setdefault(alias, []).append(key)
    found: dict[str, Sequence[str]] = {}
    for key in wanted:
        matches = (
            [key] if key in known else aliases.get(_stem(key)) or aliases.get(_number(key)) or []
        )
        stems = {_stem(match) for match in (key, *matches)}
        if len(matches) == 1 and (len(stems) == 1 or any(map(str.isdigit, stems))):
            found[key] = known[matches[0]]
    return found


def coco_results(captions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return captions as COCO's evaluation reads them; image ids are numbers if the keys end in
    different ones.
    """
    numbers = {key: int(number) for key in captions if (number := _number(key))}
    ids: Mapping[str, int | str] = numbers if len({*numbers.values()}) == len(numbers) else {}
    return [
        {"image_id": ids.get(key, key), "caption": caption} for key, caption in captions.items()
    ]


def _read(path: Path) -> Any:
    table = path.suffix.lower() in (".csv", ".tsv")
    try:
        return (
            [row for _, row in read_records(path)]
            if table or path.suffix.lower() == ".jsonl"
            else read_json(path)
        )
    except OSError as error:
        raise MetricError(f"{path} cannot be read ({error}).", remedy="Check the path.") from error
    except (ValueError, RecursionError, csv.Error) as error:
        raise MetricError(
            f"{path} is not {'CSV' if table else 'JSON'} ({error}).",
            remedy="Use a .json, .jsonl, .csv or .tsv file.",
        ) from error


@lru_cache
def _columns(names: tuple[str, ...]) -> tuple[str, str]:
    """Return the columns of the image and of the captions, of a row with these columns.

    Raises:
        LookupError: if one of them is missing; names the columns that are there.
    """
    key_column = pick(names, *IMAGE_KEY)
    caption_column = pick(names, "caption")
    present = ", ".join(map(repr, names)) or "none"
    if key_column is None:
        raise LookupError(
            f"no column names the image, such as key, file_name or image_id; the columns are "
            f"{present}"
        )
    if caption_column is None:
        raise LookupError(
            f"no column has captions, such as 'caption' or 'captions'; the columns are {present}"
        )
    return key_column, caption_column


def _stem(key: str) -> str:
    name = PurePosixPath(key).name
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix and not suffix[1:].isdigit() else name


def _number(key: str) -> str:
    """Return the number in a name such as ``000000397133.jpg``, or after its last underscore,
    without leading zeros.
    """
    last = _stem(key).rpartition("_")[2]
    return str(int(last)) if last.isascii() and last.isdigit() else ""
