"""Scores that compare rows of different modalities, from the moments of each.

    calibration = Calibration.load("c3-export")  # or an index; fit() takes a store, moments, arrays
    query = calibration.pipeline.transform(embedding, modality="text")[0]
    calibration.merge(query, {"image": (ids, cosines), "text": (ids, cosines)}, k=10)

Any index or database may give the cosines, as long as its rows went through the same pipeline.
numpy is enough.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import Array, Indices
from ..corpus.splits import ALL
from ..errors import StoreError, TransformError, explain_missing
from ..io.files import write_atomically
from ..io.hub import local_folder
from ..io.locations import is_url, kind_of, location
from ..moments import Moments, load_moments, moments_content, unit_rows
from ..reporter import counted
from .first_rows import seem_centred
from .fitting import FitData, fitting_moments
from .logistic import fit_logistic
from .operations import Affine, Unit
from .pipeline import MANIFEST_NAME, Pipeline
from .presets import preset

if TYPE_CHECKING:
    from ..store import Store

CALIBRATION_FILE = "calibration.safetensors"  # beside the pipeline of an export or an index
# of the curves of `fit_pairs`: the logarithm of 160,000, the number of comparisons among 400 pairs,
# which show no larger odds. A row that is the query itself would get far more
_HIGHEST_LOG_ODDS = 12.0
# of the mean variance over directions; scores vary less where there are fewer rows than that
_LEAST_VARIANCE = 1e-3
# of the spreads of two modalities. 1.2 at most with the encoders of docs/results/fused.md; more
# where rows of one modality have much noise, and there z ranks combined queries better
_LARGEST_RATIO = 1.3


@dataclass(frozen=True, eq=False)
class Scale:
    """A rule by which cosines of queries with rows of one modality become scores (`scale`).

    Attributes:
        mean: of the cosines with unrelated rows: float64 (..., 1).
        deviation: of these cosines: float64 (..., 1); 0 where all scores are 0.
        factor: of the combined z; 1 for z itself.
        curve: slope and offset of `Calibration.fit_pairs`, which take the place of z.
    """

    mean: Array
    deviation: Array
    factor: float = 1.0
    curve: Array | None = None

    def scores(self, cosines: npt.ArrayLike) -> Array:
        """Return the scores of rows, float64 of the shape of ``cosines``: (n,) or (q, n)."""
        values = np.asarray(cosines, np.float64)
        if self.curve is not None:
            slope, offset = self.curve
            return np.asarray(np.minimum(slope * values + offset, _HIGHEST_LOG_ODDS))
        centred = values - self.mean
        has_scale = self.deviation > 0
        z = np.divide(centred, self.deviation, out=np.zeros_like(centred), where=has_scale)
        return np.asarray(z * self.factor)

    def of_queries(self, numbers: Indices) -> Scale:
        """Return the rule for one row each of some queries of a batch, by their numbers (n,)."""
        return replace(self, mean=self.mean[numbers, 0], deviation=self.deviation[numbers, 0])


class Calibration:
    """Measure how unusual a score is among rows of its own modality, so that scores of all
    modalities can be compared.

    The cosines of a query q with unrelated rows of a modality m, of mean mu_m and covariance S_m,
    have mean q.mu_m and variance q' S_m q, so

        z = (q.x - q.mu_m) / sqrt(q' S_m q)

    orders the rows of one modality as the cosine does, and can be compared between modalities.
    docs/results/mixed-search.md measures its effect.

    For a query that is the sum of parts of several modalities, rows of each modality are compared
    with a part of their own, and z takes more than is good from a modality whose rows vary more
    among themselves. With r_m = (tr(S_m^2) - tr(S_m)^2 / n_m)^(1/2), of n_m rows, and its geometric
    mean r over modalities,

        combined z = z sqrt(r_m / r)

    for all weights of the parts; z itself where the largest r_m is 1.3 times the smallest or more.
    docs/results/fused.md measures its effect.

    Args:
        moments: by modality, of the rows that are searched, as they are in the index. Without any,
            as in a store with too few rows, scores are plain cosines.
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

    def __repr__(self) -> str:
        rows = [f"{name}: {moments.n:,} rows" for name, moments in sorted(self.moments.items())]
        parts = [self.pipeline.name, ", ".join(rows) or "no moments, so scores are cosines"]
        if self.curves:
            asked = sorted({queries for queries, _ in self.curves})
            parts.append(f"curves for {' and '.join(asked)} queries")
        return f"Calibration({'; '.join([*parts, f'tag {self.pipeline.tag}'])})"

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
                of embeddings at unit length, or embeddings (n, d) of any norm. Below 20 rows of a
                modality, scores are cosines, and a `UserWarning` says that nothing is centred.
                Another one says if embeddings seem to be centred already, which the pipeline would
                do again.
            pipeline: a fitted one; None for the preset gr-clip, unit(e - mu), fitted on ``source``.
            split: of a store: the rows to take moments of, by the rule of
                `c3tools.transforms.fitting.FittingMoments`; all rows if none are in the split.

        Raises:
            StoreError: if a store or a file cannot be read.
            TransformError: if dimensions differ, a value is not finite, moments are not of unit
                rows, the pipeline does not know a modality or maps rows to a memory, or the rows of
                an export or the moments in its calibration would go through a pipeline twice.
        """
        # What the source has of each modality: moments, or rows
        statistics: Mapping[str, Any]
        if isinstance(source, Mapping):
            statistics = source
        elif isinstance(source, str | Path) and _is_moments_file(source):
            statistics, header = load_moments(location(source))
            if "tensors" in header:
                raise TransformError(
                    f"{source} is a calibration: its moments are of rows that have already gone "
                    f"through a pipeline.",
                    remedy=f'Use Calibration.load("{location(source).parent}").',
                )
        else:
            with explain_missing("A calibration of a store"):
                from ..store import Store

            store = Store.open(source)
            if store.info.exported and (pipeline is None or pipeline.steps):
                raise TransformError(
                    "The rows of an export have already gone through its pipeline.",
                    remedy=f'Use Calibration.load("{store.path}").',
                )
            if not any(store.count(name, split) for name in store.modalities):
                split = ALL
            if pipeline is None:
                pipeline = preset("gr-clip").fit(store, split=split)
            fitting = fitting_moments(store, split)
            statistics = {}
            if fitting.centred:
                statistics = {
                    name: moments
                    for name, moments in fitting.moments.items()
                    if name in store.modalities
                }

        # Moments of the embeddings as they are; of none, if one modality has too few rows
        given_moments = {
            name: value for name, value in statistics.items() if isinstance(value, Moments)
        }
        given_rows: dict[str, Any] = {
            name: value for name, value in statistics.items() if name not in given_moments
        }
        data = FitData(given_moments, given_rows, items={}, unit=True)
        moments_before = {} if data.too_few else data.moments

        # Moments of the rows that are searched, which have gone through the pipeline
        if pipeline is None:
            pipeline = preset("gr-clip").fit(moments_before or statistics)
        moments_after = {
            name: _moments_after(pipeline, moments, name)
            for name, moments in moments_before.items()
            if pipeline.knows(name)
        }

        # Rows that were centred before would be centred twice
        for name in given_rows.keys() & moments_after.keys():
            n, mean = moments_before[name].n, moments_before[name].mean
            if seem_centred(mean, n) and pipeline.centres(name):
                warnings.warn(
                    f"The mean of the {name} rows is almost 0, so they have probably gone through "
                    f"a pipeline already. Pass embeddings as the model made them; for the rows of "
                    f"an export, use Calibration.load.",
                    stacklevel=2,
                )
        return cls(moments_after, pipeline)

    @classmethod
    def load(cls, folder: str | Path) -> Calibration:
        """Return the calibration of the rows of an export or an index, by which `c3 search` ranks
        rows, to search the same rows in a database; or the one of `save`.

        Only ``calibration.safetensors``, ``transform.json`` and ``transform.safetensors`` are read.

        Args:
            folder: of the export, the index or `save`, or its URL.

        Raises:
            TransformError: if there is no calibration, it belongs to another pipeline, or rows of
                the export have noise or have not gone through the whole pipeline.
            StoreError: if the file is damaged.

        Example:
            >>> report = c3tools.export_store("c3-store", output="centred", preset="gr-clip")
            >>> calibration = c3tools.Calibration.load("centred")
            >>> encoder = c3tools.load_encoder("c3-mini")
            >>> embedding = encoder.encode_queries(["a dog on the beach"])
            >>> query = calibration.pipeline.transform(embedding, modality="text")[0]
            >>> store = c3tools.Store.open("centred")
            >>> rows = {name: store.load(name) for name in calibration.moments}
            >>> found = {name: (own.keys, own.embeddings @ query) for name, own in rows.items()}
            >>> [key for key, modality, z in calibration.merge(query, found, k=3)]
            ['000000214753', '000000020247', '000000159269#2']
        """
        folder = local_folder(folder)
        path = folder / CALIBRATION_FILE
        if kind_of(path) != "file":
            raise TransformError(
                f"There is no calibration at {folder} ({CALIBRATION_FILE} is missing, or is no "
                f"file).",
                remedy="Run `c3 export` or `c3 index` again; for a store, use Calibration.fit.",
            )
        moments, header = load_moments(path)
        pipeline = Pipeline.load(folder)

        # Refuse rows that cannot be calibrated, and files that do not belong together
        if "refused" in header:
            raise TransformError(
                f"Scores of the rows in {folder} cannot be calibrated: {header['refused']}",
                remedy="Export the store with --role inference and without --before-noise, or "
                "search it with `c3 index`.",
            )
        if header.get("tensors") != pipeline.record()["tensors"]:
            raise TransformError(
                f"{path} does not belong to the pipeline next to it.",
                remedy="Copy both from the same export.",
            )
        curves = header.get("curves", [])
        if header.get("moments") != _digest(moments, curves):
            raise StoreError(
                f"{path} is damaged: its checksum does not match its content.",
                remedy="Copy it again, or rerun the command that made it.",
            )
        calibration = cls(moments, pipeline)
        for asked, modality, slope, offset in curves:
            calibration.curves[asked, modality] = np.array([slope, offset])
        return calibration

    def save(self, folder: str | Path) -> Path:
        """Write the calibration and its pipeline to a folder or a URL, for `load`, and return it.

        The files are ``calibration.safetensors``, with the curves of `fit_pairs`,
        ``transform.json`` and ``transform.safetensors``.

        Raises:
            TransformError: if the folder is an export or an index, or the pipeline could not be
                loaded again.

        Example:
            >>> vectors = {kind: store.load(kind).embeddings for kind in ("image", "text")}
            >>> calibration = c3tools.Calibration.fit(vectors)
            >>> folder = calibration.save("calibration")
            >>> sorted(c3tools.Calibration.load(folder).moments)
            ['image', 'text']
        """
        folder = location(folder)
        if kind_of(folder / MANIFEST_NAME) is not None:
            raise TransformError(
                f"{folder} is an export or an index, which has a calibration of its own.",
                remedy="Save to another folder.",
            )
        self.pipeline.save(folder)
        content = self.content()
        write_atomically(folder / CALIBRATION_FILE, lambda path: path.write_bytes(content))
        return folder

    def content(self, refused: str = "") -> bytes:
        """Return the content of ``calibration.safetensors``.

        Args:
            refused: a sentence that says why `load` refuses the rows next to it.
        """
        curves = [[*kinds, *curve.tolist()] for kinds, curve in sorted(self.curves.items())]
        header: dict[str, Any] = {
            "tensors": self.pipeline.record()["tensors"],
            "moments": _digest(self.moments, curves),
        }
        if curves:
            header["curves"] = curves
        if refused:
            header["refused"] = refused
        return moments_content(self.moments, header)

    def fit_pairs(
        self, pairs: Mapping[tuple[str, str], tuple[npt.ArrayLike, npt.ArrayLike]]
    ) -> Calibration:
        """Return a calibration that scores by the log odds that a row is the right one (Platt,
        1999), from pairs.

        The log odds are a s + b of the cosine s, at most 12: a logistic regression of right rows
        against the rows of other pairs, one for each kind of query and row. This is better than z
        for image queries: docs/results/mixed-search.md.

        Args:
            pairs: by the modalities of queries and rows, queries (n, d) and the right row of each
                (n, d), after the pipeline. Each modality of queries needs pairs with the rows of
                every modality, its own included, such as ("text", "image") and ("text", "text");
                without all of them, its queries keep z.

        Raises:
            TransformError: if no modality of queries has pairs with the rows of every modality.
        """
        fitted = Calibration(self.moments, self.pipeline)
        for (asked, modality), (queries, rows) in pairs.items():
            if not all((asked, name) in pairs for name in self.moments):
                continue
            unit_queries = unit_rows(np.asarray(queries, np.float64))
            cosines = unit_queries @ np.asarray(rows, np.float64).T  # (n, n)
            is_right = np.eye(len(cosines))
            fitted.curves[asked, modality] = fit_logistic(
                cosines.reshape(-1, 1), is_right.ravel(), ridge=1e-9
            )
        if not fitted.curves:
            raise TransformError(
                "Queries of one modality need pairs with the rows of every modality "
                f"({', '.join(self.moments)}), but the pairs are {list(pairs)}.",
                remedy='Add pairs within the modality, such as ("text", "text") with two captions '
                "of each image.",
            )
        return fitted

    def z(
        self,
        query: npt.ArrayLike,
        cosines: npt.ArrayLike,
        modality: str,
        asked: str | None = None,
        *,
        combined: bool = False,
    ) -> Array:
        """Return the scores of rows of one modality, float64 of the shape of ``cosines``.

        Args:
            query: (d,), or (q, d) for a batch, as it was searched with; its length makes no
                difference.
            cosines: (n,) or (q, n), with rows of the modality.
            modality: of the rows.
            asked: modality of the queries, which decides between the curves of `fit_pairs`; None
                for z.
            combined: whether queries are sums of parts of several modalities, which get the
                combined z.

        A query of norm 0, and a modality whose rows are all equal, give 0. A variance is taken as
        at least a thousandth of the modality's mean over all directions.

        Raises:
            TransformError: if there are no moments of the modality, or a shape is wrong.
        """
        scores = np.asarray(cosines, np.float64)
        if not self.moments:
            return scores
        shape = np.shape(query)
        moments = self.moments.get(modality)
        if moments is None or shape != (*scores.shape[:-1], moments.dim):
            fitted = ", ".join(
                f"{name} ({known.dim} dimensions)" for name, known in sorted(self.moments.items())
            )
            raise TransformError(
                f"Scores of shape {scores.shape} with {modality} rows, for queries of shape "
                f"{shape}, cannot be calibrated with the moments of {fitted}.",
                remedy="Fit the calibration on this modality too, and pass one query for each row "
                "of scores.",
            )
        return self.scale(query, modality, asked, combined=combined).scores(scores)

    def scale(
        self,
        query: npt.ArrayLike,
        modality: str,
        asked: str | None = None,
        *,
        combined: bool = False,
    ) -> Scale:
        """Return what turns the cosines of queries with rows of one modality into scores, for
        several `z` of the same queries.

        Args:
            query: (d,) or (q, d), see `z`.
            modality: of the rows, of which there are moments if there are any.
            asked: see `z`.
            combined: see `z`.
        """
        queries = np.asarray(query, np.float64)
        no_mean = np.zeros((*queries.shape[:-1], 1))

        # Plain cosines, or a curve that was fitted on pairs
        if not self.moments:
            return Scale(no_mean, np.ones_like(no_mean))
        if asked is not None and (asked, modality) in self.curves:
            curve = self.curves[asked, modality]
            return Scale(no_mean, np.ones_like(no_mean), curve=curve)

        # z: mean and deviation of the cosines of the unit queries with rows of the modality
        moments = self.moments[modality]
        norms = np.linalg.norm(queries, axis=-1, keepdims=True)
        unit = np.divide(queries, norms, out=np.zeros_like(queries), where=norms > 0)
        mean = (unit @ moments.mean)[..., None]
        variance = np.einsum("...d,...d->...", unit @ moments.covariance, unit)[..., None]
        least = _LEAST_VARIANCE * np.trace(moments.covariance) / moments.dim
        deviation = np.where(norms > 0, np.sqrt(np.maximum(variance, least)), 0)
        if not combined:
            return Scale(mean, deviation)

        # The combined z: r^2 = tr(S^2), less what a covariance of n rows has too much
        squared_r: dict[str, float] = {}
        for name, rows in self.moments.items():
            covariance = rows.covariance
            squared_r[name] = float(np.sum(covariance**2) - np.trace(covariance) ** 2 / rows.n)
        if max(squared_r.values()) >= _LARGEST_RATIO**2 * min(squared_r.values()):
            return Scale(mean, deviation)
        geometric_mean = np.exp(np.mean(np.log([*squared_r.values()])))
        return Scale(mean, deviation, factor=float((squared_r[modality] / geometric_mean) ** 0.25))

    def merge(
        self,
        query: npt.ArrayLike,
        found: Mapping[str, tuple[Any, Any]],
        k: int = 10,
        asked: str | None = None,
        *,
        combined: bool = False,
    ) -> list[Any]:
        """Return the best rows of several searches, each as a tuple (id, modality, z), best first;
        numbers are Python's, as JSON has them.

        Args:
            query: (d,), or (q, d) for a batch, as it was searched with; a batch gives one list a
                query.
            found: by modality, ids (n,) and cosines (n,) of the rows that its own search found, or
                (q, n) each; a score that is not finite stands for no row.
            k: number of rows, at least 1.
            asked: see `z`.
            combined: see `z`.

        Raises:
            TransformError: see `z`; also if there is not one id for each cosine, or ``k`` is below
                1.
        """
        if k < 1:
            raise TransformError(f"k must be at least 1, not {k}.")

        # A batch: one query after the other
        queries = np.asarray(query)
        if queries.ndim == 2:
            for name, (ids, cosines) in found.items():
                if not len(ids) == len(cosines) == len(queries):
                    raise TransformError(
                        f"A batch of {counted(len(queries), 'query', 'queries')} needs as many "
                        f"rows of ids and of cosines, but {name} has {len(ids)} and "
                        f"{len(cosines)}.",
                        remedy="Pass ids and cosines of shape (q, n), or one query of shape (d,).",
                    )
            merged = []
            for row, one_query in enumerate(queries):
                of_query = {name: (ids[row], scores[row]) for name, (ids, scores) in found.items()}
                merged.append(self.merge(one_query, of_query, k, asked, combined=combined))
            return merged

        # One query: the rows of all searches, with their scores
        rows = []
        for name, (ids, cosines) in found.items():
            one_query_cosines = np.asarray(cosines, np.float64)
            if one_query_cosines.ndim != 1 or len(ids) != len(one_query_cosines):
                raise TransformError(
                    f"The search of {name} rows has ids of shape {np.shape(ids)} and cosines of "
                    f"shape {one_query_cosines.shape} for one query.",
                    remedy="Pass one id for each cosine, (n,) each.",
                )
            scores = self.z(query, one_query_cosines, name, asked, combined=combined)
            for identity, score in zip(ids, scores, strict=True):
                if np.isfinite(score):
                    plain = identity.item() if isinstance(identity, np.generic) else identity
                    rows.append((plain, name, float(score)))
        return sorted(rows, key=lambda row: -row[2])[:k]  # of equal scores, the first found


def _digest(moments: Mapping[str, Moments], curves: Sequence[Sequence[Any]]) -> str:
    """Return the SHA-256 of moments and curves as a file has them."""
    content = moments_content(moments, {"curves": curves} if curves else {})
    return hashlib.sha256(content).hexdigest()


def _is_moments_file(source: str | Path) -> bool:
    """Return whether a source is a file of moments: a URL, or a file on this machine."""
    return is_url(source) or kind_of(location(source)) == "file"


def _moments_after(pipeline: Pipeline, moments: Moments, modality: str) -> Moments:
    """Return the moments of rows after a pipeline, from those of the rows at unit length.

    They are exact for affine steps. Normalising is taken as a division by the root of the mean
    squared norm: so after Collapse the mean is 0 and the covariance S / tr S.

    Raises:
        TransformError: if the pipeline is not fitted for the modality, or maps rows to a memory.
    """
    pipeline.check_fitted()
    for step in pipeline.steps:
        if not step.applies(modality, training=False):
            continue
        for operation in step.operations(modality):
            if isinstance(operation, Affine):
                moments = operation.moments_after(moments)
            elif isinstance(operation, Unit):
                size = moments.mean_squared_norm
                if size > 0:
                    mean = moments.mean / np.sqrt(size)
                    moments = Moments.of(moments.n, mean, moments.scatter / size)
            else:
                raise TransformError(
                    f"The step {step.kind} changes moments in a way that only the rows could show."
                )
    if pipeline.metric == "l2":  # queries have 0 in the last dimension
        mean = np.pad(moments.mean, (0, 1))
        moments = Moments.of(moments.n, mean, np.pad(moments.scatter, (0, 1)))
    return moments
