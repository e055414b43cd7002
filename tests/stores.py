"""Stores that several tests use, and what tests do to them; all are made by `build_store`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from c3tools.arrays import Matrix
from c3tools.corpus.items import Corpus
from c3tools.corpus.reading import read_corpus
from c3tools.devices import Compute
from c3tools.embedding.embed import embed_corpus
from c3tools.embedding.shard_work import EmbedOptions
from c3tools.embedding.summary import EmbedSummary
from c3tools.encoders import Encoder
from c3tools.encoders.encoder import ModelFacts
from c3tools.encoders.preprocessing import ImagePreprocessor
from c3tools.reporter import SILENT, Reporter
from c3tools.store import Failure, Rows, Store
from c3tools.store.means import load_means, save_means

from .conftest import MODEL, build_store, unit_rows, write_jsonl

Floats = TypeVar("Floats", bound=npt.NDArray[Any])
DIM = 12
FAILURE = Failure("broken", "photos/broken.jpg", "decode", "OSError", "image file is truncated")


def two_texts_per_image(
    splits: list[str], images: Matrix, texts: Matrix, **columns: list[Any]
) -> tuple[Rows, Rows]:
    """Rows of images img000, img001, … and of two texts each."""
    keys = [f"img{i:03d}" for i in range(len(images))]
    owners = np.repeat(keys, 2).tolist()
    text_rows = Rows.of(
        "text",
        [f"{key}#{n % 2}" for n, key in enumerate(owners)],
        texts,
        caption=[f"caption {n % 2} of image {n // 2}" for n in range(len(owners))],
        image_key=owners,
        split=np.repeat(splits, 2).tolist(),
    )
    return Rows.of("image", keys, images, split=splits, **columns), text_rows


def whole_store(
    path: Path, *, images: int = 30, part_rows: int = 10, dtype: str = "float16"
) -> Store:
    """A store with every kind of file: shards, splits, a failure, and external moments."""
    rows = two_texts_per_image(
        ["val" if i % 5 == 4 else "train" for i in range(images)],
        unit_rows(images, DIM, 1),
        unit_rows(2 * images, DIM, 2),
        path=[f"photos/img{i:03d}.jpg" for i in range(images)],
        width=[640 + i for i in range(images)],
        height=[480] * images,
        size=[10_000 + i for i in range(images)],
    )
    parts, failed = {"image": part_rows, "text": 2 * part_rows}, min(1, (images - 1) // part_rows)
    store = build_store(path, *rows, dtype=dtype, part_rows=parts, failures=[(failed, FAILURE)])
    save_means(store, path.parent / "elsewhere.safetensors")
    load_means(store, path.parent / "elsewhere.safetensors")
    return Store.open(path)


class _Colours:
    name, compute, ahead = "torch", Compute("cpu", "fp32"), 0

    def submit(self, modality: str, batch: Any) -> Callable[[], Matrix]:
        rows = [
            row[0, 0] if modality == "image" else row[row > 0].astype(np.uint8)
            for row in np.asarray(batch)
        ]
        vectors = np.stack([colour_row(bytes(row)) for row in rows])
        return lambda: vectors


def colour_row(content: bytes) -> Matrix:
    """The embedding of a colour or a text: a random unit vector (8,) that depends on it alone."""
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    return np.asarray(unit_rows(1, 8, seed)[0])


def colour_encoder() -> Encoder:
    """A double that embeds images of one colour, and texts, without a model."""
    preprocess = ImagePreprocessor((partial(Image.Image.resize, size=(2, 2)),), {"size": 2})
    tokenise = lambda texts, n=64: [list(text.encode()[:n].ljust(n, bytes(1))) for text in texts]  # noqa: E731
    identity = {"name": "colours", "weights_sha256": "0" * 64}
    return Encoder(_Colours(), ModelFacts(tokenise, preprocess, identity, False, dim=8))


def colour_corpus(folder: Path, colours: Mapping[str, str | None], texts: int = 2) -> Path:
    """A folder of images of one colour each, None for one that cannot be read, and their
    captions."""
    folder.mkdir(exist_ok=True)
    for name, colour in colours.items():
        path = folder / f"{name}.png"
        if colour is None:
            path.write_bytes(b"broken")
        else:
            Image.new("RGB", (3, 3), colour).save(path)
    rows = [
        {"image": f"{name}.png", "captions": [f"{name} {n}" for n in range(texts)]}
        for name in sorted(colours)
    ]
    write_jsonl(folder / "captions.jsonl", *rows)
    return folder


def embed_colours(
    corpus: Corpus | Path | list[Path], store: Path, *, reporter: Reporter = SILENT, **options: Any
) -> EmbedSummary:
    """Embed a corpus as `colour_corpus` makes them, in this process, two rows a shard unless the
    options say other."""
    corpus = corpus if isinstance(corpus, Corpus) else read_corpus(corpus)
    settings = EmbedOptions(**{"shard_size": 2, "workers": 0, **options})
    return embed_corpus(corpus, store, colour_encoder(), settings, reporter=reporter)


def unit(rows: Floats) -> Floats:
    """Rows of length 1, of their own dtype."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)  # type: ignore[no-any-return]


def assert_close(found: Any, expected: Any, atol: float = 1e-6) -> None:
    np.testing.assert_allclose(found, expected, atol=atol)


def make_vectors(
    n: int = 90, seed: int = 0, dim: int = 16, *, text_noise: float = 0.1
) -> tuple[Matrix, Matrix]:
    """Images (n, d) and texts (2 n, d) with a modality gap, unit rows; texts 2 i and 2 i + 1 belong
    to image i.

    With a ``text_noise`` of 0.1 the two texts are near copies; with 0.4 they differ as captions do.
    """
    rng = np.random.default_rng(seed)
    shared, gap = rng.normal(size=(n, dim)), rng.normal(size=dim)
    images = unit(shared + gap + 0.1 * rng.normal(size=(n, dim)))
    texts = unit(np.repeat(shared, 2, axis=0) - gap + text_noise * rng.normal(size=(2 * n, dim)))
    return images.astype(np.float32), texts.astype(np.float32)


def gap_store(
    path: Path,
    n: int = 90,
    *,
    parts: int = 3,
    dtype: str = "float16",
    normalised: bool = True,
    model: Mapping[str, Any] = MODEL,
    text_noise: float = 0.1,
) -> Store:
    """A store of `make_vectors`, splits train (two thirds) and test, in several shards."""
    images, texts = make_vectors(n, text_noise=text_noise)
    if not normalised:
        images, texts = (
            images * 3,
            texts * np.linspace(0.5, 2, len(texts), dtype=np.float32)[:, None],
        )
    splits = ["train" if i % 3 else "test" for i in range(n)]
    paths = [f"img{i:03d}.jpg" for i in range(n)]
    rows = two_texts_per_image(splits, images, texts, path=paths)
    size = -(-n // parts)
    part_rows = {"image": size, "text": 2 * size}
    return build_store(
        path, *rows, model=model, dtype=dtype, normalised=normalised, part_rows=part_rows
    )


@contextmanager
def one_byte_changed(file: Path, position: int, flip: int) -> Iterator[None]:
    """The byte at ``position`` combined with ``flip`` (not 0) by exclusive or, while the block
    runs."""
    content = file.read_bytes()
    file.write_bytes(
        content[:position] + bytes([content[position] ^ flip]) + content[position + 1 :]
    )
    try:
        yield
    finally:
        file.write_bytes(content)
