"""Measure CIDEr by sigma for C2_2 and C3, and mark the candidate rules for `--sigma auto`.

    # 9 sigmas, 3 seeds, size tiny
    python benchmarks/sigma_sweep.py --store c3-store
    # stop after 30 minutes; run again to continue
    python benchmarks/sigma_sweep.py --store c3-store --minutes 30
    # share the decoders of `c3 ablate-captions`
    python benchmarks/sigma_sweep.py --store c3-store --output c3-ablation

`c3 ablate-captions` trains, captions and scores each cell of the table. Finished cells are kept in
--output, so the sweep can be run in pieces, or on several cores with one method each; the figure
shows the cells that are finished. Without noise, C2_2 is C1 and C3 is C2_1, so these are run for
sigma 0. The rules are computed from the val split, whose pairs the decoder did not learn from (the
encoder may have).

On Flickr8k (30,000 captions, 2 cores) a cell of size tiny takes about 3 minutes, or 2 with --epochs
5; 54 cells take 2 to 3 hours. --paired adds the decoder trained on real pairs as a line (3 cells).
For each rule, the script should print how much the sigma it gives loses compared with the best
sigma of the sweep, and last the sigmas that 10 and 20 pairs give, and what noise on the images does
to recall@1 and to both rules. --minutes 0 prints only these, in a minute.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from measuring import mean_and_spread

from c3tools import ablate_captions
from c3tools.metrics.retrieval import nearest
from c3tools.metrics.significance import crossed_interval
from c3tools.moments import Moments, unit_rows
from c3tools.pages import palette
from c3tools.pages.figures import new_figure, save_figure, styled
from c3tools.pages.render import interval
from c3tools.paper.ablation.cells import MethodRun
from c3tools.seeds import generator
from c3tools.store import Store
from c3tools.terminal import TerminalReporter
from c3tools.transforms.fitting import moments_of
from c3tools.transforms.sigma import (
    MIN_IMAGES,
    PUBLISHED,
    RECOMMENDED_IMAGES,
    SigmaRule,
    caption_spread,
    pair_cosine,
    scaled_spread,
)

NAMES = {
    "caption_spread": "spread of captions (texts alone)",
    "scaled_spread": "scaled spread (texts alone)",
    "residual_rms": "residual of pairs",
    "pair_cosine": "cosine of pairs",
    "published": "published",
}
WITHOUT_NOISE = {"C2_2": "C1", "C3": "C2_1"}
IMAGE_NOISE = 0.06  # per dimension
NOISED = {plain: noised for noised, plain in WITHOUT_NOISE.items()}


def main() -> None:
    """Run what is missing, then draw and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("c3-store"))
    parser.add_argument("--output", type=Path, default=Path("c3-sigma-sweep"))
    parser.add_argument("--sigmas", default="0,0.02,0.03,0.045,0.06,0.08,0.1,0.1265,0.16")
    parser.add_argument("--methods", default="C2_2,C3", help="one of them or both")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--epochs", type=int, default=None)
    parser.add_argument("--split", default="test")
    parser.add_argument(
        "--paired", action="store_true", help="also train on real pairs, as a level to compare with"
    )
    parser.add_argument("--title", default=None, help="of the figure, in place of the model's name")
    parser.add_argument(
        "--minutes", type=float, default=None, help="start no further sigma after so long"
    )
    options = parser.parse_args()
    store = Store.open(options.store)
    sigmas = tuple(float(text) for text in options.sigmas.split(","))
    methods = tuple(options.methods.split(","))
    rules = store_rules(store)
    shared = {
        "seeds": options.seeds,
        "size": options.size,
        "set": options.set,
        "epochs": options.epochs,
    }
    shared |= {
        "split": options.split,
        "beams": 1,
        "output": options.output,
        "reporter": TerminalReporter(),
    }
    tables = [
        (sigma, methods if sigma else [WITHOUT_NOISE[name] for name in methods]) for sigma in sigmas
    ]
    tables += [(0.0, ["paired"])] if options.paired else []
    runs: list[MethodRun] = []
    started = time.monotonic()
    for sigma, names in tables:
        if options.minutes is not None and time.monotonic() - started > 60 * options.minutes:
            print("time is up; the same command continues")
            break
        table = ablate_captions(store, methods=names, sigma=sigma, **shared)
        runs += [replace(run, method=NOISED.get(run.method, run.method)) for run in table.runs]
        report(options, store, rules, runs)
    print(report(options, store, rules, runs))
    print("", *(few_pairs(store, count) for count in (MIN_IMAGES, RECOMMENDED_IMAGES)), sep="\n")
    for noise in (0.0, IMAGE_NOISE):
        print(noisy_images(store, noise))


