"""A tiny open_clip model, and photos of plain colours whose captions name the colour: quick to
learn."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.conftest import write_jsonl

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 160, 40),
    "blue": (30, 50, 200),
    "yellow": (220, 210, 40),
}
SHADES = {"dark": 0.5, "plain": 1.0}
VISION = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16}
TEXT: dict[str, Any] = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 16,
    "heads": 2,
    "layers": 1,
}


def save_tiny_clip(folder: Path, **text_changes: object) -> str:
    """Write the model with random weights; return its name."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "embed_dim": 16,
        "vision_cfg": VISION,
        "text_cfg": TEXT | text_changes,
    }
    folder.mkdir(parents=True)
    preprocess = {
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    value = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(value))
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def save_photos(folder: Path, per_kind: int = 6) -> Path:
    """Write noisy squares of eight colours, ``per_kind`` of each, two captions each, split into
    train, val and test."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = []
    for number, shade, colour in product(range(per_kind), SHADES, COLOURS):
        name = f"{shade}-{colour}-{number}.png"
        pixels = SHADES[shade] * np.array(COLOURS[colour]) + rng.normal(0, 8, size=(40, 40, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name)
        captions = [f"a {shade} {colour} square", f"{colour}, {shade}, number {number}"]
        split = "val" if number == 0 else "test" if number == 1 else "train"
        rows.append({"image": name, "captions": captions, "split": split})
    write_jsonl(folder / "captions.jsonl", *rows)
    return folder
