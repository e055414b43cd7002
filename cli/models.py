"""`c3 models`: the models that can be loaded by name."""

from __future__ import annotations

from typing import Annotated

import typer

from ._console import message, out, write_json
from ._options import JsonOption


def models(
    containing: Annotated[str, typer.Argument(help="Only names that contain this, for example ViT-B-32.")] = "",
    here: Annotated[bool, typer.Option("--here", help="Only those whose weights are on this machine.")] = False,
    json: JsonOption = None,
) -> None:
    """List the models that --model takes by name: the bundled one, and all that open_clip lists."""
    from dataclasses import asdict

    from c3tools.encoders.models import list_models

    found = list_models(containing, here=here)
    if write_json([asdict(model) for model in found], json):
        from rich.table import Column, Table

        # names are copied: folded, never cut
        table = Table(Column("model", overflow="fold"), "d", "image", "text", "here")
        for model in found:
            sizes = (str(model.dim), f"{model.image_size} px", f"{model.context_length} tokens")
            table.add_row(model.name, *sizes, "yes" if model.here else "")
        out.print(table)
        message("Also: local-dir:PATH (a folder with open_clip_config.json), hf-hub:ORG/NAME.")
