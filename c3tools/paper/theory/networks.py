"""Random networks: what encoders do to their inputs before any training.

A random network maps all inputs close to one direction: layer by layer its output varies in fewer
dimensions around a larger mean (dimensional collapse; Liang et al., NeurIPS 2022; Zhang et al.,
ICLR 2024). Two networks have two means, so that the outputs of two encoders with random weights are
in two separate cones: the gap at initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...arrays import Matrix
from ...assets.paths import PHOTOS
from ...choices import AtLeastThree, PositiveInt, checked
from ...corpus.reading import read_corpus
from ...errors import C3Error
from ...geometry.measures import effective_dimension, effective_rank, eigenvalues, measure_modality
from ...lists import as_list
from ...moments import Moments, unit_rows
from ...reporter import SILENT, Reporter, counted
from ...seeds import generator
from . import Run, Simulation

_MOST_IMAGES = 500


@checked
def simulate_depth(
    *,
    width: PositiveInt = 512,
    layers: PositiveInt = 50,
    rows: AtLeastThree = 10_000,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Measure the effective dimension, layer by layer.

    Measures every fifth layer of a deep random ReLU network. The defaults are the settings of the
    paper's second figure: standard normal inputs, Xavier weights, no bias. Takes about five seconds
    on two cores.

    Args:
        width: Width of every layer.
        layers: Number of layers.
        rows: Number of inputs, at least 3.
        seed: Seed for all random numbers.
        reporter: Shows the progress over the layers.
    """
    rng = generator(seed, "depth")
    x = rng.standard_normal((rows, width), dtype=np.float32)  # (n, d)
    spans = [_measure_layer(0, x)]
    bound = np.float32(np.sqrt(3 / width))  # Xavier uniform
    with reporter.progress("Layers", layers) as progress:
        for layer in range(1, layers + 1):
            weights = rng.uniform(-bound, bound, (width, width)).astype(np.float32)
            x = (x if layer == 1 else np.maximum(x, 0)) @ weights
            # The scale halves with every layer and would underflow; spans and cosines do not depend
            # on it
            x /= x.std()
            if layer % 5 == 0 or layer == layers:
                spans.append(_measure_layer(layer, x))
            progress.advance()
    first = spans[0]
    last = spans[-1]
    return Simulation(
        runs=spans,
        x=("layer", "layer"),
        panels={
            "Dimensions": {
                "effective dimension (99%)": "effective_dimension",
                "effective rank": "effective_rank",
            },
            "Mean cosine of two inputs": {"": "cosine"},
        },
        found=f"From {first['effective_dimension']} dimensions at the input, "
        f"{last['effective_dimension']} are left after {layers} layers, where two inputs have a "
        f"mean cosine of {last['cosine']:.2f}.",
        paper="The deeper the random network, the fewer the dimensions of its output (dimensional "
        "collapse). This puts each encoder into a narrow cone of its own.",
        settings={"width": width},
    )


@checked
def simulate_init_gap(
    paths: Sequence[str | Path] = (),
    *,
    model: str = "ViT-B-32",
    seeds: PositiveInt = 3,
    device: str | None = None,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Measure the gap of encoders with random weights.

    The encoders get real images and texts.

    Args:
        paths: Folders of images with captions, of which the first 500 images are used. By default
            the bundled photos.
        model: An open_clip architecture, or another name that --model takes.
        seeds: Number of encoders with random weights.
        device: See `connect_heads`.
        reporter: Shows the progress over the encoders.

    Raises:
        C3Error: if the model or the images cannot be loaded, or fewer than 3 images have a caption.
    """
    paths = as_list(paths)
    corpus = read_corpus(list(paths) or [PHOTOS])
    captioned = {text.image_key for text in corpus.texts}
    images = [image for image in corpus.images if image.key in captioned and not image.source]
    images = images[:_MOST_IMAGES]
    if len(images) < 3:
        raise C3Error(
            f"{counted(len(images), 'image has', 'images have')} a caption; the gap needs at "
            f"least 3.",
            remedy="Pass a folder of images with captions, or no folder to use the bundled photos.",
        )
    numbers = {image.key: number for number, image in enumerate(images)}
    texts = [text for text in corpus.texts if text.image_key in numbers]
    items = np.array([numbers[str(text.image_key)] for text in texts])
    captioned_images, first_texts = np.unique(items, return_index=True)

    from ...encoders import load_encoder

    runs: list[Run] = []
    with reporter.progress("Random encoders", seeds) as progress:
        for seed in range(seeds):
            # Converting a model for one pass would take longer than the pass
            encoder = load_encoder(
                model, random_init=seed, device=device, backend="torch", precision="fp32"
            )
            image_rows = encoder.encode_images([image.path for image in images])
            text_rows = encoder.encode_texts([text.caption for text in texts])
            image_units = unit_rows(image_rows.astype(np.float64))
            text_units = unit_rows(text_rows.astype(np.float64))
            gap = np.linalg.norm(image_units.mean(axis=0) - text_units.mean(axis=0))
            run = {"seed": seed, "gap": float(gap)}
            # n rows span at most n - 1 dimensions, so equally many of each modality are compared
            # too: one text per image
            for name, rows, equal in (
                ("image", image_units, captioned_images),
                ("text", text_units, first_texts),
            ):
                measures = measure_modality(Moments.from_rows(rows))
                on_equal_rows = measure_modality(Moments.from_rows(rows[equal]))
                run[f"dimension_{name}"] = measures.effective_dimension
                run[f"on_equal_rows_{name}"] = on_equal_rows.effective_dimension
                run[f"mean_norm_{name}"] = measures.mean_norm
            runs.append(run)
            progress.advance()
    means = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
    return Simulation(
        runs=runs,
        x=("seed", "seed of the weights"),
        panels={
            "Distance of the means": {"": "gap"},
            "Effective dimension": {"image": "dimension_image", "text": "dimension_text"},
        },
        found=f"Without any training, the means of the modalities are {means['gap']:.2f} apart, "
        f"and the modalities vary in {means['dimension_image']:.0f} (image, {len(images)} rows) "
        f"and {means['dimension_text']:.0f} (text, {len(texts)} rows) of {encoder.dim} dimensions; "
        f"n rows span at most n - 1.",
        paper="The gap exists before any training, and each modality spans few dimensions: the "
        "paper's figure shows effective dimensions of 25 (image) and 230 (text) of 512 for a "
        "random CLIP on 500 COCO pairs.",
        settings={"model": model, "images": len(images), "texts": len(texts), "dim": encoder.dim},
    )


def _measure_layer(layer: int, x: Matrix) -> Run:
    """Measure the pre-activations of a layer; ``cosine`` is the mean one of two different
    inputs.
    """
    values = eigenvalues(Moments.from_rows(x).covariance)
    total = unit_rows(x).sum(axis=0, dtype=np.float64)
    cosine = (float(total @ total) - len(x)) / (len(x) * (len(x) - 1))
    return {
        "layer": layer,
        "effective_dimension": effective_dimension(values),
        "effective_rank": effective_rank(values),
        "cosine": cosine,
    }
