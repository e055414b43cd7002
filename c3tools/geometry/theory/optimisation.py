"""Contrastive optimisation keeps the gap: the paper's simulation, and its dependence on the temperature.

Two sets of points on the unit sphere, each spanning few dimensions and constant in the others, are moved by gradient
descent on the symmetric cross-entropy of their pairs (Zhang et al., ICLR 2024, section 3). The loss falls, the gap
hardly does: the gradient of one modality lies in the span of the other's differences, which is orthogonal to the gap.

Where the trace starts depends on the draw: over seeds, the initial loss is 6.264 ± 0.005 and the gap 1.226 ± 0.024,
and the paper shows one draw (6.267, 1.248). Seeds are compared with it by the share of the gap that is left. Seed 1179
was selected among 3,000 to match the paper in initial loss, initial gap and speed of descent.

Cost: the gradient never leaves the span of the initial points, 25 + 230 + 2 = 257 dimensions instead of 512, so the
loop runs in coordinates of that span, exactly. 100,000 steps take about ten minutes on two cores; ``fast`` integrates
the same descent in longer, second-order steps, in a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from torch.nn.functional import cross_entropy, normalize

from ...arrays import Array
from ...errors import C3Error
from ...metrics.significance import to_json
from ...pages import Table, new_figure, palette, styled
from ...reporter import SILENT, Reporter
from ...seeds import generator
from . import Simulation

LOGIT_SCALE = float(np.exp(2.6593))
PAPER_SETTINGS = {"pairs": 500, "dim": 512, "spans": (25, 230), "learning_rate": 0.1, "logit_scale": LOGIT_SCALE}
PAPER_TRACE = {
    0: (6.267, 1.2478),
    20_000: (5.395, 1.2438),
    40_000: (4.556, 1.2314),
    60_000: (3.727, 1.2110),
    80_000: (2.920, 1.1837),
}
"""Step → (loss, gap) as the paper's notebook prints them."""
SELECTED_SEED = 1179
FAST_STEPS = 20


@dataclass(frozen=True)
class TracePoint:
    """Loss and gap after a number of steps."""

    step: int
    loss: float
    gap: float


