"""Paths and URLs, patterns, atomic and sealed files, float16: how files are found, read and written."""
