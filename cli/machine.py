"""`c3 models` and `info`: models that load by name, and the capabilities of this machine."""

from __future__ import annotations

from typing import Any

import c3tools

from ._console import out, print_table


def models(containing: str = "", *, here: bool = False) -> Any:
    """List the models that --model takes.

    The list contains the bundled model, the open_clip models, and the kinds of models that other
    libraries provide.
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
