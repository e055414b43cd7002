"""`c3 info`: what this machine offers."""

from __future__ import annotations

from typing import Any

import typer

from ._console import out, write_json
from ._options import JsonCommand, JsonOption


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("info", cls=JsonCommand)(info)


def info(json: JsonOption = None) -> None:
    """Show versions, devices and the precisions they compute in, installed extras; for bug reports too."""
    from c3tools.machine import describe_machine

    found = describe_machine()
    if json:
        write_json(found, json)
    if json != "-":
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from rich.table import Table

    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    out.print(f"c3tools {found['c3tools']}, Python {found['python']}, {found['platform']}", highlight=False)
    out.print(packages, highlight=False)
    table = Table("device", "what it is", "memory", "precisions", "auto means")
    for device in found["devices"]:
        memory = f"{device['memory'] / 2**30:.1f} GiB" if device["memory"] else ""
        table.add_row(device["name"], device["description"], memory, ", ".join(device["precisions"]), device["auto"])
    out.print(table)
    extras = Table("extra", "installed", "missing")
    for name, missing in found["extras"].items():
        extras.add_row(name, "" if missing else "yes", ", ".join(missing))
    out.print(extras)
    for name, lacking in found["java"].items():
        out.print(f"{name}: {lacking or 'can be computed'}", highlight=False, markup=False)
