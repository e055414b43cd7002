"""The jobs of `c3 simulate`: the theory behind the gap, run. Each gives a table, a figure, and what the paper found."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ...assets.paths import PHOTOS
from ...corpus import ImageReader, read_corpus
from ...errors import C3Error
from ...reporter import SilentTracker, Tracker
from ...store.reader import Store
from ..collect import collect
from ..report import to_json_floats
from . import figures as drawn
from .depth import span_by_layer
from .initialisation import InitialGap, measure_initial_gap, simulate_toy, toy_gap
from .optimisation import LOGIT_SCALE, PAPER_LIKE_SEED, PAPER_STEPS, PAPER_TRACE, TwoSpans, train_pairs
from .stable_region import DEFAULT_DRAWS, TAUS, simulate_draws, stable_lead
from .temperature import SCALES, Survival, gap_by_scale, synthetic_features

DEFAULT_ENCODER = "ViT-B-32"
DELTAS = (0.1, 0.01)
SIZES = (100, 1_000, 10_000, 100_000)


@dataclass
class Simulation:
    """What a simulation leaves.

    Attributes:
        columns: headings of the table.
        rows: its cells, as text.
        values: the JSON object.
        figure: the figure.
        found: what came out, in words.
        paper: what the paper found, in words.
    """

    columns: list[str]
    rows: list[list[str]]
    values: dict[str, Any]
    figure: Figure
    found: str
    paper: str


def initial_gap(
    *,
    model: str | None = DEFAULT_ENCODER,
    paths: Sequence[str | Path] = (),
    seeds: Sequence[int] = (0, 1, 2),
    limit: int = 500,
    constant: tuple[int, int] = (257, 257),
    device: str | None = None,
    tracker: Tracker | None = None,
) -> Simulation:
    """The gap of encoders with random weights on real images and texts, or of the closed-form toy.

    Args:
        model: an architecture of open_clip, or another model name; None for the toy.
        paths: images with captions; by default the photos that come with the package.
        seeds: of the weights, one encoder each.
        limit: at most so many images, with all their captions.
        constant: constant dimensions of the toy's modalities.
        device: see `c3tools.devices.pick`.
        tracker: told about encoders done.

    Raises:
        C3Error: if the model or the images cannot be had, or no image has a caption.
    """
    tracker = tracker or SilentTracker()
    if model is None:
        results = [simulate_toy(512, constant, seed=seed) for seed in seeds]
        found = f"In closed form the toy's gap is {toy_gap(512, constant):.2f}."
    else:
        pairs = _pairs_of(paths, limit)
        results = [_random_encoder(model, seed, *pairs, device, tracker) for seed in seeds]
        found = _compare_spans(results)
    rows = [
        [
            str(result.seed),
            f"{result.length:.3f}",
            *(f"{k} of {result.dim}" for k in result.effective.values()),
            " / ".join(str(k) for k in result.matched.values()),
            *(f"{norm:.3f}" for norm in result.mean_norm.values()),
        ]
        for result in results
    ]
    names = list(results[0].effective)
    return Simulation(
        columns=[
            "seed",
            "gap",
            *(f"eff. dim {name}" for name in names),
            "on equal rows",
            *(f"|mean| {name}" for name in names),
        ],
        rows=rows,
        values=to_json_floats({"model": model or "toy", "runs": [asdict(result) for result in results]}),
        figure=drawn.initial_gap(results),
        found=found,
        paper="The gap is there before any training, and each modality spans few dimensions: the paper's figure has "
        "effective dimensions of 25 (image) and 230 (text) of 512 for a random CLIP on 500 COCO pairs.",
    )


def depth(
    *,
    width: int = 512,
    layers: int = 50,
    rows: int = 10_000,
    every: int = 5,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> Simulation:
    """Effective dimension by layer of a random ReLU network; see `span_by_layer`."""
    spans = span_by_layer(width=width, layers=layers, rows=rows, every=every, seed=seed, tracker=tracker)
    table = [
        [str(s.layer), f"{s.effective_dimension} of {width}", f"{s.effective_rank:.1f}", f"{s.cosine:.3f}"]
        for s in spans
    ]
    first, last = spans[0], spans[-1]
    keys = ("layer", "effective_dimension", "effective_rank", "cosine")
    return Simulation(
        columns=["layer", "eff. dim", "eff. rank", "mean cosine"],
        rows=table,
        values=to_json_floats({"width": width, "layers": [{key: getattr(s, key) for key in keys} for s in spans]}),
        figure=drawn.depth(spans),
        found=f"From {first.effective_dimension} dimensions at the input, {last.effective_dimension} are left after "
        f"{last.layer} layers, where two inputs have a mean cosine of {last.cosine:.2f}.",
        paper="The deeper the random network, the fewer the dimensions of its output (dimensional collapse), which is "
        "what puts each encoder in a narrow cone of its own.",
    )


def gap_after_training(
    *,
    spans: TwoSpans | None = None,
    steps: int = PAPER_STEPS,
    learning_rate: float = 0.1,
    logit_scale: float = LOGIT_SCALE,
    flow: bool = False,
    every: int = 20_000,
    tracker: Tracker | None = None,
) -> Simulation:
    """The paper's optimisation, with its settings as defaults; see `train_pairs`.

    Args:
        spans: the start.
        steps: of gradient descent.
        learning_rate: of gradient descent.
        logit_scale: the fixed inverse temperature.
        flow: take long second-order steps instead of the plain ones.
        every: steps between two rows of the table.
        tracker: told about steps done.
    """
    start = spans or TwoSpans()
    fine = max(1, every // 10)
    trace, _, _ = train_pairs(
        *start.draw(),
        steps=steps,
        learning_rate=learning_rate,
        logit_scale=logit_scale,
        every=fine,
        flow=flow,
        tracker=tracker,
    )
    paper = start == TwoSpans(seed=start.seed) and learning_rate == 0.1 and logit_scale == LOGIT_SCALE
    shown = [point for point in trace if point.step % every == 0 or point.step == steps]
    columns = ["step", "loss", "gap"] + (["paper's loss", "paper's gap"] if paper else [])
    rows = []
    for point in shown:
        loss, gap = PAPER_TRACE.get(point.step, (None, None))
        theirs = ["" if loss is None else f"{loss:.3f}", "" if gap is None else f"{gap:.4f}"]
        rows.append([f"{point.step:,}", f"{point.loss:.3f}", f"{point.gap:.4f}", *(theirs if paper else [])])
    first, last = trace[0], trace[-1]
    draw = (
        " The seed was selected among 3,000 to match the paper's run; others start at a gap of 1.226 ± 0.024."
        if paper and start.seed == PAPER_LIKE_SEED
        else ""
    )
    return Simulation(
        columns=columns,
        rows=rows,
        values=to_json_floats(
            {
                **asdict(start),
                "learning_rate": learning_rate,
                "logit_scale": logit_scale,
                "method": "flow" if flow else "sgd",
                "trace": [asdict(point) for point in trace],
            }
        ),
        figure=drawn.training_trace(trace, paper=paper),
        found=f"The loss goes from {first.loss:.2f} to {last.loss:.2f}, the gap from {first.gap:.3f} to "
        f"{last.gap:.3f}: {100 * (1 - last.gap / first.gap):.0f} % of it is closed.{draw}",
        paper="Optimisation keeps the gap: the gradient of one modality lies in the span of the other, which is "
        "orthogonal to the gap.",
    )


def stable_region(
    *, draws: int = DEFAULT_DRAWS, taus: Sequence[float] = TAUS, largest_n: int = 1_000, seed: int = 0
) -> Simulation:
    """The loss bound against temperature, candidates and delta, with simulated points under it."""
    simulated = simulate_draws(draws=draws, taus=tuple(taus), largest_n=largest_n, seed=seed)
    rows = [[f"{tau:g}", *(f"{float(stable_lead(tau, n, DELTAS[0])):.3f}" for n in SIZES)] for tau in taus]
    leads = [
        {"tau": tau, "n": n, "delta": delta, "lead": float(stable_lead(tau, n, delta))}
        for tau in taus
        for n in SIZES
        for delta in DELTAS
    ]
    return Simulation(
        columns=["tau", *(f"r, n = {n:,}" for n in SIZES)],
        rows=rows,
        values=to_json_floats({"draws": draws, "above_bound": simulated.above, "seed": seed, "leads": leads}),
        figure=drawn.stable_region(simulated),
        found=f"{simulated.above} of {draws:,} random draws lie above the bound. The table has the lead r of the "
        f"positive that guarantees a loss of at most {DELTAS[0]}.",
        paper="Once every positive leads by r the loss is small and the optimisation halts; what differs between pairs "
        "by then is alignment noise, and a lower temperature leaves more of it.",
    )


def temperature(
    store_path: Path | None = None,
    *,
    modalities: tuple[str, str] = ("image", "text"),
    scales: Sequence[float] = SCALES,
    steps: int = 1_000,
    batch: int = 256,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> Simulation:
    """The gap that survives contrastive training of two small heads, as a function of the logit scale.

    Args:
        store_path: frozen features: the pairs of this store; None for synthetic ones.
        modalities: the two.
        scales: logit scales.
        steps: of training per scale.
        batch: pairs per step.
        seed: of everything random.
        tracker: told about steps done.

    Raises:
        C3Error: if the store has too few pairs.
    """
    first, second = synthetic_features(seed=seed) if store_path is None else _paired_rows(store_path, modalities, seed)
    results = gap_by_scale(first, second, scales=sorted(scales), steps=steps, batch=batch, seed=seed, tracker=tracker)
    rows = [
        [f"{r.logit_scale:g}", f"{r.start_gap:.3f}", f"{r.gap:.3f}", f"{r.loss:.3f}", f"{100 * r.recall:.1f}"]
        for r in results
    ]
    return Simulation(
        columns=["logit scale", "gap before", "gap after", "last loss", "recall@1, %"],
        rows=rows,
        values=to_json_floats(
            {
                "features": "synthetic" if store_path is None else str(store_path),
                "pairs": len(first),
                "runs": [asdict(result) for result in results],
            }
        ),
        figure=drawn.temperature(results),
        found=_survival(results),
        paper="Temperature decides how much of the gap survives: at CLIP's scale of 100 a small lead is enough for the "
        "loss to vanish, and the descent halts before the modalities meet.",
    )


def _pairs_of(paths: Sequence[str | Path], limit: int) -> tuple[list[str | Image.Image], list[str], list[int]]:
    """Images, captions, and the number of each caption's image."""
    corpus = read_corpus(list(paths) or [PHOTOS])
    captioned = {text.image_key for text in corpus.texts}
    chosen = [image for image in corpus.images if image.key in captioned][:limit]
    if len(chosen) < 3:
        raise C3Error(
            f"{len(chosen)} images have a caption; the gap needs at least 3.",
            remedy="Name a folder of images with captions, or none for the photos that come with the package.",
        )
    # as below: only this simulation pays for the import
    from ...encoders import open_image

    with ImageReader() as reader:
        images: list[str | Image.Image] = [
            open_image(io.BytesIO(reader.read(image)))[0] if image.source else image.path for image in chosen
        ]
    numbers = {image.key: number for number, image in enumerate(chosen)}
    texts = [text for text in corpus.texts if text.image_key in numbers]
    return images, [t.caption for t in texts], [numbers[str(t.image_key)] for t in texts]


