"""Measure whether Collapse helps more at a larger gap: C2_2 and C3, each at its best sigma, on gaps of three lengths.

    python examples/c3_mini/features.py CORPUS FEATURES
    python benchmarks/gap_and_sigma.py FEATURES                   # 3 logit scales, 3 seeds of heads, 2 of decoders
    python benchmarks/gap_and_sigma.py FEATURES --minutes 60      # stop after an hour; run again to continue

Heads on frozen features are trained at each logit scale and with each seed; the higher the scale, the more of the gap
is left. On each of these stores, C2_2 and C3 are trained on the captions with every sigma of the grid. For each method
and store, the best sigma is chosen on val, and this decoder is scored on test with every seed of the decoders. The
table shows both scores by logit scale, and the difference C3 - C2_2 with its 95 % interval over seeds and test images:
the heads of a seed count once, with the mean of their decoders, and both methods caption the same images. The last line
is the difference between the largest and the smallest scale.

On Flickr8k (30,000 captions) a decoder of size tiny with 5 epochs takes 4 minutes of one core. 9 stores, 2 methods,
5 sigmas and a second seed are 108 decoders, 4 hours on 2 cores with --jobs 2.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from connect_temperature import scores as train_heads
from measuring import mean_and_spread, print_table

from c3tools.ablation import ablate
from c3tools.connect import apply_heads, read_features
from c3tools.metrics.significance import crossed_interval
from c3tools.pages.render import interval, signed
from c3tools.store import Store
from c3tools.terminal import TerminalReporter

METHODS = ("C2_2", "C3")
METRIC = "CIDEr"
Array = npt.NDArray[np.float64]
Cells = list[Array]  # by seed of heads: the scores (methods, seeds of decoders, images)


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
            scored = {(run.method, run.seed): run.image_values[METRIC] for run in made.runs}
            cells.setdefault(scale, []).append(
                np.array([[scored[name, seed] for seed in range(options.seeds)] for name in METHODS])
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
    rows = []
    differences = {scale: np.mean([with_ - without for without, with_ in cells[scale]], axis=1) for scale in cells}
    for scale, values in differences.items():
        scores = np.concatenate([each.mean(axis=2) for each in cells[scale]], axis=1)
        rows.append(
            [scale, mean_and_spread(gaps[scale], 2)]
            + [", ".join(f"{sigma:g}" for sigma in sigmas[scale, name]) for name in METHODS]
            + [mean_and_spread(each) for each in scores]
            + described(values)
        )
    if len(cells) > 1:
        first, *_, last = differences.values()
        heads = min(len(first), len(last))
        rows.append(["last - first", *[""] * 5, *described(last[:heads] - first[:heads])])
    return headings, rows


def described(differences: Array) -> list[str]:
    """Return the mean of differences (seeds of heads, images), and its interval."""
    return [signed(float(differences.mean()), 1), interval(crossed_interval(differences), 1)]


if __name__ == "__main__":
    main()
