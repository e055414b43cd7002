"""`c3 push`: a trained result, or a store, to the Hugging Face hub."""

from __future__ import annotations

import json as json_text
from pathlib import Path
from typing import Annotated, Any

import typer

from c3tools.errors import C3Error

from ._console import message, write_json
from ._options import JsonOption, local_path

_CLASSES = {  # by a file that its folder has; a decoder and a generator have a pipeline too
    "store.json": "Store",
    "decoder.json": "Captioner",
    "generator.json": "Generator",
    "transform.json": "Pipeline",
}


def push(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", parser=local_path, help="A decoder, a generator, a fitted pipeline or a store."
        ),
    ],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The repository; made if it is not there.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    license: Annotated[
        str | None, typer.Option("--license", help="For the card: mit, cc-by-4.0, ...", show_default=False)
    ] = None,
    data: Annotated[
        list[str],
        typer.Option("--data", help="For the card: data it was made from; may be repeated.", show_default=False),
    ] = [],  # noqa: B006
    scores: Annotated[
        list[str],
        typer.Option(
            "--scores",
            metavar="NAME=FILE",
            help="For the card: scores on the data set NAME, from c3 evaluate --json; may be repeated.",
            show_default=False,
        ),
    ] = [],  # noqa: B006
    revision: Annotated[str | None, typer.Option("--revision", help="The branch.", show_default="main")] = None,
    json: JsonOption = None,
) -> None:
    """Upload a decoder, a generator, a pipeline or a store to the Hugging Face hub, with a card.

    A store becomes a data set, without the images. Log in with `hf auth login` or the variable HF_TOKEN.
    """
    import c3tools

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
        repository, private=private or None, revision=revision, license=license, data=data, scores=measured
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
