"""Options of the commands that train decoders."""

from __future__ import annotations

from typing import Annotated

import typer

SizeOption = Annotated[
    str,
    typer.Option("--size", help="tiny, small or base (built-in), or paper (GPT-2, the extra hf)."),
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting of the size, such as dropout=0.2, learning_rate=1e-3 or model=PATH; may be repeated.",
    ),
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Passes over the captions.", show_default="by size")
]
