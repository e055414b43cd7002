"""Our tokens and METEOR against pycocoevalcap's Java programs."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from c3tools.assets.paths import CAPTIONS
from c3tools.metrics.caption_metric import MeanScore
from c3tools.metrics.caption_scores import score_captions
from c3tools.metrics.ptb_tokenizer import tokenize

from .conftest import Budget

pytestmark = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")


def test_tokens_and_meteor_are_those_of_java(budget: Budget) -> None:
    reference = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    meteor = pytest.importorskip("pycocoevalcap.meteor.meteor")
    with CAPTIONS.open(encoding="utf-8") as lines:
        groups = [
            [" ".join(text.split()) for text in json.loads(line)["captions"]] for line in lines
        ]
    seen = different = 0
    while budget.is_left():
        chosen = budget.random.sample(groups, min(2000, len(groups)))
        texts = [text for group in chosen for text in group]
        expected = reference.PTBTokenizer().tokenize(
            {i: [{"caption": text}] for i, text in enumerate(texts)}
        )
        # split as the scorers split: the Java tokenizer joins 3 1/2 by a space that does not break
        different += sum(
            tokenize(text).split() != expected[i][0].split() for i, text in enumerate(texts)
        )
        seen += len(texts)
    assert different <= 0.0004 * seen  # 0.0001 to 0.0002 of the bundled captions
    predictions, references, tokens, own = {}, {}, {}, {}
    for key, (first, *others) in zip(map(str, range(20)), groups, strict=False):
        predictions[key], references[key] = first, others
        own[key], tokens[key] = [tokenize(first)], [*map(tokenize, others)]
    scorer = meteor.Meteor()
    corpus, each = scorer.compute_score(tokens, own)
    scorer.meteor_p.kill()
    scorer.meteor_p.communicate()  # closes its pipes
    scores = score_captions(predictions, references, metrics=["METEOR"])
    assert scores.corpus["METEOR"] == pytest.approx(100 * corpus, abs=1e-6)
    score = scores.scores["METEOR"]
    assert isinstance(score, MeanScore)
    np.testing.assert_allclose(score.per_image, 100 * np.array(each), atol=1e-6)
    budget.report(
        f"{different} of {seen:,} captions tokenised otherwise than in Java, METEOR the same"
    )
