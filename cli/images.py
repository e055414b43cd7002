"""Train generators of images, generate and score images, and compare methods.

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
    """Train an image generator on the store's photos and their image embeddings alone, and write it
    to c3-generator/.

    Training reads no text; afterwards, `c3 generate "a dog on the beach"` makes images from texts.
    The photos are read from the paths in the store. Run the same command again to continue an
    interrupted training. --overwrite replaces a generator of other settings.
    """
    generator = c3tools.train_generator(**options, reporter=reporter())
    print_table(generator.losses())
    folder = options["output"]
    message(f'Wrote {folder}/. Next: c3 generate "a dog on the beach"')
    return generator.to_dict()


def generate(texts: Sequence[str] = (), *, images: Sequence[str] = (), **options: Any) -> Any:
    """Generate images from texts, captions, embeddings or photos, with a page of them.

    The same text and seed give the same image. Run the same command again to continue an
    interrupted run: existing images are kept. Only pre-trained generators need the store.

    Args:
        images: Make variations of this photo.
    """
    from c3tools.imaging.generation import PAGE_FILE

    made = c3tools.generate(texts, images=images, **options, reporter=reporter())
    print_table(made.table(), SHORT)
    folder = options["output"]
    message(f"Wrote {folder}/. All images are on the page {folder}/{PAGE_FILE}.")
    return made.to_dict()


def evaluate_images(images: str | Path = "c3-images", **options: Any) -> Any:
    """Score generated images, compared with the photos of the store."""
    result = c3tools.evaluate_images(images, **options, reporter=reporter())
    print_table(result.table())
    if result.nearest:
        print_table(result.nearest_table())
    for note in result.notes:
        message(note)
    return result.to_dict()


def ablate_images(*, list_all: bool = False, **options: Any) -> Any:
    """Compare methods that train generators on photos alone, and print one table.

    Each generator makes an image from a caption of every test photo, and the images are scored.
    Training a tiny generator takes about 17 minutes on one core with AVX-512 bf16, and an hour or
    more on one without. Finished results and trained generators are kept. Run the same command
    again to continue, or add methods, seeds or sigmas.

    Args:
        list_all: List the methods and exit.
    """
    if list_all:
        from c3tools.ablation.methods import IMAGE_METHODS

        return list_methods(IMAGE_METHODS)
    return print_ablation(c3tools.ablate_images(**options, reporter=reporter()), options["output"])
