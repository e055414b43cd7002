"""The gap at initialisation: the outputs of two encoders with random weights are in two separate cones.

A random network maps all inputs close to one direction: its output varies in few dimensions around a large mean
(dimensional collapse; Liang et al., NeurIPS 2022; Zhang et al., ICLR 2024). Two networks have two means.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image

from ...assets.paths import PHOTOS
from ...corpus import ImageReader, read_corpus
from ...errors import C3Error
from ...metrics.significance import to_json
from ...moments import Moments, unit_rows
from ...pages import Table, new_figure, palette, styled
from ...reporter import SILENT, Reporter, counted
from ...seeds import generator
from ..spectrum import gap_vector, measure_modality
from . import Simulation

PAPER_EFFECTIVE = {"image": 25, "text": 230}
"""Effective dimensions, of 512, of a random CLIP on 500 COCO pairs in the paper's figure."""
TOY_DIM, TOY_CONSTANT = 512, (257, 257)


@dataclass(frozen=True)
class InitialGap:
    """Gap of one pair of random encoders, or of the toy.

    Attributes:
        seed: of the weights, or of the draw.
        length: of the gap, after normalisation.
        effective: effective dimension per modality.
        matched: the same on equally many rows of each, one text per image, as n rows span at most n - 1 dimensions.
        mean_norm: norm of the mean per modality.
        rows: rows per modality.
        dim: d.
    """

    seed: int
    length: float
    effective: dict[str, int]
    matched: dict[str, int]
    mean_norm: dict[str, float]
    rows: dict[str, int]
    dim: int


