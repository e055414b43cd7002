"""The stable region: once positives lead by enough, the loss is small, optimisation stops, and noise is left.

For one query with positive similarity ``s_+`` and n - 1 negatives, ``L = log(1 + sum_j exp((s_j - s_+) / tau))``. With
``r = s_+ - max_j s_j`` every term is at most ``exp(-r / tau)``, so ``L <= log(1 + (n - 1) exp(-r / tau))``: a lead of
``r >= tau log((n - 1) / (exp(delta) - 1))`` suffices for ``L <= delta`` (Zhang et al., ICLR 2024, section 3).

That is a theorem. The conclusions of the paper are not, and can fail: that training ends with a lead in proportion to
tau, that it then stops, and that a small tau leaves pairs further apart, as alignment noise. The simulation trains
points from unrelated starts at several temperatures until the loss is delta, and checks these three conclusions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch.nn.functional import normalize

from ...arrays import Array
from ...errors import C3Error
from ...metrics.significance import to_json
from ...pages import Table, new_figure, palette, styled
from ...reporter import SILENT, Reporter
from ...seeds import generator
from . import Simulation
from .optimisation import pair_gradients, pair_loss

TAUS = (0.01, 0.02, 0.05, 0.07, 0.1)
PROPORTIONAL = 2.0
"""Leads over tau that differ by less than this factor, where tau differs by more, count as proportional."""
_TENTHS = 10


@dataclass(frozen=True)
class StableRun:
    """Trained points at one temperature, when their loss first was delta.

    Attributes:
        tau: temperature.
        steps: of gradient descent until then.
        loss: then.
        start_lead: median lead of the positives before training.
        lead: median lead then, over queries of both directions.
        sufficient_lead: the lead that guarantees the loss.
        noise: root mean square, per dimension, of the alignment noise of the pairs.
        later_lead: median lead after ten times as many steps.
    """

    tau: float
    steps: int
    loss: float
    start_lead: float
    lead: float
    sufficient_lead: float
    noise: float
    later_lead: float


def simulate_stable_region(
    *,
    tau: Sequence[float] | None = None,
    delta: float = 0.1,
    pairs: int = 400,
    dim: int = 64,
    steps: int = 5_000,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Train points at several temperatures, and compare leads and alignment noise with the predictions of the paper.

    Args:
        tau: Temperatures. By default 0.01, 0.02, 0.05, 0.07 and 0.1.
        delta: The loss at which a training stops.
        pairs: Number of pairs.
        dim: Dimension of the points.
        steps: Largest number of steps of a training.
        seed: Seed for all random numbers.
        reporter: Shows the progress over the temperatures.

    Raises:
        C3Error: if a temperature or delta is not positive, there are fewer than 3 pairs, or a training does not reach
            the loss.
    """
    taus = sorted(set(tau or TAUS))
    with reporter.progress("Temperatures", len(taus)) as progress:
        runs = []
        for value in taus:
            runs.append(train_to_loss(value, delta=delta, pairs=pairs, dim=dim, steps=steps, seed=seed))
            progress.advance(note=f"tau {value:g}")
    verdicts = predictions(runs)
    rows = [
        [
            f"{run.tau:g}",
            f"{run.steps:,}",
            f"{run.start_lead:.3f}",
            f"{run.lead:.3f}",
            f"{run.lead / run.tau:.1f}",
            f"{run.sufficient_lead:.3f}",
            f"{run.noise:.4f}",
            f"{run.later_lead:.3f}",
        ]
        for run in runs
    ]
    columns = ["tau", "steps", "lead before", "lead", "lead / tau", "sufficient", "noise left", "lead later"]
    words = {True: "yes", False: "no", None: "unknown"}
    said = "; ".join(f"{name}: {words[held]}" for name, held in verdicts.items()) + "."
    if None in verdicts.values():
        said += f" To compare temperatures, choose two that differ by more than a factor of {PROPORTIONAL:g}."
    return Simulation(
        name="stable-region",
        table=Table(columns, rows),
        values=to_json(
            {
                "delta": delta,
                "pairs": pairs,
                "dim": dim,
                "seed": seed,
                "runs": [asdict(run) for run in runs],
                "predictions": verdicts,
            }
        ),
        figure=_draw_figure(runs),
        found=f"Trained until the loss is {delta:g}. {said[0].upper()}{said[1:]}",
        paper="Once every positive leads by r, the loss is small and the optimisation stops. The differences between "
        "pairs at that point are alignment noise, and a lower temperature leaves more of it.",
    )


