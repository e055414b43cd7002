"""Measure how well rules choose sigma: against the best of a probe on several encoders, and with one encoder left out.

    python benchmarks/sigma_probe.py [NAME=]SOURCE ...
    python benchmarks/sigma_probe.py c3-mini=c3-store clip=FOLDER --sweep c3-sigma-sweep/sweep.json

Decoders for each encoder, sigma and seed would take days. The probe of `word_probe.py` names the words of images after
learning them from texts with noise, with Collapse (C3) or without (C2_2), in a few minutes per encoder. SOURCE is a
store, or a folder of image.npy, text.npy and meta.jsonl: embeddings of images and of their captions.

Everything is repeated with random halves: of each split of a store, so that the standard deviation over halves is the
standard error of the result for the whole split; or, in a folder, half of the images for training, a quarter as val and
a quarter as test. Rules that need texts alone see the training texts, as `--sigma auto` does; rules that need pairs see
those of val, with the means of the training rows. The best sigma is chosen on val, and all losses are those on test, in
percent of the score at this sigma. A few pairs are images of val with one caption each, drawn ten times in each half.

The linear denoiser of a sigma is the best linear estimate of a text from itself with noise. "denoiser, pairs" is the
sigma whose denoiser brings the images of val closest to their captions, "denoiser, captions of one image" the one that
brings training texts closest to another caption of their image. "probe, captions of one image" is the best sigma of C3
if the probe is asked with a caption of val in place of the image, and scored with the other captions.

One encoder left out: the factor of a rule, or a constant, is the one with the least mean loss on val of the other
encoders; the encoder that is left out then shows what it loses. --sweep compares the probe with the captions of the
first source, given what `sigma_sweep.py` wrote.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from measuring import print_table
from word_probe import METHODS, WORDS, Array, Indices, Lesson, Source, read

from c3tools.metrics.significance import mean_and_std
from c3tools.seeds import generator
from c3tools.transforms.sigma import PUBLISHED_SIGMA, SPREADS, caption_spread, pair_cosine, residual_rms

GRID = "0,0.02,0.03,0.045,0.06,0.08,0.1,0.1265,0.16,0.2,0.25"
FEW = (10, 20, 50)
SETS = 10
FACTORS = np.geomspace(0.25, 8, 141)
SPREAD, RESIDUAL, COSINE, CONSTANT = "spread of captions", "residual of pairs", "cosine of pairs", "constant"
FEW_COSINE = "cosine of {} pairs"
DENOISER, SIBLINGS = "denoiser, pairs", "denoiser, captions of one image"
PROBE_SIBLINGS = "probe, captions of one image"
WITH_FACTOR = (SPREAD, RESIDUAL, COSINE, FEW_COSINE.format(20), DENOISER, CONSTANT)


@dataclass
class Result:
    """Scores and rules of one encoder.

    Attributes:
        val: by method, scores (halves, sigmas) in percent.
        test: the same on test.
        rules: by name, the sigma (halves, sets of pairs), NaN where there is none.
    """

    val: dict[str, Array] = field(default_factory=dict)
    test: dict[str, Array] = field(default_factory=dict)
    rules: dict[str, Array] = field(default_factory=dict)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="[NAME=]SOURCE", help="store, or folder of arrays")
    parser.add_argument("--sigmas", default=GRID)
    parser.add_argument("--halves", type=int, default=20, help="random halves")
    parser.add_argument("--words", type=int, default=WORDS, help="the most frequent ones")
    parser.add_argument("--sweep", type=Path, help="sweep.json of sigma_sweep.py for the first source")
    parser.add_argument("--out", type=Path, default=Path("c3-sigma-probe.json"), help="all scores and rules")
    options = parser.parse_args()
    sigmas = [float(text) for text in options.sigmas.split(",")]
    results: dict[str, Result] = {}
    content: dict[str, object] = {"sigmas": sigmas}
    for given in options.sources:
        name, _, path = given.rpartition("=")
        source = read(Path(path), name or Path(path).name, options.words)
        found = results[source.name] = measure(source, sigmas, options.halves, options.words)
        content[source.name] = {kind: lists(getattr(found, kind)) for kind in ("val", "test", "rules")}
    options.out.write_text(json.dumps(content))
    print_scores(results, sigmas)
    print_rules(results, sigmas)
    print_losses(results, sigmas)
    left_out = leave_one_out(results, sigmas)
    print_left_out(left_out)
    if options.sweep:
        name = next(iter(results))
        cider = json.loads(options.sweep.read_text())["cider"]
        print_captions(results[name], sigmas, {rule: of[name][0] for rule, of in left_out.items() if name in of}, cider)


def measure(source: Source, sigmas: Sequence[float], halves: int, words: int) -> Result:
    """Run the probe and the rules on each of the random halves."""
    curves: dict[tuple[str, str], list[Array]] = {}
    rules: dict[str, list[list[float]]] = {}
    for number in range(halves):
        train, *held = source.draw(number)
        lesson = Lesson.of(source, train, words)
        asked = [lesson.of_images(source, items) for items in held]
        # one caption of each image of val, to be asked in place of the image; the others are what is wanted
        of, place = source.rows(held[0])
        first = np.unique(place, return_index=True)[1]
        others = np.delete(np.arange(len(of)), first)
        wanted = lesson.wanted(source, of[others], place[others], len(first))
        asked.append((source.texts[of[first]], True, wanted))
        found = rules_of_half(source, train, held[0], lesson.means, number)
        for method in METHODS:
            scores = np.array([[each.mean() for each in lesson.scores(method, sigma, asked)] for sigma in sigmas])
            for split, values in zip(("val", "test"), scores.T, strict=False):
                curves.setdefault((split, method), []).append(values)
            if method == "C3":
                found[PROBE_SIBLINGS] = [sigmas[int(np.argmax(scores[:, 2]))] if len(others) else np.nan]
        for rule, each in found.items():
            rules.setdefault(rule, []).append(each)
    result = Result(rules={rule: np.array(values) for rule, values in rules.items()})
    for (split, method), scores_of_halves in curves.items():
        getattr(result, split)[method] = np.array(scores_of_halves)
    return result


def rules_of_half(
    source: Source, train: Indices, val: Indices, means: Sequence[Array], number: int
) -> dict[str, list[float]]:
    """Return the sigma of each rule on one of the random halves, of several sets of pairs where they are few."""
    (rows, place), (held, of_val) = source.rows(train), source.rows(val)
    spread = caption_spread(source.texts[rows], place, means[1]).sigma or np.nan
    x, y = source.images[val], source.texts[held]
    residual = residual_rms((x[of_val] - y).var(axis=0)).sigma
    covariance = np.cov(source.texts[rows], rowvar=False, bias=True)
    order = np.argsort(place, kind="stable")
    siblings = [order[:-1], order[1:]]
    siblings = [each[place[siblings[0]] == place[siblings[1]]] for each in siblings]
    first, second = (source.texts[rows[each]] - means[1] for each in siblings)
    found = {
        SPREAD: [spread],
        "twice the spread": [2 * spread],
        f"{SPREADS:g} times the spread (auto)": [SPREADS * spread],
        RESIDUAL: [residual or np.nan],
        COSINE: [pair_cosine(x, y, of_val, means).sigma or np.nan],
        DENOISER: [denoiser_sigma(covariance, x[of_val] - means[0], y - means[1])],
        SIBLINGS: [denoiser_sigma(covariance, first, second) if len(first) else np.nan],
        "published": [PUBLISHED_SIGMA],
        CONSTANT: [0.1],
    }
    random = generator(1, "sigma probe", number)
    for count in FEW:
        sets = []
        for _ in range(SETS):
            shuffled = random.permutation(len(held))
            items, first_of = np.unique(of_val[shuffled], return_index=True)
            few = random.permutation(len(items))[:count]
            # where the few pairs look unrelated, the rule gives nothing and `--sigma auto` takes the published constant
            rule = pair_cosine(x[items[few]], y[shuffled[first_of[few]]], np.arange(len(few)), means)
            sets.append((rule.sigma or PUBLISHED_SIGMA) if len(few) == count else np.nan)
        found[FEW_COSINE.format(count)] = sets
    return found


def denoiser_sigma(covariance: Array, x: Array, y: Array) -> float:
    """Return the sigma whose linear denoiser brings ``x`` closest to ``y``, both (n, d) and centred.

    The best linear estimate of a text from itself with noise is S (S + sigma^2)^-1 of it, S the covariance of texts.
    """
    spectrum, basis = np.linalg.eigh(covariance)
    x, y = x @ basis, y @ basis
    own, cross = (x**2).mean(axis=0), (x * y).mean(axis=0)
    sigmas = np.geomspace(0.005, 0.5, 200)
    kept = np.maximum(spectrum, 0) / (np.maximum(spectrum, 0) + sigmas[:, None] ** 2)
    return float(sigmas[np.argmin(kept**2 @ own - 2 * kept @ cross)])


def best_of(result: Result, method: str) -> int:
    """Return the number of the best sigma on val."""
    return int(np.argmax(result.val[method].mean(axis=0)))


def losses(result: Result, method: str, chosen: Array, sigmas: Sequence[float]) -> Array:
    """Return what a rule loses on test by random half, in percent: (halves,).

    Args:
        result: of one encoder.
        method: C2_2 or C3.
        chosen: the sigma of the rule, (halves, sets of pairs).
        sigmas: of the grid; values between them are interpolated.
    """
    best = result.test[method][:, best_of(result, method)]
    pairs = zip(chosen, result.test[method], strict=True)
    reached = np.array([np.interp(each, sigmas, scores).mean() for each, scores in pairs])
    return np.asarray(100 * (best - reached) / best.mean())


def worst_sets(result: Result, method: str, chosen: Array, sigmas: Sequence[float]) -> Array:
    """Return what a rule loses at least with the worst twentieth of the sets of pairs, in percent: (1,)."""
    mean = result.test[method].mean(axis=0)
    reached = np.interp(chosen.ravel(), sigmas, mean)
    return np.array([100 * (1 - np.quantile(reached, 0.05) / mean[best_of(result, method)])])


def val_losses(result: Result, chosen: Array, sigmas: Sequence[float]) -> Array:
    """Return what each of FACTORS times a rule loses on val, in percent, the mean over methods and sets of pairs."""
    found = np.zeros(len(FACTORS))
    for scores in result.val.values():
        mean = scores.mean(axis=0)
        reached = np.interp(FACTORS[:, None] * chosen.ravel(), sigmas, mean).mean(axis=1)
        found += 100 * (1 - reached / mean.max()) / len(result.val)
    return found


def leave_one_out(
    results: Mapping[str, Result], sigmas: Sequence[float]
) -> dict[str, dict[str, tuple[float, float, dict[str, Array]]]]:
    """Return by rule and encoder: the mean sigma, the factor from the other encoders, the losses by method."""
    found: dict[str, dict[str, tuple[float, float, dict[str, Array]]]] = {}
    for rule in WITH_FACTOR:
        known = {name: of.rules[rule] for name, of in results.items() if not np.isnan(of.rules[rule]).any()}
        on_val = {name: val_losses(results[name], chosen, sigmas) for name, chosen in known.items()}
        for name, chosen in known.items():
            others = [values for other, values in on_val.items() if other != name]
            if others:
                factor = float(FACTORS[np.argmin(np.mean(others, axis=0))])
                lost = {method: losses(results[name], method, factor * chosen, sigmas) for method in METHODS}
                found.setdefault(rule, {})[name] = (factor * float(chosen.mean()), factor, lost)
    return found


def print_scores(results: Mapping[str, Result], sigmas: Sequence[float]) -> None:
    """Print the scores on test by sigma: mean ± standard deviation over random halves."""
    print("\nScore on test by sigma, %\n")
    columns = [(name, method) for name in results for method in METHODS]
    rows = [
        [f"{sigma:g}", *(spread(results[name].test[method][:, place], 1) for name, method in columns)]
        for place, sigma in enumerate(sigmas)
    ]
    print_table(["sigma", *(f"{name}, {method}" for name, method in columns)], rows)


def print_rules(results: Mapping[str, Result], sigmas: Sequence[float]) -> None:
    """Print the best sigma on val, where at most 1 % is lost, and the sigma of each rule (range over sets of pairs)."""
    print("\nSigma; in brackets the range in which the probe loses at most 1 % on val, or 95 % of the sets of pairs\n")
    rows = []
    for method in METHODS:
        row = [f"best for {method}"]
        for result in results.values():
            mean = result.val[method].mean(axis=0)
            fine = np.linspace(min(sigmas), max(sigmas), 1001)
            good = fine[np.interp(fine, sigmas, mean) >= 0.99 * mean.max()]
            row.append(f"{sigmas[best_of(result, method)]:g} [{good[0]:.3f}, {good[-1]:.3f}]")
        rows.append(row)
    for rule in next(iter(results.values())).rules:
        row = [rule]
        for result in results.values():
            values = result.rules[rule]
            low, high = np.quantile(values, [0.025, 0.975])
            several = values.shape[1] > 1 and not np.isnan(low)
            row.append(dash(values.mean(), 3) + (f" [{low:.3f}, {high:.3f}]" if several else ""))
        rows.append(row)
    print_table(["rule", *results], [row for row in rows if row[0] != CONSTANT])


def print_losses(results: Mapping[str, Result], sigmas: Sequence[float]) -> None:
    """Print what each rule loses."""
    print("\nLoss on test, % of the score at the best sigma on val: C2_2 / C3\n")
    rows = []
    for rule in next(iter(results.values())).rules:
        lost = {
            name: {method: losses(result, method, result.rules[rule], sigmas) for method in METHODS}
            for name, result in results.items()
        }
        rows.append([rule, *summary(lost)])
        if next(iter(results.values())).rules[rule].shape[1] > 1:
            unlucky = {
                name: {method: worst_sets(result, method, result.rules[rule], sigmas) for method in METHODS}
                for name, result in results.items()
            }
            rows.append([f"{rule}, 1 set in 20", *summary(unlucky)])
    print_table(["rule", *results, "mean", "worst"], [row for row in rows if row[0] != CONSTANT])


def print_left_out(left_out: Mapping[str, Mapping[str, tuple[float, float, dict[str, Array]]]]) -> None:
    """Print the factors, and what they lose on the encoder that is left out."""
    print("\nOne encoder left out: its factor (or constant) from the other encoders, and its loss: C2_2 / C3\n")
    names = list(dict.fromkeys(name for of in left_out.values() for name in of))
    rows = []
    for rule, of in left_out.items():
        cells = summary({name: of[name][2] if name in of else {} for name in names})
        for place, name in enumerate(names):
            if name in of:
                chosen = f"{of[name][0]:.3f}" if rule == CONSTANT else f"× {of[name][1]:.2f}"
                cells[place] = f"{chosen}: {cells[place]}"
        rows.append([rule, *cells])
    print_table(["rule", *names, "mean", "worst"], rows)


def print_captions(
    result: Result,
    sigmas: Sequence[float],
    chosen: Mapping[str, float],
    cider: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """Print what the probe and captions lose by sigma, and what captions lose at the sigma of each rule.

    Args:
        result: of the encoder.
        sigmas: of the probe.
        chosen: the sigmas of rules with a factor from the other encoders.
        cider: by method and sigma, CIDEr of each seed.
    """
    print("\nLoss, % of the best: probe / captions\n")
    curves = {method: {float(sigma): np.mean(values) for sigma, values in cider[method].items()} for method in METHODS}
    shared = sorted(set(sigmas).intersection(*curves.values()))
    rows = []
    for sigma in shared:
        row = [f"{sigma:g}"]
        for method, curve in curves.items():
            mean = result.test[method].mean(axis=0)
            of_probe = 100 * (1 - mean[sigmas.index(sigma)] / mean.max())
            row.append(f"{of_probe:.1f} / {100 * (1 - curve[sigma] / max(curve.values())):.1f}")
        rows.append(row)
    print_table(["sigma", *METHODS], rows)
    print("\nCIDEr below the best\n")
    plain = {rule: float(values.mean()) for rule, values in result.rules.items() if rule != CONSTANT}
    factors = {f"{rule}, factor of the other encoders": sigma for rule, sigma in chosen.items()}
    rows = []
    for rule, sigma in {**plain, **factors}.items():
        row = [rule, dash(sigma, 3)]
        for curve in curves.values():
            points = sorted(curve)
            row.append(dash(max(curve.values()) - np.interp(sigma, points, [curve[each] for each in points]), 1))
        rows.append(row)
    print_table(["rule", "sigma", *METHODS], rows)


def summary(lost: Mapping[str, Mapping[str, Array]]) -> list[str]:
    """Return a cell for each encoder, the mean and the worst loss over encoders that have the rule, by method."""
    known = [{method: each for method, each in of.items() if not np.isnan(each).any()} for of in lost.values()]
    cells = [" / ".join(spread(each, 1) for each in of.values()) or "–" for of in known]
    values = np.array([[float(of[method].mean()) for method in METHODS] for of in known if of])
    return [*cells, *(" / ".join(dash(value, 1) for value in of) for of in (values.mean(axis=0), values.max(axis=0)))]


def spread(values: Array, digits: int) -> str:
    """Return mean ± standard deviation, the latter where there are several values."""
    mean, std = mean_and_std(values)
    return dash(mean, digits) + ("" if std is None else f" ± {std:.{digits}f}")


def dash(value: float, digits: int) -> str:
    """Return a number without the sign of zero, or a dash for NaN."""
    return "–" if np.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"


def lists(arrays: Mapping[str, Array]) -> dict[str, list[object]]:
    """Return arrays as JSON has them, None for NaN."""
    return {name: np.where(np.isnan(values), None, values).tolist() for name, values in arrays.items()}  # type: ignore[call-overload]


if __name__ == "__main__":
    main()
