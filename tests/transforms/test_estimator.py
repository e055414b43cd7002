from __future__ import annotations

import numpy as np
import pytest

from c3tools.errors import TransformError
from c3tools.transforms import preset
from tests.stores import assert_close, unit

from .conftest import P

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from c3tools.transforms.estimator import EmbeddingTransformer


def test_fit_and_transform_rows_and_pairs() -> None:
    got = EmbeddingTransformer("c2-collapse").fit_transform(P.x * 4)
    assert_close(got, unit(P.x - P.x.mean(0)))
    got = EmbeddingTransformer("procrustes").fit(P.x, P.y).transform(P.x)
    expected = preset("procrustes").fit(P.moments, P.rows).transform(P.x, modality="image")
    assert_close(got, expected)


def test_refusals() -> None:
    with pytest.raises(TransformError, match="not fitted"):
        EmbeddingTransformer().transform(P.x)
    with pytest.raises(TransformError, match="needs the rows of 'text'"):
        EmbeddingTransformer("ridge").fit(P.x, np.zeros(len(P.x)))


def test_works_with_scikit_learn() -> None:
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    estimator = EmbeddingTransformer("whiten", modality="text", sigma=0.2).fit(P.y)
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "pipeline_")
    labels = (P.y[:, -1] > np.median(P.y[:, -1])).astype(int)
    model = make_pipeline(EmbeddingTransformer(), LogisticRegression(C=100.0)).fit(P.y, labels)
    assert model.score(P.y, labels) > 0.9
