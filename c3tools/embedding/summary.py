"""The summary of an embedding run, for people and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from html import escape
from typing import Any

from ..reporter import counted
from ..tables import Table

_NAMES_SHOWN = 5
_STAGES = ("reading", "decoding", "waiting", "tokenising", "encoding", "writing")


def no_seconds() -> dict[str, float]:
    """Return zero seconds for every stage."""
    return dict.fromkeys(_STAGES, 0.0)


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
        not_updated: how many of these failed, so that their rows were not changed.
        gone: keys of rows whose source is no longer in the given paths.
        removed: how many of these were removed.
        from_elsewhere: keys of inputs that were not embedded, because the store has these keys, or those of their
            images, from other files.
        to_embed, to_update, to_remove: what a run would do, if it is only planned.
        seconds: by stage, summed over processes. ``reading`` and ``decoding`` happen in worker processes, beside the
            other stages; ``waiting`` is for them.
        elapsed: wall-clock seconds.
    """

    embedded: int = 0
    already: int = 0
    failed: int = 0
    failed_before: int = 0
    truncated: int = 0
    changed: Sequence[str] = ()
    updated: int = 0
    not_updated: int = 0
    gone: Sequence[str] = ()
    removed: int = 0
    from_elsewhere: Sequence[str] = ()
    to_embed: int = 0
    to_update: int = 0
    to_remove: int = 0
    seconds: dict[str, float] = field(default_factory=no_seconds)
    elapsed: float = 0.0

    @property
    def rate(self) -> float:
        """Embedded inputs per second, 0 when nothing was embedded."""
        return self.embedded / self.elapsed if self.embedded and self.elapsed else 0.0

    def add(self, other: ModalitySummary) -> None:
        """Add the counts and timings of other shards."""
        self.embedded += other.embedded
        self.failed += other.failed
        self.truncated += other.truncated
        self.elapsed += other.elapsed
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds

    def notes(self, name: str) -> list[str]:
        """Return a sentence about changed inputs and one about removed inputs, if there are any."""
        notes = []
        if self.changed:
            done = f"{self.updated:,} embedded again" if self.updated or self.not_updated else ""
            done = "would be embedded again" if self.to_update else done
            one = f"changed since it was embedded ({done or '--update embeds it again'})"
            notes.append(_said(name, self.changed, one, one.replace("it was", "they were").replace(" it ", " them ")))
        if self.not_updated:
            notes.append(f"{self.not_updated:,} changed {name} inputs cannot be read; their rows were not changed.")
        if self.gone:
            done = "removed {}" if self.removed else "{} would be removed" if self.to_remove else "--prune removes {}"
            one = f"is no longer in its source ({done.format('its row')})"
            many = f"are no longer in their source ({done.format('their rows')})"
            notes.append(_said(name, self.gone, one, many))
        if self.from_elsewhere:
            of_text = name == "text"
            its, their = ("the key of its image", "the keys of their images") if of_text else ("its key", "their keys")
            one = f"was not embedded, because the store already has {its} from another file"
            many = f"were not embedded, because the store already has {their} from other files"
            notes.append(_said(name, self.from_elsewhere, one, many))
        return notes


