"""`c3 means`: the mean and covariance of each modality.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import c3tools
from c3tools.reporter import counted_rows

from ._console import message, out, print_table, reporter

if TYPE_CHECKING:
    from c3tools import Moments


def show(**options: Any) -> Any:
    """Show the mean of each modality, and the gap, by split."""
    store = c3tools.Store.open(options["store"], reporter=reporter())
    means = c3tools.compute_means(store)
    print_table(means.table())
    for note in means.notes():
        out.print(note)
    return means.to_dict()


def save(file: str | Path, *, store: str | Path = "c3-store", split: str = "train") -> Any:
    """Write the moments of a store to a file.

    Moments are the mean and covariance of each modality. Another store of the same model can load
    them.
    """
    opened = c3tools.Store.open(store, reporter=reporter())
    return _report_written(file, c3tools.save_means(opened, file, split=split))


def load(file: str, *, store: str | Path = "c3-store") -> Any:
    """Fit Collapse on the moments of another corpus.

    `c3 means save` writes a file of moments. `c3 means unload` restores the store's own moments.
    """
    moments = c3tools.load_means(store, file)
    message(f"Collapse now uses the moments in {file}: {', '.join(moments)}.")
    return {"file": file, "rows": _rows_of(moments)}


def unload(*, store: str | Path = "c3-store") -> Any:
    """Go back to the store's own moments."""
    c3tools.unload_means(store)
    message(f"Collapse now uses the store's own moments ({store}).")
    return {"store": str(store)}


def _report_written(file: str | Path, moments: Mapping[str, Moments]) -> dict[str, Any]:
    rows = _rows_of(moments)
    message(f"Wrote {file}: {counted_rows(rows)}")
    return {"output": str(file), "rows": rows}


def _rows_of(moments: Mapping[str, Moments]) -> dict[str, int]:
    return {modality: each.n for modality, each in moments.items()}
