"""Files of captions and references, in this project's layout, COCO's, or as plain lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from ..corpus.ids import match_ids
from ..corpus.items import as_key
from ..corpus.tables import IMAGE_KEY, open_table, pick, pick_all, table_in_json, text_of
from ..errors import MetricError
from ..io.files import read_json, reading

Value = TypeVar("Value")  # what is known of an image

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
        MetricError: as `read_references`, and if a file has two captions for one key.
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
    """Read captions by key from a table, also of COCO, Karpathy and `c3 evaluate-captions --json`,
    or from a JSON object of captions by key.

    Raises:
        MetricError: if the file is missing or of another layout, or a row of it is malformed.
    """
    path = Path(path)
    references: dict[str, list[str]] = {}
    for row in _rows_of(path):
        captions = [row.captions] if isinstance(row.captions, str) else row.captions
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise MetricError(
                f"{row.place}: the captions of {row.key} are {captions!r}.", remedy=_LAYOUTS
            )
        if captions:
            references.setdefault(as_key(row.key), []).extend(captions)
    if not references:
        raise MetricError(f"{path} contains no captions.", remedy=_LAYOUTS)
    return references


class _Row(NamedTuple):
    place: str  # for messages
    key: str
    captions: Any  # a text or a list of texts, if the file is as it should be


def _rows_of(path: Path) -> Iterator[_Row]:
    """Yield the key and the captions of each row of a file.

    Raises:
        MetricError: if the file cannot be read, or has no such columns.
    """
    if path.suffix.lower() == ".json":
        with reading(path, MetricError):
            content = read_json(path)
        match content:
            case {"captions": list() | dict() as captions}:  # of c3 evaluate-captions --json
                content = captions
        if isinstance(content, dict) and not {"images", "annotations"} & content.keys():
            for key, captions in content.items():
                yield _Row(str(path), key, captions)
            return
        table = table_in_json(path, content, MetricError)
    else:
        table = open_table(path, MetricError)

    columns = table.plain_columns
    if not columns:
        return
    # Rows of JSON may name their image in different columns
    key_columns = pick_all(columns, *IMAGE_KEY)
    caption_column = pick(columns, "caption")
    present = ", ".join(map(repr, columns))
    if not key_columns:
        raise MetricError(
            f"{path}: no column identifies the image, such as key, file_name or image_id; its "
            f"columns are {present}.",
            remedy=_LAYOUTS,
        )
    if caption_column is None:
        raise MetricError(
            f"{path}: no column has captions, such as 'caption' or 'captions'; its columns are "
            f"{present}.",
            remedy=_LAYOUTS,
        )
    for record in table.records([*key_columns, caption_column]):
        place = f"{path}, line {record.line}"
        keys = [text_of(record.values.get(name)) for name in key_columns]
        key = next(filter(None, keys), None)
        if key is None:
            raise MetricError(
                f"{place}: no image in {', '.join(map(repr, key_columns))}.", remedy=_LAYOUTS
            )
        yield _Row(place, key, record.values.get(caption_column))


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
