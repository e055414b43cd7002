"""What a store says about itself: `store.json`, repeated in the metadata of every shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import StoreError, UnreachableError
from ..identity import ModelIdentity
from ..io.locations import read_all

FORMAT_VERSION = 1
INFO_FILE = "store.json"
LARGEST_DIM = 1_000_000


@dataclass(frozen=True)
class StoreInfo:
    """Identity of the embeddings in a store.

    Attributes:
        model: ``name``, ``architecture``, ``pretrained``, ``weights_sha256``, ``random_init`` of the encoder; for
            imported embeddings ``name`` alone.
        dim: dimension d of the embeddings.
        dtype: ``float16`` or ``float32``, as stored.
        normalised: whether the embeddings have unit L2 norm.
        preprocessing: how images were resized and scaled.
        precision: in which the encoder computed: ``fp32``, ``bf16``, ``fp16``, or None where unknown.
        extra: anything else worth keeping (for example where an import came from).
    """

    model: ModelIdentity
    dim: int
    dtype: str = "float16"
    normalised: bool = True
    preprocessing: dict[str, Any] = field(default_factory=dict)
    precision: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, Mapping):
            raise ValueError(f"model is {self.model!r}")
        object.__setattr__(self, "model", ModelIdentity(self.model))

    def to_json(self) -> dict[str, Any]:
        """The content of store.json."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, value: Any, source: Path) -> StoreInfo:
        """Read the content of store.json.

        Raises:
            StoreError: if it is not one, or comes from a newer format version.
        """
        try:
            version = value["format_version"]
            if type(version) is not int or version < 1:
                raise ValueError(f"format_version is {version!r}")
            if version > FORMAT_VERSION:
                raise StoreError(
                    f"{source} has format version {version}; this c3tools reads up to {FORMAT_VERSION}.",
                    remedy="Update c3tools: pip install -U c3tools",
                )
            info = cls(**{name: value[name] for name in cls.__dataclass_fields__ if name in value})
            info._check()
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(
                f"{source} does not describe a store ({error!r}).",
                remedy="The shards repeat it: `c3 verify --repair` writes it anew from them.",
            ) from error
        return info

    def _check(self) -> None:
        """Raise a ValueError if a value makes no sense."""
        sensible = {
            "dim": type(self.dim) is int and 0 < self.dim <= LARGEST_DIM,
            "dtype": self.dtype in ("float16", "float32"),
            "normalised": isinstance(self.normalised, bool),
            "preprocessing": isinstance(self.preprocessing, dict),
            "precision": self.precision is None or isinstance(self.precision, str),
            "extra": isinstance(self.extra, dict),
        }
        wrong = [name for name, fine in sensible.items() if not fine]
        if wrong:
            raise ValueError(f"{wrong[0]} is {getattr(self, wrong[0])!r}")

    @classmethod
    def load(cls, store: Path) -> StoreInfo:
        """Read ``store/store.json``.

        Raises:
            StoreError: if there is no store, or its description cannot be read.
        """
        path = store / INFO_FILE
        try:
            return cls.from_json(json.loads(read_all(path)), path)
        except (FileNotFoundError, NotADirectoryError):
            raise StoreError(
                f"There is no store at {store} ({INFO_FILE} is not there).",
                remedy="Make one with `c3 embed PATH`, or name another with --store.",
            ) from None
        except UnreachableError:  # says nothing of what is there
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(
                f"{path} is damaged ({error}).",
                remedy="The shards repeat it: `c3 verify --repair` writes it anew from them.",
            ) from error

    def require_same_model(self, model: Mapping[str, Any], *, where: str, what: str) -> None:
        """Refuse to mix embeddings of two models: ``where`` names the owner of this one, ``what`` that of ``model``.

        Raises:
            StoreError: if weights (or, where there are none, names) differ.
        """
        remedy = "Use the same --model, or another --store."
        self.model.require_same(ModelIdentity(model), own=where, theirs=what, error=StoreError, remedy=remedy)
