"""The description and the graphs of the bundled model: it starts without open_clip and torch, which take seconds.

``encoder.json`` beside the weights is written by examples/c3_mini/describe.py, from the model itself, and so are its
towers as ONNX graphs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..assets.paths import C3_MINI
from ..io.files import sha256_of
from .preprocessing import ImagePreprocessor, Squash
from .selection import Description
from .tokenizer import ClipTokenizer

GRAPH_FILES = ("image.onnx", "text.onnx")  # the weights in them are those of the weights file
DESCRIPTION_FILE, WEIGHTS_FILE, _CONFIG = "encoder.json", "open_clip_model.safetensors", "open_clip_config.json"


def read_description(folder: Path = C3_MINI) -> Description | None:
    """Return the description of the bundled model; None if it is not that of the weights in the folder.

    The graphs beside it are left out if they are not those that were described.
    """
    try:
        noted = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if noted["weights_file_sha256"] != sha256_of(folder / WEIGHTS_FILE):
            return None
        preprocessing = noted["preprocessing"]
        size = preprocessing["size"] = tuple(preprocessing["size"])
        return Description(
            noted["identity"],
            ClipTokenizer(config["model_cfg"]["text_cfg"]["context_length"]),
            ImagePreprocessor(
                (Squash(size),), size, tuple(preprocessing["mean"]), tuple(preprocessing["std"]), preprocessing
            ),
            noted["trims_texts"],
            noted["end_token"],
            noted["dim"],
            folder if _are_described(folder, noted["graphs_sha256"]) else None,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _are_described(folder: Path, digests: Mapping[str, str]) -> bool:
    try:
        return all(sha256_of(folder / name) == digests[name] for name in GRAPH_FILES)
    except OSError:
        return False
