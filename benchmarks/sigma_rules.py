"""Compute the candidate rules of sigma on given embeddings, and draw the figure that marks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from c3tools.pages import palette
from c3tools.pages.figures import new_figure, save_figure, styled
from c3tools.transforms.sigma import SPREADS, SigmaRule, caption_spread, pair_cosine, residual_rms, scaled_spread

NAMES = {
    "caption_spread": "spread of captions (texts alone)",
    "scaled_spread": f"{SPREADS:g} times the spread (texts alone)",
    "residual_rms": "residual of pairs",
    "pair_cosine": "cosine of pairs",
    "published": "published",
}


def rules_of(images: np.ndarray, texts: np.ndarray, owner: np.ndarray, means: Sequence[np.ndarray]) -> list[SigmaRule]:
    """Return the candidate rules on pairs.

    Args:
        images: float32 (m, d), L2-normalised.
        texts: float32 (k, d), L2-normalised.
        owner: int64 (k,), the image of each text.
        means: of images and of texts, over training data.
    """
    residual = images[owner].astype(np.float64) - texts
    spread = caption_spread(texts, owner, means[1])
    return [
        spread,
        scaled_spread(spread),
        residual_rms(residual.var(axis=0)),
        pair_cosine(images, texts, owner, means),
    ]


@styled
def draw(
    path: Path,
    curves: Mapping[str, Mapping[float, Sequence[float]]],
    rules: Mapping[str, float],
    *,
    ylabel: str,
    title: str,
    level: tuple[str, float] | None = None,
) -> None:
    """Scores by sigma: mean and standard deviation over seeds, the rules as vertical lines, a level as a dashed one."""
    figure, axes = new_figure(7.2, 4.2)
    for (name, points), colour in zip(curves.items(), palette.SERIES, strict=False):
        sigmas = sorted(points)
        means = [float(np.mean(points[sigma])) for sigma in sigmas]
        spreads = [float(np.std(points[sigma], ddof=1)) if len(points[sigma]) > 1 else 0.0 for sigma in sigmas]
        axes.errorbar(sigmas, means, yerr=spreads, fmt="o-", color=colour, markersize=4, capsize=2, label=name)
    if level is not None:
        axes.axhline(level[1], color=palette.MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            level[0],
            (1, level[1]),
            xycoords=("axes fraction", "data"),
            xytext=(0, -3),
            textcoords="offset points",
            ha="right",
            va="top",
            color=palette.MUTED,
            fontsize=7.5,
        )
    for number, (name, sigma) in enumerate(sorted(rules.items(), key=lambda item: item[1])):
        axes.axvline(sigma, color=palette.FOURTH, linewidth=0.9)
        axes.annotate(
            f" {NAMES[name]} {sigma:.3f}",
            (sigma, 0.02 + 0.07 * number),
            xycoords=("data", "axes fraction"),
            color=palette.FOURTH,
            fontsize=7.5,
        )
    axes.set_xlabel("sigma per dimension")
    axes.set_ylabel(ylabel)
    axes.set_title(title)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(curves), borderaxespad=0.4)
    save_figure(figure, path)
