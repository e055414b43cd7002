"""Paths and URLs, patterns, image files, atomic files, locks and limits: how files are found, read
and written.
"""
