"""The stable region: once a positive leads by enough, the loss is small, the descent halts, and noise is left.

For one query with positive similarity ``s_+`` and n - 1 negatives, ``L = log(1 + sum_j exp((s_j - s_+) / tau))``. With
``r = s_+ - max_j s_j`` every term is at most ``exp(-r / tau)``, so ``L <= log(1 + (n - 1) exp(-r / tau))``: a lead of
``r >= tau log((n - 1) / (exp(delta) - 1))`` suffices for ``L <= delta`` (Zhang et al., ICLR 2024, section 3). A small
tau requires only a small lead, and leaves pairs some distance apart: alignment noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from ...errors import C3Error
from ...moments import Array
from ...pages import Table, new_figure, palette, styled
from ...seeds import generator
from ..report import to_json_floats
from . import Simulation

TAUS = (0.01, 0.02, 0.05, 0.07, 0.1)
_DELTAS = (0.1, 0.01)
_SIZES = (100, 1_000, 10_000, 100_000)


@dataclass(frozen=True, eq=False)
class StableDraws:
    """Simulated queries.

    Attributes:
        tau: float64 (m,), temperature of each.
        n: int64 (m,), number of candidates of each.
        lead: float64 (m,), r of each.
        loss: float64 (m,), L of each.
        bound: float64 (m,), upper bound of L.
    """

    tau: Array
    n: npt.NDArray[np.int64]
    lead: Array
    loss: Array
    bound: Array

    @property
    def above(self) -> int:
        """Draws whose loss exceeds the bound by more than rounding."""
        return int(np.sum(self.loss > self.bound * (1 + 1e-12) + 1e-12))


def simulate_stable_region(
    *, draws: int = 10_000, tau: Sequence[float] | None = None, largest_n: int = 1_000, seed: int = 0
) -> Simulation:
    """Compare the bound of the loss with random queries, and list the leads that guarantee a small loss.

    Args:
        draws: random queries.
        tau: temperatures; by default 0.01, 0.02, 0.05, 0.07 and 0.1.
        largest_n: most candidates of a query.
        seed: of the draws.

    Raises:
        C3Error: if there are no draws, or a temperature is not positive.
    """
    taus = tuple(tau or TAUS)
    simulated = draw_queries(draws=draws, taus=taus, largest_n=largest_n, seed=seed)
    rows = [[f"{tau:g}", *(f"{float(stable_lead(tau, n, _DELTAS[0])):.3f}" for n in _SIZES)] for tau in taus]
    leads = [
        {"tau": tau, "n": n, "delta": delta, "lead": float(stable_lead(tau, n, delta))}
        for tau in taus
        for n in _SIZES
        for delta in _DELTAS
    ]
    return Simulation(
        name="stable-region",
        table=Table(["tau", *(f"r, n = {n:,}" for n in _SIZES)], rows),
        values=to_json_floats({"draws": draws, "above_bound": simulated.above, "seed": seed, "leads": leads}),
        figure=_draw_figure(simulated),
        found=f"{simulated.above} of {draws:,} random draws lie above the bound. The table has the lead r of the "
        f"positive that guarantees a loss of at most {_DELTAS[0]}.",
        paper="Once every positive leads by r the loss is small and the optimisation halts; what differs between pairs "
        "by then is alignment noise, and a lower temperature leaves more of it.",
    )


def loss_bound(lead: npt.ArrayLike, tau: npt.ArrayLike, n: npt.ArrayLike) -> Array:
    """Return ``log(1 + (n - 1) exp(-r / tau))``, without overflow; all arguments broadcast."""
    lead, tau, n = np.asarray(lead, float), np.asarray(tau, float), np.asarray(n, float)
    return np.asarray(np.logaddexp(0.0, np.log(n - 1) - lead / tau))


def stable_lead(tau: npt.ArrayLike, n: npt.ArrayLike, delta: npt.ArrayLike) -> Array:
    """Return the lead from which on the loss is at most ``delta``: ``tau log((n - 1) / (exp(delta) - 1))``.

    Raises:
        C3Error: if tau or delta is not positive, or n below 2.
    """
    tau, n, delta = np.asarray(tau, float), np.asarray(n, float), np.asarray(delta, float)
    if np.any(tau <= 0) or np.any(delta <= 0) or np.any(n < 2):
        raise C3Error("The stable region needs tau > 0, delta > 0 and n of at least 2.")
    return np.asarray(tau * np.log((n - 1) / np.expm1(delta)))


def draw_queries(*, draws: int, taus: tuple[float, ...] = TAUS, largest_n: int = 1_000, seed: int = 0) -> StableDraws:
    """Draw random queries: similarities of random spread, a positive anywhere between behind and far ahead.

    Each draw has its own n (log-uniform from 2), temperature (one of ``taus``), spread of the negatives and position
    of the positive, so that leads of both signs and negatives of all shapes occur.

    Raises:
        C3Error: if there are no draws, or a temperature is not positive.
    """
    if draws < 1 or largest_n < 2 or min(taus) <= 0:
        raise C3Error("The simulation needs at least one draw, n of at least 2, and temperatures above 0.")
    rng = generator(seed, "stable region")
    tau = rng.choice(np.asarray(taus), draws)
    n = np.exp(rng.uniform(np.log(2), np.log(largest_n + 1), draws)).astype(np.int64).clip(2, largest_n)
    lead, loss = np.empty(draws), np.empty(draws)
    for row in range(draws):
        spread = rng.uniform(0.0, 0.2)
        negatives = np.clip(rng.normal(rng.uniform(-0.5, 0.3), spread, n[row] - 1), -1, 1)
        positive = np.clip(negatives.max() + rng.uniform(-0.1, 0.9), -1, 1)
        differences = (negatives - positive) / tau[row]
        lead[row] = positive - negatives.max()
        highest = float(differences.max())
        loss[row] = np.logaddexp(0.0, highest + np.log(np.exp(differences - highest).sum()))
    return StableDraws(tau, n, lead, loss, loss_bound(lead, tau, n))


@styled
def _draw_figure(draws: StableDraws) -> Figure:
    """Draw the loss of simulated queries against their lead over the temperature, under the bound."""
    figure, axes = new_figure(7.2, 3.8)
    x = draws.lead / draws.tau
    inside = (x > -12) & (x < 22)
    share = draws.loss[inside] / np.maximum(draws.bound[inside], 1e-300)
    chosen = np.flatnonzero(inside)[:: max(1, int(inside.sum()) // 1_500)]
    axes.scatter(x[chosen], draws.loss[chosen], s=5, color=palette.FIRST, linewidths=0, alpha=0.6, label="simulated")
    grid = np.linspace(-12, 22, 300)
    for n, style in ((int(draws.n.max()), "-"), (2, (0, (4, 2)))):
        bound = loss_bound(grid, 1.0, n)
        axes.plot(grid, bound, color=palette.SECOND, linestyle=style, label=f"bound, n = {n:,}")
    median = 100 * float(np.median(share))
    title = f"Inside the stable region the loss is small (median: {median:.0f} % of its bound)"
    axes.set(title=title, xlabel="lead of the positive over the temperature, r / tau", ylabel="loss", ylim=(0, 14))
    axes.legend(loc="upper right")
    return figure