def simulate_init_gap(
    paths: Sequence[str | Path] = (),
    *,
    model: str = "ViT-B-32",
    toy: bool = False,
    seeds: int = 3,
    limit: int = 500,
    device: str | None = None,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Measure the gap of encoders with random weights on real images and texts, or of the toy model of `toy_gap`.

    Args:
        paths: Folders of images with captions.
        model: An open_clip architecture, or another model name.
        toy: Use a toy model with a known solution instead of an encoder.
        seeds: Number of encoders with random weights.
        limit: Largest number of images.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        reporter: Shows the progress over the encoders.

    Raises:
        C3Error: if the model or the images cannot be loaded, or fewer than 3 images have a caption.
    """
    if toy:
        results = [draw_toy(TOY_DIM, TOY_CONSTANT, seed=seed) for seed in range(seeds)]
        found = f"The closed form of the toy model gives a gap of {toy_gap(TOY_DIM, TOY_CONSTANT):.2f}."
    else:
        results = _measure_encoders(model, seeds, paths, limit, device, reporter)
        found = _compare_spans(results)
    names = list(results[0].effective)
    heads = [*(f"eff. dim {name}" for name in names), "on equal rows", *(f"|mean| {name}" for name in names)]
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
    return Simulation(
        name="init-gap",
        table=Table(["seed", "gap", *heads], rows),
        values=to_json({"model": "toy" if toy else model, "runs": [asdict(result) for result in results]}),
        figure=_draw_figure(results),
        found=found,
        paper="The gap exists before any training, and each modality spans few dimensions: the paper's figure shows "
        "effective dimensions of 25 (image) and 230 (text) of 512 for a random CLIP on 500 COCO pairs.",
    )


def measure_initial_gap(
    seed: int, rows: dict[str, npt.NDArray[np.floating]], item_index: Sequence[int] | None = None
) -> InitialGap:
    """Measure the embeddings (n, d) of two modalities.

    Args:
        seed: of the weights, or of the draw.
        rows: images (m, d) and texts (n, d), in this order.
        item_index: the image of each text, for equally many rows of both; by default as many texts as there are images.
    """
    units = {name: unit_rows(x.astype(np.float64)) for name, x in rows.items()}
    moments = {name: Moments.from_rows(x) for name, x in units.items()}
    first, second = moments.values()
    found = {name: measure_modality(m) for name, m in moments.items()}
    texts = np.arange(min(first.n, second.n)) if item_index is None else np.unique(item_index, return_index=True)[1]
    chosen = dict(zip(rows, (np.arange(len(texts)), texts), strict=True))
    matched = {name: measure_modality(Moments.from_rows(x[chosen[name]])) for name, x in units.items()}
    return InitialGap(
        seed=seed,
        length=float(np.linalg.norm(gap_vector(first, second))),
        effective={name: m.effective_dimension for name, m in found.items()},
        matched={name: m.effective_dimension for name, m in matched.items()},
        mean_norm={name: m.mean_norm for name, m in found.items()},
        rows={name: m.n for name, m in found.items()},
        dim=first.dim,
    )


def toy_gap(dim: int, constant: Sequence[int]) -> float:
    """Return the gap of the toy in closed form: ``sqrt(k_x / d + k_y / d)``.

    Each modality is standard normal in d dimensions, k of them constant. After normalisation its mean is its
    constant part over ``sqrt(d)``, of squared length ``k / d`` up to terms that vanish with d; the constants of the
    two modalities are independent, hence orthogonal in the mean. With k = 257 of 512 both ways it is 1.00.

    Args:
        dim: d.
        constant: k of the first and of the second modality.

    Raises:
        C3Error: if a k is not between 0 and d.
    """
    if any(not 0 <= k <= dim for k in constant):
        raise C3Error(f"Between 0 and {dim} dimensions can be constant, not {', '.join(map(str, constant))}.")
    return float(np.sqrt(sum(constant) / dim))


def draw_toy(dim: int, constant: tuple[int, int], *, n: int = 500, seed: int = 0) -> InitialGap:
    """Draw the toy of `toy_gap` and measure it."""
    rows = {}
    for name, k in zip(("image", "text"), constant, strict=True):
        rng = generator(seed, "toy gap", name)
        x = rng.standard_normal((n, dim))
        fixed = rng.permutation(dim)[:k]
        x[:, fixed] = rng.standard_normal(k)
        rows[name] = x
    return measure_initial_gap(seed, dict(rows))


def _measure_encoders(
    model: str, seeds: int, paths: Sequence[str | Path], limit: int, device: str | None, reporter: Reporter
) -> list[InitialGap]:
    corpus = read_corpus(list(paths) or [PHOTOS])
    captioned = {text.image_key for text in corpus.texts}
    chosen = [image for image in corpus.images if image.key in captioned][:limit]
    if len(chosen) < 3:
        raise C3Error(
            f"{counted(len(chosen), 'image has', 'images have')} a caption; the gap needs at least 3.",
            remedy="Give a folder of images with captions, or none to use the bundled photos.",
        )
    # the toy does without open_clip, which takes seconds to import
    from ...encoders import load_encoder, open_image

    with ImageReader() as reader:
        images: list[str | Image.Image] = [
            open_image(io.BytesIO(reader.read(image)))[0] if image.source else image.path for image in chosen
        ]
    numbers = {image.key: number for number, image in enumerate(chosen)}
    texts = [text for text in corpus.texts if text.image_key in numbers]
    captions, item_index = [text.caption for text in texts], [numbers[str(text.image_key)] for text in texts]
    results = []
    with reporter.progress("Random encoders", seeds) as progress:
        for seed in range(seeds):
            # converting a model for one pass would take longer than the pass
            encoder = load_encoder(model, random_init=seed, device=device, backend="torch", precision="fp32")
            rows = {"image": encoder.encode_images(images), "text": encoder.encode_texts(captions)}
            results.append(measure_initial_gap(seed, dict(rows), item_index))
            progress.advance()
    return results


def _compare_spans(results: Sequence[InitialGap]) -> str:
    gaps = [result.length for result in results]
    spans = {name: float(np.mean([result.effective[name] for result in results])) for name in results[0].effective}
    rows, dim = results[0].rows, results[0].dim
    limits = "".join(f" {n} {name} rows span at most {n - 1} dimensions." for name, n in rows.items() if n - 1 < dim)
    listed = " and ".join(f"{value:.0f} ({name}, {rows[name]} rows)" for name, value in spans.items())
    equal = " and ".join(f"{np.mean([result.matched[name] for result in results]):.0f} ({name})" for name in spans)
    return (
        f"Without any training, the means of the modalities are {np.mean(gaps):.2f} apart, and the modalities vary in "
        f"{listed} of {dim} dimensions.{limits} On {min(rows.values())} rows of each, the dimensions are {equal}."
    )


@styled
def _draw_figure(results: Sequence[InitialGap]) -> Figure:
    """Draw gap and effective dimensions of random encoders."""
    figure, (left, right) = new_figure(9.4, 3.0, columns=2)
    seeds = np.arange(len(results))
    left.bar(seeds, [found.length for found in results], width=0.55, color=palette.THIRD)
    left.set(title="Gap at initialisation", ylabel="distance of the means", ylim=(0, None))
    names = list(results[0].effective)
    for number, (name, colour) in enumerate(zip(names, (palette.FIRST, palette.SECOND), strict=True)):
        values = [found.effective[name] for found in results]
        right.bar(seeds + (number - 0.5) * 0.36, values, width=0.34, color=colour, label=name)
        if name in PAPER_EFFECTIVE and results[0].dim == 512:
            right.axhline(PAPER_EFFECTIVE[name], color=colour, linewidth=0.8, linestyle=(0, (3, 3)))
    highest = max(max(found.effective.values()) for found in results)
    right.set(title="Effective dimension; dashed: the paper, 500 pairs", ylim=(0, 1.25 * highest))
    right.legend(loc="upper left", ncols=2)
    for axes in (left, right):
        axes.set_xticks(seeds, [str(found.seed) for found in results])
        axes.set_xlabel("seed of the weights")
    return figure
