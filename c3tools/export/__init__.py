"""Write transformed embeddings of a store for other programs, with the fitted pipeline."""

from __future__ import annotations

from .export import FORMATS, ExportReport, export_store

__all__ = ["FORMATS", "ExportReport", "export_store"]
