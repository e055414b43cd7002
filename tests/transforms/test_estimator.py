from __future__ import annotations

import numpy as np
import pytest

from c3tools.errors import TransformError
from c3tools.transforms import preset
from tests.stores import assert_close, unit

from .conftest import MOMENTS, ROWS, X, Y

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.utils import estimator_checks

from c3tools.transforms.estimator import EmbeddingTransformer


def test_fit_and_transform_rows_and_pairs() -> None:
    got = EmbeddingTransformer("c2-collapse").fit_transform(X * 4)
    assert_close(got, unit(X - X.mean(0)))
    got = EmbeddingTransformer("procrustes").fit(X, Y).transform(X)
    expected = preset("procrustes").fit(MOMENTS, ROWS).transform(X, modality="image")
    assert_close(got, expected)


def test_refusals() -> None:
    with pytest.raises(TransformError, match="not fitted"):
        EmbeddingTransformer().transform(X)
    with pytest.raises(TransformError, match="needs the rows of 'text'"):
        EmbeddingTransformer("ridge").fit(X, np.zeros(len(X)))


@pytest.mark.parametrize(
    "check", ["check_transformer_general", "check_transformers_unfitted", "check_fit1d"]
)
def test_refusals_are_of_the_kind_that_scikit_learn_expects(check: str) -> None:
    getattr(estimator_checks, check)("EmbeddingTransformer", EmbeddingTransformer())


def test_works_with_scikit_learn() -> None:
    from sklearn.base import clone
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    estimator = EmbeddingTransformer("whiten", modality="text", sigma=0.2).fit(Y)
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "pipeline_")
    labels = (Y[:, -1] > np.median(Y[:, -1])).astype(int)
    model = make_pipeline(EmbeddingTransformer(), LogisticRegression(C=100.0)).fit(Y, labels)
    assert model.score(Y, labels) > 0.9
