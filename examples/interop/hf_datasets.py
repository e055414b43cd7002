"""Read an export as a Hugging Face data set.

    c3 export --format hf && python hf_datasets.py c3-export

Takes a few seconds, and prints the splits and the provenance.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import datasets


def load(export: Path, modality: str, cache: Path | None = None) -> datasets.DatasetDict:
    """Return the splits of one modality, by the configuration of that name."""
    return datasets.load_dataset(
        str(export), modality, cache_dir=None if cache is None else str(cache)
    )


def provenance(export: Path) -> dict[str, Any]:
    """Return what the export was made from: the record in its store.json."""
    record: dict[str, Any] = json.loads((export / "store.json").read_text())
    exported: dict[str, Any] = record["extra"]["exported"]
    return exported


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(load(folder, "text"))
    print(provenance(folder)["transform"]["name"])