def simulate_gap_after_training(
    *,
    steps: int = 100_000,
    fast: bool = False,
    pairs: int = 500,
    dim: int = 512,
    spans: tuple[int, int] = (25, 230),
    learning_rate: float = 0.1,
    logit_scale: float | None = None,
    every: int = 20_000,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Repeat the paper's optimisation, with its settings as defaults: the loss falls, and the gap stays.

    Args:
        steps: Steps of gradient descent.
        fast: Take long second-order steps: one minute, and the same result to 0.1 %.
        pairs: Number of pairs.
        dim: Dimension of the points.
        spans: Number of dimensions in which each of the two modalities varies.
        learning_rate: Learning rate of gradient descent.
        logit_scale: Inverse temperature. By default exp(2.6593).
        every: Steps between two rows of the table.
        seed: Seed of the starting points. 1179 starts where the run of the paper does.
        reporter: Shows the progress over the steps.

    Raises:
        C3Error: if the spans do not fit into the dimensions, or the learning rate or the logit scale is not a finite
            number above 0.
    """
    scale = LOGIT_SCALE if logit_scale is None else logit_scale
    # the figure has points between the rows of the table, as long as no step is shortened for them
    points = next((n for n in range(10, 1, -1) if every % (n * (FAST_STEPS if fast else 1)) == 0), 1)
    trace, _, _ = train_pairs(
        *draw_spans(pairs, dim, spans, seed),
        steps=steps,
        learning_rate=learning_rate,
        logit_scale=scale,
        every=every // points,
        fast=fast,
        reporter=reporter,
    )
    settings = {"pairs": pairs, "dim": dim, "spans": spans, "learning_rate": learning_rate, "logit_scale": scale}
    paper = settings == PAPER_SETTINGS
    rows = []
    for point in trace:
        if point.step % every == 0 or point.step == steps:
            loss, gap = PAPER_TRACE.get(point.step, (None, None))
            theirs = ["" if loss is None else f"{loss:.3f}", "" if gap is None else f"{gap:.4f}"]
            rows.append([f"{point.step:,}", f"{point.loss:.3f}", f"{point.gap:.4f}", *(theirs if paper else [])])
    first, last = trace[0], trace[-1]
    found = (
        f"The loss falls from {first.loss:.2f} to {last.loss:.2f}, and the gap changes from {first.gap:.3f} to "
        f"{last.gap:.3f}: {100 * (1 - last.gap / first.gap):.0f} % of it is closed."
    )
    published = PAPER_TRACE.get(last.step) if paper else None
    if published is not None:
        left = 100 * (last.gap / first.gap / (published[1] / PAPER_TRACE[0][1]) - 1)
        found += (
            f" At this step the loss of the paper is {published[0]:.2f}, and the remaining share of the gap differs by "
            f"{left:+.2f} %."
        )
    if paper and seed == SELECTED_SEED:
        found += " This seed was selected among 3,000 to match the paper's run; most start at a gap of 1.226 ± 0.024."
    return Simulation(
        name="gap-after-training",
        table=Table(["step", "loss", "gap", *(["paper's loss", "paper's gap"] if paper else [])], rows),
        values=to_json(
            {
                "n": pairs,
                "dim": dim,
                "first": spans[0],
                "second": spans[1],
                "seed": seed,
                "learning_rate": learning_rate,
                "logit_scale": scale,
                "method": "flow" if fast else "sgd",
                "trace": [asdict(point) for point in trace],
            }
        ),
        figure=_draw_figure(trace, paper=paper),
        found=found,
        paper="Optimisation keeps the gap: the gradient of one modality lies in the span of the other, which is "
        "orthogonal to the gap.",
    )


def draw_spans(pairs: int, dim: int, spans: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """Draw the start: standard normal values where a modality varies, one constant each elsewhere.

    The first modality varies in the first ``spans[0]`` dimensions, the second in the next ``spans[1]``.

    Returns:
        The points of both modalities, float64 (pairs, dim) each.

    Raises:
        C3Error: if the spans do not fit into the dimensions.
    """
    first, second = spans
    if first < 0 or second < 0 or first + second > dim:
        raise C3Error(f"The spans {first} and {second} do not fit into {dim} dimensions.")
    rng = generator(seed, "gap after training")
    x = np.tile(rng.standard_normal(dim), (pairs, 1))
    y = np.tile(rng.standard_normal(dim), (pairs, 1))
    x[:, :first] = rng.standard_normal((pairs, first))
    y[:, first : first + second] = rng.standard_normal((pairs, second))
    return x, y


def train_pairs(
    x: Array,
    y: Array,
    *,
    steps: int,
    learning_rate: float = 0.1,
    logit_scale: float = LOGIT_SCALE,
    every: int = 2_000,
    fast: bool = False,
    dtype: torch.dtype = torch.float32,
    reporter: Reporter = SILENT,
) -> tuple[list[TracePoint], Array, Array]:
    """Run full-batch gradient descent on the symmetric cross-entropy of normalised pairs.

    Args:
        x: (n, d), the points of the first modality; any norm, normalised in the loss only.
        y: (n, d), of the second.
        steps: of descent.
        learning_rate: of descent.
        logit_scale: the inverse temperature, fixed.
        every: steps between two points of the trace.
        fast: take `FAST_STEPS` steps at once by Heun's method: within 0.1 % of the plain loop at the paper's
            settings, and ten times as fast.
        dtype: of the computation.
        reporter: shows the progress over the steps.

    Returns:
        The trace, and the points afterwards, in the coordinates given.

    Raises:
        C3Error: if the learning rate or the logit scale is not a finite number above 0.
    """
    for name, value in (("learning rate", learning_rate), ("logit scale", logit_scale)):
        if not 0 < value < np.inf:
            raise C3Error(f"The {name} must be a finite number above 0, not {value}.")
    both = np.concatenate([x, y])
    values, vectors = np.linalg.eigh(both.T @ both)
    basis = vectors[:, values > values[-1] * 1e-10]  # (d, r), orthonormal, of the span of the points
    a = torch.from_numpy(x @ basis).to(dtype)
    b = torch.from_numpy(y @ basis).to(dtype)
    leap = FAST_STEPS if fast else 1
    trace = []
    with reporter.progress("Steps", steps) as progress:
        step = 0
        while True:
            if step % every == 0 or step == steps:
                trace.append(TracePoint(step, float(pair_loss(a, b, logit_scale)), _gap(a, b)))
            if step == steps:
                break
            count = min(leap, steps - step, every - step % every)
            here = learning_rate * count
            da, db = pair_gradients(a, b, logit_scale)
            if fast:
                ea, eb = pair_gradients(a - here * da, b - here * db, logit_scale)
                da, db = (da + ea) / 2, (db + eb) / 2
            a -= here * da
            b -= here * db
            step += count
            progress.advance(count)
    return trace, a.double().numpy() @ basis.T, b.double().numpy() @ basis.T


def pair_loss(a: torch.Tensor, b: torch.Tensor, logit_scale: float) -> torch.Tensor:
    """Return the symmetric cross-entropy of the pairs (a_i, b_i), rows (n, d) of any norm, normalised first."""
    logits = logit_scale * (normalize(a) @ normalize(b).T)  # (n, n)
    own = torch.arange(len(a))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2


def pair_gradients(a: torch.Tensor, b: torch.Tensor, logit_scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of `pair_loss` with respect to the points, written out: it costs a third of autograd's."""
    na, nb = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    ua, ub = a / na, b / nb
    logits = logit_scale * (ua @ ub.T)  # (n, n)
    pull = logits.softmax(dim=1) + logits.softmax(dim=0)
    pull.diagonal().sub_(2)
    pull *= logit_scale / (2 * len(a))
    ga, gb = pull @ ub, pull.T @ ua
    ga = (ga - (ga * ua).sum(dim=1, keepdim=True) * ua) / na
    gb = (gb - (gb * ub).sum(dim=1, keepdim=True) * ub) / nb
    return ga, gb


def _gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((normalize(a).mean(dim=0) - normalize(b).mean(dim=0)).norm())


@styled
def _draw_figure(trace: Sequence[TracePoint], *, paper: bool) -> Figure:
    """Draw loss and gap over steps, with the paper's values if the settings are the paper's."""
    figure, (left, right) = new_figure(9.4, 3.0, columns=2)
    steps = [point.step for point in trace]
    left.plot(steps, [point.loss for point in trace], color=palette.FIRST)
    right.plot(steps, [point.gap for point in trace], color=palette.SECOND)
    if paper:
        for axes, column in ((left, 0), (right, 1)):
            inside = [step for step in PAPER_TRACE if step <= steps[-1]]
            axes.plot(inside, [PAPER_TRACE[step][column] for step in inside], "o", color=palette.INK, markersize=4)
    for axes, name, highest in ((left, "Loss", max(p.loss for p in trace)), (right, "Gap", max(p.gap for p in trace))):
        title = name + ("; dots: the paper" if paper else "")
        axes.set(title=title, xlabel="step of gradient descent", ylim=(0, 1.08 * highest))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure
