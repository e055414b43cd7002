"""A pipeline as a transformer of scikit-learn.

make_pipeline(EmbeddingTransformer("c2-collapse"), LogisticRegression()).fit(X, y)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Matrix
from ..errors import optional_module
from .presets import preset

_BASES: tuple[type, ...] = ()  # a listing of c3tools needs the class, even without scikit-learn
try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

    _BASES = (ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator)
except ImportError:
    pass


class EmbeddingTransformer(*_BASES):  # type: ignore[misc]
    """Fit a preset on embeddings (n, d) of one modality, and transform as for test inputs: without
    noise.

    It is a scikit-learn transformer: it works in pipelines and searches, with ``set_output`` and
    ``get_feature_names_out``. Of scikit-learn's checks (1.9, ``check_estimator``) all hold but one:
    ``check_estimators_dtypes`` fits on rows of zeros, which have no direction and are refused.

    Args:
        preset: name of a preset, or a JSON or YAML file with steps.
        modality: what the rows are.
        target: the other modality, which presets that map into it need; its rows are the ``y`` of
            ``fit``.
        sigma: standard deviation of Gaussian noise; kept for the pipeline that is saved.

    Attributes:
        pipeline_: the fitted pipeline.
        n_features_in_: dimension of the embeddings.
    """

    def __init__(
        self,
        preset: str = "c2-collapse",
        *,
        modality: str = "image",
        target: str = "text",
        sigma: float | None = None,
    ) -> None:
        self.preset = preset
        self.modality = modality
        self.target = target
        self.sigma = sigma

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike | None = None) -> EmbeddingTransformer:
        """Fit on rows ``X`` (n, d); ``y`` (n, d) are the paired rows of ``target`` if the preset
        needs them.

        Labels in ``y``, of any other shape, are ignored, as in any scikit-learn pipeline.

        Raises:
            MissingExtraError: if scikit-learn is not installed.
            TransformError: if the preset needs more than it gets.
            ValueError: if the rows are not finite numbers, or fewer than two.
        """
        rows = _validation().validate_data(self, X, ensure_min_samples=2)
        inputs = {self.modality: rows}
        if y is not None and np.asarray(y).shape == rows.shape:
            inputs[self.target] = np.asarray(y)
        unfitted = preset(
            self.preset, sigma=self.sigma, train_on=self.target, infer_on=self.modality
        )
        self.pipeline_ = unfitted.fit(rows=inputs)
        return self

    def transform(self, X: npt.ArrayLike) -> Matrix:
        """Return transformed rows, float32 (n, d).

        Raises:
            NotFittedError: if not fitted.
            TransformError: if a row is zero.
            ValueError: if the dimension is another, or the rows are not finite numbers.
        """
        validation = _validation()
        validation.check_is_fitted(self)
        rows = validation.validate_data(self, X, reset=False)
        return self.pipeline_.transform(rows, modality=self.modality)

    @property
    def _n_features_out(self) -> int:
        """The number of columns, which ``get_feature_names_out`` reads."""
        return int(self.n_features_in_)

    def __sklearn_tags__(self) -> Any:
        """Return the tags of a transformer whose results are float32."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _validation() -> Any:
    return optional_module(
        "sklearn.utils.validation",
        "scikit-learn",
        extra="interop",
        purpose="EmbeddingTransformer",
    )
