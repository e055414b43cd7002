"""`c3 train-generator`, `generate`, `evaluate-images` and `ablate-images`: images from embeddings,
and their scores.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import c3tools

from ._ablation import list_methods, print_ablation
from ._console import SHORT, message, print_table, reporter


def train_generator(**options: Any) -> Any:
    """Train an image generator on photos alone.

    The generator learns from the store's photos and their embeddings, without texts. Afterwards,
    `c3 generate "a dog on the beach"` generates images from texts. The photos are read from the
    paths that the store records. Run the same command again to continue an interrupted run. To
    replace a generator that has other settings, add --overwrite.
    """
    generator = c3tools.train_generator(**options, reporter=reporter())
    print_table(generator.losses())
    folder = options["output"]
    message(f'Wrote {folder}/. Next: c3 generate "a dog on the beach"')
    return generator.to_dict()


def generate(texts: Sequence[str] = (), *, images: Sequence[str] = (), **options: Any) -> Any:
    """Generate images from texts, embeddings or photos.

    The same text and seed give the same image. An HTML page shows all images. Run the same command
    again to continue an interrupted run; existing images are kept. Only pre-trained generators need
    the store.

    Args:
        images: Make variations of this photo.
    """
    from c3tools.paper.imaging.generation import PAGE_FILE

    made = c3tools.generate(texts, images=images, **options, reporter=reporter())
    print_table(made.table(), SHORT)
    folder = options["output"]
    message(f"Wrote {folder}/. All images are on the page {folder}/{PAGE_FILE}.")
    return made.to_dict()


def evaluate_images(images: str | Path = "c3-images", **options: Any) -> Any:
    """Score generated images against the store's photos."""
    result = c3tools.evaluate_images(images, **options, reporter=reporter())
    print_table(result.table())
    if result.nearest:
        print_table(result.nearest_table())
    for note in result.notes:
        message(note)
    return result.to_dict()


def ablate_images(*, list_all: bool = False, **options: Any) -> Any:
    """Train and score generation methods, in one table.

    Each method trains a generator on photos alone, then generates an image from one caption of each
    test photo. Training a tiny generator takes about 17 minutes on a core with AVX-512 bf16, and an
    hour or more on other cores. Finished results and trained generators are kept. Run the same
    command again to continue, or to add methods, seeds or sigmas.

    Args:
        list_all: List the methods and exit.
    """
    if list_all:
        from c3tools.paper.ablation.methods import IMAGE_METHODS

        return list_methods(IMAGE_METHODS)
    return print_ablation(c3tools.ablate_images(**options, reporter=reporter()), options["output"])
