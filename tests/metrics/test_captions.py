from __future__ import annotations

import builtins
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.errors import MetricError, MissingExtraError
from c3tools.metrics import captions as captions_module
from c3tools.metrics.captions import METRICS, corpus_bleu, score_captions
from c3tools.metrics.tokenizer import tokenize_all

pytest.importorskip("pycocoevalcap")

REFERENCES = {
    "a": ["A dog runs on the beach.", "The brown dog is running near the sea."],
    "b": ["Two children play with a ball in the park.", "kids playing football"],
    "c": ["A red train at the station", "the train's doors aren't open", "A train waits."],
    "d": ["A bowl of soup on a table."],
}
PREDICTIONS = {
    "a": "a dog runs near the beach",
    "b": "two kids play with a red ball",
    "c": "a red train is at a station",
    "d": "a cat sleeps",
}


def test_scores_equal_those_of_pycocoevalcap() -> None:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    targets = {key: tokenize_all(texts) for key, texts in REFERENCES.items()}
    written = {key: tokenize_all([text]) for key, text in PREDICTIONS.items()}
    expected = dict(zip(METRICS, Bleu(4).compute_score(targets, written, verbose=0)[0], strict=False))
    expected["ROUGE-L"] = Rouge().compute_score(targets, written)[0]
    expected["CIDEr"] = Cider().compute_score(targets, written)[0]
    scores = score_captions(PREDICTIONS, REFERENCES)
    assert set(scores.corpus) == set(METRICS) == set(expected)
    for name, value in expected.items():
        assert scores.corpus[name] == pytest.approx(100 * value, abs=1e-6), name
    assert scores.per_image["CIDEr"].mean() == pytest.approx(scores.corpus["CIDEr"])


def test_bleu_equals_that_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions = {**PREDICTIONS, "d": "a bowl of soup on a plate"}
    keys = list(predictions)
    written = tokenize_all([predictions[key] for key in keys])
    targets = [tokenize_all(REFERENCES[key]) for key in keys]
    # one list per reference number; None where an image has fewer
    columns = [[texts[i] if i < len(texts) else None for texts in targets] for i in range(3)]
    scores = score_captions(predictions, REFERENCES).corpus
    for n in (1, 2, 3, 4):
        metric = sacrebleu.BLEU(max_ngram_order=n, tokenize="none", smooth_method="none", force=True)
        expected = metric.corpus_score(written, columns).score
        assert expected > 1
        assert scores[f"BLEU-{n}"] == pytest.approx(expected, abs=1e-6), n


@pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")
def test_meteor_equals_that_of_pycocoevalcap() -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    predictions = {**PREDICTIONS, "c": ""}
    targets = {key: tokenize_all(texts) for key, texts in REFERENCES.items()}
    written = {key: tokenize_all([text]) for key, text in predictions.items()}
    scorer = Meteor()
    corpus, each = scorer.compute_score(targets, written)
    scorer.meteor_p.kill()
    scorer.meteor_p.wait()
    for stream in (scorer.meteor_p.stdin, scorer.meteor_p.stdout, scorer.meteor_p.stderr):
        stream.close()
    scores = score_captions(predictions, REFERENCES, java=["METEOR"])
    assert scores.corpus["METEOR"] == pytest.approx(100 * corpus, abs=1e-6)
    np.testing.assert_allclose(scores.per_image["METEOR"], 100 * np.array(each), atol=1e-6)
    assert scores.per_image["METEOR"][2] == 0
    assert scores.notes == []
    # it pools statistics, so that its corpus score is not the mean; a resample moves it by the mean's change
    assert abs(scores.per_image["METEOR"].mean() - scores.corpus["METEOR"]) > 0.01
    assert scores.resampled("METEOR", np.arange(4)) == pytest.approx(scores.corpus["METEOR"])


def test_bleu_by_hand() -> None:
    # candidate "a b c d e" (5), reference "a b c x e f" (6): 4/5 unigrams, 2/4 bigrams, 1/3 trigrams, 0/2
    scores = score_captions({"k": "a b c d e"}, {"k": ["a b c x e f"]})
    penalty = math.exp(1 - 6 / 5)
    assert scores.corpus["BLEU-1"] == pytest.approx(100 * penalty * 0.8, rel=1e-6)
    assert scores.corpus["BLEU-2"] == pytest.approx(100 * penalty * math.sqrt(0.8 * 0.5), rel=1e-6)
    assert scores.corpus["BLEU-3"] == pytest.approx(100 * penalty * (0.8 * 0.5 / 3) ** (1 / 3), rel=1e-6)
    assert scores.corpus["BLEU-4"] < 0.1


def test_a_perfect_caption_has_full_bleu_and_rouge() -> None:
    scores = score_captions({key: texts[0] for key, texts in REFERENCES.items()}, REFERENCES)
    assert scores.corpus["ROUGE-L"] == pytest.approx(100)
    for n in range(1, 5):
        assert scores.corpus[f"BLEU-{n}"] == pytest.approx(100, abs=1e-4)