def report(
    options: argparse.Namespace, store: Store, rules: dict[str, float], runs: list[MethodRun]
) -> str:
    """Write sweep.json and sweep.svg from the runs so far; returns the table."""
    curves: dict[str, dict[float, list[float]]] = {}
    values: dict[tuple[str, float], list[list[float]]] = {}
    paired = [run.scores["CIDEr"] for run in runs if run.method == "paired"]
    for run in runs:
        if run.method != "paired":
            curves.setdefault(run.method, {}).setdefault(run.sigma, []).append(run.scores["CIDEr"])
            values.setdefault((run.method, run.sigma), []).append(run.values["CIDEr"])
    intervals = {of: crossed_interval(np.array(each)) for of, each in values.items()}
    content = {
        "store": str(options.store),
        "model": store.info.model.get("name"),
        "cider": {
            name: {f"{sigma:g}": values for sigma, values in points.items()}
            for name, points in curves.items()
        },
        "paired": paired,
        "rules": rules,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "sweep.json").write_text(json.dumps(content, indent=1))
    level = (f"trained on pairs {np.mean(paired):.1f}", float(np.mean(paired))) if paired else None
    title = f"{options.title or store.info.model.get('name')}, {options.split} split"
    if curves:
        draw(options.output / "sweep.svg", curves, rules, title, level)
    return markdown_table(curves, intervals, rules)


def markdown_table(
    curves: dict[str, dict[float, list[float]]],
    intervals: dict[tuple[str, float], tuple[float, float] | None],
    rules: dict[str, float],
) -> str:
    """Mean ± standard deviation by sigma, the 95% interval over images and seeds, the number of
    seeds.

    Then what each rule loses, by linear interpolation between sigmas.
    """
    lines = ["| sigma | " + " | ".join(curves) + " |", "|---|" + "---|" * len(curves)]
    for sigma in sorted({sigma for points in curves.values() for sigma in points}):
        cells = []
        for name, points in curves.items():
            values = points.get(sigma, [])
            ends = interval(intervals.get((name, sigma)), 1)
            cells.append(
                f"{mean_and_spread(values)}{ends and f', {ends}'} ({len(values)})"
                if values
                else "–"
            )
        lines.append(f"| {sigma:g} | " + " | ".join(cells) + " |")
    for name, points in curves.items():
        sigmas = sorted(points)
        means = [float(np.mean(points[sigma])) for sigma in sigmas]
        lines.append(f"\n{name}: best at sigma {sigmas[int(np.argmax(means))]:g}")
        for rule, sigma in rules.items():
            loss = max(means) - float(np.interp(sigma, sigmas, means))
            outside = "" if sigmas[0] <= sigma <= sigmas[-1] else ", outside the sweep"
            lines.append(f"  {NAMES[rule]}: {sigma:.4f}, {loss:.1f} below the best{outside}")
    return "\n".join(lines)