def predictions(runs: Sequence[StableRun]) -> dict[str, bool | None]:
    """Return whether the paper's three predictions hold for runs in ascending order of tau.

    The two about the dependence on tau are None unless tau differs by more than `PROPORTIONAL`: a constant lead would
    pass too.
    """
    over_tau = [run.lead / run.tau for run in runs]
    compared = runs[-1].tau > PROPORTIONAL * runs[0].tau
    return {
        "the lead is in proportion to tau": 0 < max(over_tau) < PROPORTIONAL * min(over_tau) if compared else None,
        "a lower tau leaves more noise": all(a.noise > b.noise for a, b in pairwise(runs)) if compared else None,
        "the optimisation stops (nine times as many further steps gain less than half as much lead)": all(
            run.later_lead - run.lead < 0.5 * (run.lead - run.start_lead) for run in runs
        ),
    }


def train_to_loss(
    tau: float, *, delta: float = 0.1, pairs: int = 400, dim: int = 64, steps: int = 5_000, seed: int = 0
) -> StableRun:
    """Train two sets of unrelated random points by gradient descent until the mean loss of their pairs is delta.

    The step is ``n tau^2``: the curvature of the loss is at most of the order of its inverse.

    Raises:
        C3Error: see `simulate_stable_region`.
    """
    sufficient = float(stable_lead(tau, pairs, delta))
    rng = generator(seed, "stable region")
    a, b = (normalize(torch.from_numpy(rng.standard_normal((pairs, dim)))) for _ in range(2))
    start, reached = float(np.median(leads(a, b))), -1
    found: tuple[float, float, float] | None = None
    for step in range(_TENTHS * steps + 1):
        if reached < 0:
            loss = float(pair_loss(a, b, 1 / tau))
            if loss <= delta:
                difference = (a - b).numpy()
                noise = float(np.sqrt(np.mean((difference - difference.mean(axis=0)) ** 2)))
                reached, found = max(step, 1), (loss, float(np.median(leads(a, b))), noise)
            elif step == steps:
                break
        elif step >= _TENTHS * reached:
            break
        da, db = pair_gradients(a, b, 1 / tau)
        rate = pairs * tau**2
        a, b = normalize(a - rate * da), normalize(b - rate * db)
    if found is None:
        raise C3Error(
            f"At tau {tau:g} the loss of {pairs} pairs in {dim} dimensions is {loss:.3f} after {steps:,} steps, "
            f"above delta {delta:g}.",
            remedy="Use more --steps, a larger --delta or more dimensions.",
        )
    return StableRun(tau, reached, found[0], start, found[1], sufficient, found[2], float(np.median(leads(a, b))))


def leads(a: torch.Tensor, b: torch.Tensor) -> Array:
    """Return how far the positive of each query leads its best negative, in both directions: float64 (2 n,)."""
    cosines = (a @ b.T).double().numpy()
    own = np.diag(cosines).copy()
    np.fill_diagonal(cosines, -np.inf)
    return np.concatenate([own - cosines.max(axis=1), own - cosines.max(axis=0)])


def loss_bound(lead: npt.ArrayLike, tau: npt.ArrayLike, n: npt.ArrayLike) -> Array:
    """Return ``log(1 + (n - 1) exp(-r / tau))``, without overflow; all arguments broadcast."""
    lead, tau, n = np.asarray(lead, float), np.asarray(tau, float), np.asarray(n, float)
    return np.asarray(np.logaddexp(0.0, np.log(n - 1) - lead / tau))


def stable_lead(tau: npt.ArrayLike, n: npt.ArrayLike, delta: npt.ArrayLike) -> Array:
    """Return the lead from which on the loss is at most ``delta``: ``tau log((n - 1) / (exp(delta) - 1))``.

    Raises:
        C3Error: if tau is not a finite number above 0, delta is not positive, or n is below 2.
    """
    tau, n, delta = np.asarray(tau, float), np.asarray(n, float), np.asarray(delta, float)
    if not np.all((tau > 0) & (tau < np.inf) & (delta > 0) & (n >= 2)):
        raise C3Error("The stable region needs tau > 0 (and finite), delta > 0 and n of at least 2.")
    return np.asarray(tau * np.log((n - 1) / np.expm1(delta)))


@styled
def _draw_figure(runs: Sequence[StableRun]) -> Figure:
    """Draw the lead and the noise that training leaves, against the temperature."""
    figure, (left, right) = new_figure(9.4, 3.2, columns=2)
    taus = [run.tau for run in runs]
    left.plot(taus, [run.sufficient_lead for run in runs], "--", color=palette.MUTED, label="sufficient")
    left.plot(taus, [run.lead for run in runs], "o-", color=palette.FIRST, markersize=4, label="at the given loss")
    left.plot(
        taus,
        [run.later_lead for run in runs],
        "o-",
        color=palette.SECOND,
        markersize=4,
        label="after ten times the steps",
    )
    left.set(title="Lead of the positives", xlabel="temperature", xlim=(0, None), ylim=(0, None))
    left.legend(loc="upper left")
    right.plot(taus, [run.noise for run in runs], "o-", color=palette.THIRD, markersize=4)
    right.set(title="Alignment noise left, per dimension", xlabel="temperature", xlim=(0, None), ylim=(0, None))
    return figure
