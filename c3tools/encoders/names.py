"""How models are named: `c3-mini`, `ARCH/PRETRAINED`, `local-dir:PATH`, `hf-hub:ORG/NAME`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..assets.paths import C3_MINI
from ..errors import EncoderError

DEFAULT_MODEL = "c3-mini"

_LOCAL, _HUB = "local-dir:", "hf-hub:"


@dataclass(frozen=True)
class ModelName:
    """A parsed model name.

    Attributes:
        name: as the user wrote it.
        architecture: what open_clip calls the model: an architecture, or a name with a schema.
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
                    f"{folder} is not a local model: there is no open_clip_config.json in it.",
                    remedy="A local-dir: model is a folder with open_clip_config.json and the weights.",
                )
            return cls(name, f"{_LOCAL}{folder}")
        if name.startswith(_HUB):
            return cls(name, name)
        architecture, _, pretrained = name.partition("/")
        return cls(name, architecture, pretrained or None)

    @property
    def has_schema(self) -> bool:
        """Whether config and weights come from a folder or a hub rather than from open_clip's own lists."""
        return self.architecture.startswith((_LOCAL, _HUB))