def test_bleu_pools_counts_over_the_corpus() -> None:
    scores = score_captions(PREDICTIONS, REFERENCES)
    np.testing.assert_allclose(
        corpus_bleu(scores.bleu_counts.sum(axis=0)), [scores.corpus[f"BLEU-{n}"] for n in range(1, 5)]
    )
    rows = np.array([0, 0, 2])
    again = score_captions(
        {"x": PREDICTIONS["a"], "y": PREDICTIONS["a"], "z": PREDICTIONS["c"]},
        {"x": REFERENCES["a"], "y": REFERENCES["a"], "z": REFERENCES["c"]},
    )
    assert scores.resampled("BLEU-4", rows) == pytest.approx(again.corpus["BLEU-4"])
    assert scores.resampled("ROUGE-L", rows) == pytest.approx(again.corpus["ROUGE-L"])


def test_the_values_of_images_vary_as_the_corpus_score_does() -> None:
    """Those of BLEU give the spread over sets of images that drawing the images gives."""
    words = ["a", "dog", "cat", "man", "red", "blue", "runs", "sits", "on", "the", "grass", "beach"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 8)) for _ in range(150)]
    references = {str(row): [text, " ".join(rng.choice(words, 8))] for row, text in enumerate(texts)}
    own = {str(row): " ".join([*text.split()[: rng.integers(3, 9)], "now"]) for row, text in enumerate(texts)}
    scores = score_captions(own, references)
    for metric in METRICS:
        values = scores.image_values(metric)
        assert values.shape == (150,)
        assert values.mean() == pytest.approx(scores.corpus[metric])
        draws = [scores.resampled(metric, rng.integers(0, 150, 150)) for _ in range(500)]
        assert values.std() / np.sqrt(150) == pytest.approx(np.std(draws), rel=0.12)
    np.testing.assert_allclose(scores.image_values("CIDEr"), scores.per_image["CIDEr"])


def test_case_and_punctuation_do_not_count() -> None:
    plain = score_captions(PREDICTIONS, REFERENCES).corpus
    shouted = score_captions({key: f"{text.upper()} !" for key, text in PREDICTIONS.items()}, REFERENCES).corpus
    assert plain == pytest.approx(shouted)


def test_an_empty_caption_scores_nothing_and_one_image_is_noted() -> None:
    scores = score_captions({"a": ""}, REFERENCES)
    assert scores.corpus["CIDEr"] == 0
    assert scores.corpus["ROUGE-L"] == 0
    assert "with one image it is always 0" in scores.notes[0]


def test_missing_references_are_listed() -> None:
    predictions = {f"k{i}": "a dog" for i in range(8)} | {"a": "a dog"}
    with pytest.raises(MetricError, match=r"8 of 9 captions have no reference.*: k0, k1, k2, k3, k4, …"):
        score_captions(predictions, {**REFERENCES, "k0": ["  "]})
    with pytest.raises(MetricError, match="no captions to score"):
        score_captions({}, REFERENCES)


def test_without_pycocoevalcap_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    import importlib

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("pycocoevalcap"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"(?s)pycocoevalcap.*c3tools\[eval\]"):
        score_captions(PREDICTIONS, REFERENCES)


def test_java_scores_that_cannot_run_are_left_out_and_say_what_they_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plain = score_captions(PREDICTIONS, REFERENCES)
    monkeypatch.setattr(captions_module, "_SPICE_MODELS", ("no-such-model.jar",))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    scores = score_captions(PREDICTIONS, REFERENCES, java=["SPICE"])
    assert scores.corpus == plain.corpus
    (note,) = scores.notes
    assert re.fullmatch(
        r"SPICE was not computed: the Stanford models are missing in .*lib \(no-such-model.jar\)\..*", note
    )
    monkeypatch.setattr(shutil, "which", lambda name: None)
    scores = score_captions(PREDICTIONS, REFERENCES, java=["METEOR", "SPICE"])
    assert scores.corpus == plain.corpus
    for name, note in zip(("METEOR", "SPICE"), scores.notes, strict=True):
        assert note.startswith(f"{name} was not computed: it needs Java, but `java` is not on the PATH")
        assert "\n" not in note


def test_spice_is_read_in_the_order_of_the_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spice:
        def compute_score(self, targets: dict[str, Any], written: dict[str, Any]) -> tuple[float, list[Any]]:
            return 0.25, [{"All": {"f": float(ord(key))}} for key in sorted(targets)]

    monkeypatch.setattr(captions_module, "missing_for", lambda name: None)
    module = type(sys)("pycocoevalcap.spice.spice")
    module.Spice = Spice  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", module)
    order = {key: PREDICTIONS[key] for key in ("c", "a", "d", "b")}
    scores = score_captions(order, REFERENCES, java=["SPICE"])
    assert scores.corpus["SPICE"] == 25
    assert scores.per_image["SPICE"].tolist() == [100.0 * ord(key) for key in order]


def test_a_java_program_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ValueError("no number")

    monkeypatch.setattr(captions_module, "missing_for", lambda name: None)
    monkeypatch.setattr(captions_module, "_meteor", fail)
    with pytest.raises(MetricError, match=r"METEOR could not be computed.*ValueError: no number"):
        score_captions(PREDICTIONS, REFERENCES, java=["METEOR"])


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(MetricError, match="There is no metric 'SMATCH'"):
        score_captions(PREDICTIONS, REFERENCES, java=["SMATCH"])
