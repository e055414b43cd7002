from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from c3tools import EmbeddingTransformer
from c3tools.errors import TransformError
from c3tools.transforms import preset
from tests.stores import assert_close, unit

from .conftest import MOMENTS, ROWS, P, X, Y

pytest.importorskip("sklearn", reason="scikit-learn is not installed")
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import parametrize_with_checks

# The docstring of EmbeddingTransformer lists them
EXPECTED_FAILURES = {"check_estimators_dtypes": "rows of zeros have no direction and are refused"}


@pytest.mark.filterwarnings("ignore")  # of the checks
@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [EmbeddingTransformer()],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
    xfail_strict=True,
)
def test_checks_of_scikit_learn(
    estimator: EmbeddingTransformer, check: Callable[[EmbeddingTransformer], None]
) -> None:
    check(estimator)


def test_fit_and_transform_rows_and_pairs() -> None:
    got = EmbeddingTransformer("c2-collapse").fit_transform(X * 4)
    assert_close(got, unit(X - X.mean(0)))
    got = EmbeddingTransformer("procrustes").fit(X, Y).transform(X)
    expected = preset("procrustes").fit(MOMENTS, ROWS).transform(X, modality="image")
    assert_close(got, expected)


def test_refusals() -> None:
    with pytest.raises(NotFittedError, match="not fitted"):
        EmbeddingTransformer().transform(X)
    with pytest.raises(TransformError, match=r"the rows of 'text'[\s\S]*takes them as y"):
        EmbeddingTransformer("ridge").fit(X, np.zeros(len(X)))


def test_labels_of_several_columns_are_no_rows() -> None:
    labels = np.stack([Y[:, 0] > 0, Y[:, 1] > 0], axis=1)
    fitted = EmbeddingTransformer().fit(X, labels)
    assert fitted.pipeline_.provenance["n"] == {"image": len(X)}


def test_a_table_comes_out_with_named_columns() -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    rows = pandas.DataFrame(X, index=P.keys).add_prefix("clip_")
    estimator = EmbeddingTransformer().set_output(transform="pandas")
    table = estimator.fit_transform(rows)
    names = [f"embeddingtransformer{column}" for column in range(24)]
    assert [*table.columns] == [*estimator.get_feature_names_out()] == names
    assert [*table.index] == P.keys
    assert_close(table.to_numpy(), unit(X - X.mean(0)))


WITHOUT_SKLEARN = """
import sys
sys.modules["sklearn"] = None
from c3tools import *
try:
    EmbeddingTransformer().fit([[1, 2], [3, 4]])
except C3Error as error:
    print(error)
"""


def test_without_scikit_learn_all_names_are_there_and_use_is_refused() -> None:
    printed = subprocess.check_output([sys.executable, "-c", WITHOUT_SKLEARN], text=True)
    assert "EmbeddingTransformer needs the package scikit-learn" in printed


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
