"""The trained decoders of a table, kept in a folder: captions can be written in another way without training again."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from ..captioning import Captioner, RunFolder
from ..errors import DecoderError


class TrainingKey(NamedTuple):
    """What tells one training of a table from another; methods with the same recipe share it.

    Attributes:
        training: preset of the pipeline that training inputs go through.
        learns_from: ``text``, ``pairs`` or ``pseudo-pairs``.
        sigma: standard deviation of the noise per dimension; 0 for none.
        seed: of the training.
    """

    training: str
    learns_from: str
    sigma: float
    seed: int

    @property
    def name(self) -> str:
        """As a folder is called."""
        return f"{self.training}-{self.learns_from}-sigma{self.sigma:g}-seed{self.seed}"


class DecoderCache:
    """Decoders by recipe.

    Args:
        folder: where they are written; None keeps those of one seed in memory, and nothing else.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._held: dict[TrainingKey, Captioner] = {}

    def get(self, recipe: TrainingKey) -> Captioner | None:
        """The decoder of ``recipe``; None if it has to be trained."""
        self._held = {other: held for other, held in self._held.items() if other.seed == recipe.seed}
        if recipe not in self._held and self.folder is not None:
            try:
                self._held[recipe] = Captioner.load(self.folder / recipe.name)
            except DecoderError:  # missing, or cut short: trained (again)
                return None
        return self._held.get(recipe)

    def put(self, recipe: TrainingKey, captioner: Captioner) -> None:
        """Keep a trained decoder; what its training was continued from is removed."""
        self._held[recipe] = captioner
        if self.folder is not None:
            captioner.save(self.folder / recipe.name)
            self.run(recipe).clear()  # type: ignore[union-attr]

    def run(self, recipe: TrainingKey) -> RunFolder | None:
        """Where the training of ``recipe`` is saved while it runs, to be continued after it was interrupted."""
        return None if self.folder is None else RunFolder(self.folder / f"{recipe.name}.training")
