"""The summary of an embedding run, for people and for scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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
        seconds: by stage, summed over processes. ``reading`` and ``decoding`` happen in worker processes, beside the
            other stages; ``waiting`` is for them.
        elapsed: wall-clock seconds.
    """

    embedded: int = 0
    already: int = 0
    failed: int = 0
    failed_before: int = 0
    truncated: int = 0
    changed: list[str] = field(default_factory=list)
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
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


@dataclass
class EmbedSummary:
    """The summary of an embedding run.

    Attributes:
        store: its path.
        model: identity of the encoder.
        precision: of the encoder.
        modalities: by name, ``image`` and ``text``.
        images_without_caption, captions_without_image: images and captions without a partner.
        skipped: inputs refused before encoding (empty captions, links out of the corpus).
        failures_in_store: rows of failures.parquet.
    """

    store: str
    model: dict[str, Any]
    precision: str
    modalities: dict[str, ModalitySummary]
    images_without_caption: list[str]
    captions_without_image: list[str]
    skipped: int
    failures_in_store: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        value = asdict(self)
        for name, summary in self.modalities.items():
            value["modalities"][name]["rate"] = round(summary.rate, 2)
        return value

    def table(self) -> Table:
        """Return the counts as a table, one row per modality."""
        columns = ["modality", "embedded", "already there", "failed", "per second", "seconds"]
        rows = []
        for name, m in self.modalities.items():
            counts = (f"{n:,}" for n in (m.embedded, m.already, m.failed + m.failed_before))
            rows.append([name, *counts, f"{m.rate:,.1f}", f"{m.elapsed:,.1f}"])
        return Table(columns, rows, f"{self.store}   {self.model['name']}, {self.precision}")

    def notes(self) -> list[str]:
        """Return what deserves attention, one sentence each: missing partners, changes, failures, the bottleneck."""
        notes = [
            *_listed("image has no caption", "images have no caption", self.images_without_caption),
            *_listed(
                "caption names an image that was not found",
                "captions name images that were not found",
                self.captions_without_image,
            ),
        ]
        for name, m in self.modalities.items():
            notes += _listed(
                f"{name} input changed since it was embedded (kept as it was)",
                f"{name} inputs changed since they were embedded (kept as they were)",
                m.changed,
            )
            if m.truncated:
                texts = counted(m.truncated, "text was", "texts were")
                notes.append(f"{texts} longer than the model's context, and cut.")
        if self.failures_in_store:
            inputs = counted(self.failures_in_store, "input was", "inputs were")
            notes.append(f"{inputs} not embedded; {self.store}/failures.parquet says why (--retry-failed tries again).")
        bottleneck = self.bottleneck()
        return notes + ([bottleneck] if bottleneck else [])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() + "".join(f"<p>{escape(note)}</p>" for note in self.notes())

    def bottleneck(self) -> str | None:
        """Return which stage held the others up, and what would help; None if nothing was embedded."""
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
            advice = "reading the files is the slow part; a faster disk, or a copy nearer to this machine, would help."
        return f"{_WORDS[stage].format(name=name)} took {share:.0%} of the time: {advice}"


_WORDS = {
    "waiting": "Waiting for decoded {name}s",
    "encoding": "The model, on {name}s,",
    "writing": "Writing {name} shards",
    "tokenising": "Splitting {name}s into tokens",
}
_ADVICE = {
    "waiting": "decoding is the slow part; more --workers or smaller image files would help.",
    "encoding": "a GPU, a lower --precision where the hardware has it, or a smaller model would help.",
    "writing": "a faster disk or larger shards (--shard-size) would help.",
    "tokenising": "nothing simple would help; it is done once.",
}


def _listed(problem: str, problems: str, names: list[str]) -> list[str]:
    """Return one sentence with the number of names and the first of them; none without names."""
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", …" if len(names) > _NAMES_SHOWN else "")
    return [f"{counted(len(names), problem, problems)}: {shown}"] if names else []
