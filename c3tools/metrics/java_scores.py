"""METEOR and SPICE by pycocoevalcap's Java programs, where they can run."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MetricError

Floats = npt.NDArray[np.float64]
JAVA_METRICS = ("METEOR", "SPICE")
_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def missing_for(name: str) -> str | None:
    """What METEOR or SPICE lacks on this machine, in one line; None if nothing."""
    if shutil.which("java") is None:
        return "it runs in Java, and there is no `java` on the PATH. Install a Java runtime (8 or newer)."
    if name == "SPICE":
        found = importlib.util.find_spec("pycocoevalcap.spice")
        folder = Path(next(iter(found.submodule_search_locations or ()))) / "lib" if found else Path("lib")
        absent = [jar for jar in _MODELS if not (folder / jar).is_file()]
        if absent:
            return (
                f"the Stanford models are not in {folder} ({', '.join(absent)}). With a connection, "
                "`python -m pycocoevalcap.spice.get_stanford_models` fetches them."
            )
    return None


def java_score(
    name: str, targets: Mapping[str, list[str]], hypotheses: Mapping[str, list[str]]
) -> tuple[float, Floats]:
    """Corpus score and scores per image (n,), in percent.

    Args:
        name: ``METEOR`` or ``SPICE``.
        targets: references by key, tokenised.
        hypotheses: one caption by key, tokenised, in the same order.

    Raises:
        MetricError: if the program fails.
    """
    try:
        corpus, values = _meteor(targets, hypotheses) if name == "METEOR" else _spice(targets, hypotheses)
    except Exception as error:  # whatever the Java process comes to
        raise MetricError(
            f"{name} could not be computed: pycocoevalcap's Java program failed ({type(error).__name__}: {error}).",
            remedy="Check that `java -version` works, or leave it out.",
        ) from error
    return 100 * float(corpus), 100 * np.asarray(values, dtype=np.float64)


def _meteor(targets: Mapping[str, list[str]], hypotheses: Mapping[str, list[str]]) -> tuple[float, Any]:
    scorer = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    try:
        corpus, values = scorer.compute_score(targets, hypotheses)
    finally:
        process = scorer.meteor_p
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
    return corpus, values


def _spice(targets: Mapping[str, list[str]], hypotheses: Mapping[str, list[str]]) -> tuple[float, Any]:
    scorer = importlib.import_module("pycocoevalcap.spice.spice").Spice()
    corpus, values = scorer.compute_score(targets, hypotheses)
    by_key = dict(zip(sorted(targets), values, strict=True))  # it sorts the keys
    return corpus, [by_key[key]["All"]["f"] for key in targets]
