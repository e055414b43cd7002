"""Steps and metrics of other packages, which name them as entry points."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import c3tools.plugins
from c3tools.errors import C3Error, MetricError, TransformError
from c3tools.metrics.caption_metric import CaptionMetric, CaptionSet, MeanScore, Score
from c3tools.metrics.caption_scores import caption_metrics, score_captions
from c3tools.transforms import Pipeline
from c3tools.transforms.operations import Affine
from c3tools.transforms.steps import Collapse, Normalize, Step


@dataclass(eq=False)
class Flip(Step):
    """e times a number."""

    factor: float = -1.0

    kind = "flip"
    fits = False

    def operations(self, modality: str) -> tuple[Affine, ...]:
        return (Affine(scale=np.array(self.factor)),)


class OtherCollapse(Collapse):
    """A step that goes by the name of one of c3tools."""


class Words(CaptionMetric):
    """The number of words."""

    name = "Words"
    shown = ("Words",)

    def score(self, captions: CaptionSet) -> dict[str, Score]:
        counts = [len(text.split()) for text in captions.captions.values()]
        return {"Words": MeanScore.of(np.array(counts, float))}


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def add(group: str, name: str, value: str) -> None:
        def entry_points(**asked: Any) -> list[EntryPoint]:
            return [EntryPoint(name, value, group)] if asked == {"group": group} else []

        monkeypatch.setattr(c3tools.plugins, "entry_points", entry_points)

    return add


def test_a_step_is_saved_only_if_it_can_be_loaded_again(tmp_path: Path, install: Install) -> None:
    pipeline = Pipeline([Normalize(), Flip(factor=-2.0), Normalize()], name="mine")
    with pytest.raises(
        TransformError, match=r"step Flip, which is not part of c3tools.*\n.*'flip'"
    ):
        pipeline.save(tmp_path / "recipe")
    install("c3tools.steps", "flip", f"{__name__}:Flip")
    pipeline.save(tmp_path / "recipe")
    rows = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(
        Pipeline.load(tmp_path / "recipe").transform(rows), [[-0.6, -0.8]], rtol=1e-6
    )
    assert Pipeline.from_config({"steps": ["normalize", "flip", "normalize"]}).fitted
    install("c3tools.steps", "other", f"{__name__}:Flip")
    with pytest.raises(TransformError, match=r"transform.json has an unknown step.*flip"):
        Pipeline.load(tmp_path / "recipe")


def test_a_step_does_not_pass_for_one_of_c3tools(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 4))
    pipeline = Pipeline([Normalize(), OtherCollapse(), Normalize()]).fit({"text": rows})
    with pytest.raises(TransformError, match="step OtherCollapse"):
        pipeline.save(tmp_path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("nowhere:Step", "nowhere:Step cannot be imported: No module named 'nowhere'"),
        (f"{__name__}:Words", "Words is not a subclass of c3tools.transforms.steps.Step"),
    ],
)
def test_an_entry_point_that_is_no_step_is_named(value: str, words: str, install: Install) -> None:
    install("c3tools.steps", "flip", value)
    with pytest.raises(C3Error, match=words):
        Pipeline.from_config({"steps": ["normalize", "flip", "normalize"]})


def test_a_metric_is_taken_by_name(install: Install) -> None:
    texts = {"a": "two words", "b": "four words are here"}
    references = {key: [text] for key, text in texts.items()}
    with pytest.raises(MetricError, match="no metric 'words'"):
        score_captions(texts, references, metrics=["words"])
    install("c3tools.metrics", "Words", f"{__name__}:Words")
    assert score_captions(texts, references, metrics=["words"]).corpus == {"Words": 3.0}
    assert list(caption_metrics())[-1] == "Words"
