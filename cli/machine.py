"""`c3 models` and `info`: the models that can be loaded by name, and what this machine offers."""

from __future__ import annotations

from typing import Any

import c3tools
from c3tools.tables import Table

from ._console import out, print_table


def models(containing: str = "", *, here: bool = False) -> Any:
    """List the model names that --model takes: the bundled model, those of open_clip, and kinds of
    other libraries.
    """
    from c3tools.encoders.plugins import model_kinds

    found = c3tools.list_models(containing, here=here)
    rows = [
        [
            m["name"],
            str(m["dim"]),
            f"{m['image_size']} px",
            f"{m['context_length']} tokens",
            "yes" if m["here"] else "",
        ]
        for m in found
    ]
    print_table(Table(["model", "d", "image", "text", "here"], rows))
    kinds = [[kind.form, kind.about, kind.install or "yes"] for kind in model_kinds()]
    print_table(Table(["also", "of", "installed"], kinds, left=["of", "installed"]))
    return found


def info() -> Any:
    """Show versions, devices with their precisions, and installed extras. Include this in bug
    reports.
    """
    found = c3tools.describe_machine()
    out.print(f"c3tools {found['c3tools']}, Python {found['python']}, {found['platform']}")
    out.print(
        ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    )
    devices = []
    for device in found["devices"]:
        memory = f"{device['memory'] / 2**30:.1f} GiB" if device["memory"] else ""
        devices.append(
            [
                device["name"],
                device["description"],
                memory,
                ", ".join(device["precisions"]),
                device["auto"],
            ]
        )
    columns = ["device", "description", "memory", "precisions", "auto chooses"]
    print_table(Table(columns, devices, left=columns))
    backends = [
        [
            backend["name"],
            backend["devices"],
            "yes" if backend["installed"] else f'pip install "c3tools[{backend["extra"]}]"',
        ]
        for backend in found["backends"]
    ]
    print_table(Table(["backend", "runs on", "installed"], backends, left=["runs on", "installed"]))
    extras = [
        [name, "" if missing else "yes", ", ".join(missing)]
        for name, missing in found["extras"].items()
    ]
    print_table(Table(["extra", "installed", "missing"], extras, left=["installed", "missing"]))
    for name, lacking in found["metrics"].items():
        out.print(f"{name}: {lacking or 'can be computed'}")
    return found
