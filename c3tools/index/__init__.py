"""FAISS index of a store, for one modality or for all of them together."""

from __future__ import annotations

from .build import build_index
from .index import Hit, Index, SearchResult, find_index
from .sheet import contact_sheet

__all__ = ["Hit", "Index", "SearchResult", "build_index", "contact_sheet", "find_index"]
