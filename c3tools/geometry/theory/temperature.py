"""Simulate how much of the gap remains after training, as a function of the logit scale.

Two small heads are trained contrastively on frozen features of paired items, once per logit scale. At a low scale
(high temperature) the loss can only fall if pairs come together, so the gap closes; at CLIP's scale of 100 a small
lead is enough (see `stable_region`), optimisation stops, and the gap of the random start is left. The file
docs/results/connect.md has measurements on Flickr8k.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import nn

from ...arrays import Floats
from ...errors import C3Error
from ...metrics.significance import to_json
from ...pages import Table, new_figure, palette, styled
from ...reporter import SILENT, Reporter
from ...seeds import generator
from ...store.reader import Store
from ..collect import collect
from . import Simulation
from .optimisation import pair_loss

SCALES = (5.0, 10.0, 18.0, 30.0, 50.0, 100.0)
HELD_OUT = 0.2


@dataclass(frozen=True)
class Survival:
    """Result of one training run.

    Attributes:
        logit_scale: fixed during training.
        start_gap: gap of the held-out pairs before training.
        gap: after.
        loss: of the last batch.
        recall: recall@1 from the first to the second modality among the held-out pairs, as a fraction.
    """

    logit_scale: float
    start_gap: float
    gap: float
    loss: float
    recall: float


def simulate_temperature(
    *,
    store: Store | str | Path | None = None,
    scale: Sequence[float] | None = None,
    steps: int = 1_000,
    batch: int = 256,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Measure the gap that remains after contrastive training of two small heads, as a function of the logit scale.

    Args:
        store: Use the pairs of this store as features. By default synthetic features.
        scale: Logit scales. By default 5, 10, 18, 30, 50 and 100.
        steps: Training steps for each scale.
        batch: Number of pairs per step.
        seed: Seed for all random numbers.
        reporter: Shows the progress over the steps.

    Raises:
        C3Error: if the store has too few pairs, or a scale is not a finite number above 0.
    """
    first, second = synthetic_features(seed=seed) if store is None else _paired_rows(store, seed, reporter)
    results = gap_by_scale(
        first, second, scales=sorted(scale or SCALES), steps=steps, batch=batch, seed=seed, reporter=reporter
    )
    rows = [
        [f"{r.logit_scale:g}", f"{r.start_gap:.3f}", f"{r.gap:.3f}", f"{r.loss:.3f}", f"{100 * r.recall:.1f}"]
        for r in results
    ]
    low, high = results[0], results[-1]
    features = "synthetic" if store is None else str(store.path if isinstance(store, Store) else store)
    return Simulation(
        name="temperature",
        table=Table(["logit scale", "gap before", "gap after", "last loss", "recall@1, %"], rows),
        values=to_json({"features": features, "pairs": len(first), "runs": [asdict(r) for r in results]}),
        figure=_draw_figure(results),
        found=f"The gap is {low.start_gap:.2f} before training. After it, {low.gap:.2f} is left at a logit scale of "
        f"{low.logit_scale:g} and {high.gap:.2f} at {high.logit_scale:g}.",
        paper="Temperature decides how much of the gap remains: at CLIP's scale of 100 a small lead is enough for the "
        "loss to vanish, and the optimisation stops before the modalities meet.",
    )


