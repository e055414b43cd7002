"""Measure whether Collapse helps more at a larger gap: C2_2 and C3, each at its best sigma, on gaps of three lengths.

    python examples/c3_mini/features.py CORPUS FEATURES
    python benchmarks/gap_and_sigma.py FEATURES --probe       # words of images: minutes
    python benchmarks/gap_and_sigma.py FEATURES               # captions: 3 scales, 3 seeds of heads, 2 of decoders
    python benchmarks/gap_and_sigma.py FEATURES --minutes 60  # stop after an hour; run again to continue

Heads on frozen features are trained at each logit scale and with each seed; the higher the scale, the more of the gap
is left. On each of these stores, C2_2 and C3 learn from the captions with every sigma of the grid. For each method and
store, the best sigma is chosen on val and scored on test. The table shows both scores by logit scale, and the
difference C3 - C2_2 with its 95 % interval over seeds and test images: the heads of a seed count once, with the mean of
their decoders, and both methods see the same images. The last line is the difference between the largest and the
smallest scale.

With --probe, the probe of `word_probe.py` takes the place of decoders: a regression that names the words of images. It
has no seed. A second table shows what Collapse adds at each sigma of the grid, the same for both methods. A scale of
100+0.3 is one of 100 with `--close-gap 0.3`.

On Flickr8k (30,000 captions) a decoder of size tiny with 5 epochs takes 4 minutes of one core. 9 stores, 2 methods,
5 sigmas and a second seed are 108 decoders, 4 hours on 2 cores with --jobs 2.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from connect_temperature import scores as train_heads
from measuring import mean_and_spread, print_table
from word_probe import METHODS, WORDS, Lesson, read

from c3tools.ablation import ablate
from c3tools.connect import apply_heads, read_features
from c3tools.metrics.significance import crossed_interval
from c3tools.pages.render import interval, signed
from c3tools.store import Store
from c3tools.terminal import TerminalReporter

METRIC = "CIDEr"
GRIDS = {"captions": "0.03,0.045,0.06,0.08,0.1", "words": "0,0.02,0.03,0.045,0.06,0.08,0.1,0.1265,0.16,0.2"}
Array = npt.NDArray[np.float64]


@dataclass
class Found:
    """Results by logit scale; one entry for each seed of the heads.

    Attributes:
        gaps: of the test split.
        sigmas: the best on val of each method.
        cells: the scores (methods, seeds of decoders, images), each method at its best sigma.
        curves: of the probe: what Collapse adds (sigmas, images).
    """

    gaps: dict[str, list[float]] = field(default_factory=dict)
    sigmas: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    cells: dict[str, list[Array]] = field(default_factory=dict)
    curves: dict[str, list[Array]] = field(default_factory=dict)


def main() -> None:
    """Train what is missing, and print the table of what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", type=Path, help="folder of image.npy, text.npy and meta.jsonl")
    parser.add_argument("--probe", action="store_true", help="name words with a regression instead of writing captions")
    parser.add_argument("--scales", default="14,50,100")
    parser.add_argument("--heads", type=int, default=3, help="seeds of the heads")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the decoders")
    parser.add_argument("--grid", help="of sigma")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--epochs", type=int, default=5, help="of the decoders")
    parser.add_argument("--head-epochs", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("gap-and-sigma"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="start no further store after so long")
    options = parser.parse_args()
    grid = options.grid or GRIDS["words" if options.probe else "captions"]
    found = Found()
    for scale, gap, place in stores(options):
        found.gaps.setdefault(scale, []).append(gap)
        if options.probe:
            name_words(found, scale, place, [float(sigma) for sigma in grid.split(",")])
        else:
            write_captions(found, scale, place, grid, options)
    print_table(*table(found))
    if options.probe:
        print("\nC3 - C2_2 by sigma, with the same for both\n")
        print_table(*curve_table(found, grid.split(",")))


def stores(options: argparse.Namespace) -> Iterator[tuple[str, float, Path]]:
    """Yield the logit scale, the gap and the place of each store; heads that are missing are trained."""
    started, folder = time.monotonic(), options.features
    features = read_features(image=folder / "image.npy", text=folder / "text.npy", meta=folder / "meta.jsonl")
    # all scales with the first seed of the heads before any with the second: an early end leaves a balanced table
    for heads in range(options.heads):
        for scale in options.scales.split(","):
            if time.monotonic() - started > 60 * options.minutes:
                print("time is up; the same command continues")
                return
            name = f"{scale}-seed{heads}"
            _, gap, *_ = train_heads(features, scale, heads, options.head_epochs, options.work / "heads" / name)
            place = options.work / "stores" / name
            if not place.exists():
                apply_heads(options.work / "heads" / name, features, place)
            yield scale, gap, place


def write_captions(found: Found, scale: str, place: Path, grid: str, options: argparse.Namespace) -> None:
    """Score the captions of decoders that are trained on a store."""
    made = ablate(
        Store.open(place),
        methods=list(METHODS),
        seeds=options.seeds,
        sigma="best",
        grid=grid,
        size=options.size,
        epochs=options.epochs,
        jobs=options.jobs,
        output=options.work / "tables" / place.name,
        reporter=TerminalReporter(),
    )
    scored = {(run.method, run.seed): run.values[METRIC] for run in made.runs}
    values = [[scored[name, seed] for seed in range(options.seeds)] for name in METHODS]
    found.cells.setdefault(scale, []).append(np.array(values))
    for run in made.runs:
        if run.seed == 0:
            found.sigmas.setdefault((scale, run.method), []).append(run.sigma)


def name_words(found: Found, scale: str, place: Path, sigmas: Sequence[float]) -> None:
    """Score the words that the probe names for the images of a store."""
    source = read(place, scale, WORDS)
    assert source.splits is not None
    train, *held = (np.flatnonzero(source.splits == split) for split in ("train", "val", "test"))
    lesson = Lesson.of(source, train, WORDS)
    asked = [lesson.of_images(source, items) for items in held]
    on_test, cells = [], []
    for method in METHODS:
        val, test = zip(*(lesson.scores(method, sigma, asked) for sigma in sigmas), strict=True)
        best = int(np.argmax(np.mean(val, axis=1)))
        found.sigmas.setdefault((scale, method), []).append(sigmas[best])
        on_test.append(np.array(test))
        cells.append(test[best][None])
    found.cells.setdefault(scale, []).append(np.array(cells))
    found.curves.setdefault(scale, []).append(on_test[1] - on_test[0])


def table(found: Found) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: by logit scale the gap, the sigmas, both scores, and what C3 adds."""
    headings = ["logit scale", "gap", *(f"sigma of {name}" for name in METHODS), *METHODS, "C3 - C2_2", "95 %"]
    rows = []
    differences = {
        scale: np.mean([with_ - without for without, with_ in cells], axis=1) for scale, cells in found.cells.items()
    }
    for scale, values in differences.items():
        scores = np.concatenate([each.mean(axis=2) for each in found.cells[scale]], axis=1)
        rows.append(
            [scale, mean_and_spread(found.gaps[scale], 2)]
            + [", ".join(f"{sigma:g}" for sigma in found.sigmas[scale, name]) for name in METHODS]
            + [mean_and_spread(each) for each in scores]
            + described(values)
        )
    if len(differences) > 1:
        first, *_, last = differences.values()
        heads = min(len(first), len(last))
        rows.append(["last - first", *[""] * 5, *described(last[:heads] - first[:heads])])
    return headings, rows


def curve_table(found: Found, sigmas: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: by sigma, what C3 adds at each logit scale, with its 95 % interval."""
    rows = []
    for number, sigma in enumerate(sigmas):
        cells = [described(np.array([each[number] for each in curves])) for curves in found.curves.values()]
        rows.append([sigma, *(f"{mean} [{ends}]" for mean, ends in cells)])
    return ["sigma", *(f"logit scale {scale}" for scale in found.curves)], rows


def described(differences: Array) -> list[str]:
    """Return the mean of differences (seeds of heads, images), and its interval."""
    return [signed(float(differences.mean()), 1), interval(crossed_interval(differences), 1)]


if __name__ == "__main__":
    main()
