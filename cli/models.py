"""`c3 models`: the models that can be loaded by name."""

from __future__ import annotations

from typing import Annotated

import typer

from ._console import message, out, print_table, write_json
from ._options import JsonOption


def models(
    containing: Annotated[
        str, typer.Argument(help="List only names that contain this text, for example ViT-B-32.")
    ] = "",
    here: Annotated[bool, typer.Option("--here", help="List only models whose weights are on this machine.")] = False,
    cache: Annotated[
        bool, typer.Option("--cache", help="List the converted models in this machine's cache instead.")
    ] = False,
    clear_cache: Annotated[
        bool, typer.Option("--clear-cache", help="Delete the converted models and the measurements of --backend auto.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """List the model names that --model takes: the bundled model and those of open_clip."""
    if cache or clear_cache:
        _show_cache(clear_cache, json)
        return
    from dataclasses import asdict

    from c3tools.encoders.models import list_models

    found = list_models(containing, here=here)
    if write_json([asdict(model) for model in found], json):
        from rich.table import Column, Table

        # people copy names, so they are wrapped and never cut
        table = Table(Column("model", overflow="fold"), "d", "image", "text", "here")
        for model in found:
            sizes = (str(model.dim), f"{model.image_size} px", f"{model.context_length} tokens")
            table.add_row(model.name, *sizes, "yes" if model.here else "")
        out.print(table)
        message("Also: local-dir:PATH (a folder with open_clip_config.json), hf-hub:ORG/NAME.")


def _show_cache(clear: bool, json: str | None) -> None:
    """List the converted models, and remove them on request."""
    from c3tools.encoders.backends import ModelCache

    cache = ModelCache()
    found = cache.models()
    if clear:
        cache.clear()
    size = sum(model.size for model in found)
    content = {
        "folder": str(cache.folder),
        "removed": clear,
        "models": [{**model.made_from, "folder": model.path.name, "size": model.size} for model in found],
    }
    if write_json(content, json):
        if found and not clear:
            from c3tools.tables import Table

            rows = []
            for model in found:
                about = (
                    str(model.made_from.get(name, "?")) for name in ("model", "backend", "version", "weights_sha256")
                )
                *names, weights = about
                rows.append([*names, weights[:12], f"{model.size / 2**20:,.1f} MiB"])
            columns = ["model", "backend", "version", "weights", "size"]
            print_table(Table(columns, rows, left=columns[:-1]))
        what = f"{len(found):,} converted model{'s' * (len(found) != 1)}, {size / 2**20:,.1f} MiB,"
        message(f"Removed {what} from {cache.folder}." if clear else f"{what} in {cache.folder}.")
