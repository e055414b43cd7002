"""Pipelines: ordered steps that are fitted once, saved, and applied anywhere.

    pipeline = preset("c3", sigma=0.1).fit({"image": images, "text": texts})  # arrays; or a store;
    or moments train_inputs = pipeline.transform(texts, modality="text", training=True, keys=keys,
    seed=0, epoch=3) test_inputs = pipeline.transform(images, modality="image")

Only numpy, safetensors and msgspec are imported here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ..arrays import Matrix
from ..choices import ExportMetric, checked
from ..errors import UPDATE, TransformError, explain_missing, optional_module, reason_of
from ..identity import ModelIdentity
from ..io.files import (
    MALFORMED,
    json_text,
    read_json,
    read_limited,
    write_atomically,
    write_text_atomically,
)
from ..io.hub import Card, HubRepository, local_folder
from ..io.locations import kind_of, location, read_all
from ..moments import Moments
from ..plugins import load_plugin, plugins
from ..seeds import keyed_normal
from . import operations as ops
from . import steps
from .first_rows import FirstRows
from .fitting import BUNDLED, LOADED, MIN_ROWS_OF_A_MEAN, FitData
from .sigma import sigma_by_rule, sigma_of_arrays
from .steps import Normalize, Step

if TYPE_CHECKING:
    from ..store import Store

JSON_NAME = "transform.json"
TENSORS_NAME = "transform.safetensors"
FORMAT = 1  # of transform.json; a file without one has format 1
# of the export around it, as c3tools.store writes them; that package needs pyarrow
MANIFEST_NAME = "manifest.json"
_REWRITING_LIST = ".rewriting/list.json"
_STEPS_GROUP = "c3tools.steps"
_SCORED_SPLITS = ("test", "val", "validation", "dev")


class Pipeline(HubRepository):
    """Ordered steps with roles, which are fitted on the train split and applied with numpy alone.

    Args:
        steps: in the order they are applied.
        name: used in messages and in the saved pipeline.

    Attributes:
        dim: dimension of the embeddings it was fitted on; None before fitting, and if no step needs
            fitting.
        metric: how its rows are searched: ``ip``, the inner product; or ``l2`` for the rows of an
            export with ``--metric l2``, for which embeddings get one more dimension, of zeros.
        provenance: the origin of the pipeline: model, split, number of rows per modality.

    Raises:
        TransformError: if no published method has the steps in this order.
    """

    def __init__(self, steps: Sequence[Step], *, name: str = "custom") -> None:
        self.steps = tuple(steps)
        self.name = name
        self.dim: int | None = None
        self.metric: ExportMetric = "ip"
        self.provenance: dict[str, Any] = {}
        self._first_rows: dict[str, FirstRows] = {}  # by modality
        findings = _order_findings(self.steps)
        if findings:
            raise TransformError(
                f"The pipeline {name!r} has its steps in the wrong order: {' '.join(findings)}"
            )

    def __repr__(self) -> str:
        return (
            f"Pipeline({self.name!r}: {' > '.join(step.kind for step in self.steps) or 'no steps'})"
        )

    @property
    def fitted(self) -> bool:
        """Return whether every step can be applied."""
        return all(step.fitted for step in self.steps)

    @property
    def noisy(self) -> bool:
        """Return whether training inputs get noise, so that `transform(training=True)` needs
        keys.
        """
        return any(step.noisy for step in self.steps)

    @property
    def needs_rows(self) -> bool:
        """Return whether fitting needs rows, not moments alone."""
        return any(step.needs_rows for step in self.steps)

    @property
    def sigma(self) -> float | str | None:
        """Return the noise per dimension, the rule before it is computed, None if there is no
        Gaussian noise.
        """
        return next((vars(step)["sigma"] for step in self.steps if "sigma" in vars(step)), None)

    def fit(
        self,
        data: Store
        | str
        | Path
        | Mapping[str, Moments]
        | Mapping[str, npt.ArrayLike]
        | None = None,
        rows: Mapping[str, npt.ArrayLike] | None = None,
        *,
        items: Mapping[str, Sequence[str]] | None = None,
        split: str = "train",
        provenance: Mapping[str, Any] | None = None,
    ) -> Pipeline:
        """Fit the steps in order, each on the output of the steps before it, and return the
        pipeline.

        Only the parts of a store that the steps need are read: its moments, the first rows, or the
        first pairs by key. Moments of a store are chosen by the rule of
        `c3tools.transforms.fitting.FittingMoments`; where a modality has too few rows for a mean,
        nothing is centred, and the provenance has a ``note``. The same holds for arrays of 2 to 19
        rows, with a `UserWarning`. A sigma
        of ``auto`` is computed from texts, one of ``pairs`` from images with captions: of a store
        from those of its val split, or of all splits but test if val has fewer than 20. In arrays
        without items, row i of the texts belongs to row i of the images, and two texts belong to
        one image if their image rows are equal.

        Args:
            data: a store, or its folder; or, by modality, embeddings (n, d), of any norm, which are
                the same as ``rows``; or, by modality, `Moments` over the train split, of embeddings
                at unit length.
            rows: by modality, embeddings (n, d) for the steps that need them (`needs_rows`); where
                pairs are needed, row i of one modality belongs to row i of the other. Moments that
                are not given are computed from them. Not needed for a store.
            items: by modality, the item of each row of an array, for steps that leave out rows of
                the same item in training. A store has them.
            split: of a store: the rows to fit on.
            provenance: saved with the pipeline, such as ``model`` (its identity, as in a store) and
                ``split``.

        Raises:
            TransformError: if something is missing, of another dimension, not finite, or of a split
                that is not for fitting, or if moments are not of unit rows.
            StoreError: if the store cannot be read.

        Example:
            >>> pipeline = c3tools.preset("c3", sigma="auto").fit(store)
            >>> print(f"{pipeline.sigma:.3f}")
            0.085
        """
        if isinstance(data, Mapping | None):
            split = (provenance or {}).get("split") or "train"
        if split in _SCORED_SPLITS:
            raise TransformError(
                f"The pipeline {self.name!r} is fitted on the {split} split, so its means contain "
                f"rows that are scored.",
                remedy="Fit on the train split.",
            )

        # Take moments and rows from the arguments, or read what the steps need of the store
        needs_data = any(step.fits for step in self.steps)
        store: Store | None = None
        moments: dict[str, Moments] = {}
        if isinstance(data, Mapping | None):
            by_modality: Mapping[str, Any] = data or {}
            moments = {name: x for name, x in by_modality.items() if isinstance(x, Moments)}
            arrays = {name: x for name, x in by_modality.items() if name not in moments}
            fit_data = FitData(moments, {**(rows or {}), **arrays}, items or {}, unit=needs_data)
        else:
            with explain_missing("A pipeline that is fitted on a store"):
                from ..store import Store

            if not isinstance(data, Store | str | Path):
                raise TransformError(
                    "A pipeline is fitted on a store, or on moments or arrays by modality, not on "
                    f"{type(data).__name__}.",
                    remedy='For example fit({"image": array, "text": array}).',
                )
            store = Store.open(data)
            fit_data = FitData.of_store(
                store,
                split,
                needs_rows=self.needs_rows,
                needs_pairs=any(step.needs_pairs for step in self.steps),
                unit=needs_data,
            )
            has_rows = bool(fit_data.moments) or any(fit_data.too_few.values())
            if needs_data and not has_rows:
                raise TransformError(
                    f"The store {store.path} has no rows in the split {split!r} to fit "
                    f"{self.name} on. Its splits are {store.list_splits()}.",
                    remedy="Make new splits with `c3 split`, load moments with `c3 means load`, or "
                    'fit on another split in Python: fit(store, split="test").',
                )
        origin = dict(fit_data.origin)
        if any(step.centres for step in self.steps) and fit_data.note:
            origin["note"] = fit_data.note

        # Replace the rules for sigma by numbers
        for step in self.steps:
            rule = step.sigma_rule
            if rule is None:
                continue
            if store is not None:
                sigma, origin["sigma"] = sigma_by_rule(rule, store, split)
            else:
                sigma, origin["sigma"] = sigma_of_arrays(
                    rule, fit_data.rows, fit_data.items, moments
                )
            step.sigma = sigma  # type: ignore[attr-defined]

        # Fit each step on inference inputs as the steps before it leave them. Their numbers are
        # kept first, since a step may make the moments unknown
        self.dim = fit_data.dim
        row_counts = {name: value.n for name, value in sorted(fit_data.moments.items())}
        fitted_places = [place for place, step in enumerate(self.steps) if step.fits]
        last_place = max(fitted_places, default=0)
        for place, step in enumerate(self.steps):
            if step.fits:
                try:
                    step.fit(fit_data)
                except KeyError as error:
                    raise _missing_error(step, error.args[0], fit_data, split) from error
            if step.noisy or place >= last_place:
                continue  # inference inputs get no noise, and no later step needs this one
            for modality in sorted(fit_data.moments.keys() | fit_data.rows.keys()):
                if step.applies(modality, training=False) and step.knows(modality):
                    for operation in step.operations(modality):
                        fit_data.advance(modality, operation, first_step=place == 0)
        self.provenance = {**origin, **(provenance or {}), "n": row_counts}
        if store is None and fit_data.too_few and "note" in origin:
            warnings.warn(origin["note"], stacklevel=2)
        return self

    @classmethod
    def for_rows(cls, export: Store | str | Path) -> Pipeline:
        """Return the steps that the rows of an export have not gone through: none, or the noise and
        what follows after ``--before-noise``. New embeddings need all steps: `load`.

        Args:
            export: its folder or URL, of any format; or opened.

        Raises:
            TransformError: if these rows did not go through a pipeline, or it is damaged.
            StoreError: if there is no export.

        Example:
            >>> report = c3tools.export_store("c3-store", output="noiseless", before_noise=True)
            >>> c3tools.Pipeline.for_rows("noiseless")
            Pipeline('c3': gaussian-noise > normalize)
        """
        with explain_missing("Pipeline.for_rows"):
            from ..store import Store, StoreInfo

        folder = export.path if isinstance(export, Store) else local_folder(export)
        info = StoreInfo.load(folder)
        if not info.exported:
            raise TransformError(
                f"The rows of {folder} have not gone through a pipeline.",
                remedy="Use a pipeline that is fitted on the store: "
                "c3tools.preset(NAME).fit(store).",
            )
        rest = cls.load(folder).part(info.exported["settings"]["applied"])
        # Rows for the metric l2 have their one more dimension already
        rest.metric = "ip"
        rest.dim = info.dim
        return rest

    def part(self, start: int | None, stop: int | None = None) -> Pipeline:
        """Return the steps ``start`` to ``stop`` (not included), as they are fitted."""
        part = copy.copy(self)
        part.steps = self.steps[start:stop]
        part._first_rows = {}
        return part

    def knows(self, modality: str) -> bool:
        """Return whether inference inputs of a modality can be transformed: no fitted step lacks
        its statistics.
        """
        return all(
            step.knows(modality) for step in self.steps if step.applies(modality, training=False)
        )

    def centres(self, modality: str) -> bool:
        """Return whether a mean of the modality is subtracted from inference inputs.

        Raises:
            TransformError: if a step is not fitted for the modality.
        """
        for step in self.steps:
            if not step.centres or not step.applies(modality, training=False):
                continue
            for operation in step.operations(modality):
                if isinstance(operation, ops.Affine) and np.any(operation.centre):
                    return True
        return False

    def describe_fit(self, store: Store) -> str:
        """Return a sentence with the number of rows that it was fitted on, and how they were
        chosen.
        """
        provenance = self.provenance
        split = provenance["split"]
        sources = provenance.get("moments", {})
        parts = []
        for name, n in provenance["n"].items():
            source = sources.get(name)
            rows = f"{n:,} of {store.count(name):,} {name} rows"
            if source == LOADED:
                rows = f"{n:,} loaded {name} rows"
            elif source == BUNDLED:
                rows = f"{n:,} {name} rows {BUNDLED}"
            parts.append(rows)
        sentences = [f"Fitted {self.name} on the {split} split: {' and '.join(parts)}."]
        if not parts:
            sentences = [f"Fitted {self.name} on the {split} split."]
        if "note" in provenance:
            sentences.append(provenance["note"])
        if "sigma" in provenance:
            sentences.append(f"{provenance['sigma']}.")
        return " ".join(sentences)

    def transform(
        self,
        x: npt.ArrayLike,
        *,
        modality: str | None = None,
        training: bool = False,
        keys: Sequence[str] | None = None,
        items: Sequence[str] | None = None,
        seed: int = 0,
        epoch: int = 0,
    ) -> Matrix:
        """Return transformed embeddings, float32 (n, d); ``x`` is not changed.

        Args:
            x: (n, d) embeddings, any float dtype: an array, a list or a tensor.
            modality: of the rows, which decides which means are used. It may be left out if it
                makes no difference, or if the pipeline was fitted for one modality only.
            training: True for training inputs; only these get noise.
            keys: one per row; needed if noise is added, because it depends on (seed, epoch, key).
            items: of the rows (`Rows.items`); in training, captions of the same item are not
                retrieved.
            seed: of the noise.
            epoch: of the training; each has different noise.

        A `UserWarning` says if the mean of the first rows of a modality, 100 to 2,000 over all
        calls, is shorter than a fifth of the subtracted mean, because the rows have probably gone
        through a pipeline already. Later rows are not looked at.

        Raises:
            TransformError: if the pipeline is not fitted, the modality is missing, the dimension
                differs, a value is not finite, a row has norm 0, or keys or items are missing.

        Example:
            >>> pipeline = c3tools.preset("c2-collapse").fit(store)
            >>> pairs = store.pairs()
            >>> images = pipeline.transform(pairs.first.embeddings, modality="image")
            >>> texts = pipeline.transform(pairs.second.embeddings, modality="text")
            >>> images.shape, texts.shape
            ((124, 256), (620, 256))
            >>> gap = np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0))
            >>> print(f"{gap:.2f}")  # of the raw embeddings: 1.02
            0.15
        """
        self.check_fitted()
        modality = self.choose_modality(modality)
        rows = ops.as_rows(x)
        self.check_dim(rows.shape[1])
        draws = 0  # noisy steps before this one
        for step in self.steps:
            if not step.applies(modality, training):
                continue
            item_hashes = step.own_items(items, len(rows)) if training else None
            for operation in step.operations(modality):
                # Warn if the first rows that a mean is subtracted from look centred already
                centre = operation.centre if isinstance(operation, ops.Affine) else None
                if step.centres and centre is not None:
                    if modality not in self._first_rows:
                        self._first_rows[modality] = FirstRows(self.name, modality, centre)
                    first_rows = self._first_rows[modality]
                    warning = first_rows.add(rows) if first_rows.wanted else None
                    if warning:
                        warnings.warn(warning, stacklevel=2)
                noise = None
                if step.noisy:
                    noise = self.draw_noise(rows.shape, keys, seed, epoch, draws)
                    draws += 1
                rows = ops.apply(operation, rows, noise, item_hashes)
        return np.pad(rows, ((0, 0), (0, 1))) if self.metric == "l2" else rows

    @checked
    def for_metric(self, *, metric: ExportMetric) -> Pipeline:
        """Return the same steps for another metric; see `Pipeline.metric`."""
        if metric == self.metric:
            return self
        pipeline = self.part(0)
        pipeline.metric = metric
        return pipeline

    @property
    def longest(self) -> float:
        """The largest norm of transformed rows.

        Raises:
            TransformError: if they have none, since the last steps are not normalize, or normalize
                and fair-scale.
        """
        longest = 1.0
        for step in reversed(self.steps):
            if isinstance(step, Normalize):
                return longest
            if not isinstance(step, steps.FairScale):
                break
            longest *= max(float(scale) for scale in step.state.values())
        raise TransformError(
            f"The rows of {self.name} have no largest norm at this step, which the metric l2 "
            f"needs.",
            remedy="Export rows that end with normalize or fair-scale, without --before-noise, or "
            "use the metric ip.",
        )

    def choose_modality(self, modality: str | None) -> str:
        """Return ``modality``, or for None the only modality that inputs can have.

        Raises:
            TransformError: if it is None and the steps transform modalities differently.
        """
        if modality is not None:
            return modality
        in_steps: set[str] = set()
        for step in self.steps:
            in_steps.update(step.fitted_for, step.modalities or ())
        if not in_steps:
            return "text"  # for no modality in particular, any name does
        names: list[str] = sorted({*in_steps, *self.provenance.get("n", {})})
        if len(names) > 1:
            choices = " or ".join(f"modality={name!r}" for name in names)
            raise TransformError(
                f"The pipeline {self.name!r} transforms {' and '.join(names)} embeddings "
                f"differently.",
                remedy=f"Give the modality of these embeddings: {choices}.",
            )
        return names[0]

    def draw_noise(
        self, shape: Sequence[int], keys: Sequence[str] | None, seed: int, epoch: int, draw: int
    ) -> Matrix:
        """Draw the standard normal noise (n, d) of the ``draw``-th noisy step from (seed, epoch,
        key).

        Raises:
            TransformError: if there is not one key per row.
        """
        if keys is None:
            raise TransformError(
                f"The pipeline {self.name!r} adds noise to training inputs, and the noise depends "
                f"on their keys.",
                remedy="Pass keys=, one string per row, or training=False for inputs without "
                "noise.",
            )
        if len(keys) != shape[0]:
            raise TransformError(
                f"There are {len(keys)} keys for {shape[0]} rows.", remedy="Pass one key per row."
            )
        if draw > 0:  # a second step must not repeat the first
            keys = [f"{draw}\x1f{key}" for key in keys]
        return keyed_normal(seed, epoch, keys, shape[1])

    def check_fitted(self) -> None:
        """Raise an error if the pipeline is not fitted.

        Raises:
            TransformError: with the first step that is not fitted.
        """
        if not self.fitted:
            missing = next(step.kind for step in self.steps if not step.fitted)
            raise TransformError(
                f"The pipeline {self.name!r} is not fitted: its step {missing} has no statistics.",
                remedy="Call fit() first, or load a saved pipeline with Pipeline.load(folder).",
            )

    def check_dim(self, dim: int) -> None:
        """Refuse embeddings of another dimension.

        Raises:
            TransformError: with both dimensions, if they differ.
        """
        if self.dim is not None and dim != self.dim:
            raise TransformError(
                f"The pipeline {self.name!r} was fitted on embeddings of {self.dim} dimensions, "
                f"but these have {dim}.",
                remedy="Use embeddings from the same model, or fit the pipeline on these.",
            )

    def check_model(self, model: Mapping[str, Any] | None) -> None:
        """Refuse embeddings of another model than the one the pipeline was fitted for.

        Args:
            model: identity of the embeddings' model, as a store keeps it (see
                `ModelIdentity.same_as`).

        Raises:
            TransformError: with both identities, if they differ.
        """
        ModelIdentity(self.provenance.get("model") or {}).require_same(
            model,
            own=f"The pipeline {self.name!r}",
            theirs="these embeddings",
            error=TransformError,
            remedy="Fit the pipeline again on a store of this model.",
        )

    def card(self) -> Card:
        """Return its card on the hub."""
        self.check_fitted()
        model = ModelIdentity(self.provenance.get("model") or {})
        facts = {
            "encoder": model,
            "dimensions": self.dim,
            **{f"fitted on {name} rows": n for name, n in self.provenance.get("n", {}).items()},
            **{f"step {place}": repr(step) for place, step in enumerate(self.steps, start=1)},
        }
        return Card(
            summary=f"A fitted pipeline, `{self.name}`, for embeddings of `{model.name}`: numpy "
            f"applies it.",
            code='import c3tools\n\npipeline = c3tools.Pipeline.from_pretrained("{name}")\n'
            'pipeline.transform(embeddings, modality="image")  # float32 (n, d)',
            facts=facts,
            metadata={"tags": ["c3tools", "embeddings", "CLIP", "modality-gap"]},
            base_model=model.repository,
        )

    def save(self, directory: str | Path) -> Path:
        """Write ``transform.json`` and ``transform.safetensors`` to a folder or a URL, and return
        it.

        The second has the fitted tensors in the dtype they are used in, so that a loaded pipeline
        gives the same bits. The json is written last: a folder without it contains no pipeline.

        Raises:
            TransformError: if the pipeline is not fitted, or has a step that could not be loaded
                again.
        """
        directory = location(directory)
        payload = self._tensors()
        text = json_text(self.record(), indent=2, sort_keys=False)
        write_atomically(directory / TENSORS_NAME, lambda path: path.write_bytes(payload))
        write_text_atomically(directory / JSON_NAME, text)
        return directory

    @classmethod
    def load(cls, directory: str | Path) -> Pipeline:
        """Load a saved pipeline, from a folder or ``hf-hub:ORG/NAME``; it is the same, bit for bit.

        Raises:
            TransformError: if a file is missing, damaged, changed by hand, of a later format, or
                not the one that the manifest of an export next to it lists.
        """
        folder = local_folder(directory)
        folder = folder.parent if folder.name == JSON_NAME else folder
        path = folder / JSON_NAME  # the file that is being read, which errors name
        try:
            # The recipe; its format is read first, as a later one may have other fields
            content = read_limited(path)
            file_format = msgspec.json.decode(content, type=_Format).format
            if file_format > FORMAT:
                raise TransformError(
                    f"{path} has format {file_format}; this version of c3tools reads formats up to "
                    f"{FORMAT}.",
                    remedy=UPDATE,
                )
            record = msgspec.json.decode(content, type=_Saved)
            if record.checksum != _checksum(json.loads(content)):
                raise ValueError("its checksum does not match its content")

            # The tensors that it names
            path = folder / TENSORS_NAME
            payload = read_all(path)
            if hashlib.sha256(payload).hexdigest() != record.tensors:
                raise ValueError("its checksum does not match the one in the recipe")
            _require_listed(folder, {JSON_NAME: content, TENSORS_NAME: payload})

            # The steps, with the tensors as their state
            pipeline = cls(_make_steps(record.steps, str(folder / JSON_NAME)), name=record.name)
            for key, value in load_tensors(payload).items():
                position, _, name = key.partition("/")
                pipeline.steps[int(position)].state[name] = value
        except FileNotFoundError as error:
            raise TransformError(
                f"There is no saved pipeline at {folder} ({path.name} is missing).",
                remedy="Save one with Pipeline.save(folder), or with `c3 export`.",
            ) from error
        except TransformError:
            raise
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            RecursionError,
            SafetensorError,
        ) as error:
            raise TransformError(
                f"{path} is not a valid saved pipeline: {reason_of(error)}.",
                remedy="Save the pipeline again. To edit steps by hand, write a pipeline in YAML "
                "or JSON instead.",
            ) from error
        pipeline.dim = record.dim
        pipeline.metric = record.metric
        pipeline.provenance = record.provenance
        return pipeline

    @classmethod
    def from_config(cls, source: str | Path | Mapping[str, Any]) -> Pipeline:
        """Return an unfitted pipeline from a mapping, or from a YAML or JSON file.

        The mapping has ``steps`` (a list of kinds, or of ``{"step": kind, ...settings}``), and may
        have a ``name``.

        Raises:
            TransformError: if the file, a step or a setting is unknown, or the order is refused.
            MissingExtraError: if the file is YAML and pyyaml is not installed.
        """
        place = "the pipeline" if isinstance(source, Mapping) else str(source)
        try:
            content = source if isinstance(source, Mapping) else _read_config(location(source))
            recipe = msgspec.convert(content, _Recipe)
        except (OSError, ValueError, RecursionError) as error:
            raise TransformError(
                f"{place} cannot be read as a pipeline: {reason_of(error)}.",
                remedy="Write a pipeline such as: steps: [{step: normalize}, {step: collapse}, "
                "...].",
            ) from error
        return cls(_make_steps(recipe.steps, place), name=recipe.name)

    def config(self) -> dict[str, Any]:
        """Return name and steps with their settings, in the form of `from_config`."""
        return {
            "name": self.name,
            "steps": [{"step": step.kind, **asdict(step)} for step in self.steps],
        }

    def record(self) -> dict[str, Any]:
        """Return what `save` writes to transform.json: settings, provenance, checksums of the
        tensors and of itself.

        Raises:
            TransformError: if the pipeline is not fitted, or has a step that could not be loaded
                again.
        """
        for step in self.steps:
            if _find_step(step.kind) is not type(step):
                raise TransformError(
                    f"The pipeline {self.name!r} has the step {type(step).__name__}, which is not "
                    f"part of c3tools, so the saved pipeline could not be loaded again.",
                    remedy=f"Let its package name it {step.kind!r}, its kind, among the entry "
                    f"points {_STEPS_GROUP} (c3tools.plugins), or save the pipeline without it.",
                )
        digest = hashlib.sha256(self._tensors()).hexdigest()
        content = {
            "format": FORMAT,
            **self.config(),
            "dim": self.dim,
            "metric": self.metric,
            "provenance": self.provenance,
            "tensors": digest,
        }
        # As a reader of the JSON sees it: tuples are lists there, and NaN is null
        record = json.loads(json_text(content, sort_keys=False))
        return {**record, "checksum": _checksum(record)}

    @property
    def digest(self) -> str:
        """The identity of the pipeline, the SHA-256 of what decides on its output: its steps with
        their settings, their tensors, and the metric; not its name and provenance.

        Raises:
            TransformError: if the pipeline is not fitted.
        """
        content = {"steps": self.config()["steps"], "metric": self.metric}
        digest = hashlib.sha256(json_text(content).encode())
        digest.update(self._tensors())
        return digest.hexdigest()

    @property
    def tag(self) -> str:
        """The first 12 digits of `digest`, which rows in a database can carry (`check_tag`).

        A pipeline that is fitted again on the same moments has the same tag.

        Raises:
            TransformError: if the pipeline is not fitted.
        """
        return self.digest[:12]

    def check_tag(self, tag: str) -> None:
        """Refuse rows that carry the `tag` of another pipeline.

        Raises:
            TransformError: with both tags.
        """
        if tag != self.tag:
            raise TransformError(
                f"The rows have the tag {tag}, and the pipeline {self.name!r} has {self.tag}: "
                f"they have gone through another pipeline.",
                remedy="Load the pipeline that transformed the rows, or transform the original "
                "embeddings again and write them with the tag of this one.",
            )

    def _tensors(self) -> bytes:
        self.check_fitted()
        tensors = {
            f"{position}/{key}": np.asarray(value, order="C")
            for position, step in enumerate(self.steps)
            for key, value in step.state.items()
        }
        payload: bytes = save_tensors(tensors)
        return payload


def _require_listed(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Refuse files of a pipeline that the manifest of the export around them lists with other
    content; while files of the export are being replaced, nothing is compared.

    Raises:
        TransformError: with the first of them.
    """
    listed: Mapping[str, str] = {}
    with suppress(FileNotFoundError, NotADirectoryError, *MALFORMED):
        listed = read_json(folder / MANIFEST_NAME)["files"]
    for name, content in contents.items():
        digest = hashlib.sha256(content).hexdigest()
        if listed.get(name, digest) != digest and kind_of(folder / _REWRITING_LIST) is None:
            raise TransformError(
                f"{folder / name} is not the file that {MANIFEST_NAME} lists: it is from another "
                f"export, or was changed.",
                remedy="Copy all files of one export together, or run the command that made this "
                "one again, with --refit (an index: --rebuild).",
            )


