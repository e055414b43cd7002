"""The command `c3`: one file per command, no logic: parse, call c3tools, print.

Command modules import typer and nothing heavy; c3tools is imported inside the commands, so that
`c3 --help` answers at once.
"""

from __future__ import annotations

from ._app import app, main

__all__ = ["app", "main"]
