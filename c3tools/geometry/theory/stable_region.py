"""The stable region: once a positive leads by enough, the loss is small, the descent halts, and noise is left.

For one query with positive similarity ``s_+`` and n - 1 negatives, ``L = log(1 + sum_j exp((s_j - s_+) / tau))``. With
``r = s_+ - max_j s_j`` every term is at most ``exp(-r / tau)``, so ``L <= log(1 + (n - 1) exp(-r / tau))``: a lead of
``r >= tau log((n - 1) / (exp(delta) - 1))`` suffices for ``L <= delta`` (Zhang et al., ICLR 2024, section 3). A small
tau asks for a small lead, and leaves pairs as far apart as they may be: alignment noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import C3Error
from ...seeds import generator

Array = npt.NDArray[np.float64]

TAUS = (0.01, 0.02, 0.05, 0.07, 0.1)
DEFAULT_DRAWS = 10_000


@dataclass(frozen=True, eq=False)
class StableDraws:
    """Simulated queries.

    Attributes:
        tau: float64 (m,), temperature of each.
        n: int64 (m,), number of candidates of each.
        lead: float64 (m,), r of each.
        loss: float64 (m,), L of each.
        bound: float64 (m,), what L cannot exceed.
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


def loss_bound(lead: npt.ArrayLike, tau: npt.ArrayLike, n: npt.ArrayLike) -> Array:
    """``log(1 + (n - 1) exp(-r / tau))``, without overflow; all arguments broadcast."""
    lead, tau, n = np.asarray(lead, float), np.asarray(tau, float), np.asarray(n, float)
    bound: Array = np.logaddexp(0.0, np.log(n - 1) - lead / tau)
    return bound


def stable_lead(tau: npt.ArrayLike, n: npt.ArrayLike, delta: npt.ArrayLike) -> Array:
    """The lead ``r`` from which on the loss is at most ``delta``: ``tau log((n - 1) / (exp(delta) - 1))``.

    Raises:
        C3Error: if tau or delta is not positive, or n below 2.
    """
    tau, n, delta = np.asarray(tau, float), np.asarray(n, float), np.asarray(delta, float)
    if np.any(tau <= 0) or np.any(delta <= 0) or np.any(n < 2):
        raise C3Error("The stable region needs tau > 0, delta > 0 and n of at least 2.")
    lead: Array = tau * np.log((n - 1) / np.expm1(delta))
    return lead


def simulate_draws(
    *, draws: int = DEFAULT_DRAWS, taus: tuple[float, ...] = TAUS, largest_n: int = 1_000, seed: int = 0
) -> StableDraws:
    """Random queries: similarities of random spread, a positive anywhere between behind and far ahead.

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
