"""The summary of an embedding run, for people and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from ..extras import install_command
from ..reporter import counted
from ..result_table import Table

_NAMES_SHOWN = 5
_ENOUGH_TO_ADVISE = 500  # inputs; with fewer, start-up is most of the time
_STAGES = {  # in words, and what would help
    "waiting": (
        "Reading and decoding",
        "more --workers, smaller image files or a faster disk would help.",
    ),
    "encoding": (
        "Encoding",
        "a GPU, a lower --precision if the hardware supports it, or a smaller model would help.",
    ),
    "writing": ("Writing", "a faster disk or larger shards (--shard-size) would help."),
}


@dataclass
class ModalitySummary:
    """The counts and timings of one modality.

    Attributes:
        embedded: inputs embedded in this run.
        already: inputs embedded before.
        failed: inputs that failed in this run.
        failed_before: inputs that failed in an earlier run, and were not tried again.
        truncated: texts longer than the model's context, which were cut.
        changed: keys of inputs that changed since they were embedded.
        updated: how many of these were embedded again.
        not_updated: keys of those that failed, so that their rows were not changed.
        other_columns: keys of rows of unchanged inputs whose kept columns have other values.
        renewed: how many of these have the new values in the store.
        gone: keys of rows whose source is no longer in the given paths.
        removed: how many of these were removed.
        moved: keys of rows whose file has another path than when it was embedded.
        relocated: how many of these have their new path in the store.
        other_split: keys of rows that the corpus names another split of than the store, whose split
            is kept.
        to_embed, to_update, to_renew, to_remove: what a run would do, if it is only planned.
        seconds: summed over processes: ``waiting`` for inputs to be read and decoded, ``encoding``,
            ``writing``, which is done beside the others.
        elapsed: wall-clock seconds.
    """

    embedded: int = 0
    already: int = 0
    failed: int = 0
    failed_before: int = 0
    truncated: int = 0
    changed: list[str] = field(default_factory=list)
    updated: int = 0
    not_updated: list[str] = field(default_factory=list)
    other_columns: list[str] = field(default_factory=list)
    renewed: int = 0
    gone: list[str] = field(default_factory=list)
    removed: int = 0
    moved: list[str] = field(default_factory=list)
    relocated: int = 0
    other_split: list[str] = field(default_factory=list)
    to_embed: int = 0
    to_update: int = 0
    to_renew: int = 0
    to_remove: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STAGES, 0.0))
    elapsed: float = 0.0

    @property
    def rate(self) -> float:
        """Embedded inputs per second, 0 when nothing was embedded."""
        count = self.embedded + self.updated
        return count / self.elapsed if count and self.elapsed else 0.0

    def cells(self) -> list[str]:
        """Return the cells of the table of a run."""
        already = self.already - self.updated
        failed = self.failed + self.failed_before
        counts = [f"{n:,}" for n in (self.embedded + self.updated, already, failed)]
        return [*counts, f"{self.rate:,.1f}", f"{self.elapsed:,.1f}"]

    def planned_cells(self) -> list[str]:
        """Return the cells of the table of a dry run."""
        counts = (self.to_embed, self.to_update, self.to_remove, self.already, self.failed_before)
        return [f"{n:,}" for n in counts]

    def add(self, other: ModalitySummary) -> None:
        """Add the counts and timings of other shards."""
        for name in ("embedded", "failed", "updated", "not_updated", "truncated"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds

    def notes(self, name: str, captions: str | None = None) -> list[str]:
        """Return sentences about inputs that changed, have gone, or are special otherwise.

        Args:
            name: of the modality.
            captions: the captions file that was given.
        """
        again = "--update embeds them again"
        if self.updated or self.not_updated:
            again = f"{self.updated:,} embedded again"
        renewed = "recorded" if self.renewed else "--update records them"
        removed = "rows removed" if self.removed else "--prune removes their rows"
        relocated = "new paths recorded" if self.relocated else "--update records the new paths"
        table = captions or "TABLE"
        what = "" if captions else ", a table of keys and splits,"
        kept = (
            f"the store keeps its split; `c3 split --file {table} -o NEW_STORE`{what} changes that"
        )
        notes = [
            *_listed(f"{name} input", f"changed after embedding ({again})", self.changed),
            *_listed(f"changed {name} input", "cannot be read (old rows kept)", self.not_updated),
            *_listed(
                f"unchanged {name} input",
                f"with other values in the kept columns ({renewed})",
                self.other_columns,
            ),
            *_listed(f"{name} input", f"no longer in the source ({removed})", self.gone),
            *_listed(f"{name} input", f"moved after embedding ({relocated})", self.moved),
            *_listed(
                f"{name} input", f"with another split in the corpus ({kept})", self.other_split
            ),
        ]
        if self.truncated:
            notes.append(
                f"{counted(self.truncated, name)} longer than the model's context, and cut short. "
                "To embed them whole, choose a model with a longer context."
            )
        return notes


@dataclass
class EmbedSummary:
    """The summary of an embedding run.

    Attributes:
        store: its path.
        model: identity of the encoder.
        precision, backend: of the encoder; None if the store does not record them and nothing was
            embedded.
        modalities: by name, such as ``image`` and ``text``.
        images_without_caption, captions_without_image: images and captions without a partner.
        skipped: inputs refused before encoding (empty captions, links out of the corpus).
        failures_in_store: rows of failures.parquet.
        dry_run: whether the run is only planned.
        lost: shards that are missing from the store and that this run did not make again.
        all_failed: modalities of which no input could be embedded, with the first reason.
        captions: the captions file that was given.
        lacks_openvino: whether OpenVINO, which is not installed, would have been used.
    """

    store: str
    model: dict[str, Any]
    precision: str | None
    backend: str | None
    modalities: dict[str, ModalitySummary]
    images_without_caption: Sequence[str]
    captions_without_image: Sequence[str]
    skipped: int
    failures_in_store: int
    lost: list[str] = field(default_factory=list)
    dry_run: bool = False
    all_failed: dict[str, str] = field(default_factory=dict)
    captions: str | None = None
    lacks_openvino: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        modalities = {}
        for name, modality in self.modalities.items():
            modalities[name] = {**vars(modality), "rate": round(modality.rate, 2)}
        return {**vars(self), "modalities": modalities}

    def table(self) -> Table:
        """Return the counts as a table, one row per modality."""
        if self.dry_run:
            columns = ["to embed", "to update", "to remove", "already there", "failed before"]
            how = [self.model["name"], "dry run: nothing was written"]
        else:
            columns = ["embedded", "already there", "failed", "per second", "seconds"]
            backend = None if self.backend == "torch" else self.backend
            how = [self.model["name"], self.precision, backend]
        rows = []
        for name, modality in self.modalities.items():
            cells = modality.planned_cells() if self.dry_run else modality.cells()
            rows.append([name, *cells])
        renewed = [modality.renewed + modality.to_renew for modality in self.modalities.values()]
        if any(renewed):
            columns.insert(1, "columns to renew" if self.dry_run else "columns renewed")
            for row, count in zip(rows, renewed, strict=True):
                row.insert(2, f"{count:,}")
        title = f"{self.store}   {', '.join(filter(None, how))}"
        return Table(["modality", *columns], rows, title)

    def notes(self) -> list[str]:
        """Return notes, one sentence each, on missing partners, changes, failures and the slowest
        stage.
        """
        # Videos and sounds are listed with the images
        noun = "input" if self.modalities.keys() & {"video", "audio"} else "image"
        notes = [
            *_listed(noun, "without a caption", self.images_without_caption),
            *_listed("caption", "for images that were not found", self.captions_without_image),
        ]
        stages: dict[tuple[str, str], float] = {}
        for name, modality in self.modalities.items():
            notes += modality.notes(name, self.captions)
            if modality.embedded:
                for stage, seconds in modality.seconds.items():
                    stages[name, stage] = seconds
        for name, reason in self.all_failed.items():
            notes.append(f"No {name} input could be embedded. The first failed because: {reason}.")
        if self.failures_in_store:
            inputs = counted(self.failures_in_store, "input was", "inputs were")
            notes.append(
                f"{inputs} not embedded; {self.store}/failures.parquet lists the reasons. "
                f"--retry-failed tries them again."
            )
        if self.lost:
            notes += _listed("shard", "missing and not made from these inputs", self.lost)
            notes.append(
                f"Embed the inputs of these shards too. If no inputs are missing, delete "
                f"manifest.json and run `c3 verify --store {self.store} --repair`: it records the "
                f"shards that exist."
            )
        if self.lacks_openvino:
            notes.append(
                "OpenVINO, which is not installed, embeds 1.4 times as fast on CPUs and starts a "
                f"search seconds sooner: {install_command('openvino')}"
            )
        if sum(modality.embedded for modality in self.modalities.values()) >= _ENOUGH_TO_ADVISE:
            name, stage = max(stages, key=lambda key: stages[key])
            share = stages[name, stage] / max(sum(stages.values()), 1e-9)
            words, advice = _STAGES[stage]
            notes.append(f"{words} {name}s took {share:.0%} of the time: {advice}")
        return notes

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() + "".join(
            f"<p>{escape(note)}</p>" for note in self.notes()
        )


def _listed(noun: str, what: str, names: Sequence[str]) -> list[str]:
    """Return one sentence with the number of names and the first of them, or none if there are no
    names.
    """
    if not names:
        return []
    more = ", …" if len(names) > _NAMES_SHOWN else ""
    return [f"{counted(len(names), noun)} {what}: {', '.join(names[:_NAMES_SHOWN])}{more}"]
