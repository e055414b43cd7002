"""Random networks: what encoders do to their inputs before any training.

A random network maps all inputs close to one direction: layer by layer its output varies in fewer dimensions around a
larger mean (dimensional collapse; Liang et al., NeurIPS 2022; Zhang et al., ICLR 2024). Two networks have two means,
so that the outputs of two encoders with random weights are in two separate cones: the gap at initialisation.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...arrays import Array, Floats, Matrix
from ...assets.paths import PHOTOS
from ...corpus import ImageReader, read_corpus
from ...errors import C3Error
from ...metrics.significance import to_json
from ...moments import Moments, unit_rows
from ...pages import palette
from ...reporter import SILENT, Reporter, counted
from ...seeds import generator
from ..spectrum import effective_dimension, effective_rank, eigenvalues, gap_vector, measure_modality
from . import Curve, Panel, Simulation

PAPER_EFFECTIVE = {"image": 25, "text": 230}
"""Effective dimensions, of 512, of a random CLIP on 500 COCO pairs in the paper's figure."""
TOY_DIM, TOY_CONSTANT = 512, (257, 257)


@dataclass(frozen=True, eq=False)
class LayerSpan:
    """Dimensions that one layer's pre-activations span; layer 0 is the input.

    Attributes:
        layer: its number.
        effective_dimension: see `effective_dimension`.
        effective_rank: see `effective_rank`.
        cosine: mean cosine of two different inputs.
        spectrum: float64 (d,), eigenvalues of the covariance relative to the largest.
    """

    layer: int
    effective_dimension: int
    effective_rank: float
    cosine: float
    spectrum: Array


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


