"""A pipeline as a transformer of scikit-learn, which has to be installed.

make_pipeline(EmbeddingTransformer("c2-collapse"), LogisticRegression()).fit(X, y)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin

from ..arrays import Matrix
from ..errors import TransformError
from .presets import preset


class EmbeddingTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc, unused-ignore]
    """A preset for embeddings (n, d) of one modality. Transforming gives what test inputs get: no
    noise.

    Args:
        preset: name of a preset.
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

        Labels in ``y`` (one dimension) are ignored, as in any scikit-learn pipeline.

        Raises:
            TransformError: if the preset needs more than it gets.
        """
        rows = {self.modality: X} | ({self.target: y} if y is not None and np.ndim(y) == 2 else {})
        pipeline = preset(
            self.preset, sigma=self.sigma, train_on=self.target, infer_on=self.modality
        )
        self.pipeline_ = pipeline.fit(rows=rows)
        self.n_features_in_ = np.shape(X)[1]
        return self

    def transform(self, X: npt.ArrayLike) -> Matrix:
        """Return transformed rows, float32 (n, d).

        Raises:
            TransformError: if not fitted, or the dimension is another.
        """
        if not hasattr(self, "pipeline_"):
            raise TransformError(
                "This EmbeddingTransformer is not fitted.", remedy="Call fit first."
            )
        return self.pipeline_.transform(X, modality=self.modality)
