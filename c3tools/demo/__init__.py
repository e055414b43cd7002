"""`c3 demo`: the whole method on the bundled photos, offline, in minutes."""

from __future__ import annotations

from .page import DemoResult
from .run import copy_photos, run_demo

__all__ = ["DemoResult", "copy_photos", "run_demo"]
