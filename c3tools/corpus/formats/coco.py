"""COCO captions (`captions_val2017.json`) and the Karpathy split files (`dataset_coco.json`)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import CorpusError
from ...io.locations import read_all
from ..items import CaptionRow
from .columns import Wanted


def read(path: Path, wanted: Wanted | None = None) -> Iterator[CaptionRow]:
    """One row per image, captions in the order of the annotations.

    Raises:
        CorpusError: if the file is not JSON, or neither of the two layouts.
    """
    try:
        value = json.loads(read_all(path))
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is not JSON ({error}).") from error
    try:
        images = value["images"]
        rows = list(_from_annotations(value) if "annotations" in value else _from_sentences(images))
    except (KeyError, TypeError, AttributeError) as error:
        raise CorpusError(
            f"{path} is not a COCO captions file: something is missing ({error!r}).",
            remedy='Expected: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.',
        ) from error
    yield from rows


def _from_annotations(value: dict[str, Any]) -> Iterator[CaptionRow]:
    captions: dict[Any, list[str]] = {}
    for annotation in value["annotations"]:
        captions.setdefault(annotation["image_id"], []).append(str(annotation["caption"]))
    for number, image in enumerate(value["images"], start=1):
        yield CaptionRow(str(image["file_name"]), captions.get(image["id"], []), None, number)


def _from_sentences(images: list[dict[str, Any]]) -> Iterator[CaptionRow]:
    for number, image in enumerate(images, start=1):
        captions = [str(sentence["raw"]) for sentence in image["sentences"]]
        yield CaptionRow(str(image["filename"]), captions, image.get("split"), number)
