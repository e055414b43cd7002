"""`c3 info`: what this machine offers."""

from __future__ import annotations

from typing import Any

from ._console import out, print_table, write_json
from ._options import JsonOption


def info(json: JsonOption = None) -> None:
    """Show versions, devices with their precisions, and installed extras. Include this in bug reports."""
    from c3tools.machine import describe_machine

    found = describe_machine()
    if write_json(found, json):
        _show(found)


def _show(found: dict[str, Any]) -> None:
    from c3tools.tables import Table

    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    out.print(f"c3tools {found['c3tools']}, Python {found['python']}, {found['platform']}", highlight=False)
    out.print(packages, highlight=False)
    devices = []
    for device in found["devices"]:
        memory = f"{device['memory'] / 2**30:.1f} GiB" if device["memory"] else ""
        devices.append([device["name"], device["description"], memory, ", ".join(device["precisions"]), device["auto"]])
    columns = ["device", "description", "memory", "precisions", "auto chooses"]
    print_table(Table(columns, devices, left=columns))
    extras = [[name, "" if missing else "yes", ", ".join(missing)] for name, missing in found["extras"].items()]
    print_table(Table(["extra", "installed", "missing"], extras, left=["installed", "missing"]))
    for name, lacking in found["java"].items():
        out.print(f"{name}: {lacking or 'can be computed'}", highlight=False, markup=False)
