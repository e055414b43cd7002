"""`c3 search`: rows of an index that are near a text, an image, a vector, or another row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ._console import err, out, reporter, write_json
from ._options import DEFAULT_STORE, DeviceOption, JsonOption, StoreOption, arguments, local_path


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
    options = arguments(locals(), "text", "image", "index")
    from c3tools.index import Index

    results = Index.open(index).search(text or None, **options, image=image or None, reporter=reporter())
    if json:
        write_json([result.to_dict() for result in results], json)
        return
    for result in results:
        err.print(result.query, style="bold", highlight=False, markup=False)
        for hit in result.hits:
            label = hit.caption or hit.path or ""
            out.print(f"{hit.score:7.3f}  {hit.modality:5}  {hit.key}  {label}", highlight=False, markup=False)
