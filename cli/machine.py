"""`c3 models` and `info`: the models that can be loaded by name, and what this machine offers."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Column
from rich.table import Table as RichTable

import c3tools
from c3tools.tables import Table

from ._console import message, out, print_table, write_json


def models(
    containing: str = "",
    *,
    here: bool = False,
    json: str | None = None,
) -> None:
    """List the model names that --model takes: the bundled model and those of open_clip."""
    found = c3tools.list_models(containing, here=here)
    if write_json([asdict(model) for model in found], json):
        # people copy names, so they are wrapped and never cut
        table = RichTable(Column("model", overflow="fold"), "d", "image", "text", "here")
        for model in found:
            sizes = (str(model.dim), f"{model.image_size} px", f"{model.context_length} tokens")
            table.add_row(model.name, *sizes, "yes" if model.here else "")
        out.print(table)
        message("Also: local-dir:PATH (a folder with open_clip_config.json), hf-hub:ORG/NAME.")


def info(*, json: str | None = None) -> None:
    """Show versions, devices with their precisions, and installed extras. Include this in bug reports."""
    found = c3tools.describe_machine()
    if not write_json(found, json):
        return
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
