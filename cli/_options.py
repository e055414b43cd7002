"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

StoreOption = Annotated[
    Path,
    typer.Option("--store", envvar="C3_STORE", help="The store of embeddings.", show_envvar=True),
]
DecoderOption = Annotated[Path, typer.Option("--decoder", help="The folder of a trained decoder.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="c3-mini (bundled, the default), ARCH/PRETRAINED as open_clip lists them, local-dir:PATH, hf-hub:ORG/NAME.",
        show_default=False,
    ),
]
RandomInitOption = Annotated[
    int | None,
    typer.Option("--random-init", metavar="SEED", help="Use the architecture with random weights from this seed."),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps; default: the best there is.", show_default=False)
]
PrecisionOption = Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Seed of everything that is random.")]
SplitOption = Annotated[
    str | None,
    typer.Option("--split", help="Rows of this split only: train, val, test, or all.", show_default=False),
]

DEFAULT_STORE = Path("c3-store")
DEFAULT_DECODER = Path("c3-decoder")
