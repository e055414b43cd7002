"""FAISS index of a store, for one modality or for all of them together."""

from __future__ import annotations

from .index import Hit, Index, SearchResult, build_index, contact_sheet, find_index

__all__ = ["Hit", "Index", "SearchResult", "build_index", "contact_sheet", "find_index"]
