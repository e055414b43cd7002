"""The record of an export in store.json: what was asked for, its fit, and its settings.

An export follows its store with the fit that it has. `ExportRecord.differences` says what would
make that fit another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from ..corpus.splits import ALL
from ..errors import OutputError
from ..io.artifact import digest_of
from ..store import Store, StoreInfo
from ..store.shards import part_name
from ..transforms import Pipeline
from ..transforms.fitting import moment_sources

REFIT = "fit it again with --refit"
REPLACE = "replace it with --overwrite"
_WORDS = {
    "loaded_moments": "loaded moments",
    "moment_sources": "moments",
    "copied_from": "store's split or merge",
}


@dataclass(frozen=True)
class Settings:
    """The settings that the rows of an export depend on.

    Attributes:
        format: name of the format.
        dtype: of the embeddings: float16 or float32.
        role: which rows are training inputs: auto, training or inference.
        train_on: modality of the training inputs.
        seed: of the noise.
        applied: number of steps of the pipeline that the rows went through.
        split: the rows that are in the export.
        code_size: bytes of a row's code in an index; 0 for embeddings.
        metric: ip, or l2 for rows with one more dimension.
        fuse: whether each item stands once.
    """

    format: str
    dtype: str
    role: str
    train_on: str
    seed: int
    applied: int
    split: str = ALL
    code_size: int = 0
    metric: str = "ip"
    fuse: bool = False


@dataclass(frozen=True)
class Request:
    """Request of an export: where one of these differs, the fit is another one.

    Attributes:
        pipeline: its name and steps before it was fitted, a sigma of ``auto`` as ``auto``; of a
            fitted pipeline that was given, the checksum.
        model: identity of the encoder.
        dim: of the embeddings.
        loaded_moments: digest of the means that `c3 means load` has loaded; None for none, and
            if nothing is fitted.
        moment_sources: where the moments of each modality come from; empty if nothing is fitted.
        copied_from: digest of what `c3 split` or `c3 merge` made the store from; None for others.
            Another split would score rows that were fitted on.
        options: further options of the command.
    """

    pipeline: dict[str, Any]
    model: dict[str, Any]
    dim: int
    loaded_moments: str | None
    moment_sources: dict[str, str | None]
    copied_from: str | None
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, pipeline: Pipeline, options: Mapping[str, Any]) -> Request:
        """Return the request for a pipeline that is not fitted yet, or was given fitted."""
        recipe: dict[str, Any] = pipeline.config()
        loaded: str | None = None
        sources: dict[str, str | None] = {}
        if any(step.fits for step in pipeline.steps) and pipeline.fitted:
            recipe = {"checksum": pipeline.record()["checksum"]}
        elif not pipeline.fitted:
            external = store.external_moments()[0]
            if external:
                loaded = digest_of(*(external[name].mean for name in sorted(external)))
            sources = moment_sources(store)
        copied_from = store.copied.get("made_from")
        values = cls(recipe, dict(store.info.model), store.info.dim, loaded, sources, copied_from)
        # As JSON gives it back
        content = msgspec.json.encode({**asdict(values), "options": dict(options)})
        return msgspec.json.decode(content, type=cls)

    def differences(self, now: Request) -> list[str]:
        """Return what another request changes, in words."""
        changes = []
        is_other_pipeline = self.pipeline != now.pipeline
        for name, value in vars(self).items():
            # Another pipeline may need other moments
            is_compared = name != "options" and not (is_other_pipeline and "moment" in name)
            if is_compared and value != getattr(now, name):
                changes.append(f"its {_WORDS.get(name, name)} changed")
        for name, value in now.options.items():
            former = self.options.get(name)
            if former != value:
                changes.append(f"its {name} was {former} and is now {value}")
        return changes


@dataclass(frozen=True)
class FittedShard:
    """A shard of the store as it was when the pipeline was fitted: its SHA-256 and its rows."""

    digest: str
    rows: int


@dataclass(frozen=True)
class ExportRecord:
    """Record of an export: ``exported`` in store.json, beside what its parts repeat.

    Attributes:
        asked: what the export was asked for.
        fit: the shards that the store had when the pipeline was fitted, by name.
        settings: see `Settings`.
        index: of an index, what `c3tools.index` keeps; else empty.
    """

    asked: Request
    fit: dict[str, FittedShard]
    settings: Settings
    index: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, info: StoreInfo) -> ExportRecord | None:
        """Return the record of an export; None if store.json was restored from a part, or is of
        another version.
        """
        try:
            return msgspec.convert(info.exported, cls)
        except msgspec.ValidationError:
            return None

    def content(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return asdict(self)

    def reason_to_refit(self, store: Store, pipeline: Pipeline) -> str | None:
        """Return why the fit cannot be used for the store as it is now; None if it can.

        The steps of decap, clipre and c3-retrieval hold rows of one modality, whose shards must be
        as they were.
        """
        if not self.unchanged_rows(store):
            return "all shards of the store changed or were removed"
        now = fitted_shards(store)
        changed = {name.partition("/")[0] for name in self.fit if now.get(name) != self.fit[name]}
        held = {vars(step)["memory"] for step in pipeline.steps if "memory" in step.state}
        if held & changed:
            modalities = " and ".join(sorted(held & changed))
            return f"its pipeline holds {modalities} rows of shards that were changed or removed"
        return None

    def unchanged_rows(self, store: Store) -> int:
        """Return how many of the rows that the store had are in shards that have not changed."""
        now = fitted_shards(store)
        return sum(shard.rows for name, shard in self.fit.items() if now.get(name) == shard)

    def fit_rows(self, store: Store) -> dict[str, int]:
        """Return the rows that the store had when the pipeline was fitted, those of them in shards
        that have not changed, and the rows that it has now.
        """
        return {
            "fitted": sum(shard.rows for shard in self.fit.values()),
            "unchanged": self.unchanged_rows(store),
            "now": sum(shard.rows for shard in fitted_shards(store).values()),
        }

    def age(self, store: Store) -> str | None:
        """Return a sentence that says how old the fit is; None if the store has not changed."""
        if fitted_shards(store) == self.fit:
            return None
        rows = self.fit_rows(store)
        return (
            f"The pipeline was fitted on {rows['fitted']:,} rows, {rows['unchanged']:,} of them "
            f"in unchanged shards; the store has {rows['now']:,} rows now."
        )


def fitted_shards(store: Store) -> dict[str, FittedShard]:
    """Return the shards of a store that have rows, by name."""
    return {
        part_name(*shard): FittedShard(store.shard_digest(*shard), record.rows)
        for shard, record in store.shards.items()
        if record.rows
    }


def refuse(output: Path, reason: str, option: str) -> NoReturn:
    """Refuse to replace an export.

    Raises:
        OutputError: with the reason, and the option that replaces it.
    """
    raise OutputError(
        f"{output} contains another export: {reason}.",
        remedy=f"Choose another folder with --output, or {option}.",
    )
