"""`c3 means`: the moments of each modality."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from c3tools.io.locations import location
from c3tools.reporter import counted

from ._console import message, out, print_table, reporter, write_json
from ._options import (
    DEFAULT_STORE,
    JsonOption,
    StoreOption,
    output_file,
)

if TYPE_CHECKING:
    from c3tools.moments import Moments


def means(
    store: StoreOption = DEFAULT_STORE,
    save: Annotated[
        Path | None,
        typer.Option(parser=output_file, metavar="PATH", help="Write the moments of --split to this file or URL."),
    ] = None,
    split: Annotated[
        str, typer.Option(help="The split whose moments --save writes: train, val, test or all.")
    ] = "train",
    load: Annotated[
        str | None,
        typer.Option(help="Use the moments in this file or URL for Collapse (c3-mini: those of its training data)."),
    ] = None,
    unload: Annotated[bool, typer.Option("--unload", help="Go back to the store's own moments.")] = False,
    merge: Annotated[
        list[Path] | None,
        typer.Option(
            parser=location,
            metavar="PATH",
            help="Merge moments files: repeat this option, and name the result with --save.",
        ),
    ] = None,
    json: JsonOption = None,
) -> None:
    """Show, save, merge or load the mean and covariance of each modality."""
    from c3tools.errors import StoreError
    from c3tools.store import Store
    from c3tools.store.means import compute_means, load_means, merge_means, save_means, unload_means

    if merge:
        if save is None:
            raise StoreError("--merge needs --save.", remedy="Add --save FILE, the file for the merged moments.")
        if load is not None or unload:
            raise StoreError(
                "--merge cannot be combined with --load or --unload.", remedy="Merge first, then load the result."
            )
        merged = merge_means(merge, save)
        _print_saved(save, merged)
        write_json({"output": str(save), "rows": {name: moments.n for name, moments in merged.items()}}, json)
        return
    if unload:
        unload_means(store)
    if load is not None:
        loaded = load_means(store, load)
        message(f"Collapse now uses the moments in {load}: {', '.join(loaded)}.")
    opened = Store.open(store, reporter=reporter())
    if save is not None:
        _print_saved(save, save_means(opened, save, split=split))
    found = compute_means(opened)
    if opened.split_note:
        message(opened.split_note)
    if write_json(found.to_dict(), json):
        print_table(found.table())
        if found.gap_length is not None:
            out.print(f"Length of the modality gap: {found.gap_length:.4f}", highlight=False)


def _print_saved(path: Path, groups: dict[str, Moments]) -> None:
    listing = ", ".join(counted(moments.n, f"{name} row") for name, moments in groups.items())
    message(f"Wrote {path}: {listing}")