def val_pairs(store: Store) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return images, texts and the image of each text of the val split, and the means of the train
    split.
    """
    pairs = store.pairs(split="val")
    means = [moments_of(store, modality).mean for modality in ("image", "text")]
    return pairs.first.embeddings, pairs.arrays()[1], pairs.item_index[pairs.rows], means


def few_pairs(store: Store, count: int, draws: int = 500) -> str:
    """Return where the sigma of so many random images with their captions lies, in 95% of the
    draws.
    """
    images, texts, owner, means = val_pairs(store)
    found = []
    for draw in range(draws):
        chosen = generator(draw, "few pairs", count).choice(len(images), count, replace=False)
        rows = np.isin(owner, chosen)
        found.append(pair_cosine(images, texts[rows], owner[rows], means).sigma or np.nan)
    low, high = np.nanquantile(found, [0.025, 0.975])
    return f"cosine of {count} images with their captions: {low:.3f} to {high:.3f}"


def noisy_images(store: Store, noise: float) -> str:
    """Return recall@1 from image to text, and sigma by both rules, with Gaussian noise on the
    images of the val split.

    Args:
        store: with pairs in the val split.
        noise: standard deviation per dimension.
    """
    images, texts, owner, means = val_pairs(store)
    drawn = generator(0, "noise on images").normal(size=images.shape)
    noisy = unit_rows(images + noise * drawn)
    # The mean of noisy images is another one
    image_mean = Moments.from_rows(noisy).mean

    found, _ = nearest(unit_rows(noisy - image_mean), unit_rows(texts - means[1]), 1)
    recall = np.mean(owner[found[:, 0]] == np.arange(len(noisy)))
    auto = scaled_spread(caption_spread(texts, owner, means[1])).sigma
    pairs = pair_cosine(noisy, texts, owner, [image_mean, means[1]]).sigma
    return (
        f"noise of {noise:g} on images: recall@1 {100 * recall:.1f}%, sigma auto {auto:.3f}, "
        f"sigma pairs {pairs:.3f}"
    )


def store_rules(store: Store) -> dict[str, float]:
    """Return sigma by rule, from the pairs of the val split and the means of the train split."""
    images, texts, owner, means = val_pairs(store)
    spread = caption_spread(texts, owner, means[1])
    residual = images[owner].astype(np.float64) - texts
    rules = [
        spread,
        scaled_spread(spread),
        SigmaRule("residual_rms", float(np.sqrt(residual.var(axis=0).mean())), "pairs"),
    ]
    rules += [pair_cosine(images, texts, owner, means), PUBLISHED]
    return {rule.name: rule.sigma for rule in rules if rule.sigma}


@styled
def draw(
    path: Path,
    curves: dict[str, dict[float, list[float]]],
    rules: dict[str, float],
    title: str,
    level: tuple[str, float] | None,
) -> None:
    """Draw scores by sigma with their spread over seeds, the rules as vertical lines, the level as
    a dashed one.
    """
    figure, axes = new_figure(7.2, 4.2)
    for (name, points), colour in zip(curves.items(), palette.SERIES, strict=False):
        sigmas = sorted(points)
        means = [float(np.mean(points[sigma])) for sigma in sigmas]
        spreads = [
            float(np.std(points[sigma], ddof=1)) if len(points[sigma]) > 1 else 0.0
            for sigma in sigmas
        ]
        axes.errorbar(
            sigmas, means, yerr=spreads, fmt="o-", color=colour, markersize=4, capsize=2, label=name
        )
    if level is not None:
        axes.axhline(
            level[1], color=palette.MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label=level[0]
        )
    for number, (name, sigma) in enumerate(sorted(rules.items(), key=lambda item: item[1])):
        axes.axvline(sigma, color=palette.FOURTH, linewidth=0.9)
        place = (sigma, 0.02 + 0.07 * number)
        text = f" {NAMES[name]} {sigma:.3f}"
        axes.annotate(
            text, place, xycoords=("data", "axes fraction"), color=palette.FOURTH, fontsize=7.5
        )
    axes.set(xlabel="sigma per dimension", ylabel="CIDEr, %", title=title)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(curves) + 1, borderaxespad=0.4)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
