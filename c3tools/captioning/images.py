"""`c3 caption`: from image files to captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..corpus.items import IMAGE_SUFFIXES
from ..corpus.reading import assign_keys, find_images
from ..encoders import Encoder
from ..errors import CorpusError
from .captioner import Captioner
from .fitting import Progress, silent
from .generation import GenerationConfig

_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass
class Captions:
    """What `caption_images` wrote.

    Attributes:
        captions: caption by image key, in the order the images were found.
        paths: where each image is.
        failures: path and reason of every file that could not be read as an image.
    """

    captions: dict[str, str] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    failures: list[tuple[Path, str]] = field(default_factory=list)


def caption_images(
    paths: Sequence[Path],
    captioner: Captioner,
    encoder: Encoder,
    *,
    generation: GenerationConfig | None = None,
    progress: Progress = silent,
) -> Captions:
    """Caption image files and the images of folders (searched recursively).

    Args:
        paths: files and folders.
        captioner: a trained decoder.
        encoder: of the model the decoder was trained on.
        generation: how captions are written; greedy when None.
        progress: opens the display.

    Raises:
        CorpusError: if a path is missing or is no image, or a folder holds none.
        DecoderError: if the encoder is another model than the decoder's.
    """
    captioner.check_model(encoder.identity, encoder.dim)
    images = find(paths)
    result = Captions()
    with progress("Captioning", len(images)) as tracker:
        for chunk in _chunks(list(images.items()), encoder.batch_size("image")):
            keys, pixels = [], []
            for key, path in chunk:
                try:
                    pixels.append(encoder.preprocess.load(path)[0])
                except _UNREADABLE as error:
                    result.failures.append((path, f"{type(error).__name__}: {error}"))
                    continue
                keys.append(key)
                result.paths[key] = path
            if keys:
                embeddings = encoder.encode_pixels(np.stack(pixels))
                written = captioner.caption(embeddings, keys=keys, generation=generation, encoder=encoder)
                result.captions.update(zip(keys, written, strict=True))
            tracker.advance(len(chunk))
    return result


def find(paths: Sequence[Path]) -> dict[str, Path]:
    """Image files by key: the path relative to its folder without the suffix, as in a store.

    Raises:
        CorpusError: if a path is missing or is no image, or a folder holds none.
    """
    found: dict[str, Path] = {}
    folders = sum(path.is_dir() for path in paths)
    for root in paths:
        if root.is_dir():
            inside = find_images(root)[0]
            if not inside:
                raise CorpusError(f"No images in {root} or below it.", remedy="Name a folder that holds images.")
            keys = assign_keys([image.key for image in inside])
            prefix = f"{root.name}/" if folders > 1 else ""
            named = {f"{prefix}{key}": Path(image.path) for key, image in zip(keys, inside, strict=True)}
        elif not root.exists():
            raise CorpusError(f"There is nothing at {root}.", remedy="Check the path; it is relative to where you are.")
        elif root.suffix.lower() not in IMAGE_SUFFIXES:
            suffixes = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
            raise CorpusError(f"{root} is not an image file by its name.", remedy=f"Images end in {suffixes}.")
        else:
            named = {root.stem: root}
        for key, path in named.items():
            found[str(path) if key in found else key] = path
    return found


def _chunks(items: list[tuple[str, Path]], size: int) -> Iterator[list[tuple[str, Path]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
