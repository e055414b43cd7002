"""Options of the commands that write captions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from c3tools.captioning import GenerationConfig

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


def generation_config(
    *,
    beams: int = 1,
    length_penalty: float = 0.7,
    top_p: float | None = None,
    temperature: float = 1.0,
    magic: bool = False,
    seed: int = 0,
) -> GenerationConfig:
    """The settings that the options mean.

    Raises:
        DecoderError: if they mean several methods at once.
    """
    from c3tools.captioning import GenerationConfig
    from c3tools.errors import DecoderError

    if (beams > 1) + (top_p is not None) + magic > 1:
        raise DecoderError("--beams, --top-p and --magic are three ways to write a caption.", remedy="Choose one.")
    if magic:
        return GenerationConfig("magic")
    if top_p is not None:
        return GenerationConfig("nucleus", top_p=top_p, temperature=temperature, seed=seed)
    return GenerationConfig("beam", beams=beams, length_penalty=length_penalty) if beams > 1 else GenerationConfig()
