"""Options of the commands that train decoders and generate captions."""

from __future__ import annotations

from typing import Annotated

import typer

BeamsOption = Annotated[
    int, typer.Option("--beams", min=1, help="Number of beams in beam search; 1 is greedy decoding.")
]
LengthPenaltyOption = Annotated[
    float, typer.Option("--length-penalty", help="Beams are ranked by log-probability / length ** PENALTY.")
]
TopPOption = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        help="Sample each word from the most likely ones that together have this probability.",
        show_default=False,
    ),
]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Sampling temperature.")]
SteerOption = Annotated[
    str | None,
    typer.Option(
        "--steer",
        help="Have the encoder steer the decoder at every word: magic or zerocap. Made for decoders of train-decoder "
        "--unconditional. Slow.",
        show_default=False,
    ),
]
SizeOption = Annotated[
    str, typer.Option("--size", help="Size of the decoder: tiny, small, base, or paper (GPT-2; needs the extra hf).")
]
SetOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a setting of --size, such as dropout=0.2, learning_rate=1e-3 or model=PATH; may be repeated.",
    ),
]
EpochsOption = Annotated[
    int | None, typer.Option("--epochs", min=1, help="Passes over the captions.", show_default="depends on --size")
]