def _missing_error(step: Step, modality: str, data: FitData, split: str) -> TransformError:
    """Return the error of a step that needs moments or rows of a modality that are not there."""
    if modality in data.too_few:
        return TransformError(
            f"The step {step.kind} needs the moments of {modality!r} rows, but only "
            f"{data.too_few[modality]} are in the {split} split; {MIN_ROWS_OF_A_MEAN} are needed.",
            remedy="Embed more rows, or load their moments with `c3 means load`.",
        )
    lacks_rows = step.needs_rows and modality not in data.rows
    needed = "rows" if lacks_rows else "moments"
    present = sorted(data.rows if lacks_rows else data.moments)
    return TransformError(
        f"The step {step.kind} needs the {needed} of {modality!r}, but only the {needed} of "
        f"{', '.join(present) or 'none'} were given.",
        remedy=f"Pass rows={{{modality!r}: array}} to fit() (an EmbeddingTransformer takes them as "
        "y), fit on a store with such rows in its train split, or load their moments with `c3 "
        "means load`.",
    )


def _order_findings(order: Sequence[Step]) -> list[str]:
    """Return what is wrong with the order of steps, one sentence each.

    The method is normalise, collapse, corrupt, re-normalise. What breaks it does not fail, it
    silently costs accuracy (C3, Zhang et al., ICLR 2024): noise before the means, means subtracted
    twice, no re-normalisation.
    """
    findings = []
    for role in ("training", "inference"):
        noising_step = ""  # the last step that added noise
        centring_step = ""  # the last step that centred
        is_unit = False
        steps_of_role = [step for step in order if step.role in ("both", role)]
        for step in steps_of_role:
            if step.fits and not step.noisy and not is_unit:
                findings.append(
                    f"{step.kind} is fitted on vectors of norm 1, so it needs a normalize step "
                    f"right before it."
                )
            if step.centres and noising_step:
                findings.append(
                    f"{noising_step} comes before {step.kind}, but noise is added to centred "
                    f"vectors."
                )
            if step.centres and centring_step:
                findings.append(
                    f"{step.kind} comes after {centring_step}, so the mean would be subtracted "
                    f"twice."
                )
            if step.noisy and role == "inference":
                findings.append(
                    f"{step.kind} adds noise, which is only for training inputs; its role must be "
                    f"training."
                )

            # What later steps find
            if step.noisy:
                noising_step = step.kind
            if step.centres:
                centring_step = step.kind
            is_unit = isinstance(step, Normalize | steps.FairScale)
        if steps_of_role and not is_unit:
            findings.append(
                f"{role} inputs do not end with normalize, but decoders and searches expect norm 1."
            )
    return list(dict.fromkeys(findings))


