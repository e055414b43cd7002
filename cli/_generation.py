"""Options of the commands that write captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from c3tools.decoding import GenerationConfig

BeamsOption = Annotated[int, typer.Option("--beams", min=1, help="Beam search with so many beams; 1 is greedy.")]
TopPOption = Annotated[
    float | None, typer.Option("--top-p", help="Sample from the nucleus of this probability.", show_default=False)
]
TemperatureOption = Annotated[float, typer.Option("--temperature", help="Of sampling.")]


def generation_config(beams: int, top_p: float | None, temperature: float, seed: int) -> GenerationConfig:
    """The settings that the options mean."""
    from c3tools.decoding import GenerationConfig

    if top_p is not None:
        return GenerationConfig("nucleus", top_p=top_p, temperature=temperature, seed=seed)
    return GenerationConfig("beam", beams=beams) if beams > 1 else GenerationConfig()
