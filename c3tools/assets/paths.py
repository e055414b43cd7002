"""Paths of the data that ships with the package."""

from __future__ import annotations

from pathlib import Path

ASSETS = Path(__file__).parent
C3_MINI = ASSETS / "c3-mini"
C3_MINI_MOMENTS = C3_MINI / "moments.safetensors"
C3_MINI_CAPTIONER = ASSETS / "c3-mini-captioner"
PHOTOS = ASSETS / "coco-cc"
CAPTIONS = ASSETS / "coco-captions" / "val2017.jsonl"
COCO_CATEGORIES = ASSETS / "coco_categories.txt"  # the 80 of MS-COCO, one a line
