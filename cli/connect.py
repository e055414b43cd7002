"""`c3 connect heads`, `apply`, `lit` and `full`: contrastive training from pairs."""

from __future__ import annotations

from typing import Any

import c3tools
from c3tools.reporter import counted
from c3tools.tables import Table

from ._console import message, print_table, reporter

_RECALLS = ("recall@1", "recall@5", "recall@10")


def heads(**options: Any) -> Any:
    """Train two small heads on frozen features: two modalities of a store, two stores, or two files
    of vectors.

    The output folder contains the heads and a log of the geometry by step (geometry.json,
    geometry.svg). Run the same command again to continue an interrupted training. `c3 connect
    apply` makes a store with the heads.
    """
    features = _read_features(options)
    connected = c3tools.connect_heads(features, **options, reporter=reporter())
    return _print(connected.record, options["output"], f"c3 connect apply {options['output']} …")


def apply(heads: str = "c3-heads", **options: Any) -> Any:
    """Apply trained heads to features of the same towers, and write the result to a new store.

    Keys, splits and captions are copied.
    """
    report = c3tools.apply_heads(heads, _read_features(options), **options, reporter=reporter())
    for note in report.notes:
        message(note)
    listing = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    output = options["output"]
    message(
        f"Wrote {listing} rows into {output} ({counted(report.pairs, 'pair')}). Next: c3 "
        f"gap-report {output}"
    )
    return report.to_dict()


def lit(paths: list[str], **options: Any) -> Any:
    """Train the text tower of an open_clip model on photos with captions; the image tower stays
    frozen.

    The photos are encoded once. The output folder is a model for every command (--model
    local-dir:c3-model), with a log of the geometry. Run the same command again to continue an
    interrupted training.
    """
    return _connect_towers(paths, "lit", options)


def full(paths: list[str], **options: Any) -> Any:
    """Train both towers of an open_clip model on photos with captions.

    Large batches fit into memory, because --chunk pairs are embedded at a time (gradient caching).
    The output folder is a model for every command (--model local-dir:c3-model), with a log of the
    geometry. Run the same command again to continue an interrupted training.
    """
    return _connect_towers(paths, "full", options)


def _connect_towers(paths: list[str], mode: Any, options: dict[str, Any]) -> Any:
    connected = c3tools.connect_towers(paths, mode=mode, **options, reporter=reporter())
    return _print(
        connected.record, options["output"], f"c3 embed --model local-dir:{options['output']} …"
    )


def _read_features(options: dict[str, Any]) -> Any:
    """Read the two modalities, and take what names them out of ``options``."""
    names = (
        "image",
        "text",
        "other",
        "meta",
        "text_meta",
        "image_array",
        "text_array",
        "store",
        "second_store",
        "modalities",
    )
    given = {name: options.pop(name) for name in names}
    return c3tools.read_features(**given, reporter=reporter())


def _print(record: dict[str, Any], output: str, following: str) -> Any:
    """Print the scores of a training, recalls in percent."""
    rows = []
    for split, score in record["scores"].items():
        geometry = [f"{score[name]:.3f}" for name in ("gap", "paired_cosine", "unpaired_cosine")]
        for direction, recall in score["recall"].items():
            cells = [f"{100 * recall[name]:.1f} %" for name in _RECALLS]
            rows.append([split, direction.replace("_to_", " → "), *cells, *geometry])
    columns = ["split", "direction", *_RECALLS, "gap", "paired cosine", "unpaired"]
    print_table(Table(columns, rows, left=["direction"]))
    message(
        f"Wrote {output}/. The geometry by step is drawn in {output}/geometry.svg. Next: "
        f"{following}"
    )
    return record
