"""Named pipelines: C3 and its ablation, and the published ways to bridge the modality gap beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import TransformError
from .centring import Collapse, GapShift, Normalize, ProjectOutGap, Standardize, Whiten
from .mapping import MemoryProjection, Procrustes, ReAlign, RidgeMap
from .noise import AdaptiveNoise, CovarianceNoise, GaussianNoise, SpanNoise
from .pipeline import Pipeline
from .sigma import PUBLISHED_SIGMA
from .steps import Step


@dataclass(frozen=True)
class Settings:
    """What a preset may depend on.

    Attributes:
        sigma: standard deviation of Gaussian noise, per dimension.
        train_on: modality of the training inputs (text for captioning).
        infer_on: modality of the inference inputs (image for captioning).
    """

    sigma: float
    train_on: str
    infer_on: str


@dataclass(frozen=True)
class Preset:
    """A named pipeline.

    Attributes:
        summary: one line: the formula.
        source: where it was published.
        build: makes the steps.
    """

    summary: str
    source: str
    build: Callable[[Settings], list[Step]]


def _between(*inner: Step) -> list[Step]:
    return [Normalize(), *inner, Normalize()]


PRESETS: dict[str, Preset] = {
    "c1": Preset("norm(e)", "C3 ablation, no Collapse, no Corrupt (ICLR 2024)", lambda s: [Normalize()]),
    "c2-collapse": Preset("norm(e - mu)", "C3 ablation C2_1 (ICLR 2024)", lambda s: _between(Collapse())),
    "c2-corrupt": Preset(
        "training: norm(e + sigma z)", "C3 ablation C2_2 (ICLR 2024)", lambda s: _between(GaussianNoise(s.sigma))
    ),
    "c3": Preset(
        "norm(e - mu), training: norm(e - mu + sigma z)",
        "C3 (Zhang et al., ICLR 2024)",
        lambda s: _between(Collapse(), GaussianNoise(s.sigma)),
    ),
    "capdec": Preset(
        "training: norm(norm(e) + sqrt(v) z), v = sigma^2 = 0.016",
        "CapDec (Nukrai et al., EMNLP Findings 2022)",
        lambda s: _between(GaussianNoise(s.sigma)),
    ),
    "lafite": Preset(
        "training: norm((1 - l) e + l unit(z)), l = 0.75",
        "LAFITE_G (Zhou et al., CVPR 2022)",
        lambda s: _between(AdaptiveNoise()),
    ),
    "decap": Preset(
        "inference: norm(softmax(cos(e, M) / 0.01) M), M the training texts",
        "DeCap (Li et al., ICLR 2023)",
        lambda s: _between(MemoryProjection(s.infer_on, s.train_on, role="inference")),
    ),
    "clipre": Preset(
        "inference: the nearest training text",
        "CLIPRe (Su et al., 2022); the tau = 0 limit of DeCap",
        lambda s: _between(MemoryProjection(s.infer_on, s.train_on, tau=0.0, role="inference")),
    ),
    "realign": Preset(
        "inference: norm(mu_x + sqrt(tr_x / tr_y) (e - mu_y)), re-centred on mu_x, norm",
        "ReAlign (2026)",
        lambda s: _between(ReAlign(s.infer_on, s.train_on, role="inference")),
    ),
    "gr-clip": Preset(
        "norm(e - mu of its role)",
        "GR-CLIP (2025): one mean for each of query text, document text, document image",
        lambda s: _between(Collapse()),
    ),
    "gap-shift": Preset(
        "norm(x - delta/2 u), norm(y + delta/2 u), u the unit gap",
        "Mind the Gap (Liang et al., NeurIPS 2022)",
        lambda s: _between(GapShift(s.infer_on, s.train_on)),
    ),
    "project-out-gap": Preset(
        "norm(e - (e . u) u), u the unit gap", "classical", lambda s: _between(ProjectOutGap(s.infer_on, s.train_on))
    ),
    "standardize": Preset("norm((e - mu) / s) per dimension", "classical", lambda s: _between(Standardize())),
    "whiten": Preset("norm((e - mu) S^(-1/2)), S shrunk by 0.1", "classical (ZCA)", lambda s: _between(Whiten())),
    "ridge": Preset(
        "inference: norm((e - mu_x) W + mu_y), W from pairs",
        "classical (ridge regression)",
        lambda s: _between(RidgeMap(s.infer_on, s.train_on, role="inference")),
    ),
    "procrustes": Preset(
        "inference: norm((e - mu_x) Q + mu_y), Q a rotation from pairs",
        "classical (Schönemann, 1966)",
        lambda s: _between(Procrustes(s.infer_on, s.train_on, role="inference")),
    ),
    "c3-span": Preset(
        "norm(e - mu), training: noise without its part along the gap",
        "variant of C3",
        lambda s: _between(Collapse(), SpanNoise(s.infer_on, s.train_on, s.sigma)),
    ),
    "c3-covariance": Preset(
        "norm(e - mu), training: noise with the covariance of measured pairs",
        "variant of C3",
        lambda s: _between(Collapse(), CovarianceNoise(s.infer_on, s.train_on)),
    ),
}


def preset(name: str, *, sigma: float | None = None, train_on: str = "text", infer_on: str = "image") -> Pipeline:
    """An unfitted pipeline by name.

    Args:
        name: a key of `PRESETS`.
        sigma: standard deviation of Gaussian noise per dimension, where the method has it; the published
            sqrt(0.016) when None.
        train_on: modality of the training inputs; "text" for captioning, "image" for text-to-image.
        infer_on: modality of the inference inputs.

    Raises:
        TransformError: if the name is unknown, or sigma is negative or not finite.
    """
    if name not in PRESETS:
        raise TransformError(f"There is no preset {name!r}.", remedy=f"Presets: {', '.join(PRESETS)}.")
    settings = Settings(PUBLISHED_SIGMA if sigma is None else float(sigma), train_on, infer_on)
    return Pipeline(PRESETS[name].build(settings), name=name)
