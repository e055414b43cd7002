"""Paths and URLs, patterns, atomic files, locks and limits: how files are found, read and
written.
"""
