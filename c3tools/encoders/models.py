"""The names of models: `c3-mini`, `ARCH/PRETRAINED`, `local-dir:PATH`, `hf-hub:ORG/NAME`, and those that are listed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..assets.paths import C3_MINI
from ..errors import EncoderError
from ..io.artifact import HUB, answers

DEFAULT_MODEL = "c3-mini"
_LOCAL = "local-dir:"
_DOWNLOADS = Path("~/.cache/clip")  # where open_clip keeps weights that it fetched by address
_TAGS_SHOWN = 8
OFFLINE_REMEDY = "Offline, use the bundled --model c3-mini, or --model local-dir:PATH with a folder on this machine."
_HUB_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


@dataclass(frozen=True)
class ModelName:
    """A parsed model name.

    Attributes:
        name: as the user wrote it.
        architecture: the model's name in open_clip: an architecture, or a name with a schema.
        pretrained: a pretrained tag or the path of a weights file, or None.
    """

    name: str
    architecture: str
    pretrained: str | None = None

    @classmethod
    def parse(cls, name: str) -> ModelName:
        """Parse a model name.

        Raises:
            EncoderError: for a name of none of the forms, or a ``local-dir:`` that is not a folder.
        """
        if name == DEFAULT_MODEL:
            return cls(name, f"{_LOCAL}{C3_MINI}")
        if name.startswith(_LOCAL):
            folder = Path(name.removeprefix(_LOCAL)).expanduser()
            if not (folder / "open_clip_config.json").is_file():
                raise EncoderError(
                    f"{folder} is not a local model: open_clip_config.json is missing.",
                    remedy="A local-dir: model is a folder with open_clip_config.json and the weights.",
                )
            return cls(name, f"{_LOCAL}{folder}")
        if name.startswith(HUB):
            return cls(name, name)
        architecture, _, pretrained = name.partition("/")
        return cls(name, architecture, pretrained or None)

    def require_known(self) -> None:
        """Refuse an architecture that open_clip does not have.

        Raises:
            EncoderError: with the names that are close.
        """
        import open_clip  # takes seconds

        known = open_clip.list_models()
        if not self.architecture.startswith((_LOCAL, HUB)) and self.architecture not in known:
            close = difflib.get_close_matches(self.architecture, [*known, DEFAULT_MODEL], n=3)
            hint = f"Did you mean {' or '.join(close)}? " if close else ""
            raise EncoderError(
                f"There is no model {self.name!r}.",
                remedy=f"{hint}A model is c3-mini, ARCH/PRETRAINED (as open_clip lists them), local-dir:PATH or "
                "hf-hub:ORG/NAME.",
            )


def require_weights(name: ModelName) -> None:
    """Refuse a model whose weights cannot be loaded, within seconds: the hubs' own clients try for a minute.

    Raises:
        EncoderError: for an unknown name, or weights that are not on this machine while their server does not answer.
    """
    import open_clip
    from huggingface_hub import constants

    if name.architecture.startswith(_LOCAL):
        return
    if name.architecture.startswith(HUB):
        weights = {"hf_hub": f"{name.architecture.removeprefix(HUB).partition('@')[0]}/"}
    else:
        name.require_known()
        tags = open_clip.list_pretrained_tags_by_model(name.architecture)
        if name.pretrained not in tags:
            if Path(name.pretrained or "").is_file():
                return
            close = difflib.get_close_matches(name.pretrained or "", tags, n=_TAGS_SHOWN, cutoff=0.4)
            shown = [*close, *(tag for tag in tags if tag not in close)][:_TAGS_SHOWN]
            lines = ["Add pretrained weights, or use random weights with --random-init SEED:"]
            lines += [f"  {name.architecture}/{tag}" for tag in shown]
            if len(tags) > len(shown):
                lines.append(f"and {len(tags) - len(shown)} more; list them with: c3 models {name.architecture}/")
            raise EncoderError(
                f"{name.name!r} names no pretrained weights of {name.architecture}, and no such file.",
                remedy="\n".join(lines),
            )
        weights = open_clip.get_pretrained_cfg(name.architecture, name.pretrained)
    server = str(constants.ENDPOINT if weights.get("hf_hub") else weights["url"])
    if not is_local(weights) and not answers(server):
        raise EncoderError(
            f"The weights of {name.name} are not on this machine, and they cannot be downloaded: {server} does not "
            "answer.",
            remedy=OFFLINE_REMEDY,
        )


@dataclass(frozen=True)
class ListedModel:
    """A model that `load_encoder` takes by name.

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


def list_models(containing: str = "", *, here: bool = False) -> list[ListedModel]:
    """List the models that can be loaded by name, the bundled one first.

    Args:
        containing: List only names that contain this text, for example ViT-B-32.
        here: List only models whose weights are on this machine.

    Raises:
        EncoderError: if there is no such model.
    """
    import open_clip  # takes seconds

    def listed(name: str, config: dict[str, Any], source: str, on_machine: bool) -> ListedModel:
        size = config["vision_cfg"].get("image_size", 224)
        side = size if isinstance(size, int) else max(size)
        length = config["text_cfg"].get("context_length", 77)
        return ListedModel(name, config["embed_dim"], side, length, source, on_machine)

    config = json.loads((C3_MINI / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    models = [listed(DEFAULT_MODEL, config, "bundled", True)]
    for architecture, tag in open_clip.list_pretrained():
        weights, config = open_clip.get_pretrained_cfg(architecture, tag), open_clip.get_model_config(architecture)
        if weights and config is not None:
            source = str(weights.get("hf_hub") or weights.get("url") or "").rstrip("/")
            models.append(listed(f"{architecture}/{tag}", config, source, is_local(weights)))
    models = [model for model in models if containing.lower() in model.name.lower() and (model.here or not here)]
    if not models:
        where = " with weights on this machine" if here else ""
        raise EncoderError(
            f"No model{where} has {containing!r} in its name.",
            remedy="`c3 models` lists all names. A folder is local-dir:PATH, and a repository of the hub is "
            "hf-hub:ORG/NAME.",
        )
    return models


def is_local(weights: Mapping[str, Any]) -> bool:
    """Return whether weights, as open_clip describes them (``url``, ``hf_hub``), are on this machine."""
    from huggingface_hub import try_to_load_from_cache

    address = str(weights.get("url") or "")
    if address and (_DOWNLOADS.expanduser() / address.rsplit("/", 1)[-1]).is_file():
        return True
    repository, _, file = str(weights.get("hf_hub") or "").rpartition("/")
    files = ((file,) if file else _HUB_FILES) if repository else ()
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in files)
