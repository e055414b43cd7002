"""What an embedding run did, for people and for scripts."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_STAGES = ("reading", "decoding", "encoding", "writing")


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
        seconds: wall-clock time by stage. ``decoding`` is time in the worker processes, beside the other stages.
        waiting: seconds the model waited for inputs.
    """

    embedded: int = 0
    already: int = 0
    failed: int = 0
    failed_before: int = 0
    truncated: int = 0
    changed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_STAGES, 0.0))
    waiting: float = 0.0

    @property
    def total_seconds(self) -> float:
        """Wall-clock seconds: waiting, encoding and writing follow one another."""
        return self.waiting + self.seconds["reading"] + self.seconds["encoding"] + self.seconds["writing"]

    @property
    def rate(self) -> float:
        """Embedded inputs per second, 0 when nothing was embedded."""
        return self.embedded / self.total_seconds if self.embedded and self.total_seconds else 0.0


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
        busy = {name: summary for name, summary in self.modalities.items() if summary.embedded}
        if not busy:
            return None
        stages = {
            (name, stage): seconds
            for name, summary in busy.items()
            for stage, seconds in (
                ("waiting", summary.waiting),
                ("encoding", summary.seconds["encoding"]),
                ("writing", summary.seconds["writing"]),
                ("reading", summary.seconds["reading"]),
            )
        }
        (name, stage), seconds = max(stages.items(), key=lambda entry: entry[1])
        share = seconds / max(sum(stages.values()), 1e-9)
        return f"{_WORDS[stage].format(name=name)} took {share:.0%} of the time: {_HELP[stage]}"


_WORDS = {
    "waiting": "Waiting for decoded {name}s",
    "encoding": "The model, on {name}s,",
    "writing": "Writing {name} shards",
    "reading": "Splitting {name}s into tokens",
}
_HELP = {
    "waiting": "more --workers, a faster disk, or smaller image files would help.",
    "encoding": "a GPU, --precision bf16 where the hardware has it, or a smaller model would help.",
    "writing": "a faster disk or larger shards (--shard-size) would help.",
    "reading": "nothing simple would help; it is done once.",
}