class _Recipe(msgspec.Struct, forbid_unknown_fields=True):
    """An unfitted pipeline, as users write it: each step is its kind, or ``{"step": kind,
    ...settings}``.
    """

    steps: list[Any]
    name: str = "custom"


class _Format(msgspec.Struct):
    """The part of transform.json that is read before the rest."""

    format: int = 1


class _Saved(_Recipe, kw_only=True, forbid_unknown_fields=False):
    """The content of transform.json; ``tensors`` is the SHA-256 of the other file."""

    dim: int | None
    provenance: dict[str, Any]
    tensors: str
    checksum: str
    metric: ExportMetric = "ip"


def step_kinds() -> dict[str, type[Step]]:
    """Return the classes of `c3tools.transforms.steps` by the names that descriptions use."""
    return {
        value.kind: value
        for value in vars(steps).values()
        if isinstance(value, type) and issubclass(value, Step) and value.kind
    }


def _find_step(kind: str) -> type[Step] | None:
    """Return the class of a kind of step, of c3tools or of another package; None if there is none.

    Raises:
        C3Error: if that of another package cannot be loaded.
    """
    own_step = step_kinds().get(kind)
    if own_step is not None:
        return own_step
    plugin = plugins(_STEPS_GROUP).get(kind)
    return load_plugin(plugin, Step) if plugin else None


