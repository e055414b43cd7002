"""The identity of the model that made embeddings, as it is saved in stores, pipelines, decoders and
indexes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import C3Error

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
UNKNOWN_MODEL = "unknown"  # the name that an import records if none is given


class ModelIdentity(dict[str, Any]):
    """The identity of a contrastive model: a JSON object that is stored with everything made by the
    model.

    It has ``name`` and, if known, ``architecture``, ``pretrained``, ``random_init`` (the seed of
    random weights) and ``weights_sha256`` (`c3tools.encoders.weights_sha256`). It is empty for an
    unknown model.
    """

    @property
    def name(self) -> str:
        """The model's name, or ``an unknown model`` if none is recorded."""
        return str(self.get("name") or "an unknown model")

    @property
    def is_known(self) -> bool:
        """Return whether a model is recorded."""
        return bool(self.get("name", UNKNOWN_MODEL) != UNKNOWN_MODEL)

    @property
    def weights_sha256(self) -> str | None:
        """The hash of the weights (`c3tools.encoders.weights_sha256`), or None if it is unknown."""
        return self.get("weights_sha256")

    @property
    def repository(self) -> str | None:
        """The repository ``ORG/NAME`` on the Hugging Face hub that the model is loaded from; None
        for other models.
        """
        kind, _, repository = self.name.partition(":")
        is_there = kind in ("hf-hub", "st") and _REPOSITORY.fullmatch(repository)
        return repository if is_there and not Path(repository).is_dir() else None

    def __str__(self) -> str:
        """Return the name, with the beginning of the hash of the weights if it is known."""
        if not self.weights_sha256:
            return self.name
        return f"{self.name} ({str(self.weights_sha256)[:12]})"

    def same_as(self, other: ModelIdentity) -> bool:
        """Return True if both are the same model, by the hash of the weights if both have one, else
        by name.

        An unknown model counts as the same as any other.
        """
        if not self or not other:
            return True
        if self.weights_sha256 and other.weights_sha256:
            return self.weights_sha256 == other.weights_sha256
        return self.get("name") == other.get("name")

    def require_same(
        self,
        model: Mapping[str, Any] | None,
        *,
        own: str,
        theirs: str,
        error: type[C3Error] = C3Error,
        remedy: str,
    ) -> None:
        """Refuse to mix embeddings of two models.

        Args:
            model: the identity to compare with; empty or None if it is unknown.
            own: what this identity belongs to, for the message, as in "The store c3-store".
            theirs: what the other belongs to, as in "the encoder".
            error: the class of the error.
            remedy: what the user can do.

        Raises:
            C3Error: of the class ``error``, with both models, if they differ.
        """
        other = ModelIdentity(model or {})
        if not self.same_as(other):
            raise error(
                f"{own} belongs to the model {self}, but {theirs} to {other}. Embeddings of "
                f"different models cannot be mixed.",
                remedy=remedy,
            )
