"""`c3 search`: rows of an index that are near a text, an image, a vector, or another row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.errors import C3Error
from c3tools.io.locations import location, write_all

from ._console import err, message, out, reporter, write_json
from ._options import BackendOption, DeviceOption, JsonOption, arguments, output_file


def search(
    text: Annotated[list[str] | None, typer.Argument(help="Texts to search for.", show_default=False)] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Search with this image; may be repeated.", show_default=False)
    ] = None,
    vector: Annotated[
        Path | None,
        typer.Option("--vector", help="Search with the vectors in this file (npy, npz, ...).", show_default=False),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Search with the row of the store that has this key.", show_default=False),
    ] = None,
    modality: Annotated[
        str, typer.Option("--modality", help="Modality of the vectors in --vector: image, text, ...")
    ] = "text",
    within: Annotated[
        str | None,
        typer.Option(
            "--in",
            metavar="MODALITY",
            help="Return only rows of this modality (image, text, ...). any: rank all modalities together.",
            show_default="each modality in its own ranking",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of results per modality.")] = 10,
    nprobe: Annotated[
        int | None,
        typer.Option(
            "--nprobe",
            min=1,
            help="Number of inverted lists to search. More are slower and find more.",
            show_default="the tuned value of the index",
        ),
    ] = None,
    index: Annotated[
        Path | None,
        typer.Option(
            "--index",
            parser=location,
            metavar="PATH",
            help="The folder of the index, or a store that c3 embed --faiss made.",
            show_default="c3-index; if it is not there, such a store",
        ),
    ] = None,
    vectors: Annotated[
        bool, typer.Option("--vectors", help="Include the embeddings of the query and of the rows in --json.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            parser=output_file,
            metavar="PATH",
            help="Also write an HTML page with thumbnails.",
            show_default=False,
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            parser=location,
            metavar="PATH",
            help="The store to read rows from.",
            show_default="the store of the index",
        ),
    ] = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    json: JsonOption = None,
) -> None:
    """Find the rows of an index that are nearest to a query: first the best images, then the best texts.

    Each modality has its own ranking. In a common ranking, the modality gap would put rows of the query's own modality
    first.
    """
    options = arguments(locals(), "text", "image", "index", "html")
    from c3tools.index import Index, contact_sheet, find_index

    if vectors and json is None:
        raise C3Error(
            "--vectors needs --json: embeddings are written as JSON only.", remedy="Add --json or --json FILE."
        )
    results = Index.open(find_index(index)).search(text or None, **options, image=image or None, reporter=reporter())
    if html is not None:
        write_all(html, contact_sheet(results).encode())
        message(f"Wrote {html}")
    if json:
        write_json([result.to_dict() for result in results], json)
        return
    for result in results:
        err.print(result.query, style="bold", highlight=False, markup=False)
        for number, hits in enumerate(result.groups.values()):
            if number:
                err.print()
            for hit in hits:
                label = "  ".join(part for part in (hit.caption, hit.path) if part)
                line = f"{hit.score:7.3f}  {hit.modality:5}  {hit.key}  {label}"
                out.print(line, highlight=False, markup=False, soft_wrap=True)
