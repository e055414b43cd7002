"""Write transformed embeddings of a store for other programs, with the fitted pipeline.

One shard of the store becomes one part of the export. The bytes of a part depend on this shard, the
pipeline and the settings alone. So an interrupted export is continued with the parts that are
missing, and an export of a store that has changed since is brought up to date with the parts that
are new or changed, through the mechanism that stores have (`c3tools.store.manifest`).

    c3-export/
      store.json                              what the rows are; `exported`: what was asked for, the
                                              shards that the pipeline was fitted on, the settings
      transform.json, transform.safetensors   the fitted pipeline: Pipeline.load("c3-export")
                                              for new embeddings, Pipeline.for_rows for its rows
      calibration.safetensors                 the moments of the rows: Calibration.load("c3-export")
      manifest.json                           all files with their SHA-256; written last

`formats` has the layouts of the parts. `c3tools.index` writes exports of a further format, `code`.
"""

from __future__ import annotations

from .export import ExportReport, export_store
from .formats import FORMATS

__all__ = ["FORMATS", "ExportReport", "export_store"]