def _random_encoder(
    model: str,
    seed: int,
    images: list[str | Image.Image],
    texts: list[str],
    owner: list[int],
    device: str | None,
    tracker: Tracker,
) -> InitialGap:
    # the other simulations do without open_clip, which takes seconds to import
    from ...encoders import load_encoder

    encoder = load_encoder(model, random_init=seed, device=device, precision="fp32")
    rows = {"image": encoder.encode_images(images), "text": encoder.encode_texts(texts)}
    tracker.advance()
    return measure_initial_gap(seed, dict(rows), owner)


def _compare_spans(results: Sequence[InitialGap]) -> str:
    gaps = [result.length for result in results]
    spans = {name: float(np.mean([result.effective[name] for result in results])) for name in results[0].effective}
    rows, dim = results[0].rows, results[0].dim
    limits = "".join(f" {n} {name} rows span at most {n - 1} dimensions." for name, n in rows.items() if n - 1 < dim)
    listed = " and ".join(f"{value:.0f} ({name}, {rows[name]} rows)" for name, value in spans.items())
    equal = " and ".join(f"{np.mean([result.matched[name] for result in results]):.0f} ({name})" for name in spans)
    return (
        f"Without any training the modalities lie {np.mean(gaps):.2f} apart, and vary in {listed} of {dim} dimensions."
        f"{limits} On {min(rows.values())} rows of each it is {equal}."
    )


def _survival(results: Sequence[Survival]) -> str:
    low, high = results[0], results[-1]
    return (
        f"From {low.start_gap:.2f} before training, {low.gap:.2f} is left at a logit scale of {low.logit_scale:g} and "
        f"{high.gap:.2f} at {high.logit_scale:g}."
    )


def _paired_rows(path: Path, modalities: tuple[str, str], seed: int) -> tuple[Any, Any]:
    """One pair per item, so that no item is its own negative."""
    collected = collect(Store.open(path), *modalities, seed=seed)
    working = collected.working
    if not working.paired:
        raise C3Error(f"The store {path} has no pairs of {' and '.join(modalities)}.")
    items, rows = np.unique(working.owner, return_index=True)
    first, second = working.first[items], working.second[rows]
    return (first, second) if collected.first == modalities[0] else (second, first)
