"""Measure whether Collapse helps more at a larger gap: C2_2 and C3, each at its best sigma, on gaps of three lengths.

    python examples/c3_mini/features.py CORPUS FEATURES
    python benchmarks/gap_and_sigma.py FEATURES                   # 3 logit scales, 3 seeds of heads, 2 of decoders
    python benchmarks/gap_and_sigma.py FEATURES --minutes 60      # stop after an hour; run again to continue

Heads on frozen features are trained at each logit scale and with each seed; the higher the scale, the more of the gap
is left. On each of these stores, C2_2 and C3 are trained on the captions with every sigma of the grid. For each method
and store, the best sigma is chosen on val, and this decoder is scored on test with every seed of the decoders. The
table shows both scores by logit scale, and the difference C3 - C2_2 with its 95 % interval from a hierarchical
bootstrap: seeds of heads, seeds of decoders and test images are drawn with replacement, the same images for both
methods. The last line is the difference between the largest and the smallest scale.

On Flickr8k (30,000 captions) a decoder of size tiny with 5 epochs takes 4 minutes of one core. 9 stores, 2 methods,
5 sigmas and a second seed are 108 decoders, 4 hours on 2 cores with --jobs 2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from connect_temperature import scores as train_heads
from measuring import print_table

from c3tools.ablation import ablate
from c3tools.captioning.evaluate import store_references
from c3tools.connect import apply_heads, read_features
from c3tools.metrics.captions import CaptionScores, score_captions
from c3tools.metrics.significance import mean_and_std
from c3tools.seeds import generator
from c3tools.store import Store
from c3tools.terminal import TerminalReporter

METHODS = ("C2_2", "C3")
METRIC = "CIDEr"
RESAMPLES = 2_000
Array = npt.NDArray[np.float64]
Cells = list[list[tuple[CaptionScores, CaptionScores]]]  # by seed of heads and seed of decoders: C2_2 and C3


def main() -> None:
    """Train what is missing, and print the table of what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="folder of image.npy, text.npy and meta.jsonl")
    parser.add_argument("--scales", default="14,50,100")
    parser.add_argument("--heads", type=int, default=3, help="seeds of the heads")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the decoders")
    parser.add_argument("--grid", default="0.03,0.045,0.06,0.08,0.1")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--epochs", type=int, default=5, help="of the decoders")
    parser.add_argument("--head-epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("gap-and-sigma"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further store after so long")
    options = parser.parse_args()
    started, folder = time.monotonic(), options.features
    features = read_features(image=folder / "image.npy", text=folder / "text.npy", meta=folder / "meta.jsonl")
    gaps: dict[str, list[float]] = {}
    sigmas: dict[tuple[str, str], list[float]] = {}
    cells: dict[str, Cells] = {}
    # all scales with the first seed of the heads before any with the second: an early end leaves a balanced table
    for heads in range(options.heads):
        for scale in options.scales.split(","):
            if time.monotonic() - started > 60 * options.minutes:
                print("time is up; the same command continues")
                print_table(*table(gaps, sigmas, cells))
                return
            name = f"{scale}-seed{heads}"
            _, gap, *_ = train_heads(features, scale, heads, options.head_epochs, options.work / "heads" / name)
            place = options.work / "stores" / name
            if not place.exists():
                apply_heads(options.work / "heads" / name, features, place)
            store = Store.open(place)
            gaps.setdefault(scale, []).append(gap)
            made = ablate(
                store,
                methods=METHODS,
                seeds=options.seeds,
                sigma="best",
                grid=options.grid,
                size=options.size,
                epochs=options.epochs,
                jobs=options.jobs,
                output=options.work / "tables" / name,
                reporter=TerminalReporter(),
            )
            references = store_references(store)
            scored = {(run.method, run.seed): score_captions(run.captions, references) for run in made.runs}
            cells.setdefault(scale, []).append(
                [(scored["C2_2", seed], scored["C3", seed]) for seed in range(options.seeds)]
            )
            for run in made.runs:
                if run.seed == 0:
                    sigmas.setdefault((scale, run.method), []).append(run.sigma)
    print_table(*table(gaps, sigmas, cells))


def table(
    gaps: dict[str, list[float]], sigmas: dict[tuple[str, str], list[float]], cells: dict[str, Cells]
) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: by logit scale the gap, the sigmas, both scores, and what C3 adds."""
    headings = ["logit scale", "gap", *(f"sigma of {name}" for name in METHODS), *METHODS, "C3 - C2_2", "95 %"]
    rows, differences = [], {scale: hierarchical(cells[scale], difference) for scale in cells}
    for scale, (value, draws) in differences.items():
        scores = [[pair[place].corpus[METRIC] for decoders in cells[scale] for pair in decoders] for place in range(2)]
        rows.append(
            [scale, spread(gaps[scale], 2)]
            + [", ".join(f"{sigma:g}" for sigma in sigmas[scale, name]) for name in METHODS]
            + [spread(values, 1) for values in scores]
            + [f"{value:+.1f}", interval(draws)]
        )
    if len(cells) > 1:
        (low, low_draws), *_, (high, high_draws) = differences.values()
        rows.append(["last - first", *[""] * 5, f"{high - low:+.1f}", interval(high_draws - low_draws)])
    return headings, rows


def hierarchical(
    cells: Cells,
    statistic: Callable[[tuple[CaptionScores, CaptionScores], npt.NDArray[np.int64]], float],
    *,
    resamples: int = RESAMPLES,
) -> tuple[float, Array]:
    """Return the mean of a statistic over heads and decoders, and its values (resamples,) in the bootstrap.

    Args:
        cells: pairs of scores by seed of heads and seed of decoders, all of the same images.
        statistic: of one pair on rows (n,) of the images.
        resamples: how often seeds of heads, of these seeds of decoders, and images are drawn with replacement.
    """
    n = len(cells[0][0][0].keys)
    every = np.arange(n)
    value = float(np.mean([[statistic(pair, every) for pair in decoders] for decoders in cells]))
    rng = generator(0, "hierarchical bootstrap")  # the same images for every logit scale
    draws = np.empty(resamples)
    for number in range(resamples):
        rows = rng.integers(0, n, n)
        drawn = [cells[place] for place in rng.integers(0, len(cells), len(cells))]
        draws[number] = np.mean(
            [
                statistic(decoders[place], rows)
                for decoders in drawn
                for place in rng.integers(0, len(decoders), len(decoders))
            ]
        )
    return value, draws


def difference(pair: tuple[CaptionScores, CaptionScores], rows: npt.NDArray[np.int64]) -> float:
    """Return C3 - C2_2 on rows of the images."""
    without, collapsed = (scores.resampled(METRIC, rows) for scores in pair)
    return collapsed - without


def spread(values: Sequence[float], digits: int) -> str:
    """Return mean ± standard deviation, the latter where there are several values."""
    mean, std = mean_and_std(values)
    return f"{mean:.{digits}f}" if std is None else f"{mean:.{digits}f} ± {std:.{digits}f}"


def interval(draws: Array) -> str:
    """Return the 95 % interval of draws in words."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{low:+.1f} to {high:+.1f}"


if __name__ == "__main__":
    main()
