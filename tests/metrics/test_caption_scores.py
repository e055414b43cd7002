"""The scores of captions; pycocoevalcap is the oracle."""

from __future__ import annotations

import shutil
import sys
import threading
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest

from c3tools.errors import MetricError, MissingExtraError
from c3tools.metrics import java_metrics
from c3tools.metrics.caption_metric import CaptionSet, MeanScore
from c3tools.metrics.caption_scores import score_captions
from c3tools.metrics.clip_score import clip_scores
from c3tools.metrics.ptb_tokenizer import tokenize

pytest.importorskip("pycocoevalcap")

REFERENCES = {
    "a": ["A dog runs on the beach.", "The brown dog is running near the sea."],
    "b": ["Two children play with a ball in the park.", "kids playing football"],
    "c": ["A red train at the station", "the train's doors aren't open", "A train waits."],
    "d": ["A bowl of soup on a table."],
}
SCORES = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr")  # by default
PREDICTIONS = {
    "a": "a dog runs near the beach",
    "b": "two kids play with a red ball",
    "c": "a red train is at a station",
    "d": "a bowl of soup on a plate",
}


def test_scores_equal_those_of_pycocoevalcap() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    targets = {key: [*map(tokenize, texts)] for key, texts in REFERENCES.items()}
    longer = {key: f"{text} and more" for key, text in PREDICTIONS.items()}  # than the references
    for captions in (PREDICTIONS, longer):
        written = {key: [tokenize(text)] for key, text in captions.items()}
        expected = Bleu(4).compute_score(targets, written, verbose=0)[0]
        expected += [scorer().compute_score(targets, written)[0] for scorer in (Rouge, Cider)]
        of = dict(zip(SCORES, 100 * np.array(expected), strict=True))
        assert score_captions(captions, REFERENCES).corpus == pytest.approx(of, abs=1e-6)


def test_a_resample_scores_like_its_captions_and_images_have_values() -> None:
    own = {str(row): PREDICTIONS[key] for row, key in enumerate("aac")}
    theirs = {str(row): REFERENCES[key] for row, key in enumerate("aac")}
    scores, again, rows = (
        score_captions(PREDICTIONS, REFERENCES),
        score_captions(own, theirs),
        np.arange(4),
    )
    for metric in ("BLEU-4", "ROUGE-L"):
        assert scores.resampled(metric, np.array([0, 0, 2])) == pytest.approx(again.corpus[metric])
    for metric in SCORES:
        score = scores.scores[metric]
        if isinstance(score, MeanScore):
            values = score.per_image
        else:  # the jackknife
            without = np.array([scores.resampled(metric, np.delete(rows, row)) for row in rows])
            values = scores.corpus[metric] - 3 * (without - without.mean())
        np.testing.assert_allclose(scores.image_values(metric), values)


def test_empty_captions_score_nothing_and_what_cannot_be_scored_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    empty = score_captions({"a": ""}, REFERENCES)
    assert (empty.corpus["CIDEr"], empty.corpus["ROUGE-L"], "CIDEr" in empty.notes[-1]) == (
        0,
        0,
        True,
    )
    with pytest.raises(MetricError, match=r"8 of 9 .*k0, k1, k2, k3, k4, …"):
        score_captions(
            dict.fromkeys([*(f"k{i}" for i in range(8)), "a"], "a dog"),
            {**REFERENCES, "k0": ["  "]},
        )
    with pytest.raises(MetricError, match="no captions"):
        score_captions({}, REFERENCES)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(MissingExtraError, match=r"(?s)pycocoevalcap.*install .pycocoevalcap>="):
        score_captions(PREDICTIONS, REFERENCES)


def test_java_scores_that_cannot_run_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_metrics, "_SPICE_MODELS", ("no-such-model.jar",))
    for java, lacking in (("/usr/bin/java", "no-such-model.jar"), (None, "`java`")):
        monkeypatch.setattr(shutil, "which", lambda name, found=java: found)
        scores = score_captions(PREDICTIONS, REFERENCES, metrics=["ROUGE-L", "SPICE"])
        assert [*scores.corpus] == ["ROUGE-L"]
        told = [("SPICE" in note, lacking in note, "\n" in note) for note in scores.notes]
        assert told == [(True, True, False)]


