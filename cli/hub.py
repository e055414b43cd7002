"""`c3 push` and `pull`: trained results and stores on the Hugging Face hub."""

from __future__ import annotations

import filecmp
import shutil
from pathlib import Path
from typing import Any

import c3tools
from c3tools.errors import C3Error, UnreachableError

from ._console import message

# class and default folder, by a file that the folder has; a decoder and a generator have a pipeline
# too
_KINDS = {
    "store.json": ("Store", "c3-store"),
    "decoder.json": ("Captioner", "c3-decoder"),
    "generator.json": ("Generator", "c3-generator"),
    "transform.json": ("Pipeline", "c3-pipeline"),
}


def push(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    revision: str | None = None,
) -> Any:
    """Upload a store, decoder, generator or pipeline.

    The folder is uploaded to the Hugging Face hub, with a card. A store becomes a data set without
    the images. To log in, run `hf auth login` or set HF_TOKEN.

    Args:
        folder: A decoder, a generator, a fitted pipeline or a store.
        repository: The repository, created if it does not exist.
        private: Make a new repository private.
        license: The licence on the card, for example mit or cc-by-4.0.
        revision: The branch. By default main.
    """
    name = next((name for file, (name, _) in _KINDS.items() if (folder / file).is_file()), None)
    if name is None:
        raise C3Error(
            f"{folder} contains nothing that can be pushed: none of {', '.join(_KINDS)} is there.",
            remedy="Pass the folder of a decoder, a generator, a fitted pipeline or a store.",
        )
    kind = getattr(c3tools, name)
    result = (kind.open if name == "Store" else kind.load)(folder)
    address = result.push_to_hub(
        repository, private=private or None, revision=revision, license=license
    )
    message(f"Pushed the {name} in {folder}: {address}")
    return {"class": name, "repository": repository, "commit": address}


def pull(
    repository: str,
    *,
    output: Path | None = None,
    revision: str | None = None,
    dataset: bool = False,
) -> Any:
    """Download a store, decoder, generator or pipeline.

    The repository is downloaded from the Hugging Face hub into a folder.

    Args:
        repository: A repository created by c3 push.
        output: A new folder. By default c3-decoder, c3-generator, c3-pipeline or c3-store,
            depending on the content.
        revision: A branch, a tag or a commit. By default main.
        dataset: Download the data set of this name, even if a model has the same name.
    """
    from c3tools.io.artifact import replacing, require_result_or_empty
    from c3tools.io.hub import class_of
    from c3tools.io.lock import locked_file
    from c3tools.store.merge_split import has_same_rows

    fetched = _fetch(repository, dataset, revision)
    name = str(class_of(fetched))
    folders = dict(_KINDS.values())  # the default folder by class
    if name not in folders:
        raise C3Error(
            f"{repository} contains a {name}, which this version of c3tools does not support.",
            remedy="Update c3tools.",
        )
    folder = output or Path(folders[name])
    kind = getattr(c3tools, name)
    is_store = name == "Store"
    if not is_store:
        # Load it, so that a damaged one is refused before anything is written
        kind.from_pretrained(fetched)
    has_same_content = has_same_rows if is_store else _has_same_files
    if folder.is_dir() and has_same_content(fetched, folder):
        message(f"{folder} already contains the {name} of {repository}; there is nothing to do.")
    else:
        require_result_or_empty(folder, name)
        if is_store:
            kind.from_pretrained(fetched, output=folder)
        else:
            with locked_file(folder), replacing(folder, keep=False) as new:
                shutil.copytree(fetched, new, dirs_exist_ok=True)
        message(f"Wrote the {name} of {repository} to {folder}.")
    return {"class": name, "repository": repository, "folder": str(folder)}


def _fetch(repository: str, dataset: bool, revision: str | None) -> Path:
    """Return the folder of a fetched repository: a model, else a data set of the same name."""
    from c3tools.io.hub import download_repository

    if dataset:
        return download_repository(repository, "dataset", revision=revision)
    try:
        return download_repository(repository, "model", revision=revision)
    except C3Error as error:
        try:
            return download_repository(repository, "dataset", revision=revision)
        except UnreachableError:
            raise error from None


def _has_same_files(first: Path, second: Path) -> bool:
    """Return whether two folders hold the same files, byte for byte."""
    names = [
        sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
        for folder in (first, second)
    ]
    if names[0] != names[1]:
        return False
    same, _, _ = filecmp.cmpfiles(first, second, names[0], shallow=False)
    return len(same) == len(names[0])
