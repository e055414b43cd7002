"""What an embedding run did, for people and for scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_STAGES = ("reading", "decoding", "waiting", "tokenising", "encoding", "writing")


def no_seconds() -> dict[str, float]:
    """No time spent yet, by stage."""
    return dict.fromkeys(_STAGES, 0.0)


@dataclass
class ModalitySummary:
    """What happened to the inputs of one modality.

    Attributes:
        embedded: embedded in this run.
        already: embedded before.
        failed: not embedded, in this run.
        failed_before: not embedded in an earlier run, and not tried again.
        truncated: texts longer than the model's context, cut.
        changed: keys of inputs that changed since they were embedded.
        seconds: by stage, summed over processes. ``reading`` and ``decoding`` are spent in the worker processes,
            beside the other stages; ``waiting`` is for them.
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
        """Count in what was done elsewhere, or with other shards."""
        self.embedded += other.embedded
        self.failed += other.failed
        self.truncated += other.truncated
        for stage, seconds in other.seconds.items():
            self.seconds[stage] += seconds


@dataclass
class EmbedSummary:
    """What an embedding run did.

    Attributes:
        store: its path.
        model: identity of the encoder.
        precision: in which the encoder computed.
        modalities: by name, ``image`` and ``text``.
        images_without_caption, captions_without_image: what did not find its partner.
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

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        value = asdict(self)
        for name, summary in self.modalities.items():
            value["modalities"][name]["rate"] = round(summary.rate, 2)
        return value

    def bottleneck(self) -> str | None:
        """Which stage held the others up, and what would help; None when nothing was embedded."""
        stages = {
            (name, stage): summary.seconds[stage]
            for name, summary in self.modalities.items()
            if summary.embedded
            for stage in _HELP
        }
        if not stages:
            return None
        (name, stage), seconds = max(stages.items(), key=lambda entry: entry[1])
        share = seconds / max(sum(stages.values()), 1e-9)
        help_ = _HELP[stage]
        if stage == "waiting" and self.modalities[name].seconds["reading"] > self.modalities[name].seconds["decoding"]:
            help_ = "reading the files is the slow part; a faster disk, or a copy nearer to this machine, would help."
        return f"{_WORDS[stage].format(name=name)} took {share:.0%} of the time: {help_}"


_WORDS = {
    "waiting": "Waiting for decoded {name}s",
    "encoding": "The model, on {name}s,",
    "writing": "Writing {name} shards",
    "tokenising": "Splitting {name}s into tokens",
}
_HELP = {
    "waiting": "decoding is the slow part; more --workers or smaller image files would help.",
    "encoding": "a GPU, a lower --precision where the hardware has it, or a smaller model would help.",
    "writing": "a faster disk or larger shards (--shard-size) would help.",
    "tokenising": "nothing simple would help; it is done once.",
}
