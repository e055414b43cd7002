"""`c3 connect heads`, `apply`, `lit` and `full`: contrastive training from pairs.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import c3tools
from c3tools.reporter import counted, counted_rows

from ._console import message, print_table, reporter

if TYPE_CHECKING:
    from c3tools.connect.heads import ConnectedHeads
    from c3tools.connect.towers import ConnectedTowers


def heads(**options: Any) -> Any:
    """Train two small heads on frozen features.

    The features are two modalities of a store, one modality each of two stores, or two files of
    vectors. The output folder contains the heads and a log of the geometry during training
    (geometry.json, geometry.svg). Run the same command again to continue an interrupted run. To
    build a store with the heads, use `c3 connect apply`.
    """
    features = _read_features(options)
    connected = c3tools.connect_heads(features, **options, reporter=reporter())
    return _print(connected, options, f"c3 connect apply {options['output']} …")


def apply(heads: str = "c3-heads", **options: Any) -> Any:
    """Apply trained heads and write a new store.

    The features must come from the same towers. Keys, splits and captions are copied.
    """
    report = c3tools.apply_heads(heads, _read_features(options), **options, reporter=reporter())
    for note in report.notes:
        message(note)
    output = options["output"]
    message(
        f"Wrote {counted_rows(report.rows)} into {output} ({counted(report.pairs, 'pair')}). Next: "
        f"c3 gap-report --store {output}"
    )
    return report.to_dict()


def lit(paths: list[str], **options: Any) -> Any:
    """Train the text tower of an open_clip model.

    The text tower learns from photos with captions. The image tower stays frozen, so each photo is
    encoded only once. Every command can load the trained model with --model local-dir:c3-model. Its
    folder also contains a log of the geometry. Run the same command again to continue an
    interrupted run.
    """
    return _connect_towers(paths, "lit", options)


def full(paths: list[str], **options: Any) -> Any:
    """Train both towers of an open_clip model.

    The towers learn from photos with captions. Large batches fit into memory, because only --chunk
    pairs are embedded at a time (gradient caching). Every command can load the trained model with
    --model local-dir:c3-model. Its folder also contains a log of the geometry. Run the same command
    again to continue an interrupted run.
    """
    return _connect_towers(paths, "full", options)


def _connect_towers(paths: list[str], mode: Any, options: dict[str, Any]) -> Any:
    connected = c3tools.connect_towers(paths, mode=mode, **options, reporter=reporter())
    return _print(connected, options, f"c3 embed --model {connected.name} …")


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


def _print(
    connected: ConnectedHeads | ConnectedTowers, options: dict[str, Any], following: str
) -> Any:
    """Print the scores of a training and what to do next, and return its record."""
    output = options["output"]
    print_table(connected.table())
    message(
        f"Wrote {output}/. The geometry per step is shown in {output}/geometry.svg. Next: "
        f"{following}"
    )
    return connected.record