def synthetic_features(
    n: int = 2_000, dim: int = 128, *, shared: int = 24, seed: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Draw paired features (n, d) of two modalities: a shared latent through two random maps, plus noise."""
    rng = generator(seed, "synthetic features")
    latent = rng.standard_normal((n, shared))
    views = []
    for _ in range(2):
        view = latent @ rng.standard_normal((shared, dim)) / np.sqrt(shared) + 0.5 * rng.standard_normal((n, dim))
        views.append(view.astype(np.float32))
    return views[0], views[1]


def gap_by_scale(
    first: Floats,
    second: Floats,
    *,
    scales: Sequence[float] = SCALES,
    steps: int = 1_000,
    batch: int = 256,
    hidden: int = 256,
    out: int = 64,
    learning_rate: float = 1e-3,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> list[Survival]:
    """Train two heads once per logit scale, all from the same start, and measure the gap that is left.

    Args:
        first: (n, d), frozen features of the first modality.
        second: (n, e), of the second; row i belongs to row i.
        scales: logit scales (inverse temperatures).
        steps: of AdamW per scale.
        batch: pairs per step.
        hidden: width of the heads.
        out: dimension of the joint space.
        learning_rate: of AdamW.
        seed: of weights, batches and the held-out fifth.
        reporter: shows the progress over the steps.

    Raises:
        C3Error: if there are fewer than 20 pairs, or a scale is not a finite number above 0.
    """
    if len(first) != len(second) or len(first) < 20:
        raise C3Error(
            f"Training needs at least 20 pairs, row by row, but there are {len(first)} and {len(second)} rows."
        )
    if not all(0 < scale < np.inf for scale in scales):
        raise C3Error("Logit scales must be finite numbers above 0.")
    order = generator(seed, "temperature split").permutation(len(first))
    cut = int(len(first) * HELD_OUT)
    views = [torch.from_numpy(_standardise(view, order[cut:])) for view in (first, second)]
    held = [view[torch.from_numpy(order[:cut])] for view in views]
    train = [view[torch.from_numpy(order[cut:])] for view in views]
    results = []
    seed %= 2**63  # torch takes no larger one
    with reporter.progress("Steps", steps * len(scales)) as progress, torch.random.fork_rng(devices=[]):
        for scale in map(float, scales):
            torch.manual_seed(seed)
            heads = [nn.Sequential(nn.Linear(x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, out)) for x in train]
            start, _ = _measure(heads, held)
            optimiser = torch.optim.AdamW([p for head in heads for p in head.parameters()], lr=learning_rate)
            draw = torch.Generator().manual_seed(seed)
            loss = torch.zeros(())
            for _ in range(steps):
                # without replacement: a pair that is drawn twice would be its own negative
                chosen = torch.randperm(len(train[0]), generator=draw)[:batch]
                loss = pair_loss(heads[0](train[0][chosen]), heads[1](train[1][chosen]), scale)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                progress.advance()
            gap, recall = _measure(heads, held)
            results.append(Survival(scale, start, gap, float(loss.detach()), recall))
    return results


@torch.no_grad()
def _measure(heads: Sequence[nn.Module], views: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Return the gap and recall@1 of held-out pairs."""
    a, b = (nn.functional.normalize(head(view), dim=1) for head, view in zip(heads, views, strict=True))
    best = (a @ b.T).argmax(dim=1)
    return float((a.mean(dim=0) - b.mean(dim=0)).norm()), float((best == torch.arange(len(a))).double().mean())


def _paired_rows(store: Store | str | Path, seed: int, reporter: Reporter) -> tuple[Floats, Floats]:
    """Return one image-text pair per item, so that no item is its own negative."""
    collected = collect(Store.open(store, reporter=reporter), "image", "text", seed=seed)
    working = collected.working
    if not working.paired:
        raise C3Error(f"The store {collected.store.path} has no pairs of image and text.")
    items, rows = np.unique(working.item_index, return_index=True)
    first, second = working.first[items], working.second[rows]
    return (first, second) if collected.first == "image" else (second, first)


def _standardise(rows: Floats, fit: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    x = rows.astype(np.float64)
    scale = x[fit].std(axis=0)
    return np.asarray((x - x[fit].mean(axis=0)) / np.where(scale > 0, scale, 1), dtype=np.float32)


@styled
def _draw_figure(results: Sequence[Survival]) -> Figure:
    """Draw the gap that is left after training, against the logit scale."""
    figure, axes = new_figure(6.4, 3.4)
    scales = [found.logit_scale for found in results]
    start = results[0].start_gap
    axes.axhline(start, color=palette.MUTED, linewidth=0.9, linestyle=(0, (3, 3)), label="before training")
    axes.plot(scales, [found.gap for found in results], "o-", color=palette.THIRD, markersize=5, label="after training")
    axes.set_xscale("log")
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales])
    axes.minorticks_off()
    title = "The gap that remains after training"
    axes.set(title=title, xlabel="logit scale (1 / temperature)", ylabel="gap on held-out pairs", ylim=(0, None))
    axes.legend(loc="best")
    return figure
