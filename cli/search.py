"""`c3 search`: rows of an index that are near a text, an image, a vector, or another row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import err, out, write_json
from ._options import DEFAULT_STORE, DeviceOption, JsonCommand, JsonOption, StoreOption, local_path


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("search", cls=JsonCommand)(search)


def search(
    text: Annotated[list[str] | None, typer.Argument(help="What to look for, in words.", show_default=False)] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Look for rows near this image.", show_default=False)
    ] = None,
    vector: Annotated[
        Path | None, typer.Option("--vector", help="Look for rows near these vectors (npy, ...).", show_default=False)
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", help="Look for rows near this row of the store.", show_default=False)
    ] = None,
    modality: Annotated[str, typer.Option("--modality", help="What --vector holds: image, text, ...")] = "text",
    within: Annotated[
        str | None, typer.Option("--in", help="Find rows of this modality only.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many.")] = 10,
    nprobe: Annotated[
        int | None,
        typer.Option("--nprobe", min=1, help="Inverted lists to visit.", show_default="as the index was tuned"),
    ] = None,
    index: Annotated[
        Path, typer.Option("--index", parser=local_path, metavar="PATH", help="The folder of the index.")
    ] = Path("c3-index"),
    store: StoreOption = DEFAULT_STORE,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Find the nearest rows of an index."""
    from c3tools.errors import C3Error
    from c3tools.index.search import Searcher, vector_of_key, vectors_of_file
    from c3tools.store import Store

    given = [
        name for name, value in (("text", text), ("--image", image), ("--vector", vector), ("--key", key)) if value
    ]
    if len(given) != 1:
        raise C3Error(
            f"One kind of query is needed; given: {', '.join(given) or 'none'}.",
            remedy='For example: c3 search "a dog on a beach"',
        )
    searcher = Searcher.open(index)
    if vector is not None:
        labels, vectors = [], vectors_of_file(vector)
        labels = [f"{vector} row {row}" for row in range(len(vectors))]
    elif key is not None:
        vectors, modality = vector_of_key(Store.open(store), key)
        labels = [key]
    else:
        from c3tools.encoders import resolve_encoder

        encoder = resolve_encoder(recorded=searcher.index.record["model"], device=device)
        if text:
            vectors, modality, labels = encoder.encode_texts(text), "text", text
        else:
            images = image or []
            vectors, modality, labels = encoder.encode_images(images), "image", [str(path) for path in images]
    results = searcher.search(vectors, modality, k, within=within, nprobe=nprobe)
    if json:
        found = [
            {"query": label, "hits": [hit.to_json() for hit in hits]}
            for label, hits in zip(labels, results, strict=True)
        ]
        write_json(found, json)
        return
    for label, hits in zip(labels, results, strict=True):
        err.print(label, style="bold", highlight=False, markup=False)
        for hit in hits:
            shown = hit.caption or hit.path or ""
            out.print(f"{hit.score:7.3f}  {hit.modality:5}  {hit.key}  {shown}", highlight=False, markup=False)
