"""Named pipelines: C3, its ablation, and other published ways to bridge the modality gap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import TransformError
from ..io.hub import local_folder
from ..reporter import SILENT, Reporter
from ..result_table import Table
from .fitting import load_command
from .pipeline import Pipeline
from .sigma import AUTO, PAIRS, PUBLISHED_SIGMA, Side, Sigma, parse_sigma, sigma_by_rule
from .steps import (
    AdaptiveNoise,
    Collapse,
    CovarianceNoise,
    FairScale,
    GapShift,
    GaussianNoise,
    MatchMoments,
    MemoryProjection,
    Normalize,
    Procrustes,
    ProjectOutGap,
    ReAlign,
    Retrieval,
    RidgeMap,
    SpanNoise,
    Standardize,
    Step,
    Whiten,
)

if TYPE_CHECKING:
    from ..store import Store


@dataclass(frozen=True)
class _Preset:
    """A preset.

    Attributes:
        formula: of the pipeline, for users.
        source: where it was published.
        steps: those between the first and the last normalisation.
    """

    formula: str
    source: str
    steps: list[Step]


def _table(sigma: Sigma, x: str, y: str) -> dict[str, _Preset]:
    """Return the presets by name.

    Args:
        sigma: of Gaussian noise. It may be the name of a rule, which is a number only once the
            pipeline is fitted: a preset that scales sigma needs a step that does so.
        x: modality of inference inputs, image for captioning.
        y: modality of training inputs, text for captioning.
    """
    return {
        "c1": _Preset("norm(e)", "C3 ablation, no Collapse, no Corrupt (ICLR 2024)", []),
        "c2-collapse": _Preset("norm(e - mu)", "C3 ablation C2_1 (ICLR 2024)", [Collapse()]),
        "c2-corrupt": _Preset(
            "training: norm(e + sigma z)",
            "C3 ablation C2_2 (ICLR 2024)",
            [GaussianNoise(sigma)],
        ),
        "c3": _Preset(
            "norm(e - mu), training: norm(e - mu + sigma z)",
            "C3 (Zhang et al., ICLR 2024)",
            [Collapse(), GaussianNoise(sigma)],
        ),
        "capdec": _Preset(
            "training: norm(norm(e) + sqrt(v) z), v = sigma^2 = 0.016",
            "CapDec (Nukrai et al., EMNLP Findings 2022)",
            [GaussianNoise(sigma)],
        ),
        "lafite": _Preset(
            "training: norm((1 - l) e + l unit(z)), l = 0.75",
            "LAFITE_G (Zhou et al., CVPR 2022)",
            [AdaptiveNoise()],
        ),
        "decap": _Preset(
            "inference: norm(softmax(cos(e, M) / 0.01) M), M the training texts",
            "DeCap (Li et al., ICLR 2023)",
            [MemoryProjection(y, source=x, role="inference")],
        ),
        "clipre": _Preset(
            "inference: the nearest training text",
            "CLIPRe (Su et al., 2022); the tau = 0 limit of DeCap",
            [MemoryProjection(y, tau=0.0, source=x, role="inference")],
        ),
        "realign": _Preset(
            "inference: norm(mu_y + sqrt(tr_y / tr_x) (e - mu_x)), re-centred on mu_y, norm",
            "ReAlign (2026)",
            [ReAlign(x, y, role="inference")],
        ),
        "tomcap": _Preset(
            "texts: norm((e - mu_y) s_x / s_y + mu_x), training: + sigma z before the norm",
            "TOMCap (2026), its moments without its retrieval",
            [MatchMoments(y, x), GaussianNoise(sigma)],
        ),
        "gr-clip": _Preset(
            "norm(e - mu of its modality)",
            "GR-CLIP (2025), which has one mean for each of query text, document text, document "
            "image",
            [Collapse()],
        ),
        "fair": _Preset(
            "norm(e - mu) / sqrt(tr(S_q S)), S = C / tr C, C the covariance, q the queries' "
            "modality (of training)",
            "c3tools: one inner-product search that ranks images and texts fairly",
            [Collapse(), Normalize(), FairScale(y)],
        ),
        "gap-shift": _Preset(
            "norm(x - delta/2 u), norm(y + delta/2 u), u the unit gap",
            "Mind the Gap (Liang et al., NeurIPS 2022)",
            [GapShift(x, y)],
        ),
        "project-out-gap": _Preset(
            "norm(e - (e . u) u), u the unit gap",
            "classical",
            [ProjectOutGap(x, y)],
        ),
        "standardize": _Preset("norm((e - mu) / s) per dimension", "classical", [Standardize()]),
        "whiten": _Preset(
            "norm((e - mu) S^(-1/2)), S shrunk by 0.1", "classical (ZCA)", [Whiten()]
        ),
        "ridge": _Preset(
            "inference: norm((e - mu_x) W + mu_y), W from pairs",
            "classical (ridge regression)",
            [RidgeMap(x, y, role="inference")],
        ),
        "procrustes": _Preset(
            "inference: norm((e - mu_x) Q + mu_y), Q a rotation from pairs",
            "classical (Schönemann, 1966)",
            [Procrustes(x, y, role="inference")],
        ),
        "c3-span": _Preset(
            "norm(e - mu), training: noise without its part along the gap",
            "variant of C3",
            [Collapse(), SpanNoise(sigma, x, y)],
        ),
        "c3-covariance": _Preset(
            "norm(e - mu), training: noise with the covariance of measured pairs",
            "variant of C3",
            [Collapse(), CovarianceNoise(first=x, second=y)],
        ),
        "c3-retrieval": _Preset(
            "norm(q + unit(m)): q as in c3, m the mean of the 10 nearest training texts, weighted "
            "by "
            "softmax(cos / 0.05)",
            "after IFCap (Lee et al., EMNLP 2024)",
            [Collapse(), GaussianNoise(sigma), Normalize(), Retrieval(y)],
        ),
    }


PRESETS = {
    name: (row.formula, row.source)
    for name, row in _table(PUBLISHED_SIGMA, "image", "text").items()
}
"""Name → the formula of the pipeline, and where it was published."""


def preset_table() -> Table:
    """Return the presets as a table, one row each."""
    columns = ["preset", "embedding", "source"]
    return Table(columns, [[name, *about] for name, about in PRESETS.items()], left=columns)


def preset(
    name: str, *, sigma: float | str | None = None, train_on: str = "text", infer_on: str = "image"
) -> Pipeline:
    """Return an unfitted pipeline by name.

    Args:
        name: a key of `PRESETS`, or a JSON or YAML file with steps (`Pipeline.from_config`), which
            have their own sigma and modalities.
        sigma: standard deviation of Gaussian noise per dimension, if the method has noise; ``auto``
            to compute it from captions when the pipeline is fitted, ``pairs`` to compute it from a
            few images with captions; None for the published sqrt(0.016).
        train_on: modality of the training inputs; "text" for captioning, "image" for text-to-image.
        infer_on: modality of the inference inputs.

    Raises:
        TransformError: if the name is unknown, sigma is negative or not finite, given for a file,
            or ``pairs`` though the training inputs are not texts.

    Example:
        >>> pipeline = c3tools.preset("c3", sigma="auto")
        >>> pipeline
        Pipeline('c3': normalize > collapse > gaussian-noise > normalize)
        >>> pipeline.fitted
        False
    """
    if is_recipe_file(name):
        _refuse_sigma(sigma, name)
        return Pipeline.from_config(name)
    if name not in PRESETS:
        raise TransformError(
            f"There is no preset {name!r}.",
            remedy=f"Presets: {', '.join(PRESETS)}; or a file such as steps.json.",
        )
    strength = PUBLISHED_SIGMA if sigma is None else parse_sigma(sigma)
    inner = _table(strength, infer_on, train_on)[name].steps
    is_of_pairs = any(step.sigma_rule == PAIRS for step in inner)
    if is_of_pairs and train_on != "text":
        raise TransformError(
            f"A preset with sigma 'pairs' adds its noise to texts, but this one trains on "
            f"{train_on}.",
            remedy="For generators, use `c3 train-generator --sigma pairs`; otherwise set sigma to "
            "a number.",
        )
    last = [Normalize()] if inner and not isinstance(inner[-1], FairScale) else []
    return Pipeline([Normalize(), *inner, *last], name=name)


@dataclass
class TrainingPipeline:
    """The pipeline that a training is asked for with, before its rows are read.

    Attributes:
        preset: its name.
        sigma: of its noise: a number, a rule, or None if its noise has none.
        given: a pipeline that takes the place of the preset.
        applied: how many of its steps the rows of an export went through already.
    """

    preset: str
    sigma: float | str | None = None
    given: Pipeline | None = None
    applied: int = 0

    @classmethod
    def choose(
        cls,
        store: Store,
        pipeline: Pipeline | None,
        name: str | None,
        sigma: float | str | None,
        *,
        default: float | str = AUTO,
        reporter: Reporter = SILENT,
    ) -> TrainingPipeline:
        """Choose the given pipeline, that of an export, or a preset, c3 by default.

        Rows of an export go through the steps that are left, with their noise. Noise can be added
        to the finished rows of an export; the reporter is told that this is another method.

        Args:
            store: to train on.
            pipeline: given by the user, or that of the decoder that training starts from.
            name: a key of `PRESETS`.
            sigma: of the noise of a preset, or of that on the rows of an export.
            default: sigma of a preset with noise.
            reporter: gets messages.

        Raises:
            TransformError: if these contradict each other, the preset or sigma cannot be used, the
                rows of an export went through another pipeline, or each item stands once in the
                store.
        """
        # Refuse what contradicts itself
        if pipeline is not None and not isinstance(pipeline, Pipeline):
            raise TransformError(
                f"The pipeline is of type {type(pipeline).__name__}: {pipeline!r}.",
                remedy="Pass preset=... by name, a folder as output=..., or a Pipeline.",
            )
        if sigma is not None:
            sigma = parse_sigma(sigma)
        if pipeline is not None and (name is not None or sigma is not None):
            raise TransformError(
                "A pipeline, including the pipeline of a --from decoder, has its own steps and "
                "sigma.",
                remedy="Leave out preset and sigma; with --from, a preset replaces its pipeline.",
            )
        from ..store.shards import FUSED  # needs pyarrow
        from .space import Space

        # The rows of an export go through what is left of its pipeline
        space = Space.of(store)
        if space.pipeline is not None:
            given = (pipeline or space.pipeline).for_metric(metric="ip")
            fused = {FUSED}.intersection(store.modalities)
            Space.after(given, f"a training by {given.name}", space.model).path_from(space, fused)
            fault = ""
            if name is not None:
                fault = "does not allow another preset"
            elif sigma is not None and given.noisy:
                fault = "has its own sigma"
            elif isinstance(sigma, str):
                fault = f"leaves no rows to derive sigma {sigma} from"
            if fault:
                raise TransformError(
                    f"The rows of the export {store.path} went through {given.name}, which "
                    f"{fault}.",
                    remedy="Leave it out, or train on the store that was exported.",
                )
            if not sigma:  # also 0, which asks for no noise
                return cls(
                    preset=given.name,
                    sigma=given.sigma or 0.0,
                    given=given,
                    applied=space.applied,
                )

            # Noise after the last step, if it is asked for
            reporter.message(
                f"Noise of sigma {sigma} is added to the finished rows of {given.name}. This "
                f"differs from C3, which adds noise before the last normalisation. For C3, export "
                f"with --before-noise."
            )
            noised = Pipeline(
                [*given.steps, GaussianNoise(float(sigma)), Normalize()],
                name=f"{given.name}-noised",
            )
            noised.dim = given.dim
            noised.provenance = given.provenance
            return cls(preset=noised.name, sigma=sigma, given=noised, applied=space.applied)

        # Embeddings go through a pipeline, a file of steps, or a preset with a sigma or without
        if pipeline is not None:
            given = pipeline.for_metric(metric="ip")
            return cls(preset=given.name, sigma=given.sigma or 0.0, given=given)
        name = name or "c3"
        if is_recipe_file(name):
            recipe = preset(name, sigma=sigma)
            return cls(preset=recipe.name, sigma=recipe.sigma or 0.0, given=recipe)
        if preset(name).sigma is not None:
            return cls(preset=name, sigma=default if sigma is None else sigma)
        _refuse_unused_sigma(sigma, name)
        return cls(preset=name)

    def fit(self, store: Store, split: str, train_on: Side) -> tuple[Pipeline, list[str]]:
        """Return the pipeline fitted on a split, unless it is already, and notes for the user."""
        infer_on: Side = "image" if train_on == "text" else "text"
        notes = []

        # A preset is fitted here, and so are the steps of a file; an export's are fitted already
        pipeline = self.given
        if pipeline is None:
            sigma = self.sigma or 0.0
            origin: dict[str, str] = {}
            if isinstance(sigma, str):
                sigma, origin["sigma"] = sigma_by_rule(sigma, store, split, noised=train_on)
                notes.append(f"{origin['sigma']}. Choose another with --sigma.")
            pipeline = preset(self.preset, sigma=sigma, train_on=train_on, infer_on=infer_on)
            pipeline.fit(store, split=split, provenance=origin)
        elif not pipeline.fitted:
            pipeline.fit(store, split=split)
        pipeline.check_model(store.info.model)
        if "note" in pipeline.provenance:
            notes.append(pipeline.provenance["note"])

        # Fitted on training inputs alone, it cannot transform what the result will be used on
        for_inference = {infer_on, *store.modalities} - {train_on}
        if not any(pipeline.knows(modality) for modality in for_inference):
            fitted_split = pipeline.provenance.get("split", "train")
            notes.append(
                f"There are no {infer_on} rows in the split {fitted_split!r}, so {pipeline.name} "
                f"is fitted on {train_on} rows alone, and the result cannot be used on {infer_on} "
                f"embeddings. To change this, load moments of such embeddings before training: "
                f"{load_command(store)}."
            )
        return pipeline, notes


def is_recipe_file(name: str) -> bool:
    """Return whether a preset is named by a file with its steps."""
    return name.lower().endswith((".json", ".yaml", ".yml"))


def _refuse_sigma(sigma: float | str | None, pipeline: object) -> None:
    """Refuse a sigma for a pipeline that has its own."""
    if sigma is not None:
        raise TransformError(
            "sigma can only be set for a preset.", remedy=f"Set sigma in {pipeline}."
        )


def _refuse_unused_sigma(sigma: float | str | None, name: str) -> None:
    """Refuse a sigma for a preset without one; 0 asks for no noise, and it has none."""
    if sigma is not None and parse_sigma(sigma) != 0:
        raise TransformError(
            f"The preset {name!r} has no sigma to choose.", remedy="Leave out --sigma."
        )


def open_pipeline(
    pipeline: Pipeline | str | Path | None = None,
    preset_name: str = "c3",
    *,
    sigma: float | str | None = None,
    train_on: str = "text",
) -> Pipeline:
    """Return a pipeline as commands take it: one that is given, or that of a file or a folder, else
    a preset; for the metric ip, also if it is from an export for l2.

    Args:
        pipeline: a pipeline; a folder, or ``hf-hub:ORG/NAME``, with a fitted one; a YAML or JSON
            file with an unfitted one; None for a preset.
        preset_name: a key of `PRESETS`.
        sigma: see `preset`.
        train_on: modality of the training inputs of the preset; of text and image the other one is
            for inference.

    Raises:
        TransformError: if there is no such preset or pipeline, or sigma is given for a pipeline
            that has its own, or for a preset without.
    """
    if pipeline is None:
        infer_on = "image" if train_on == "text" else "text"
        chosen = preset(preset_name, sigma=sigma, train_on=train_on, infer_on=infer_on)
        if chosen.sigma is None:
            _refuse_unused_sigma(sigma, preset_name)
        return chosen
    _refuse_sigma(sigma, pipeline)
    if isinstance(pipeline, Pipeline):
        return pipeline.for_metric(metric="ip")
    path = local_folder(pipeline)
    is_saved = path.is_dir() or path.name == "transform.json"
    return Pipeline.load(path).for_metric(metric="ip") if is_saved else Pipeline.from_config(path)
