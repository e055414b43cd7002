"""Paths and URLs, patterns, atomic files: how anything is read and written."""
