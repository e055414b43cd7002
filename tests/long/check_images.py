"""Odd images: all that Pillow opens are embedded, and all others are listed.

Images of every mode, size and format that Pillow writes are made here; ``--images FOLDER`` adds the files of a folder,
such as Tests/images of Pillow's source distribution.
"""

from __future__ import annotations

import itertools
import random
import shutil
import warnings
from pathlib import Path

import pytest
from PIL import Image

from c3tools.corpus import read_corpus
from c3tools.corpus.items import IMAGE_SUFFIXES
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.store import Store

from .conftest import Budget

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F", "HSV", "LAB")
SIZES = ((1, 1), (1, 900), (900, 1), (17, 33))


def write_odd(folder: Path, draw: random.Random) -> None:
    """Write an image of each mode, size and format where Pillow can, and a part of it."""
    for number, (mode, size, suffix) in enumerate(itertools.product(MODES, SIZES, sorted(IMAGE_SUFFIXES))):
        path = folder / f"{number:04d}{suffix}"
        try:
            Image.effect_noise(size, 90).convert(mode).save(path)
        except (OSError, ValueError, KeyError):  # a format that does not have this mode, or is not installed
            path.unlink(missing_ok=True)
            continue
        content = path.read_bytes()
        (folder / f"{number:04d}-cut{suffix}").write_bytes(content[: draw.randrange(len(content))])


def opens(path: Path) -> bool:
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            image.convert("RGB")
            return image.format not in ("EPS", "PS")  # which would start another program
    except Exception:  # whatever Pillow raises
        return False


@pytest.mark.filterwarnings("ignore")
def test_odd_images(tmp_path: Path, budget: Budget, light_encoder: Encoder, request: pytest.FixtureRequest) -> None:
    given, count, listed = request.config.getoption("--images"), 0, 0
    while budget.is_left():
        folder = tmp_path / "images"
        folder.mkdir()
        write_odd(folder, budget.random)
        for number, path in enumerate(sorted(Path(given).rglob("*")) if given else ()):
            if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
                shutil.copyfile(path, folder / f"given-{number:05d}{path.suffix.lower()}")
        corpus = read_corpus(folder)
        embed_corpus(corpus, tmp_path / "s", light_encoder, workers=2)
        store = Store.open(tmp_path / "s")
        embedded = set(store.load("image").keys)
        failed = {failure.key for failure in store.recorded_failures()}
        files = {path.stem: path for path in folder.iterdir()}
        assert embedded | failed == set(files) and not embedded & failed
        lost = [path.name for key, path in files.items() if key in failed and opens(path)]
        assert not lost, lost
        count, listed = count + len(embedded), listed + len(failed)
        shutil.rmtree(folder)
        shutil.rmtree(tmp_path / "s")
        given = None  # once is enough
    budget.report(f"{count} odd images embedded, {listed} listed, none lost")