def simulate_depth(
    *,
    width: int = 512,
    layers: int = 50,
    rows: int = 10_000,
    every: int = 5,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Measure the effective dimension by layer of a deep random ReLU network.

    The defaults are the settings of the paper's second figure: standard normal inputs, Xavier weights, no bias. It
    takes about five seconds on two cores.

    Args:
        width: Width of every layer.
        layers: Number of layers.
        rows: Number of inputs.
        every: Number of layers between two measurements.
        seed: Seed for all random numbers.
        reporter: Shows the progress over the layers.

    Raises:
        C3Error: if a number is below 1, or there are fewer than 3 rows.
    """
    if min(width, layers, every) < 1 or rows < 3:
        raise C3Error("Width, layers and every must be at least 1, and rows at least 3.")
    rng = generator(seed, "depth")
    x = rng.standard_normal((rows, width), dtype=np.float32)  # (n, d)
    spans = [_measure_layer(0, x)]
    bound = np.float32(np.sqrt(6 / (width + width)))  # Xavier uniform
    with reporter.progress("Layers", layers) as progress:
        for layer in range(1, layers + 1):
            weights = rng.uniform(-bound, bound, (width, width)).astype(np.float32)
            x = (x if layer == 1 else np.maximum(x, 0)) @ weights
            # the scale halves with every layer and would underflow; spans and cosines do not depend on it
            x /= x.std()
            if layer % every == 0 or layer == layers:
                spans.append(_measure_layer(layer, x))
            progress.advance()
    first, last = spans[0], spans[-1]
    lines: list[Curve] = []
    for number, span in enumerate(spans):
        values, paler = span.spectrum[span.spectrum > 1e-9], 1 - 0.75 * number / max(len(spans) - 1, 1)
        lines.append((np.arange(1, len(values) + 1), values, "-", (palette.FIRST, paler), ""))
    numbers, dimensions = [span.layer for span in spans], [span.effective_dimension for span in spans]
    logarithmic = {"yscale": "log", "ylabel": "variance, relative"}
    return Simulation(
        name="depth",
        runs=spans,
        columns={
            "layer": "{0.layer}",
            "eff. dim": f"{{0.effective_dimension}} of {width}",
            "eff. rank": "{0.effective_rank:.1f}",
            "mean cosine": "{0.cosine:.3f}",
        },
        values=to_json({"width": width, "layers": spans}),
        panels=[
            Panel("Spectrum by layer, paler with depth", "dimension, by size", lines, logarithmic),
            Panel("Effective dimension (99 %)", "layer", [(numbers, dimensions, "o-", palette.FIRST, "")]),
        ],
        found=f"From {first.effective_dimension} dimensions at the input, {last.effective_dimension} are left after "
        f"{last.layer} layers, where two inputs have a mean cosine of {last.cosine:.2f}.",
        paper="The deeper the random network, the fewer the dimensions of its output (dimensional collapse). This puts "
        "each encoder into a narrow cone of its own.",
    )


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
    dim, numbers, drawn = results[0].dim, [result.seed for result in results], list[Curve]()
    for name, colour in (("image", palette.FIRST), ("text", palette.SECOND)):
        drawn.append((numbers, [result.effective[name] for result in results], "o", colour, name))
        if dim == 512:
            drawn.append((numbers, [PAPER_EFFECTIVE[name]] * seeds, "--", colour, ""))
    lengths = [result.length for result in results]
    return Simulation(
        name="init-gap",
        runs=results,
        columns={
            "seed": "{0.seed}",
            "gap": "{0.length:.3f}",
            "eff. dim image": "{0.effective[image]} of {0.dim}",
            "eff. dim text": "{0.effective[text]} of {0.dim}",
            "on equal rows": "{0.matched[image]} / {0.matched[text]}",
            "|mean| image": "{0.mean_norm[image]:.3f}",
            "|mean| text": "{0.mean_norm[text]:.3f}",
        },
        values=to_json({"model": "toy" if toy else model, "runs": results}),
        panels=[
            Panel("Distance of the means", "seed of the weights", [(numbers, lengths, "o", palette.THIRD, "")]),
            Panel("Effective dimension; dashed: the paper, 500 pairs", "seed of the weights", drawn),
        ],
        found=found,
        paper="The gap exists before any training, and each modality spans few dimensions: the paper's figure shows "
        "effective dimensions of 25 (image) and 230 (text) of 512 for a random CLIP on 500 COCO pairs.",
    )


def measure_initial_gap(seed: int, images: Floats, texts: Floats, item_index: Sequence[int]) -> InitialGap:
    """Measure the embeddings of two modalities.

    Args:
        seed: of the weights, or of the draw.
        images: (m, d).
        texts: (n, d).
        item_index: the image of each text.
    """
    matched = np.unique(item_index, return_index=True)
    units = {name: unit_rows(x.astype(np.float64)) for name, x in (("image", images), ("text", texts))}
    moments = {name: Moments.from_rows(x) for name, x in units.items()}
    equal = {name: Moments.from_rows(x[own]) for (name, x), own in zip(units.items(), matched, strict=True)}
    found = {name: measure_modality(own) for name, own in moments.items()}
    return InitialGap(
        seed=seed,
        length=float(np.linalg.norm(gap_vector(*moments.values()))),
        effective={name: own.effective_dimension for name, own in found.items()},
        matched={name: measure_modality(own).effective_dimension for name, own in equal.items()},
        mean_norm={name: own.mean_norm for name, own in found.items()},
        rows={name: own.n for name, own in found.items()},
        dim=images.shape[1],
    )


def toy_gap(dim: int, constant: Sequence[int]) -> float:
    """Return the gap of the toy in closed form: ``sqrt(k_x / d + k_y / d)``.

    Each modality is standard normal in d dimensions, k of them constant. After normalisation its mean is its
    constant part over ``sqrt(d)``, of squared length ``k / d`` up to terms that vanish with d; the constants of the
    two modalities are independent, hence orthogonal in the mean. With k = 257 of 512 both ways it is 1.00.

    Args:
        dim: d.
        constant: k of the first and of the second modality.
    """
    return float(np.sqrt(sum(constant) / dim))


def draw_toy(dim: int, constant: tuple[int, int], *, n: int = 500, seed: int = 0) -> InitialGap:
    """Draw the toy of `toy_gap` and measure it."""
    rows = {}
    for name, k in zip(("image", "text"), constant, strict=True):
        rng = generator(seed, "toy gap", name)
        rows[name] = rng.standard_normal((n, dim))
        fixed = rng.permutation(dim)[:k]
        rows[name][:, fixed] = rng.standard_normal(k)
    return measure_initial_gap(seed, rows["image"], rows["text"], range(n))


def _measure_layer(layer: int, x: Matrix) -> LayerSpan:
    values = eigenvalues(Moments.from_rows(x).covariance)
    total = unit_rows(x).sum(axis=0, dtype=np.float64)
    cosine = (float(total @ total) - len(x)) / (len(x) * (len(x) - 1))
    return LayerSpan(layer, effective_dimension(values), effective_rank(values), cosine, values / values[0])


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
            rows, texts_rows = encoder.encode_images(images), encoder.encode_texts(captions)
            results.append(measure_initial_gap(seed, rows, texts_rows, item_index))
            progress.advance()
    return results


def _compare_spans(results: Sequence[InitialGap]) -> str:
    rows, dim = results[0].rows, results[0].dim
    limits = "".join(f" {n} {name} rows span at most {n - 1} dimensions." for name, n in rows.items() if n - 1 < dim)
    spans, equal = (
        {name: float(np.mean([getattr(result, key)[name] for result in results])) for name in rows}
        for key in ("effective", "matched")
    )
    listed = " and ".join(f"{value:.0f} ({name}, {rows[name]} rows)" for name, value in spans.items())
    matched = " and ".join(f"{value:.0f} ({name})" for name, value in equal.items())
    gap = float(np.mean([result.length for result in results]))
    return (
        f"Without any training, the means of the modalities are {gap:.2f} apart, and the modalities vary in {listed} "
        f"of {dim} dimensions.{limits} On {min(rows.values())} rows of each, the dimensions are {matched}."
    )
