"""The result of the demo: the captions of each decoder with their scores, and the data behind the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..ablation import METHODS, Ablation, AblationData, ImageAblation
from ..ablation.comparison import INTERVAL
from ..ablation.table import score_text
from ..metrics.captions import score_captions
from ..pages.render import interval
from ..store import Store
from ..tables import Table
from ..transforms.sigma import SigmaRule

METRICS = ("CIDEr", "BLEU-4", "ROUGE-L")
JUDGED_BY = "CIDEr"
References = Mapping[str, Sequence[str]]


class Captioned(NamedTuple):
    """Captions of all photos by one decoder: its name on the page, what it is, captions and their scores by key."""

    name: str
    summary: str
    captions: Mapping[str, str]
    scores: Mapping[str, float]

    @classmethod
    def score(cls, name: str, summary: str, captions: Mapping[str, str], references: References) -> Captioned:
        """Score the captions, each with the captions that people wrote of its photo."""
        found = score_captions(captions, references)
        return cls(name, summary, captions, dict(zip(found.keys, found.per_image[JUDGED_BY].tolist(), strict=True)))

    @property
    def mean(self) -> float:
        """The score of all captions."""
        return sum(self.scores.values()) / len(self.scores)

    def best_first(self) -> list[str]:
        """Return the keys of the photos in the order of their scores."""
        return sorted(self.scores, key=lambda key: (-self.scores[key], key))


@dataclass(frozen=True)
class DemoResult:
    """Table of the demo, and the data behind it.

    Attributes:
        ablation: one run per method and seed, with scores and captions.
        data: training captions, photos and what people wrote about them.
        sigma: the noise that was used, per dimension.
        sigma_rule: the rule that gave it; None if the user set it.
        photos: the store of photos and their captions.
        means_from: where the means come from, in words.
        bundled: the captions of the bundled captioner, which was trained on more captions, and their scores.
        page: the page with the table, the photos and their captions.
        images: the table of generated images, with a page in ``images/``; None unless it was requested.
    """

    ablation: Ablation
    data: AblationData
    sigma: float
    sigma_rule: SigmaRule | None
    photos: Store
    means_from: str
    bundled: Captioned
    page: Path
    images: ImageAblation | None = None

    def table(self) -> Table:
        """Return the scores as a table, one row per method."""
        rows = []
        for row in self.ablation.rows:
            first, *others = (score_text(row["scores"][name]) for name in METRICS)
            ends = interval(row["scores"][JUDGED_BY]["interval"], 1)
            rows.append([row["method"], METHODS[row["method"]].summary, first, ends, *others])
        title = f"{len(self.data.images)} photos, sigma {self.sigma:.3f}"
        return Table(["method", "steps", JUDGED_BY, INTERVAL, *METRICS[1:]], rows, title=title, left=["steps"])

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Return the rows of the table, and all runs (``runs``, the list that `c3 demo --json` writes)."""
        return self.ablation.to_dict()
