"""Random networks: what encoders do to their inputs before any training.

A random network maps all inputs close to one direction: layer by layer its output varies in fewer dimensions around a
larger mean (dimensional collapse; Liang et al., NeurIPS 2022; Zhang et al., ICLR 2024). Two networks have two means,
so that the outputs of two encoders with random weights are in two separate cones: the gap at initialisation.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ...arrays import Matrix
from ...assets.paths import PHOTOS
from ...corpus import ImageReader, read_corpus
from ...errors import C3Error
from ...moments import Moments, unit_rows
from ...reporter import SILENT, Reporter, counted
from ...seeds import generator
from ..spectrum import effective_dimension, effective_rank, eigenvalues, measure_modality
from . import Run, Simulation


def simulate_depth(
    *, width: int = 512, layers: int = 50, rows: int = 10_000, seed: int = 0, reporter: Reporter = SILENT
) -> Simulation:
    """Measure the effective dimension of every fifth layer of a deep random ReLU network.

    The defaults are the settings of the paper's second figure: standard normal inputs, Xavier weights, no bias. It
    takes about five seconds on two cores.

    Args:
        width: Width of every layer.
        layers: Number of layers.
        rows: Number of inputs.
        seed: Seed for all random numbers.
        reporter: Shows the progress over the layers.

    Raises:
        C3Error: if a number is below 1, or there are fewer than 3 rows.
    """
    if min(width, layers) < 1 or rows < 3:
        raise C3Error("Width and layers must be at least 1, and rows at least 3.")
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
            if layer % 5 == 0 or layer == layers:
                spans.append(_measure_layer(layer, x))
            progress.advance()
    first, last = spans[0], spans[-1]
    return Simulation(
        name="depth",
        runs=spans,
        columns={
            "layer": "{layer}",
            "eff. dim": f"{{effective_dimension}} of {width}",
            "eff. rank": "{effective_rank:.1f}",
            "mean cosine": "{cosine:.3f}",
        },
        x=("layer", "layer"),
        panels={
            "Dimensions": {"effective dimension (99 %)": "effective_dimension", "effective rank": "effective_rank"},
            "Mean cosine of two inputs": {"": "cosine"},
        },
        found=f"From {first['effective_dimension']} dimensions at the input, {last['effective_dimension']} are left "
        f"after {layers} layers, where two inputs have a mean cosine of {last['cosine']:.2f}.",
        paper="The deeper the random network, the fewer the dimensions of its output (dimensional collapse). This puts "
        "each encoder into a narrow cone of its own.",
        settings={"width": width},
    )


def simulate_init_gap(
    paths: Sequence[str | Path] = (),
    *,
    model: str = "ViT-B-32",
    seeds: int = 3,
    device: str | None = None,
    reporter: Reporter = SILENT,
) -> Simulation:
    """Measure the gap of encoders with random weights on real images and texts.

    Args:
        paths: Folders of images with captions, of which the first 500 are used. By default the bundled photos.
        model: An open_clip architecture, or another model name.
        seeds: Number of encoders with random weights.
        device: cpu, cuda, cuda:1 or mps. By default the fastest available.
        reporter: Shows the progress over the encoders.

    Raises:
        C3Error: if the model or the images cannot be loaded, or fewer than 3 images have a caption.
    """
    corpus = read_corpus(list(paths) or [PHOTOS])
    captioned = {text.image_key for text in corpus.texts}
    chosen = [image for image in corpus.images if image.key in captioned][:500]
    if len(chosen) < 3:
        raise C3Error(
            f"{counted(len(chosen), 'image has', 'images have')} a caption; the gap needs at least 3.",
            remedy="Give a folder of images with captions, or none to use the bundled photos.",
        )
    from ...encoders import load_encoder, open_image

    with ImageReader() as reader:
        images: list[str | Image.Image] = [
            open_image(io.BytesIO(reader.read(image)))[0] if image.source else image.path for image in chosen
        ]
    numbers = {image.key: number for number, image in enumerate(chosen)}
    texts = [text for text in corpus.texts if text.image_key in numbers]
    captions, item_index = [text.caption for text in texts], [numbers[str(text.image_key)] for text in texts]
    results: list[Run] = []
    with reporter.progress("Random encoders", seeds) as progress:
        for seed in range(seeds):
            # converting a model for one pass would take longer than the pass
            encoder = load_encoder(model, random_init=seed, device=device, backend="torch", precision="fp32")
            sides = {"image": encoder.encode_images(images), "text": encoder.encode_texts(captions)}
            result, means = dict[str, float](seed=seed), []
            # n rows span at most n - 1 dimensions: matched are equally many of each, one text per image
            for (name, rows), own in zip(sides.items(), np.unique(item_index, return_index=True), strict=True):
                x = unit_rows(rows.astype(np.float64))
                found = measure_modality(Moments.from_rows(x))
                result[f"effective_{name}"], result[f"mean_norm_{name}"] = found.effective_dimension, found.mean_norm
                result[f"matched_{name}"] = measure_modality(Moments.from_rows(x[own])).effective_dimension
                means.append(x.mean(axis=0))
            results.append({**result, "length": float(np.linalg.norm(means[0] - means[1]))})
            progress.advance()
    counts, dim = {"image": len(images), "text": len(texts)}, encoder.dim

    def mean(key: str) -> str:
        return f"{np.mean([result[key] for result in results]):.0f}"

    limits = "".join(f" {n} {name} rows span at most {n - 1} dimensions." for name, n in counts.items() if n - 1 < dim)
    return Simulation(
        name="init-gap",
        runs=results,
        columns={
            "seed": "{seed}",
            "gap": "{length:.3f}",
            "eff. dim image": f"{{effective_image}} of {dim}",
            "eff. dim text": f"{{effective_text}} of {dim}",
            "on equal rows": "{matched_image} / {matched_text}",
            "|mean| image": "{mean_norm_image:.3f}",
            "|mean| text": "{mean_norm_text:.3f}",
        },
        x=("seed", "seed of the weights"),
        panels={
            "Distance of the means": {"": "length"},
            "Effective dimension": {"image": "effective_image", "text": "effective_text"},
        },
        found=f"Without any training, the means of the modalities are {np.mean([r['length'] for r in results]):.2f} "
        f"apart, and the modalities vary in {mean('effective_image')} (image, {counts['image']} rows) and "
        f"{mean('effective_text')} (text, {counts['text']} rows) of {dim} dimensions.{limits} On "
        f"{min(counts.values())} rows of each, the dimensions are {mean('matched_image')} (image) and "
        f"{mean('matched_text')} (text).",
        paper="The gap exists before any training, and each modality spans few dimensions: the paper's figure shows "
        "effective dimensions of 25 (image) and 230 (text) of 512 for a random CLIP on 500 COCO pairs.",
        settings={"model": model, "rows": counts, "dim": dim},
    )


def _measure_layer(layer: int, x: Matrix) -> Run:
    """Measure the pre-activations of a layer; ``cosine`` is the mean one of two different inputs."""
    values = eigenvalues(Moments.from_rows(x).covariance)
    total = unit_rows(x).sum(axis=0, dtype=np.float64)
    cosine = (float(total @ total) - len(x)) / (len(x) * (len(x) - 1))
    dimension, rank = effective_dimension(values), effective_rank(values)
    return {"layer": layer, "effective_dimension": dimension, "effective_rank": rank, "cosine": cosine}
