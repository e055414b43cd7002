"""METEOR and SPICE, by the Java programs of pycocoevalcap."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MetricError
from ..extras import install_command
from .caption_metric import CaptionMetric, CaptionSet, MeanScore, Score

_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def missing_java() -> str | None:
    """Return what to install if there is no Java; else None."""
    if shutil.which("java") is not None:
        return None
    return "it needs Java, but `java` is not on the PATH. Install a Java runtime (8 or newer)."


class JavaMetric(CaptionMetric):
    """A metric whose scorer starts a Java program."""

    needs = "Java"

    def missing(self) -> str | None:
        """Return how to get Java or pycocoevalcap, if it is missing."""
        if importlib.util.find_spec("pycocoevalcap") is None:
            return f"it needs pycocoevalcap, of the extra eval: {install_command('eval')}."
        return missing_java()

    def score(self, captions: CaptionSet) -> dict[str, Score]:
        """Run the program.

        Raises:
            MetricError: if it fails.
        """
        try:
            score = self._run(captions)
        except Exception as error:  # the Java process can fail in many ways
            raise MetricError(
                f"{self.name} could not be computed: pycocoevalcap's Java program failed "
                f"({type(error).__name__}: {error}).",
                remedy="Check that `java -version` works, or leave this score out.",
            ) from error
        return {self.name: score}

    @abstractmethod
    def _run(self, captions: CaptionSet) -> MeanScore:
        """Return the score; whatever the scorer raises is passed on."""

    def _scorer(self) -> Any:
        """Return pycocoevalcap's scorer."""
        package = self.name.lower()
        module = importlib.import_module(f"pycocoevalcap.{package}.{package}")
        return getattr(module, self.name.capitalize())()


class Meteor(JavaMetric):
    """METEOR (Denkowski and Lavie, 2014), which pools statistics over the corpus."""

    name = "METEOR"
    shown = ("METEOR",)

    def _run(self, captions: CaptionSet) -> MeanScore:
        scorer = self._scorer()
        try:
            value, values = scorer.compute_score(captions.targets, captions.hypotheses)
        finally:
            # compute_score keeps its lock if it fails or is interrupted, and __del__ waits for it
            if scorer.lock.locked():
                scorer.lock.release()
            with scorer.meteor_p as process:  # closes its pipes, and waits for its end
                process.kill()
        return MeanScore(100 * float(value), 100 * np.asarray(values, dtype=np.float64))


class Spice(JavaMetric):
    """SPICE (Anderson et al., 2016)."""

    name = "SPICE"
    shown = ("SPICE",)
    needs = "Java and the Stanford models"

    def missing(self) -> str | None:
        """Return how to get Java, pycocoevalcap or the models, if they are missing."""
        lacking = super().missing()
        if lacking:
            return lacking
        package = importlib.util.find_spec("pycocoevalcap.spice")
        locations = package.submodule_search_locations if package else None
        folder = Path(next(iter(locations or ["."]))) / "lib"
        absent = [jar for jar in _SPICE_MODELS if not (folder / jar).is_file()]
        if not absent:
            return None
        return (
            f"the Stanford models are missing in {folder} ({', '.join(absent)}). `python -m "
            "pycocoevalcap.spice.get_stanford_models` downloads them."
        )

    def _run(self, captions: CaptionSet) -> MeanScore:
        value, details = self._scorer().compute_score(captions.targets, captions.hypotheses)
        # the scorer sorts the keys
        by_key = dict(zip(sorted(captions.targets), details, strict=True))
        values = [by_key[key]["All"]["f"] for key in captions.targets]
        return MeanScore(100 * float(value), 100 * np.asarray(values, dtype=np.float64))
