"""A description of this machine: versions, devices, backends, installed extras, caption metrics."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from . import __version__, devices
from .encoders.backend import EncoderBackend
from .encoders.backends import BACKENDS
from .extras import extra_requirements, install_command
from .metrics.caption_scores import caption_metrics
from .result_table import Table

_BUILDS_OF_FAISS = "faiss faiss-cpu faiss-gpu faiss-gpu-cu11 faiss-gpu-cu12 faiss-gpu-cuvs".split()
_PACKAGES = "torch open_clip_torch openvino nncf numpy pyarrow safetensors".split()
_PACKAGES += _BUILDS_OF_FAISS
_PACKAGE = re.compile(r"[A-Za-z0-9._-]+")


def describe_machine() -> dict[str, Any]:
    """Return versions, devices and installed extras of this machine.

    Returns:
        A dictionary with these keys:

        - ``c3tools``, ``python``, ``platform``: versions
        - ``packages``: versions by name, None if not installed
        - ``faiss``: ``version``, ``gpus`` (number) and ``options`` of the build of FAISS that is
          imported, None if there is none
        - ``devices``: for each ``name``, ``description``, ``memory`` (bytes, None if unknown),
          ``precisions`` and ``auto``, the precision that ``--precision auto`` chooses; none without
          torch
        - ``backends``: for each ``name``, ``devices`` (with precisions, in words), ``installed``
          and ``extra``
        - ``extras``: the missing packages of each extra
        - ``metrics``: for each metric of captions None, or what is missing
    """
    return {
        "c3tools": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "faiss": _faiss(),
        "devices": _devices(),
        "backends": [_backend(backend) for backend in BACKENDS.values()],
        "extras": _missing_packages(),
        "metrics": {name: metric.missing() for name, metric in caption_metrics().items()},
    }


def machine_report(description: Mapping[str, Any]) -> list[str | Table]:
    """Return a description of a machine, see `describe_machine`, as lines and tables to show."""
    versions = [f"{name} {version}" for name, version in description["packages"].items() if version]
    faiss_lines = []
    if description["faiss"]:
        facts = description["faiss"]
        faiss_lines.append(f"FAISS {facts['version']} ({facts['options']}), {facts['gpus']} GPUs")
    builds = [name for name in _BUILDS_OF_FAISS if description["packages"].get(name)]
    if len(builds) > 1:
        faiss_lines.append(
            f"{' and '.join(builds)} install the same files. Uninstall them all, then install one."
        )
    return [
        f"c3tools {description['c3tools']}, Python {description['python']}, "
        f"{description['platform']}",
        ", ".join(versions),
        *faiss_lines,
        *([_device_table(description["devices"])] if description["devices"] else []),
        _backend_table(description["backends"]),
        _extra_table(description["extras"]),
        *(
            f"{metric}: {lacking or 'can be computed'}"
            for metric, lacking in description["metrics"].items()
        ),
    ]


def _device_table(descriptions: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for device in descriptions:
        memory = f"{device['memory'] / 2**30:.1f} GiB" if device["memory"] else ""
        precisions = ", ".join(device["precisions"])
        rows.append([device["name"], device["description"], memory, precisions, device["auto"]])
    columns = ["device", "description", "memory", "precisions", "auto chooses"]
    return Table(columns, rows, left=columns)


def _backend_table(backends: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for backend in backends:
        command = install_command(backend["extra"])
        rows.append(
            [backend["name"], backend["devices"], "yes" if backend["installed"] else command]
        )
    return Table(["backend", "runs on", "installed"], rows, left=["runs on", "installed"])


def _extra_table(missing_packages: Mapping[str, Sequence[str]]) -> Table:
    rows = []
    for extra, missing in missing_packages.items():
        rows.append([extra, "" if missing else "yes", ", ".join(missing)])
    return Table(["extra", "installed", "missing"], rows, left=["installed", "missing"])


def _missing_packages() -> dict[str, list[str]]:
    """Return the packages of each extra that are not installed."""
    missing: dict[str, list[str]] = {}
    for extra, requirements in extra_requirements().items():
        packages = [_PACKAGE.findall(requirement)[0] for requirement in requirements]
        missing[extra] = [package for package in packages if _version(package) is None]
    return missing


def _backend(backend: type[EncoderBackend]) -> dict[str, Any]:
    return {
        "name": backend.name,
        "devices": backend.devices,
        "installed": backend.is_installed(),
        "extra": backend.extra,
    }


def _faiss() -> dict[str, Any] | None:
    """Return facts on the build of FAISS that is imported."""
    try:
        faiss: Any = importlib.import_module("faiss")
    except ImportError:
        return None
    # A build for CPUs has no GPUs to count
    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    options = faiss.get_compile_options().strip()
    return {"version": faiss.__version__, "gpus": gpus, "options": options}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    """Describe the devices that torch finds."""
    try:
        import torch
    except ImportError:
        return []
    names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    names.append("cpu")
    return [_device(name) for name in names]


def _device(name: str) -> dict[str, Any]:
    import torch

    auto = devices.pick(name).precision
    memory: int | None = None
    if name.startswith("cuda"):
        properties = torch.cuda.get_device_properties(name)
        description = properties.name
        memory = int(properties.total_memory)
        precisions = ["fp32", "fp16"]
        if auto == "bf16":
            precisions.append("bf16")
    elif name == "cpu":
        description = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
        with suppress(AttributeError, ValueError, OSError):  # not on every system
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        precisions = ["fp32", "bf16"]
        if devices.has_int8():
            precisions.append("int8")
    else:
        description = platform.machine()
        precisions = ["fp32", "fp16"]
    return {
        "name": name,
        "description": description,
        "memory": memory,
        "precisions": precisions,
        "auto": auto,
    }
