"""Scores that compare rows of different modalities, from the moments of each.

    calibration = Calibration.fit("c3-store")                  # or a file of `c3 means save`,
    moments, arrays query = calibration.pipeline.transform(embedding, modality="text")[0]
    calibration.merge(query, {"image": (ids, cosines), "text": (ids, cosines)}, k=10)

Any index or database may give the cosines, as long as its rows went through the same pipeline.
numpy is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import Array
from ..corpus.splits import ALL
from ..errors import TransformError
from ..io.locations import is_url, kind_of, location
from ..moments import Moments, load_moments, unit_rows
from .fitting import FitData, fitting_moments
from .operations import Affine, Unit
from .pipeline import Pipeline
from .presets import preset

if TYPE_CHECKING:
    from ..store import Store

# of the mean variance over directions; scores vary less where there are fewer rows than that
_LEAST_VARIANCE = 1e-3


class Calibration:
    """Tell how unusual a score is among rows of its own modality: one number for rows of all
    modalities.

    The cosines of a query q with unrelated rows of a modality m, of mean mu_m and covariance S_m,
    have mean q.mu_m and variance q' S_m q, so

        z = (q.x - q.mu_m) / sqrt(q' S_m q)

    orders the rows of one modality as the cosine does, and can be compared between modalities.
    docs/results/fair-search.md has what it is worth.

    Args:
        moments: by modality, those of the rows that are searched, as they are in the index. Without
            any, as in a store of too few rows, scores are the cosines as they are.
        pipeline: what rows and queries went through.

    Attributes:
        moments: see above.
        pipeline: see above.
        curves: by the modalities of queries and rows, slope and offset of the curves of
            `fit_pairs`; empty without.
    """

    def __init__(self, moments: Mapping[str, Moments], pipeline: Pipeline) -> None:
        self.moments = dict(moments)
        self.pipeline = pipeline
        self.curves: dict[tuple[str, str], Array] = {}

    @classmethod
    def fit(
        cls,
        source: Store | str | Path | Mapping[str, Moments] | Mapping[str, npt.ArrayLike],
        *,
        pipeline: Pipeline | None = None,
        split: str = "train",
    ) -> Calibration:
        """Return the calibration of rows that go through a pipeline, from the moments of embeddings
        as they are.

        Args:
            source: a store or its folder; a file of `c3 means save`; or, by modality, `Moments`
                of embeddings at unit length, or embeddings (n, d) of any norm.
            pipeline: a fitted one; None for the preset gr-clip, unit(e - mu), fitted on ``source``.
            split: of a store: the rows to take moments of, by the rule of
                `c3tools.transforms.fitting.FittingMoments`; all rows if none are in the split.

        Raises:
            StoreError: if a store or a file cannot be read.
            TransformError: if dimensions differ, a value is not finite, moments are not of unit
                rows, or the pipeline does not know a modality or maps rows to a memory.
        """
        given: Mapping[str, Any]
        if isinstance(source, Mapping):
            given = source
        elif isinstance(source, str | Path) and (
            is_url(source) or kind_of(location(source)) == "file"
        ):
            given = load_moments(location(source))[0]
        else:
            from ..store import Store

            store = Store.open(source)
            if not any(store.count(name, split) for name in store.modalities):
                split = ALL
            pipeline = pipeline or preset("gr-clip").fit(store, split=split)
            known = fitting_moments(store, split)
            given = {name: own for name, own in known.moments.items() if name in store.modalities}
            if not known.centred:
                given = {}
        moments = {name: own for name, own in given.items() if isinstance(own, Moments)}
        arrays: dict[str, Any] = {name: rows for name, rows in given.items() if name not in moments}
        plain = FitData(moments, arrays, {}, unit=True).moments
        chosen = pipeline or preset("gr-clip").fit(plain)
        after = {
            name: _moments_after(chosen, own, name)
            for name, own in plain.items()
            if chosen.knows(name)
        }
        return cls(after, chosen)

    def fit_pairs(
        self, pairs: Mapping[tuple[str, str], tuple[npt.ArrayLike, npt.ArrayLike]]
    ) -> Calibration:
        """Return a calibration that scores by the log odds that a row is the right one (Platt,
        1999), from pairs.

        They are a s + b of the cosine s, a logistic regression of right rows against those of the
        other pairs, one for each kind of query and row. This is better than z where images are
        asked with: docs/results/fair-search.md.

        Args:
            pairs: by the modalities of queries and rows, queries (n, d) and the right row of each
                (n, d), after the pipeline. Queries of a modality that lacks pairs with rows of
                another one keep z.
        """
        fitted = Calibration(self.moments, self.pipeline)
        for kinds, (queries, rows) in pairs.items():
            if all((kinds[0], name) in pairs for name in self.moments):
                # (n, n)
                cosines = (
                    unit_rows(np.asarray(queries, np.float64)) @ np.asarray(rows, np.float64).T
                )
                fitted.curves[kinds] = fit_logistic(
                    cosines.reshape(-1, 1), np.eye(len(cosines)).ravel(), 1e-9
                )
        return fitted

    def z(
        self, query: npt.ArrayLike, cosines: npt.ArrayLike, modality: str, asked: str | None = None
    ) -> Array:
        """Return the scores of rows of one modality, float64 of the shape of ``cosines``.

        Args:
            query: (d,), or (q, d) for a batch, as it was searched with; its length makes no
                difference.
            cosines: (n,) or (q, n), with rows of the modality.
            modality: of the rows.
            asked: modality of the queries, which decides between the curves of `fit_pairs`; None
                for z.

        A query of norm 0, and a modality whose rows are all equal, give 0. A variance is taken as
        at least a thousandth of the modality's mean over all directions.

        Raises:
            TransformError: if there are no moments of the modality, or a shape is wrong.
        """
        queries, scores = np.asarray(query, np.float64), np.asarray(cosines, np.float64)
        if not self.moments:
            return scores
        moments = self.moments.get(modality)
        if moments is None or queries.shape != (*scores.shape[:-1], moments.dim):
            known = ", ".join(
                f"{name} ({own.dim} dimensions)" for name, own in sorted(self.moments.items())
            )
            raise TransformError(
                f"Scores of shape {scores.shape} with {modality} rows, for queries of shape "
                f"{queries.shape}, cannot be "
                f"calibrated with the moments of {known or 'no modality'}.",
                remedy="Fit the calibration on this modality too, and give one query for each row "
                "of scores.",
            )
        if asked is not None and (asked, modality) in self.curves:
            slope, offset = self.curves[asked, modality]
            return np.asarray(slope * scores + offset)
        norms = np.linalg.norm(queries, axis=-1, keepdims=True)
        unit = np.divide(queries, norms, out=np.zeros_like(queries), where=norms > 0)
        variance = np.einsum("...d,...d->...", unit @ moments.covariance, unit)[..., None]
        least = _LEAST_VARIANCE * np.trace(moments.covariance) / moments.dim
        deviation = np.where(norms > 0, np.sqrt(np.maximum(variance, least)), 0)
        centred = scores - (unit @ moments.mean)[..., None]
        return np.asarray(
            np.divide(centred, deviation, out=np.zeros_like(centred), where=deviation > 0)
        )

    def merge(
        self,
        query: npt.ArrayLike,
        found: Mapping[str, tuple[Any, Any]],
        k: int = 10,
        asked: str | None = None,
    ) -> list[Any]:
        """Return the best rows of several searches, each as a tuple (id, modality, z), best first.

        Args:
            query: (d,), or (q, d) for a batch, as it was searched with; a batch gives one list a
                query.
            found: by modality, ids (n,) and cosines (n,) of the rows that its own search found, or
                (q, n) each; a score that is not finite stands for no row.
            k: number of rows.
            asked: see `z`.

        Raises:
            TransformError: see `z`.
        """
        if np.ndim(query) == 2:
            return [
                self.merge(
                    q,
                    {name: (ids[row], scores[row]) for name, (ids, scores) in found.items()},
                    k,
                    asked,
                )
                for row, q in enumerate(np.asarray(query))
            ]
        rows = [
            (identity, name, float(score))
            for name, (ids, cosines) in found.items()
            for identity, score in zip(ids, self.z(query, cosines, name, asked), strict=True)
            if np.isfinite(score)
        ]
        return sorted(rows, key=lambda row: -row[2])[:k]


def fit_logistic(x: Array, y: Array, ridge: float) -> Array:
    """Fit a logistic regression by Newton's method: weights (d + 1,), the intercept last and not
    penalised.

    Args:
        x: (n, d).
        y: (n,), 1 or 0.
        ridge: penalty on the squared weights, per row, with x scaled to a standard deviation of
            about 1.
    """
    scale = x.std(axis=0).mean() or 1.0
    design = np.hstack([x / scale, np.ones((len(x), 1))])
    penalty = np.full(design.shape[1], ridge * len(x))
    penalty[-1] = 1e-9
    weights = np.zeros(design.shape[1])
    for _ in range(25):
        p = (1 + np.tanh(design @ weights / 2)) / 2
        gradient = design.T @ (p - y) + penalty * weights
        weighted = design * np.sqrt(np.maximum(p * (1 - p), 1e-9))[:, None]
        step = np.linalg.solve(weighted.T @ weighted + np.diag(penalty), gradient)
        weights -= step
        if np.abs(step).max() < 1e-3:
            break
    weights[:-1] /= scale
    return weights


def _moments_after(pipeline: Pipeline, moments: Moments, modality: str) -> Moments:
    """Return the moments of rows after a pipeline, from those of the rows at unit length.

    They are exact for affine steps. Normalising is taken as a division by the root of the mean
    squared norm: so after Collapse the mean is 0 and the covariance S / tr S.

    Raises:
        TransformError: if the pipeline is not fitted for the modality, or maps rows to a memory.
    """
    pipeline.check_fitted()
    for step in pipeline.steps:
        for operation in (
            step.operations(modality) if step.applies(modality, training=False) else ()
        ):
            if isinstance(operation, Affine):
                moments = operation.moments_after(moments)
            elif not isinstance(operation, Unit):
                raise TransformError(
                    f"The step {step.kind} leaves moments that only rows could tell."
                )
            elif (size := moments.mean_squared_norm) > 0:
                moments = Moments(moments.n, moments.mean / np.sqrt(size), moments.scatter / size)
    return moments
