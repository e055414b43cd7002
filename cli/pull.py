"""`c3 pull`: what `c3 push` has uploaded to the Hugging Face hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from c3tools.errors import C3Error, OutputError, UnreachableError

from ._console import message, write_json
from ._options import DEFAULT_DECODER, DEFAULT_GENERATOR, DEFAULT_STORE, JsonOption, local_path

_FOLDERS = {
    "Store": DEFAULT_STORE,
    "Captioner": DEFAULT_DECODER,
    "Generator": DEFAULT_GENERATOR,
    "Pipeline": Path("c3-pipeline"),
}


def pull(
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="A repository that c3 push made.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            parser=local_path,
            metavar="PATH",
            help="A new folder.",
            show_default="c3-decoder, c3-generator, c3-pipeline or c3-store, by what it is",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch, a tag or a commit.", show_default="main")
    ] = None,
    dataset: Annotated[
        bool, typer.Option("--dataset", help="Fetch the store of this name even if there is a model of the same name.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Fetch a decoder, a generator, a pipeline or a store from the Hugging Face hub to a folder."""
    import c3tools
    from c3tools.io.hub import class_of, download_repository
    from c3tools.io.outputs import replacing

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
    folder = output or _FOLDERS[name]
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
