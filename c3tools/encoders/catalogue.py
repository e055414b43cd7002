"""What can be loaded by name: the bundled model, and all that open_clip lists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from ..assets.paths import C3_MINI
from .names import DEFAULT_MODEL

# where open_clip keeps weights that it fetched by address, and what it calls those it fetches from a hub
_FETCHED = Path("~/.cache/clip")
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class ListedModel:
    """One model that `load_encoder` takes by name.

    Attributes:
        name: ``c3-mini`` or ``ARCH/PRETRAINED``.
        dim: dimension d of its embeddings.
        image_size: side of its input images, in pixels.
        context_length: longest text, in tokens.
        source: ``bundled``, or where the weights come from: a hub repository or an address.
        here: whether the weights are on this machine, so that it loads offline.
    """

    name: str
    dim: int
    image_size: int
    context_length: int
    source: str
    here: bool


def listed_models(containing: str = "") -> list[ListedModel]:
    """The models whose name contains ``containing``, whatever the case; the bundled one first."""
    return [model for model in _all() if containing.lower() in model.name.lower()]


def _all() -> Iterator[ListedModel]:
    config = json.loads((C3_MINI / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    yield _listed(DEFAULT_MODEL, config, "bundled", here=True)
    for architecture, tag in open_clip.list_pretrained():
        weights = open_clip.get_pretrained_cfg(architecture, tag)
        config = open_clip.get_model_config(architecture)
        if not weights or config is None:
            continue
        source = str(weights.get("hf_hub") or weights.get("url") or "")
        yield _listed(f"{architecture}/{tag}", config, source.rstrip("/"), here=_is_here(weights))


def _listed(name: str, config: dict[str, Any], source: str, *, here: bool) -> ListedModel:
    size = config["vision_cfg"].get("image_size", 224)
    side = size if isinstance(size, int) else max(size)
    return ListedModel(name, config["embed_dim"], side, config["text_cfg"].get("context_length", 77), source, here)


def _is_here(weights: dict[str, Any]) -> bool:
    from huggingface_hub import try_to_load_from_cache

    address = str(weights.get("url") or "")
    if address and (_FETCHED.expanduser() / address.rsplit("/", 1)[-1]).is_file():
        return True
    repository, _, file = str(weights.get("hf_hub") or "").rpartition("/")
    if not repository:
        return False
    files = (file,) if file else _HUB_FILES
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in files)