def _make_steps(entries: Sequence[object], place: str) -> list[Step]:
    """Make the unfitted steps of a description, each a kind, or ``{"step": kind, ...settings}``."""
    made: list[Step] = []
    for entry in entries:
        settings: dict[str, Any] = dict(entry) if isinstance(entry, Mapping) else {"step": entry}
        name = settings.pop("step", None)
        step_type = _find_step(name) if isinstance(name, str) else None
        if step_type is None:
            # Shortened: a few lines of YAML can stand for billions of entries
            shown = reprlib.repr(entry)
            names = ", ".join([*step_kinds(), *plugins(_STEPS_GROUP)])
            raise TransformError(
                f"{place} has an unknown step {shown}.",
                remedy=f"Steps: {names}. For any other step, install its package.",
            )
        try:
            step_type(**settings)  # refuses unknown settings, which msgspec ignores
            made.append(msgspec.convert(settings, step_type))
        except (TypeError, msgspec.ValidationError) as error:
            names = ", ".join(setting.name for setting in fields(step_type))
            raise TransformError(
                f"{place} has a wrong setting for the step {name}: {reason_of(error)}.",
                remedy=f"Its settings are {names}.",
            ) from error
    return made


def _read_config(path: Path) -> object:
    text = read_limited(path).decode("utf-8")
    if path.suffix.lower() not in (".yaml", ".yml"):
        return json.loads(text)
    yaml = optional_module("yaml", "pyyaml", extra="yaml", purpose="Reading a pipeline from YAML")
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not valid YAML ({error})") from error


def _checksum(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record without its ``checksum``."""
    body = {key: value for key, value in record.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
