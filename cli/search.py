"""`c3 search`: rows of an index that are near a text, an image, a vector, or another row."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from c3tools.errors import C3Error
from c3tools.io.locations import location, write_all

from ._console import err, message, out, reporter, write_json
from ._options import BackendOption, DeviceOption, JsonOption, arguments, local_path, output_file


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
        str | None,
        typer.Option(
            "--in",
            metavar="MODALITY",
            help="Find rows of this modality only (image, text, ...); any: rank all rows together.",
            show_default="each modality by itself",
        ),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many, of each modality.")] = 10,
    nprobe: Annotated[
        int | None,
        typer.Option("--nprobe", min=1, help="Inverted lists to visit.", show_default="as the index was tuned"),
    ] = None,
    index: Annotated[
        Path, typer.Option("--index", parser=local_path, metavar="PATH", help="The folder of the index.")
    ] = Path("c3-index"),
    vectors: Annotated[
        bool, typer.Option("--vectors", help="Add the embeddings of the query and of the rows to --json.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", parser=output_file, metavar="PATH", help="Also write a page of thumbnails.", show_default=False
        ),
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            "--store",
            parser=location,
            metavar="PATH",
            help="The store that rows are looked up in.",
            show_default="that of the index",
        ),
    ] = None,
    device: DeviceOption = None,
    backend: BackendOption = "auto",
    json: JsonOption = None,
) -> None:
    """Find the nearest rows of an index: images first, then texts, the best of each.

    Each modality is ranked by itself: in one ranking, rows of the query's own modality would come first because of
    the modality gap.
    """
    options = arguments(locals(), "text", "image", "index", "html")
    from c3tools.index import Index, contact_sheet

    if vectors and json is None:
        raise C3Error("--vectors adds embeddings to the JSON alone.", remedy="Add --json, or --json FILE.")
    results = Index.open(index).search(text or None, **options, image=image or None, reporter=reporter())
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
