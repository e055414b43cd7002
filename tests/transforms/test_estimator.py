from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
    with pytest.raises(TransformError, match=r"ridge is fitted on pairs[\s\S]*text row.*as y"):
        EmbeddingTransformer("ridge").fit(X, np.zeros(len(X)))
    with pytest.raises(TransformError, match="target are both 'text'"):
        EmbeddingTransformer(modality="text", target="text").fit(Y)
    with pytest.raises(TransformError, match="no preset 'c4'"):
        EmbeddingTransformer("c4").fit(X)
    with pytest.raises(TransformError, match=r"\(0 text, 1 image\), but row 0 has 2"):
        EmbeddingTransformer(modality=("text", "image")).fit(tagged(Y, 2))


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


def tagged(rows: np.ndarray, number: int) -> np.ndarray:
    return np.column_stack([rows, np.full(len(rows), number)])


@pytest.mark.parametrize("is_saved", [True, False])
def test_a_model_is_trained_on_texts_and_used_on_images(tmp_path: Path, is_saved: bool) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline

    recipe = preset("c2-collapse").fit(MOMENTS)
    transformer = EmbeddingTransformer(
        str(recipe.save(tmp_path / "r")) if is_saved else recipe, modality=("text", "image")
    )
    labels = (Y[:, -1] > np.median(Y[:, -1])).astype(int)
    model = make_pipeline(transformer, LogisticRegression(C=100.0)).fit(tagged(Y, 0), labels)
    by_hand = LogisticRegression(C=100.0).fit(recipe.transform(Y, modality="text"), labels)
    expected = by_hand.predict(recipe.transform(X, modality="image"))
    np.testing.assert_array_equal(model.predict(tagged(X, 1)), expected)
    assert model[0].get_feature_names_out().shape == (24,)
    both = np.concatenate([tagged(Y, 0), tagged(X, 1)])
    scores = cross_val_score(model, both, np.tile(labels, 2), scoring="f1", cv=2)
    assert np.isfinite(scores).all()


def test_rows_of_both_modalities_are_fitted_by_their_column() -> None:
    both = np.concatenate([tagged(Y, 0), tagged(X, 1)])
    got = EmbeddingTransformer(modality=("text", "image")).fit_transform(both)
    assert_close(got, np.concatenate([unit(Y - Y.mean(0)), unit(X - X.mean(0))]))
