from __future__ import annotations

import numpy as np
import pytest

from c3tools.errors import TransformError
from c3tools.transforms import preset
from tests.stores import assert_close, unit

from .conftest import Pairs

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from c3tools.transforms.estimator import EmbeddingTransformer


def test_fit_and_transform_rows_and_pairs(pairs: Pairs) -> None:
    got = EmbeddingTransformer("c2-collapse").fit_transform(pairs.x * 4)
    assert_close(got, unit(pairs.x - pairs.x.mean(0)))
    got = EmbeddingTransformer("procrustes").fit(pairs.x, pairs.y).transform(pairs.x)
    expected = preset("procrustes").fit(pairs.moments, pairs.rows).transform(pairs.x, modality="image")
    assert_close(got, expected)


def test_refusals(pairs: Pairs) -> None:
    with pytest.raises(TransformError, match="not fitted"):
        EmbeddingTransformer().transform(pairs.x)
    with pytest.raises(TransformError, match="needs the rows of 'text'"):
        EmbeddingTransformer("ridge").fit(pairs.x, np.zeros(len(pairs.x)))


def test_works_with_scikit_learn(pairs: Pairs) -> None:
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    estimator = EmbeddingTransformer("whiten", modality="text", sigma=0.2).fit(pairs.y)
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "pipeline_")
    labels = (pairs.y[:, -1] > np.median(pairs.y[:, -1])).astype(int)
    model = make_pipeline(EmbeddingTransformer(), LogisticRegression(C=100.0)).fit(pairs.y, labels)
    assert model.score(pairs.y, labels) > 0.9
