"""`c3 demo`: the whole method on the bundled photos, offline, in minutes."""

from __future__ import annotations

from .run import DemoOptions, DemoResult, copy_photos, demo

__all__ = ["DemoOptions", "DemoResult", "copy_photos", "demo"]
