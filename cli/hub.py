"""`c3 push` and `pull`: trained results and stores on the Hugging Face hub."""

from __future__ import annotations

import json as json_text
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import c3tools
from c3tools.errors import C3Error, OutputError, UnreachableError

from ._console import message, write_json

_CLASSES = {  # by a file that its folder has; a decoder and a generator have a pipeline too
    "store.json": "Store",
    "decoder.json": "Captioner",
    "generator.json": "Generator",
    "transform.json": "Pipeline",
}
_FOLDERS = {
    "Store": "c3-store",
    "Captioner": "c3-decoder",
    "Generator": "c3-generator",
    "Pipeline": "c3-pipeline",
}


def push(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    data: Sequence[str] = (),
    scores: Sequence[str] = (),
    revision: str | None = None,
    json: str | None = None,
) -> None:
    """Upload a decoder, a generator, a pipeline or a store to the Hugging Face hub, with a card.

    A store becomes a data set, without the images. Log in with `hf auth login` or the variable HF_TOKEN.

    Args:
        folder: A decoder, a generator, a fitted pipeline or a store.
        repository: The repository; made if it is not there.
        private: Make a new repository private.
        license: For the card: mit, cc-by-4.0, ...
        data: For the card: data it was made from.
        scores: For the card: scores on the data set NAME, from c3 evaluate --json.
        revision: The branch. By default main.
    """
    name = next((name for file, name in _CLASSES.items() if (folder / file).is_file()), None)
    if name is None:
        raise C3Error(
            f"{folder} holds nothing that can be pushed: none of {', '.join(_CLASSES)} is there.",
            remedy="Name the folder of a decoder, a generator, a fitted pipeline or a store.",
        )
    measured = dict(map(_read_scores, scores))
    kind = getattr(c3tools, name)
    result = (kind.open if name == "Store" else kind.load)(folder)
    address = result.push_to_hub(
        repository, private=private or None, revision=revision, license=license, data=list(data), scores=measured
    )
    write_json({"class": name, "repository": repository, "commit": address}, json)
    message(f"Pushed the {name} in {folder}: {address}")


def _read_scores(option: str) -> tuple[str, dict[str, Any]]:
    name, _, file = option.partition("=")
    try:
        scores = json_text.loads(Path(file).read_text(encoding="utf-8"))["scores"]
        return name, {metric: float(value) for metric, value in scores.items() if value is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise C3Error(
            f"--scores {option}: there are no scores to read ({error!r}).",
            remedy='For example: c3 evaluate --json scores.json, then --scores "Flickr8k test=scores.json"',
        ) from error


def pull(
    repository: str,
    *,
    output: Path | None = None,
    revision: str | None = None,
    dataset: bool = False,
    json: str | None = None,
) -> None:
    """Fetch a decoder, a generator, a pipeline or a store from the Hugging Face hub to a folder.

    Args:
        repository: A repository that c3 push made.
        output: A new folder. By default c3-decoder, c3-generator, c3-pipeline or c3-store, by what it is.
        revision: A branch, a tag or a commit. By default main.
        dataset: Fetch the store of this name even if there is a model of the same name.
    """
    from c3tools.io.artifact import class_of, download_repository, replacing

    try:
        fetched = download_repository(repository, "dataset" if dataset else "model", revision=revision)
    except C3Error as error:
        if dataset:
            raise
        try:
            fetched = download_repository(repository, "dataset", revision=revision)
        except UnreachableError:
            raise error from None
    name = str(class_of(fetched))
    if name not in _FOLDERS:
        raise C3Error(f"{repository} holds a {name}, which this c3tools does not know.", remedy="Update c3tools.")
    folder = output or Path(_FOLDERS[name])
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise OutputError(f"There is something at {folder} already.", remedy="Name a new folder with --output.")
    kind = getattr(c3tools, name)
    if name == "Store":
        kind.from_pretrained(fetched, output=folder)
    else:
        kind.from_pretrained(fetched)  # or the error says what is wrong with it
        with replacing(folder) as new:
            for file in fetched.iterdir():
                shutil.copyfile(file, new / file.name)
    write_json({"class": name, "repository": repository, "folder": str(folder)}, json)
    message(f"Wrote the {name} of {repository} to {folder}.")
