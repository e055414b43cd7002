"""Measure how much a few image–caption pairs help a decoder that was trained on texts, and one that
was not.

    python benchmarks/low_data.py --store c3-store    # 1, 5, 10, 25% of the pairs, 3 seeds
    python benchmarks/low_data.py --store c3-store --minutes 30    # run again to continue

For each seed, a decoder is trained on texts (`c3 train-decoder`). For each share of the pairs it is
then trained further with its noise (--from, --pairs), and another decoder is trained from scratch
on the same pairs (--pairs alone). The seed chooses the pairs. The checkpoint is chosen on the same
share of the val pairs, and the scores are those of the test images, with their 95% interval over
images and seeds. Finished scores are kept in --output. --noised adds training from scratch with the
same noise.

On Flickr8k (one core, size tiny) a seed takes about 4 minutes for the texts and 0.5 to 1 minute for
each of the other 8 trainings, 25 minutes in total. It should print a table in which the pre-trained
decoder is ahead, with the largest difference where pairs are few, and draw low-data.svg.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import mean_and_spread

from c3tools import evaluate_captions, train_captioner
from c3tools.metrics.significance import crossed_interval
from c3tools.pages import palette
from c3tools.pages.figures import new_figure, save_figure, styled
from c3tools.pages.render import interval, signed
from c3tools.store import Store
from c3tools.terminal import TerminalReporter

TUNED, SCRATCH, NOISED = "texts, then pairs", "pairs from scratch", "pairs from scratch, with noise"
KINDS = {TUNED: palette.SECOND, SCRATCH: palette.FIRST, NOISED: palette.FOURTH}


def main() -> None:
    """Run what is missing, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("c3-store"))
    parser.add_argument("--output", type=Path, default=Path("c3-low-data"))
    parser.add_argument("--shares", default="0.01,0.05,0.1,0.25")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--sigma", default="auto")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--noised", action="store_true", help="from scratch with the same noise too"
    )
    parser.add_argument(
        "--minutes", type=float, default=None, help="start no further training after so long"
    )
    options = parser.parse_args()
    store = Store.open(options.store)
    path = options.output / "image-scores.json"
    scores: dict[str, list[float]] = json.loads(path.read_text()) if path.is_file() else {}
    started = time.monotonic()
    for seed in range(options.seeds):
        texts = options.output / f"texts-{seed}"
        shared: dict[str, Any] = {
            "epochs": options.epochs,
            "seed": seed,
            "overwrite": True,
        }
        jobs = {f"texts alone/0/{seed}": {"output": texts, "sigma": options.sigma}}
        for share in (float(text) for text in options.shares.split(",")):
            jobs[f"{TUNED}/{share:g}/{seed}"] = {
                "output": options.output / "tuned",
                "start": texts,
                "pairs": share,
            }
            jobs[f"{SCRATCH}/{share:g}/{seed}"] = {
                "output": options.output / "scratch",
                "pairs": share,
            }
            if options.noised:
                noised = {
                    "output": options.output / "noised",
                    "sigma": options.sigma,
                    "pairs": share,
                }
                jobs[f"{NOISED}/{share:g}/{seed}"] = noised
        for name, settings in jobs.items():
            if name in scores:
                continue
            if "start" not in settings:
                settings["size"] = options.size
            if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
                print("time is up; the same command continues")
                report(options, scores)
                return
            captioner = train_captioner(store, **shared, **settings, reporter=TerminalReporter())
            result = evaluate_captions(
                store, decoder=captioner, split=options.split, beams=1, resamples=0
            )
            scores[name] = result.details.image_values("CIDEr").round(4).tolist()
            options.output.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(scores, indent=1))
            print(f"{name}: CIDEr {np.mean(scores[name]):.1f}")
    report(options, scores)


@styled
def report(options: argparse.Namespace, scores: dict[str, list[float]]) -> None:
    """Draw low-data.svg and print the table, from the scores of the images."""
    found: dict[str, dict[float, list[list[float]]]] = {}
    for name, value in scores.items():
        kind, part, _ = name.split("/")
        found.setdefault(kind, {}).setdefault(float(part), []).append(value)
    alone = found.get("texts alone", {}).get(0.0, [])
    figure, axes = new_figure(6.4, 3.8)
    kinds = [kind for kind in KINDS if kind in found]
    print("| pairs | " + " | ".join(kinds) + " |\n|---|" + "---|" * len(kinds))
    shares = sorted({share for kind in kinds for share in found[kind]})
    for share in shares:
        print(
            f"| {100 * share:g}% | "
            + " | ".join(cell(found[kind].get(share, [])) for kind in kinds)
            + " |"
        )
    print(f"texts alone: {cell(alone)}")
    for kind in kinds:
        for share, of_share in sorted(found[kind].items()):
            seeds = min(len(of_share), len(alone))
            if seeds:
                gain = np.array(of_share[:seeds]) - np.array(alone[:seeds])
                ends = interval(crossed_interval(gain), 1)
                difference = f"{signed(gain.mean(), 1)}, 95% interval {ends}"
                print(f"{kind}, {100 * share:g}%, minus texts alone: {difference}")
    for kind in kinds:
        points = found[kind]
        own = sorted(points)
        of_seeds = [np.mean(points[share], axis=1) for share in own]
        means = [float(np.mean(scores)) for scores in of_seeds]
        bars = [float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0 for scores in of_seeds]
        axes.errorbar(
            [100 * s for s in own],
            means,
            yerr=bars,
            fmt="o-",
            color=KINDS[kind],
            capsize=2,
            label=kind,
        )
    if alone:
        axes.axhline(
            np.mean(alone),
            color=palette.MUTED,
            linestyle=(0, (4, 3)),
            linewidth=0.9,
            label="texts alone",
        )
    axes.set_xscale("log")
    axes.set_xticks([100 * share for share in shares], [f"{100 * share:g}" for share in shares])
    axes.set_xlabel("pairs, % of the training images")
    axes.set_ylabel(f"CIDEr on the {options.split} images, %")
    axes.set_ylim(bottom=0)
    axes.legend()
    save_figure(figure, options.output / "low-data.svg")


def cell(values: list[list[float]]) -> str:
    """Mean ± standard deviation, interval (number of seeds), of the scores of images by seed."""
    if not values:
        return "–"
    ends = interval(crossed_interval(np.array(values)), 1)
    return f"{mean_and_spread(np.mean(values, axis=1))}{ends and f', {ends}'} ({len(values)})"


if __name__ == "__main__":
    main()
