"""`c3 models` and `info`: the models that can be loaded by name, and what this machine offers."""

from __future__ import annotations

from typing import Any

import c3tools

from ._console import out, print_table


def models(containing: str = "", *, here: bool = False) -> Any:
    """List the models that --model takes.

    These are the bundled model, the open_clip models, and the kinds of model of other libraries.
    """
    from c3tools.encoders.networks import model_table
    from c3tools.encoders.plugins import kind_table

    listed = c3tools.list_models(containing, here=here)
    print_table(model_table(listed))
    print_table(kind_table())
    return listed


def info() -> Any:
    """Show versions, devices and extras, for bug reports."""
    from c3tools.machine import machine_report

    description = c3tools.describe_machine()
    for part in machine_report(description):
        if isinstance(part, str):
            out.print(part)
        else:
            print_table(part)
    return description
