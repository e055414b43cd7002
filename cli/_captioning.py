"""Options of the commands that train decoders and generate captions."""

from __future__ import annotations

from typing import Annotated

import typer

BeamsOption = Annotated[int, typer.Option("--beams", min=1, help="Beam search with so many beams; 1 is greedy.")]
LengthPenaltyOption = Annotated[
    float, typer.Option("--length-penalty", help="Beams are compared by log-probability / length ** this.")
]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", help="Sample from the nucleus of this probability.", show_default=False)
]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Of sampling.")]
MagicOption = Annotated[
    bool, typer.Option("--magic", help="MAGIC: the encoder re-scores every word (k 45, alpha 0.1, beta 2); slow.")
]
SizeOption = Annotated[
    str, typer.Option("--size", help="tiny, small or base (built-in), or paper (GPT-2, the extra hf).")
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
