"""A pipeline behind scikit-learn's conventions, without needing scikit-learn.

make_pipeline(EmbeddingTransformer("c2-collapse"), LogisticRegression()).fit(X, y)
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Matrix
from ..errors import TransformError
from .fitting import unit_moments
from .operations import as_rows, check_finite
from .pipeline import Pipeline
from .presets import preset


class EmbeddingTransformer:
    """A preset with ``fit``, ``partial_fit``, ``transform``, ``get_params`` and ``set_params``.

    ``X`` are embeddings (n, d) of ``modality``. Transforming gives what validation and test inputs get: no noise.

    Args:
        preset: name of a preset.
        modality: what the rows are.
        target: the other modality, which presets that map into it need; its rows are the ``y`` of ``fit``.
        sigma: standard deviation of Gaussian noise; kept for the pipeline that is saved.

    Attributes:
        pipeline_: the fitted pipeline.
        n_features_in_: dimension of the embeddings.
    """

    def __init__(
        self, preset: str = "c2-collapse", *, modality: str = "image", target: str = "text", sigma: float | None = None
    ) -> None:
        self.preset = preset
        self.modality = modality
        self.target = target
        self.sigma = sigma

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike | None = None) -> EmbeddingTransformer:
        """Fit on rows ``X`` (n, d); ``y`` (n, d) are the paired rows of ``target`` if the preset needs them.

        Labels in ``y`` (one dimension) are ignored, as in any scikit-learn pipeline.

        Raises:
            TransformError: if the preset needs more than it gets.
        """
        pipeline = self._unfitted()
        rows = {self.modality: as_rows(X)}
        if y is not None and np.ndim(y) == 2:
            rows[self.target] = as_rows(y)
        self._keep(pipeline.fit(rows=rows))
        self._moments = unit_moments(rows[self.modality])
        return self

    def partial_fit(self, X: npt.ArrayLike, y: object = None) -> EmbeddingTransformer:
        """Add rows ``X`` (n, d) to the statistics; the order of the calls does not matter.

        Raises:
            TransformError: if the preset is fitted on rows rather than on moments.
        """
        pipeline = self._unfitted()
        if pipeline.needs_rows:
            raise TransformError(
                f"The preset {self.preset!r} needs all rows to be fitted, but partial_fit does not keep rows.",
                remedy="Use fit.",
            )
        rows = as_rows(X)
        check_finite(rows)
        seen = unit_moments(rows)
        self._moments = self._moments.merge(seen) if hasattr(self, "_moments") else seen
        self._keep(pipeline.fit({self.modality: self._moments}))
        return self

    def transform(self, X: npt.ArrayLike) -> Matrix:
        """Return transformed rows, float32 (n, d).

        Raises:
            TransformError: if not fitted, or the dimension is another.
        """
        if not hasattr(self, "pipeline_"):
            raise TransformError("This EmbeddingTransformer is not fitted.", remedy="Call fit or partial_fit first.")
        return self.pipeline_.transform(X, modality=self.modality)

    def fit_transform(self, X: npt.ArrayLike, y: npt.ArrayLike | None = None) -> Matrix:
        """Fit on ``X`` and ``y``, then transform ``X``."""
        return self.fit(X, y).transform(X)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> EmbeddingTransformer:
        """Change the constructor's arguments.

        Raises:
            ValueError: for an argument that it has not.
        """
        for name, value in params.items():
            if name not in self.get_params():
                raise ValueError(
                    f"EmbeddingTransformer has no parameter {name!r}. Its parameters are {list(self.get_params())}."
                )
            setattr(self, name, value)
        return self

    def _unfitted(self) -> Pipeline:
        return preset(self.preset, sigma=self.sigma, train_on=self.target, infer_on=self.modality)

    def _keep(self, pipeline: Pipeline) -> None:
        self.pipeline_ = pipeline
        self.n_features_in_ = pipeline.dim

    def __repr__(self) -> str:
        return f"EmbeddingTransformer({self.preset!r}, modality={self.modality!r})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "pipeline_")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags, TransformerTags

        tags = TransformerTags(preserves_dtype=["float32"])
        return Tags(estimator_type="transformer", target_tags=TargetTags(required=False), transformer_tags=tags)