@pytest.mark.parametrize("metric", [java_metrics.Meteor(), java_metrics.Spice()])
def test_java_scores_say_that_pycocoevalcap_is_missing(
    metric: java_metrics.JavaMetric, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    assert "it needs pycocoevalcap, of the extra eval: pip install " in str(metric.missing())


def test_spice_is_read_in_the_order_of_the_captions_and_its_failure_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scored = lambda targets, _: (0.25, [{"All": {"f": float(ord(key))}} for key in sorted(targets)])  # noqa: E731
    module = SimpleNamespace(Spice=lambda: SimpleNamespace(compute_score=scored))
    monkeypatch.setattr(java_metrics.Spice, "missing", lambda metric: None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", module)
    captions = {key: PREDICTIONS[key] for key in "cadb"}
    scores = score_captions(captions, REFERENCES, metrics=["SPICE"])
    assert scores.corpus["SPICE"] == 25
    score = scores.scores["SPICE"]
    assert isinstance(score, MeanScore)
    assert score.per_image.tolist() == [100.0 * ord(key) for key in "cadb"]
    module.Spice = lambda: 1 / 0
    with pytest.raises(MetricError, match=r"SPICE.*ZeroDivisionError"):
        score_captions(PREDICTIONS, REFERENCES, metrics=["SPICE"])


@pytest.mark.parametrize("names", [["CIDEr", "ROUGE"], []])
def test_metrics_that_do_not_exist_are_refused_with_those_that_do(names: list[str]) -> None:
    with pytest.raises(MetricError, match="BLEU, ROUGE-L, CIDEr, METEOR, SPICE, CLIPScore"):
        score_captions(PREDICTIONS, REFERENCES, metrics=names)


def test_only_the_named_metrics_are_computed() -> None:
    scores = score_captions(PREDICTIONS, REFERENCES, metrics=["cider", "CIDEr"])
    assert [*scores.corpus] == ["CIDEr"]
    assert score_captions(PREDICTIONS, REFERENCES, metrics="CIDEr").corpus == scores.corpus


def test_clip_scores_by_hand() -> None:
    images = np.array([[2.0, 0.0], [24.0, 7.0], [1.0, 0.0]])
    captions = np.array([[3.0, 4.0], [0.0, 0.5], [-1.0, 0.0]])  # cosines 0.6, 0.28, -1
    references = np.array([[4.0, 3.0], [1.0, 0.0], [24.0, 7.0], [1.0, 0.0]])
    # best cosines with the captions: max(24/25, 3/5), 0.28, none above 0
    expected = [200 * 1.5 * 0.96 / (1.5 + 0.96), 200 * 0.7 * 0.28 / 0.98, 0]
    found = clip_scores(images, captions, references, np.array([0, 0, 1, 2]))
    np.testing.assert_allclose(np.stack(found), np.array([[150, 70, 0], expected]))


class InterruptedMeteor:
    """A scorer of pycocoevalcap that is interrupted; like it, it keeps its lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.meteor_p = MagicMock()

    def compute_score(self, *captions: object) -> None:
        self.lock.acquire()
        raise KeyboardInterrupt


def test_an_interrupted_meteor_can_be_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its destructor waits for the lock."""
    scorer = InterruptedMeteor()
    monkeypatch.setattr(java_metrics.Meteor, "_scorer", lambda metric: scorer)
    with pytest.raises(KeyboardInterrupt):
        java_metrics.Meteor().score(CaptionSet({"a": "a dog"}, {"a": ["a dog"]}))
    assert not scorer.lock.locked()


def test_empty_captions_are_counted() -> None:
    references = {key: ["a dog runs"] for key in "abc"}
    captions = {"a": "a dog runs", "b": " ", "c": ""}
    scored = score_captions(captions, references, metrics=["ROUGE-L"])
    assert scored.notes == ["2 of 3 captions are empty; the first is b."]
    assert score_captions({"a": "a dog"}, references, metrics=["ROUGE-L"]).notes == []
