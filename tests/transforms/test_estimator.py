from __future__ import annotations

import numpy as np
import pytest

from c3tools.errors import TransformError
from c3tools.transforms import preset
from c3tools.transforms.estimator import EmbeddingTransformer

from .conftest import Pairs, unit


def test_fit_and_transform(pairs: Pairs) -> None:
    got = EmbeddingTransformer("c2-collapse").fit_transform(pairs.x * 4)
    np.testing.assert_allclose(got, unit(pairs.x - pairs.x.mean(0)), atol=1e-6)


def test_partial_fit_in_any_order(pairs: Pairs) -> None:
    whole = EmbeddingTransformer("standardize").fit(pairs.x).transform(pairs.x)
    pieces = np.array_split(pairs.x, 5)
    for order in ([0, 1, 2, 3, 4], [3, 0, 4, 2, 1]):
        estimator = EmbeddingTransformer("standardize")
        for piece in order:
            estimator.partial_fit(pieces[piece])
        np.testing.assert_allclose(estimator.transform(pairs.x), whole, atol=1e-6)


def test_partial_fit_continues_fit(pairs: Pairs) -> None:
    estimator = EmbeddingTransformer("c3").fit(pairs.x[:50]).partial_fit(pairs.x[50:])
    np.testing.assert_allclose(estimator.transform(pairs.x), unit(pairs.x - pairs.x.mean(0)), atol=1e-6)
    assert estimator.n_features_in_ == 24


def test_pairs_come_as_y(pairs: Pairs) -> None:
    got = EmbeddingTransformer("procrustes").fit(pairs.x, pairs.y).transform(pairs.x)
    expected = preset("procrustes").fit(pairs.moments, pairs.rows).transform(pairs.x, modality="image")
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_refusals(pairs: Pairs) -> None:
    with pytest.raises(TransformError, match="not fitted"):
        EmbeddingTransformer().transform(pairs.x)
    with pytest.raises(TransformError, match="partial_fit does not keep"):
        EmbeddingTransformer("ridge").partial_fit(pairs.x)
    with pytest.raises(TransformError, match="needs text rows to be fitted"):
        EmbeddingTransformer("ridge").fit(pairs.x, np.zeros(len(pairs.x)))
    with pytest.raises(ValueError, match="no parameter 'alpha'"):
        EmbeddingTransformer().set_params(alpha=1)


def test_works_with_scikit_learn(pairs: Pairs) -> None:
    base = pytest.importorskip("sklearn.base", reason="scikit-learn is not installed")
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline

    estimator = EmbeddingTransformer("whiten", modality="text", sigma=0.2).fit(pairs.y)
    copy = base.clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "pipeline_")
    labels = (pairs.y[:, -1] > np.median(pairs.y[:, -1])).astype(int)
    model = make_pipeline(EmbeddingTransformer(), LogisticRegression(C=100.0)).fit(pairs.y, labels)
    assert model.score(pairs.y, labels) > 0.9
    search = GridSearchCV(model, {"embeddingtransformer__preset": ["c1", "c2-collapse", "standardize"]}, cv=2)
    assert search.fit(pairs.y, labels).best_score_ > 0.7
