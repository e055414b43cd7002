"""A pipeline as a transformer of scikit-learn.

make_pipeline(EmbeddingTransformer("c2-collapse"), LogisticRegression()).fit(X, y)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import Matrix
from ..errors import TransformError, optional_module
from ..io.hub import HUB
from ..lists import as_list
from .pipeline import Pipeline
from .presets import PRESETS, open_pipeline, preset

_BASES: tuple[type, ...] = ()  # a listing of c3tools needs the class, even without scikit-learn
try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin

    _BASES = (ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator)
except ImportError:
    pass


class EmbeddingTransformer(*_BASES):  # type: ignore[misc]
    """Fit a preset on embeddings (n, d), or take a fitted pipeline, and transform as for test
    inputs: without noise.

    It is a scikit-learn transformer: it works in pipelines and searches, with ``set_output`` and
    ``get_feature_names_out``. It passes all of scikit-learn's checks (1.9, ``check_estimator``) but
    one: ``check_estimators_dtypes`` fits on zero rows, which have no direction and are rejected.

    Args:
        preset: name of a preset; or a `Pipeline`, the folder (or hf-hub:ORG/NAME) of a saved one,
            or a file that describes one. A fitted one is not changed.
        modality: the modality of the rows, or several names; in that case, the last column of X is
            the number of each row's modality among them (0, 1, …), so that a model can be trained
            on texts and used on images.
        target: the other modality, needed by presets that map into it; its rows are the ``y`` of
            ``fit``. By default text, or image where the rows are texts.
        sigma: standard deviation of Gaussian noise; kept for the pipeline that is saved.

    Attributes:
        pipeline_: the fitted pipeline.
        n_features_in_: number of columns of X.

    Example:
        >>> recipe = c3tools.preset("c2-collapse").fit(store)  # or its folder
        >>> transformer = c3tools.EmbeddingTransformer(recipe, modality=("text", "image"))
        >>> texts = np.column_stack([store.load("text").embeddings, np.zeros(620)])
        >>> images = np.column_stack([store.load("image").embeddings, np.ones(124)])
        >>> transformer.fit(texts).transform(images).shape
        (124, 256)
    """

    def __init__(
        self,
        preset: str | Path | Pipeline = "c2-collapse",
        *,
        modality: str | Sequence[str] = "image",
        target: str | None = None,
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
            TransformError: if the preset needs more than it gets, or the modality is the target.
            ValueError: if the rows are not finite numbers, or fewer than two.
        """
        # The rows by modality, with those of the target if they are given
        rows = _validation().validate_data(self, X, ensure_min_samples=2)
        inputs = {name: of_modality for name, _, of_modality in self._by_modality(rows)}
        names = as_list(self.modality)
        source = names[-1]
        target = self.target
        if target is None and len(names) > 1:
            target = names[0]
        elif target is None:
            target = "image" if source == "text" else "text"
        if source == target:
            raise TransformError(
                f"The modality of the rows and the target are both {target!r}.",
                remedy="Leave out target, or name the other modality.",
            )
        if len(names) == 1 and y is not None and np.asarray(y).shape == rows.shape:
            inputs[target] = np.asarray(y)

        # Parameters stay as they are, so a pipeline is copied before it is fitted
        recipe = self.preset
        is_saved = not isinstance(recipe, str) or recipe.startswith(HUB) or Path(recipe).exists()
        if is_saved and recipe not in PRESETS:
            pipeline = copy.deepcopy(open_pipeline(recipe, sigma=self.sigma))
        else:
            pipeline = preset(str(recipe), sigma=self.sigma, train_on=target, infer_on=source)

        # A fitted one is taken as it is
        if pipeline.fitted and any(step.fits for step in pipeline.steps):
            for modality_rows in inputs.values():
                pipeline.check_dim(modality_rows.shape[1])
        elif any(step.needs_pairs for step in pipeline.steps) and target not in inputs:
            raise TransformError(
                f"{pipeline.name} is fitted on pairs, but there are only {source} rows.",
                remedy=f"Pass the {target} row of each row as y, (n, d), or use a pipeline that "
                f"was fitted on a store.",
            )
        else:
            pipeline.fit(rows=inputs)
        self.pipeline_ = pipeline
        return self

    def transform(self, X: npt.ArrayLike) -> Matrix:
        """Return transformed rows, float32 (n, d).

        Raises:
            NotFittedError: if not fitted.
            TransformError: if a row is zero, or of a modality that the pipeline is not fitted for.
            ValueError: if the dimension is another, or the rows are not finite numbers.
        """
        validation = _validation()
        validation.check_is_fitted(self)
        rows = validation.validate_data(self, X, reset=False)
        transformed = np.empty((len(rows), self._n_features_out), np.float32)
        for name, places, modality_rows in self._by_modality(rows):
            transformed[places] = self.pipeline_.transform(modality_rows, modality=name)
        return transformed

    def _by_modality(self, rows: Matrix) -> Iterator[tuple[str, Any, Matrix]]:
        """Yield each modality that has rows, their places, and their embeddings (n, d)."""
        if isinstance(self.modality, str):
            yield self.modality, slice(None), rows
            return
        numbers = rows[:, -1]
        names = list(self.modality)
        wrong = np.flatnonzero(~np.isin(numbers, range(len(names))))
        if len(wrong):
            choices = ", ".join(f"{number} {name}" for number, name in enumerate(names))
            raise TransformError(
                f"The last column of X is the modality of each row ({choices}), but row "
                f"{wrong[0]} has {numbers[wrong[0]]:g}.",
                remedy="For example np.column_stack([embeddings, np.zeros(len(embeddings))]).",
            )
        for number, name in enumerate(names):
            places = np.flatnonzero(numbers == number)
            if len(places):
                yield name, places, rows[places, :-1]

    @property
    def _n_features_out(self) -> int:
        """The number of columns, which ``get_feature_names_out`` reads."""
        return int(self.n_features_in_) - (not isinstance(self.modality, str))

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
