"""`c3 models`: what can be loaded by name."""

from __future__ import annotations

from typing import Annotated

import typer

from ._console import err, out, write_json
from ._options import JsonCommand, JsonOption


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("models", cls=JsonCommand)(models)


def models(
    containing: Annotated[str, typer.Argument(help="Only names that contain this, for example ViT-B-32.")] = "",
    here: Annotated[bool, typer.Option("--here", help="Only those whose weights are on this machine.")] = False,
    json: JsonOption = None,
) -> None:
    """List the models that --model takes by name: the bundled one, and all that open_clip lists."""
    from dataclasses import asdict

    from c3tools.encoders.catalogue import listed_models
    from c3tools.errors import EncoderError

    found = [model for model in listed_models(containing) if model.here or not here]
    if not found:
        where = " with weights on this machine" if here else ""
        raise EncoderError(
            f"No model{where} has {containing!r} in its name.",
            remedy="`c3 models` lists all; folders and hub repositories are named local-dir:PATH and hf-hub:ORG/NAME.",
        )
    if json:
        write_json([asdict(model) for model in found], json)
    if json != "-":
        from rich.table import Column, Table

        # names are copied: folded, never cut
        table = Table(Column("model", overflow="fold"), "d", "image", "text", "here")
        for model in found:
            sizes = (str(model.dim), f"{model.image_size} px", f"{model.context_length} tokens")
            table.add_row(model.name, *sizes, "yes" if model.here else "")
        out.print(table)
        err.print("Also: local-dir:PATH (a folder with open_clip_config.json), hf-hub:ORG/NAME.", highlight=False)
