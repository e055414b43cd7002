"""Files of captions and references, in this project's layout, COCO's, or as plain lists."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from ..corpus.ids import match_ids
from ..corpus.items import as_key
from ..corpus.tables import IMAGE_KEY, annotated_images, pick, read_records
from ..errors import MetricError
from ..io.files import read_json

Value = TypeVar("Value")  # what is known of an image

_TABLES = (".csv", ".tsv", ".jsonl")
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
    predictions = {}
    for key, texts in read_references(captions).items():
        if len(texts) != 1:
            raise MetricError(
                f"{captions} has {len(texts)} captions for {key}.",
                remedy="Keep one caption per image.",
            )
        predictions[key] = texts[0]
    return predictions


def read_references(path: str | Path) -> dict[str, list[str]]:
    """Read captions by key from a .json, .jsonl, .csv or .tsv file, also of COCO, Karpathy and `c3
    evaluate --json`.

    Raises:
        MetricError, CorpusError: if the file is missing or of another layout, or a row of it is
            malformed.
    """
    references: dict[str, list[str]] = {}
    try:
        for key, captions in _keys_and_captions(Path(path)):
            for caption in [captions] if isinstance(captions, str) else captions:
                if not isinstance(caption, str):
                    raise TypeError(f"a caption of {key} is {type(caption).__name__}")
                references.setdefault(as_key(str(key)), []).append(caption)
    except (LookupError, TypeError, AttributeError) as error:
        raise MetricError(f"{path} is not a captions file ({error}).", remedy=_LAYOUTS) from error
    if not references:
        raise MetricError(f"{path} contains no captions.", remedy=_LAYOUTS)
    return references


def _keys_and_captions(path: Path) -> list[tuple[Any, Any]]:
    """Return the key and the captions (one, or a list) of each row of a file.

    Raises:
        MetricError: if the file cannot be read.
        LookupError, TypeError, AttributeError: if it has another layout.
    """
    is_json = path.suffix.lower() not in _TABLES
    try:
        content = read_json(path) if is_json else [row.values for row in read_records(path)]
    except OSError as error:
        raise MetricError(f"{path} cannot be read ({error}).", remedy="Check the path.") from error
    except (ValueError, RecursionError, csv.Error) as error:
        form = "JSON" if is_json or path.suffix.lower() == ".jsonl" else "CSV"
        raise MetricError(
            f"{path} is not {form} ({error}).", remedy="Use a .json, .jsonl, .csv or .tsv file."
        ) from error

    match content:
        case {"captions": list() | dict() as captions}:  # a result of c3 evaluate-captions --json
            content = captions
    match content:
        case {"annotations": _} | {"images": list()}:
            return [
                (image.image_id if image.file_name is None else image.file_name, image.captions)
                for image in annotated_images(content)
            ]
        case dict():
            return list(content.items())
    rows = []
    for row in content:
        key_column, caption_column = _columns(tuple(row))
        rows.append((row[key_column], row[caption_column]))
    return rows


def align_keys(wanted: Iterable[str], known: Mapping[str, Value]) -> dict[str, Value]:
    """Return the value of each wanted key that is known, although the two may name images
    differently.

    A key matches itself. Otherwise two keys match that are the only ones with their name without
    folder and suffix, or the only ones with their number, if one of the two names is just that
    number: COCO's image_id 397133 is 000000397133.jpg, but dog_1.jpg is not cat_1.jpg.
    """
    keys = list(wanted)
    names = list(known)
    by_stem = match_ids(keys, names, _stem)
    by_number = match_ids(keys, names, _number)
    aligned: dict[str, Value] = {}
    for key, same_stem, same_number in zip(keys, by_stem, by_number, strict=True):
        if same_stem is not None:
            aligned[key] = known[names[same_stem]]
        elif same_number is not None:
            name = names[same_number]
            if _stem(key).isdigit() or _stem(name).isdigit():
                aligned[key] = known[name]
    return aligned


def coco_results(captions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return captions as COCO's evaluation reads them; image ids are numbers if the keys end in
    different ones.
    """
    image_ids: dict[str, int | str] = {}
    for key in captions:
        number = _number(key)
        if number:
            image_ids[key] = int(number)
    if len(set(image_ids.values())) < len(image_ids):
        image_ids = {}
    return [
        {"image_id": image_ids.get(key, key), "caption": caption}
        for key, caption in captions.items()
    ]


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
            f"no column identifies the image, such as key, file_name or image_id; the columns are "
            f"{present}"
        )
    if caption_column is None:
        raise LookupError(
            f"no column has captions, such as 'caption' or 'captions'; the columns are {present}"
        )
    return key_column, caption_column


def _stem(key: str) -> str:
    name = as_key(PurePosixPath(key).name)
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix and not suffix[1:].isdigit() else name


def _number(key: str) -> str:
    """Return the number in a name such as ``000000397133.jpg``, or after its last underscore,
    without leading zeros.
    """
    last = _stem(key).rpartition("_")[2]
    return str(int(last)) if last.isascii() and last.isdigit() else ""
