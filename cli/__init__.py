"""The command `c3`. Each file without an underscore has the commands of one topic.

A command is a function that calls a public function and prints the result. ``**options`` are the
parameters of that public function with the values from the command line: `_derive` reads them from
its signature. What a command returns is what `--json` writes.

The public functions import their rooms when they are called, so that `c3 --help` is fast.
"""

from __future__ import annotations

import sys

from c3tools.errors import MissingRequirementError, explain_missing

try:
    with explain_missing("The command c3"):
        from ._app import app, main
except MissingRequirementError as error:
    sys.exit(f"Error: {error}")

__all__ = ["app", "main"]
