"""`c3 connect heads`, `apply`, `lit` and `full`: contrastive training from pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

import c3tools
from c3tools.errors import C3Error
from c3tools.reporter import counted

from ._console import message, print_table, reporter, write_json
from ._files import comma_separated, named_files, typed_option

if TYPE_CHECKING:
    from c3tools.connect.pairs import PairedFeatures

STORE_OPTIONS = ("store", "second_store", "modalities")
FILE_OPTIONS = ("meta", "text_meta", "image_array", "text_array")


def heads(
    context: typer.Context,
    *,
    other: Sequence[str] = (),
    modalities: str | None = None,
    json: str | None = None,
    **options: Any,
) -> None:
    """Train two small heads on frozen features: two modalities of a store, two stores, or two files of vectors.

    The output folder contains the heads, a log of the geometry by step (geometry.json, geometry.svg) and a model card.
    Run the same command again to continue an interrupted training. `c3 connect apply` makes a store with the heads.

    Args:
        other: A file of vectors of another modality, for example audio=audio.npy.
    """
    features = _read_features(context, other, modalities, options)
    connected = c3tools.connect_heads(features, **options, reporter=reporter())
    _print(connected.to_dict(), options["output"], json, f"c3 connect apply {options['output']} …")


def apply(
    context: typer.Context,
    heads: str = "c3-heads",
    *,
    other: Sequence[str] = (),
    modalities: str | None = None,
    json: str | None = None,
    **options: Any,
) -> None:
    """Apply trained heads to features of the same towers, and write the result to a new store.

    Keys, splits and captions are copied.

    Args:
        other: A file of vectors of another modality, for example audio=audio.npy.
    """
    features = _read_features(context, other, modalities, options)
    report = c3tools.apply_heads(heads, features, **options, reporter=reporter())
    write_json(report.to_dict(), json)
    for note in report.notes:
        message(note)
    listing = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    output = options["output"]
    message(f"Wrote {listing} rows into {output} ({counted(report.pairs, 'pair')}). Next: c3 gap-report {output}")


def lit(paths: list[str], *, json: str | None = None, **options: Any) -> None:
    """Train the text tower of an open_clip model on photos with captions; the image tower stays frozen.

    The photos are encoded once. The output folder is a model for every command (--model local-dir:c3-model), with a
    model card and a log of the geometry. Run the same command again to continue an interrupted training; run it with
    `torchrun` to use several GPUs.
    """
    connected = c3tools.connect_towers(paths, mode="lit", **options, reporter=reporter())
    _print(connected.to_dict(), options["output"], json, f"c3 embed --model local-dir:{options['output']} …")


def full(paths: list[str], *, json: str | None = None, **options: Any) -> None:
    """Train both towers of an open_clip model on photos with captions.

    Large batches fit into memory, because --chunk pairs are embedded at a time (gradient caching). The output folder is
    a model for every command (--model local-dir:c3-model), with a model card and a log of the geometry. Run the same
    command again to continue an interrupted training; run it with `torchrun` to use several GPUs.
    """
    connected = c3tools.connect_towers(paths, mode="full", **options, reporter=reporter())
    _print(connected.to_dict(), options["output"], json, f"c3 embed --model local-dir:{options['output']} …")


def _read_features(
    context: typer.Context, other: Sequence[str], modalities: str | None, options: dict[str, Any]
) -> PairedFeatures:
    """Read the two modalities, and take what names them out of ``options``.

    Raises:
        C3Error: if options of a store are typed together with files of vectors, or options of files without files.
    """
    chosen = {name: options.pop(name) for name in ("image", "text", "store", "second_store", *FILE_OPTIONS)}
    from_files = bool(chosen["image"] or chosen["text"] or other)
    if from_files and (option := typed_option(context, *STORE_OPTIONS)):
        raise C3Error(
            f"{option} cannot be used here: the features come from the files given by --image, --text or --other.",
            remedy=f"Leave out {option}, or leave out the files. --output names the result.",
        )
    if not from_files and (option := typed_option(context, *FILE_OPTIONS)):
        raise C3Error(
            f"{option} describes a file of vectors, but no file is given, so the features come from a store.",
            remedy=f"Give the files with --image, --text or --other, or leave out {option}.",
        )
    names = comma_separated(modalities)
    return c3tools.read_features(**chosen, other=named_files(other), modalities=names, reporter=reporter())


def _print(record: dict[str, Any], output: str, json: str | None, following: str) -> None:
    """Print the scores of a training, in the main process only."""
    from c3tools.connect.processes import rank
    from c3tools.connect.training import score_table

    if rank():
        return
    if write_json(record, json):
        print_table(score_table(record))
    message(f"Wrote {output}/. The geometry by step is drawn in {output}/geometry.svg. Next: {following}")
