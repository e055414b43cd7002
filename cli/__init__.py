"""The command `c3`: one file per command, which parses options, calls c3tools and prints the
result.

Command modules import typer and nothing heavy; c3tools is imported inside the commands, so that
`c3 --help` is fast.
"""

from __future__ import annotations

from ._app import app, main

__all__ = ["app", "main"]
