"""The space that rows are in, and the steps that lead from one space to another.

    rows = Space.of(store)
    target = Space.after(pipeline, "the clusters c3-clusters")
    path = target.path_from(rows, ["image"])    # the steps that are left, or one refusal
    path.transform(embeddings, modality="image")

A verb that takes rows of exports asks for the path; one that needs the encoder's own embeddings
calls `StoreInfo.require_raw`. docs/reference/exports.md lists what each verb takes.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from ..errors import TransformError
from ..identity import ModelIdentity
from ..store import Store
from ..store.shards import FUSED
from .first_rows import seem_centred
from .pipeline import Pipeline
from .steps import GapShift

_RAW_STORE = "Use the store that was exported"


@dataclass(frozen=True, eq=False)
class Space:
    """The encoder that made rows, and the steps that they went through since.

    Attributes:
        owner: what is in the space, for messages: a store, or what rows are used with.
        model: of the encoder.
        pipeline: fitted; None for rows as the encoder gives them.
        applied: how many of its steps the rows went through.
        has_extra_dimension: whether rows have one more dimension, by ``--metric l2``.
        noised: the modalities with training inputs among their rows, which no pipeline gives for a
            single vector of the encoder.
    """

    owner: str
    model: ModelIdentity
    pipeline: Pipeline | None = None
    applied: int = 0
    has_extra_dimension: bool = False
    noised: frozenset[str] = frozenset()

    @classmethod
    def of(cls, store: Store) -> Space:
        """Return the space of the rows of a store, an export or an index.

        A `UserWarning` says if an export was probably made from another export, which earlier
        versions allowed.

        Raises:
            TransformError: if the pipeline of an export is missing or damaged.
        """
        owner = str(store.path)
        exported = store.info.exported
        if not exported:
            return cls(owner, store.info.model)
        pipeline = Pipeline.load(store.path)
        _warn_if_centred_before(store, pipeline)
        settings = exported["settings"]
        if store.info.code_size:
            # What an index records as applied is its own work; its rows went through all steps
            applied = len(pipeline.steps)
            noised = frozenset(exported.get("index", {}).get("noised", ()))
        else:
            applied = settings["applied"]
            noised = _noised_modalities(store, pipeline.part(0, applied))
        is_padded = settings.get("metric") == "l2"
        return cls(owner, store.info.model, pipeline, applied, is_padded, noised)

    @classmethod
    def after(cls, pipeline: Pipeline, owner: str, model: ModelIdentity | None = None) -> Space:
        """Return the space that a fitted pipeline leads to.

        Args:
            pipeline: fitted.
            owner: what is in the space, for messages.
            model: of the rows there; None for the one that the pipeline was fitted for.
        """
        if model is None:
            model = ModelIdentity(pipeline.provenance.get("model") or {})
        return cls(owner, model, pipeline, len(pipeline.steps))

    def __str__(self) -> str:
        """Return the owner, the model and the steps."""
        return f"{self.owner} (of {self.model.name}, {self.steps})"

    @property
    def steps(self) -> str:
        """The steps that rows went through, in words."""
        if self.pipeline is None:
            return "as the encoder gives them"
        count = len(self.pipeline.steps)
        steps = f"{self.applied} of the {count} steps" if self.applied < count else "all steps"
        return f"after {steps} of {self.pipeline.name}, tag {self.pipeline.tag}"

    @property
    def digest(self) -> str:
        """The digest of the steps that rows went through; empty for rows as the encoder gives
        them.
        """
        if self.pipeline is None or not self.applied:
            return ""
        return self.pipeline.part(0, self.applied).digest

    def path_from(self, rows: Space, modalities: Collection[str] = ()) -> Pipeline:
        """Return the steps that are left for rows of another space to come to this one: all of them
        for rows as the encoder gives them, none for finished rows of an export.

        Args:
            rows: their space.
            modalities: of the rows, where they are compared with rows of this space or assigned to
                them; those with noise, and fused rows, are refused then. None for rows that are
                trained on or indexed.

        Raises:
            TransformError: if there is no such path; it names both spaces and what differs.
        """
        assert self.pipeline is not None
        remedy = f"{_RAW_STORE}."
        difference = ""
        noised = sorted(rows.noised.intersection(modalities))
        if not self.model.same_as(rows.model):
            difference = f"their models are {rows.model} and {self.model}"
            remedy = "Use embeddings of the same model."
        elif rows.has_extra_dimension:
            difference = "the rows have an extra dimension, for a database"
            remedy = f"{_RAW_STORE}, or export it with --metric ip."
        elif noised:
            difference = f"{' and '.join(noised)} rows have noise, as inputs of a training"
            remedy = f"{_RAW_STORE}, or export it with --role inference."
        elif FUSED in modalities:
            difference = "fused rows are sums of an image and a text"
        elif rows.digest != replace(self, applied=rows.applied).digest:
            difference = "the steps differ, or are fitted on other rows"
        if difference:
            raise TransformError(
                f"Rows of {rows} cannot be used with {self}: {difference}.", remedy=remedy
            )
        return self.pipeline.part(rows.applied)


def _noised_modalities(store: Store, applied: Pipeline) -> frozenset[str]:
    """Return the modalities of an export whose training inputs, if it has any, went through other
    steps than inference inputs.
    """
    settings = store.info.exported["settings"]
    role = settings.get("role", "inference")  # rows of another program have none
    noised = set()
    for name in store.modalities:
        has_training_inputs = role == "training"
        if role == "auto" and name == settings["train_on"]:
            has_training_inputs = store.count(name, "train") > 0
        steps_differ = any(
            step.applies(name, training=True) != step.applies(name, training=False)
            for step in applied.steps
        )
        if has_training_inputs and steps_differ:
            noised.add(name)
    return frozenset(noised)


def _warn_if_centred_before(store: Store, pipeline: Pipeline) -> None:
    """Say so if all means that the pipeline of an export subtracts are almost 0, as those of rows
    that went through another pipeline before. Its record does not tell.
    """
    row_counts = pipeline.provenance.get("n", {})
    means = []
    for step in pipeline.steps:
        if step.centres and not isinstance(step, GapShift):
            means += [(name, step.state[f"centre/{name}"]) for name in step.fitted_for]
    if means and all(
        np.any(mean) and seem_centred(mean, row_counts.get(name, 0)) for name, mean in means
    ):
        warnings.warn(
            f"The means that {pipeline.name} subtracts are almost 0, so {store.path} was probably "
            f"made from another export: its pipeline lacks the first one, and new embeddings come "
            f"out wrong. Export the store that was exported first. If the embeddings were centred "
            f"before they came into a store, all is well.",
            stacklevel=3,
        )