@dataclass
class EmbedSummary:
    """The summary of an embedding run.

    Attributes:
        store: its path.
        model: identity of the encoder.
        precision, backend: of the encoder; None if the store does not record them and nothing was embedded.
        modalities: by name, ``image`` and ``text``.
        images_without_caption, captions_without_image: images and captions without a partner.
        skipped: inputs refused before encoding (empty captions, links out of the corpus).
        failures_in_store: rows of failures.parquet.
        dry_run: whether the run is only planned.
        lost: shards that are missing from the store and that this run did not make again.
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

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        value = _plain(self) | {"modalities": {name: _plain(summary) for name, summary in self.modalities.items()}}
        for name, summary in self.modalities.items():
            value["modalities"][name]["rate"] = round(summary.rate, 2)
        return value

    def table(self) -> Table:
        """Return the counts as a table, one row per modality."""
        if self.dry_run:
            planned = [
                [name, *(f"{n:,}" for n in (m.to_embed, m.to_update, m.to_remove, m.already, m.failed_before))]
                for name, m in self.modalities.items()
            ]
            columns = ["modality", "to embed", "to update", "to remove", "already there", "failed before"]
            return Table(columns, planned, f"{self.store}   {self.model['name']}, dry run: nothing was written")
        columns = ["modality", "embedded", "already there", "failed", "per second", "seconds"]
        rows = []
        for name, m in self.modalities.items():
            counts = (f"{n:,}" for n in (m.embedded, m.already, m.failed + m.failed_before))
            rows.append([name, *counts, f"{m.rate:,.1f}", f"{m.elapsed:,.1f}"])
        how = [self.precision, None if self.backend == "torch" else self.backend]
        return Table(columns, rows, f"{self.store}   {', '.join([self.model['name'], *filter(None, how)])}")

    def notes(self) -> list[str]:
        """Return notes, one sentence each, on missing partners, changes, failures and the slowest stage."""
        notes = [
            *_listed("image has no caption", "images have no caption", self.images_without_caption),
            *_listed(
                "caption names an image that was not found",
                "captions name images that were not found",
                self.captions_without_image,
            ),
        ]
        for name, m in self.modalities.items():
            notes += m.notes(name)
            if m.truncated:
                texts = counted(m.truncated, "text was", "texts were")
                notes.append(f"{texts} longer than the context of the model, and cut short.")
        if self.failures_in_store:
            inputs = counted(self.failures_in_store, "input was", "inputs were")
            notes.append(
                f"{inputs} not embedded; {self.store}/failures.parquet lists the reasons. --retry-failed tries again."
            )
        if self.lost:
            notes += _listed(
                "shard is missing and was not made from these inputs",
                "shards are missing and were not made from these inputs",
                self.lost,
            )
            notes.append(
                "Embed the inputs that they were made from too. If no inputs are missing, delete manifest.json and run "
                f"`c3 verify {self.store} --repair`: it records the shards that exist."
            )
        bottleneck = self.bottleneck()
        return notes + ([bottleneck] if bottleneck else [])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() + "".join(f"<p>{escape(note)}</p>" for note in self.notes())

    def bottleneck(self) -> str | None:
        """Return a sentence about the slowest stage and what would help; None if nothing was embedded."""
        stages = {
            (name, stage): summary.seconds[stage]
            for name, summary in self.modalities.items()
            if summary.embedded
            for stage in _ADVICE
        }
        if not stages:
            return None
        (name, stage), seconds = max(stages.items(), key=lambda entry: entry[1])
        share = seconds / max(sum(stages.values()), 1e-9)
        advice = _ADVICE[stage]
        if stage == "waiting" and self.modalities[name].seconds["reading"] > self.modalities[name].seconds["decoding"]:
            advice = "reading the files is slow; a faster disk, or a copy on this machine, would help."
        return f"{_WORDS[stage].format(name=name)} took {share:.0%} of the time: {advice}"


def _plain(summary: ModalitySummary | EmbedSummary) -> dict[str, Any]:
    return {field.name: getattr(summary, field.name) for field in fields(summary)}


_WORDS = {
    "waiting": "Waiting for decoded {name}s",
    "encoding": "Encoding {name}s",
    "writing": "Writing {name} shards",
    "tokenising": "Splitting {name}s into tokens",
}
_ADVICE = {
    "waiting": "decoding is slow; more --workers or smaller image files would help.",
    "encoding": "a GPU, a lower --precision if the hardware supports it, or a smaller model would help.",
    "writing": "a faster disk or larger shards (--shard-size) would help.",
    "tokenising": "this is done only once.",
}


def _listed(problem: str, problems: str, names: Sequence[str]) -> list[str]:
    """Return one sentence with the number of names and the first of them, or none if there are no names."""
    more = ", …" if len(names) > _NAMES_SHOWN else ""
    return [f"{counted(len(names), problem, problems)}: {', '.join(names[:_NAMES_SHOWN])}{more}"] if names else []


def _said(name: str, keys: Sequence[str], one: str, many: str) -> str:
    """Return a sentence about one input of a modality, or several, with the first of their keys."""
    return _listed(f"{name} {one}", f"{name}s {many}", keys)[0]
