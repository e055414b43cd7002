"""Pipelines: ordered steps that are fitted once, saved, and applied anywhere.

    pipeline = preset("c3", sigma=0.1).fit(moments)
    train_inputs = pipeline.transform(texts, modality="text", training=True, keys=keys, seed=0, epoch=3)
    test_inputs = pipeline.transform(images, modality="image")

Only numpy and safetensors are imported here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import TransformError
from ..identity import ModelIdentity
from ..moments import Moments
from ..seeds import keyed_normal
from . import operations as ops
from .centring import Collapse, GapShift, Normalize, ProjectOutGap, Standardize, Whiten
from .checks import order_findings
from .mapping import MemoryProjection, Procrustes, ReAlign, RidgeMap
from .noise import AdaptiveNoise, CovarianceNoise, GaussianNoise, SpanNoise
from .operations import Affine, Rows, Unit
from .steps import FitData, Step, registry

STEPS: Mapping[str, type[Step]] = registry(
    Normalize,
    Collapse,
    GapShift,
    ProjectOutGap,
    Standardize,
    Whiten,
    ReAlign,
    RidgeMap,
    Procrustes,
    MemoryProjection,
    GaussianNoise,
    AdaptiveNoise,
    CovarianceNoise,
    SpanNoise,
)


class OrderWarning(UserWarning):
    """A pipeline whose order or data its method does not mean, allowed because it is not strict."""


class Pipeline:
    """Ordered steps with roles, fitted on the train split, applied with numpy alone.

    Args:
        steps: in the order they are applied.
        name: what messages and recipes call it.
        strict: refuse an order that no method means; False only warns (`OrderWarning`).

    Attributes:
        dim: dimension of the embeddings it was fitted on, None before; None after a fit that needs none.
        provenance: what the recipe says about its origin: model, split, n per modality.

    Raises:
        TransformError: if the order check finds something and ``strict`` is true.
    """

    def __init__(self, steps: Sequence[Step], *, name: str = "custom", strict: bool = True) -> None:
        self.steps = tuple(steps)
        self.name = name
        self.strict = strict
        self.dim: int | None = None
        self.provenance: dict[str, Any] = {}
        findings = order_findings(self.steps)
        if findings:
            text = f"The pipeline {name!r} is in an order that no method means: " + " ".join(findings)
            if strict:
                raise TransformError(text, remedy="Mend the order, or set strict: false to be warned only.")
            warnings.warn(text, OrderWarning, stacklevel=2)

    def __repr__(self) -> str:
        return f"Pipeline({self.name!r}: {' > '.join(step.kind for step in self.steps)})"

    @property
    def fitted(self) -> bool:
        """Whether every step can be applied."""
        return all(step.fitted for step in self.steps)

    @property
    def noisy(self) -> bool:
        """Whether training inputs get noise, so that `transform(training=True)` needs keys."""
        return any(step.noisy for step in self.steps)

    @property
    def needs_rows(self) -> bool:
        """Whether fitting needs rows, not moments alone."""
        return any(step.needs_rows for step in self.steps)

    @property
    def needs_pairs(self) -> bool:
        """Whether fitting needs rows of two modalities that are paired by position."""
        return any(step.needs_pairs for step in self.steps)

    def fit(
        self,
        moments: Mapping[str, Moments] | None = None,
        rows: Mapping[str, npt.ArrayLike] | None = None,
        *,
        provenance: Mapping[str, Any] | None = None,
    ) -> Pipeline:
        """Fit the steps in order, each on what the steps before it leave; returns the pipeline itself.

        Args:
            moments: of the L2-normalised embeddings of each modality, over the train split.
            rows: (n, d) embeddings of each modality, for the steps that need them (`needs_rows`); where pairs are
                needed, row i of one modality belongs to row i of the other. Also the source of the moments
                when these are not given.
            provenance: kept in the recipe: ``model`` (identity as a store keeps it), ``split``, ....

        Raises:
            TransformError: if something is missing, of another dimension, not finite, or of a split that is not
                for fitting.
        """
        origin = dict(provenance or {})
        self._check_split(origin.get("split"))
        data = _fit_data(moments or {}, rows or {})
        dim = data.dim if (data.moments or data.rows) else None
        sizes = {name: m.n for name, m in sorted(data.moments.items())}
        for position, step in enumerate(self.steps):
            if step.fits:
                step.fit(data)
            _advance(data, step, first=position == 0)
        self.dim = dim
        self.provenance = {**origin, "n": sizes}
        return self

    def transform(
        self,
        x: npt.ArrayLike,
        *,
        modality: str = "text",
        training: bool = False,
        keys: Sequence[str] | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> Rows:
        """Transformed embeddings, float32 (n, d); ``x`` is left as it is.

        Args:
            x: (n, d) embeddings, any float dtype.
            modality: whose means apply.
            training: whether these are training inputs: only then is noise added.
            keys: one per row, needed where noise is added: it is drawn from (seed, epoch, key).
            seed: seed of the noise.
            epoch: training epoch; another epoch, other noise.

        Raises:
            TransformError: if the pipeline is not fitted, the dimension is another, a value is not finite, a row
                has norm 0, or keys are missing.
        """
        if not self.fitted:
            missing = next(step.kind for step in self.steps if not step.fitted)
            raise TransformError(
                f"The pipeline {self.name!r} is not fitted: its step {missing} has no statistics.",
                remedy="Call fit(moments) first, or load a saved pipeline with Pipeline.load(folder).",
            )
        rows = ops.as_rows(x)
        self.check_dim(rows.shape[1])
        ops.check_finite(rows)
        draws = 0
        for step in self.active_steps(modality, training):
            for operation in step.operations(modality):
                noise = None
                if step.noisy:
                    noise = self._noise(rows, keys, seed, epoch, draws)
                    draws += 1
                rows = ops.apply(operation, rows, noise)
        return rows

    def active_steps(self, modality: str, training: bool) -> list[Step]:
        """The steps that take part for inputs of this modality and role, in order."""
        return [step for step in self.steps if step.applies(modality, training)]

    @staticmethod
    def noise_keys(keys: Sequence[str], draw: int) -> Sequence[str]:
        """The keys that noise is drawn from at the ``draw``-th noisy step: a second one must not repeat the first."""
        return keys if draw == 0 else [f"{draw}\x1f{key}" for key in keys]

    def check_dim(self, dim: int) -> None:
        """Refuse embeddings of another dimension.

        Raises:
            TransformError: with both numbers.
        """
        if self.dim is not None and dim != self.dim:
            raise TransformError(
                f"The pipeline {self.name!r} was fitted on embeddings of {self.dim} dimensions; these have {dim}.",
                remedy="Use embeddings of the same model, or fit the pipeline on these.",
            )

    def check_model(self, model: Mapping[str, Any] | None) -> None:
        """Refuse embeddings of another model than the one the pipeline was fitted for.

        Args:
            model: identity of the embeddings' model, as a store keeps it: the weights' hashes are compared where
                both are known, else the names; nothing is compared where either model is unknown.

        Raises:
            TransformError: with both identities.
        """
        ModelIdentity(self.provenance.get("model") or {}).require_same(
            ModelIdentity(model or {}),
            own=f"The pipeline {self.name!r}",
            theirs="these embeddings",
            error=TransformError,
            remedy="Fit the pipeline again on a store of this model.",
        )

    def save(self, directory: str | Path) -> Path:
        """Write ``transform.json`` and ``transform.safetensors`` to ``directory``; returns the directory.

        Raises:
            TransformError: if the pipeline is not fitted.
        """
        from .recipe import save_pipeline

        return save_pipeline(self, Path(directory))

    @classmethod
    def load(cls, directory: str | Path) -> Pipeline:
        """Read what `save` wrote: the same pipeline, bit for bit.

        Raises:
            TransformError: if a file is missing, damaged, changed by hand, or of a newer version.
        """
        from .recipe import load_pipeline

        return load_pipeline(Path(directory))

    @classmethod
    def from_config(cls, source: str | Path | Mapping[str, Any]) -> Pipeline:
        """An unfitted pipeline from a mapping, or from a YAML or JSON file of the user's.

        The mapping has ``steps`` (a list of ``{"step": kind, ...settings}``), and may have ``name`` and ``strict``.

        Raises:
            TransformError: if the file, a step or a setting is unknown, or the order is refused.
            MissingExtraError: if the file is YAML and pyyaml is not installed.
        """
        from .recipe import pipeline_from_config

        return pipeline_from_config(source)

    def config(self) -> dict[str, Any]:
        """Name and steps with their settings, as `from_config` takes them."""
        steps = [{"step": step.kind, **step.settings} for step in self.steps]
        return {"name": self.name, "strict": self.strict, "steps": steps}

    def record(self) -> dict[str, Any]:
        """What `save` writes to transform.json: settings, provenance, checksums.

        Raises:
            TransformError: if the pipeline is not fitted.
        """
        from .recipe import pipeline_record

        return pipeline_record(self)[0]

    def _check_split(self, split: object) -> None:
        if split in ("test", "val", "validation", "dev"):
            text = (
                f"The pipeline {self.name!r} is fitted on the {split} split: means of scored rows leak into the score."
            )
            if self.strict:
                raise TransformError(text, remedy="Fit on the train split.")
            warnings.warn(text, OrderWarning, stacklevel=3)

    def _noise(self, rows: Rows, keys: Sequence[str] | None, seed: int, epoch: int, draw: int) -> Rows:
        if keys is None:
            raise TransformError(
                f"The pipeline {self.name!r} adds noise to training inputs, and noise is drawn from keys.",
                remedy="Pass keys=, one string per row, or training=False for inputs that get no noise.",
            )
        if len(keys) != len(rows):
            raise TransformError(f"There are {len(keys)} keys for {len(rows)} rows.", remedy="Pass one key per row.")
        return keyed_normal(seed, epoch, self.noise_keys(keys, draw), rows.shape[1])


def _fit_data(moments: Mapping[str, Moments], rows: Mapping[str, npt.ArrayLike]) -> FitData:
    moments = {name: value for name, value in moments.items() if value.n > 0}
    data = FitData(dict(moments), {name: ops.as_rows(value, f"rows of {name}") for name, value in rows.items()})
    dims = {f"moments of {name}": value.dim for name, value in data.moments.items()}
    dims |= {f"rows of {name}": value.shape[1] for name, value in data.rows.items()}
    if len(set(dims.values())) > 1:
        listing = ", ".join(f"{name}: {dim}" for name, dim in dims.items())
        raise TransformError(
            f"A pipeline is fitted on embeddings of one dimension, and these differ ({listing}).",
            remedy="Fit on the embeddings of one model.",
        )
    for name, known in data.moments.items():
        if not (np.isfinite(known.mean).all() and np.isfinite(known.scatter).all()):
            raise TransformError(f"The moments of {name} hold NaN or infinity.", remedy="Embed the corpus again.")
    for name, given in data.rows.items():
        ops.check_finite(given)
        if len(given):
            unit = ops.apply(Unit(), given.copy())
            data.moments.setdefault(name, Moments.from_rows(unit))
    data.gap_from = dict(data.moments)
    return data


def _advance(data: FitData, step: Step, *, first: bool) -> None:
    """Carry ``data`` through ``step`` as validation inputs go, without noise."""
    if step.noisy:
        return
    for name in sorted(set(data.moments) | set(data.rows)):
        if not step.applies(name, training=False) or not _knows(step, name):
            continue
        for operation in step.operations(name):
            if name in data.rows:
                data.rows[name] = ops.apply(operation, data.rows[name])
            if isinstance(operation, Affine) and name in data.moments:
                data.moments[name] = operation.moments_after(data.moments[name])
            elif isinstance(operation, Unit) and first:
                continue  # moments are those of normalised vectors already
            elif name in data.rows:
                data.moments[name] = Moments.from_rows(data.rows[name])
            else:
                data.moments.pop(name, None)


def _knows(step: Step, modality: str) -> bool:
    """Whether a step that is fitted per modality was fitted for this one."""
    suffixes = {key.partition("/")[2] for key in step.state if "/" in key}
    return not suffixes or modality in suffixes
