"""Write transformed embeddings of a store for other tools, with the recipe beside them."""

from __future__ import annotations

from .export import DTYPES, FORMATS, ROLES, ExportReport, export_store

__all__ = ["DTYPES", "FORMATS", "ROLES", "ExportReport", "export_store"]
