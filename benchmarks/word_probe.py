"""Name the words of images by regression on text embeddings with noise: a decoder's stand-in that takes no training.

The probe predicts, from an embedding, which of the frequent words are in a caption. It is a linear regression on
infinitely many noised copies of each text, which has a closed form: noise adds sigma^2 to the diagonal of the
covariance, and a normalised row is divided by its mean length, sqrt(|x|^2 + sigma^2 d).

It names the five most likely words of images, without noise. The score is the cosine of their tf-idf with that of a
caption, averaged over captions and images: the part of CIDEr that single words give.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from c3tools.metrics.tokenizer import tokenize
from c3tools.moments import unit_rows
from c3tools.seeds import generator
from c3tools.store import Store

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]

METHODS = {"C2_2": False, "C3": True}  # with Collapse?
WORDS = 300  # the most frequent ones
LEAST = 5  # captions in which a word must be, to be learned

_STOP = "a an the of in on at with and is are to his her its it by for from up out as that this two one"
STOP = frozenset(_STOP.split())
NAMED = 5


@dataclass(frozen=True)
class Source:
    """Embeddings of one encoder.

    Attributes:
        name: in the tables.
        images: float64 (m, d), L2-normalised.
        texts: float64 (k, d), L2-normalised.
        owner: int64 (k,), the image of each text.
        words: bool (k, v), which of the v most frequent words each text has.
        splits: the split of each image; None if there are none.
    """

    name: str
    images: Array
    texts: Array
    owner: Indices
    words: npt.NDArray[np.bool_]
    splits: npt.NDArray[np.str_] | None

    def draw(self, number: int) -> tuple[Indices, Indices, Indices]:
        """Return the images of train, val and test in one of the random halves."""
        order = generator(0, "sigma probe", number).permutation(np.unique(self.owner))
        if self.splits is None:
            first, second = len(order) // 2, 3 * len(order) // 4
            return order[:first], order[first:second], order[second:]
        own = [order[self.splits[order] == split] for split in ("train", "val", "test")]
        train, val, test = (items[: len(items) // 2] for items in own)
        return train, val, test

    def rows(self, items: Indices) -> tuple[Indices, Indices]:
        """Return the texts of images, and for each its place among these images."""
        place = np.full(len(self.images), -1)
        place[items] = np.arange(len(items))
        found = np.flatnonzero(place[self.owner] >= 0)
        return found, place[self.owner[found]]


@dataclass(frozen=True)
class Lesson:
    """The captions of some images of a source, for the probe to learn from.

    Attributes:
        means: of these images and of their texts, float64 (d,) each.
        texts: float64 (n, d).
        labels: float64 (n, w), 1 where a text has a word.
        chosen: int64 (w,), the words that are learned, as columns of the source.
        idf: float64 (w,).
    """

    means: tuple[Array, Array]
    texts: Array
    labels: Array
    chosen: Indices
    idf: Array

    @classmethod
    def of(cls, source: Source, images: Indices, words: int) -> Lesson:
        """Return the lesson of the images' captions, with at most ``words`` words."""
        rows, _ = source.rows(images)
        counts = source.words[rows].sum(axis=0)
        chosen = np.argsort(-counts, kind="stable")[:words]
        chosen = chosen[counts[chosen] >= LEAST]
        labels = source.words[np.ix_(rows, chosen)].astype(np.float64)
        means = source.images[images].mean(axis=0), source.texts[rows].mean(axis=0)
        return cls(means, source.texts[rows], labels, chosen, -np.log(labels.mean(axis=0)))

    def wanted(self, source: Source, texts: Indices, place: Indices, count: int) -> Array:
        """Return what captions say of their images, which are numbered by ``place``: see `tf_idf`."""
        return tf_idf(source.words[np.ix_(texts, self.chosen)], place, count, self.idf)

    def of_images(self, source: Source, images: Indices) -> tuple[Array, bool, Array]:
        """Return images to ask about, with what their captions say, for `scores`."""
        texts, place = source.rows(images)
        return source.images[images], False, self.wanted(source, texts, place, len(images))

    def scores(self, method: str, sigma: float, asked: Sequence[tuple[Array, bool, Array]]) -> list[Array]:
        """Return the score of each embedding, in percent: see the top of the file.

        Args:
            method: a key of `METHODS`.
            sigma: of the noise.
            asked: sets of embeddings (m, d), with whether they are texts, and what is wanted of them (m, w).
        """
        shift = [mean * METHODS[method] for mean in self.means]
        vectors = [rows - shift[is_text] for rows, is_text, _ in asked]
        rates = probe(self.texts - shift[1], self.labels, vectors, sigma)
        return [named_scores(each, self.idf, wanted) for each, (*_, wanted) in zip(rates, asked, strict=True)]


def read(path: Path, name: str, words: int) -> Source:
    """Read a store, or a folder of arrays."""
    if (path / "store.json").exists():
        pairs = Store.open(path).pairs(split=None)
        texts, owner = pairs.second.select(pairs.rows), pairs.item_index[pairs.rows]
        captions, splits = list(texts.captions), np.array(pairs.first.splits)
        return Source(
            name, unit(pairs.first.embeddings), unit(texts.embeddings), owner, has_words(captions, words), splits
        )
    of_image, captions, kept = [], [], []
    for line in (path / "meta.jsonl").read_text().splitlines():
        row = json.loads(line)
        several = "text_rows" in row  # empty for an image whose captions were not embedded
        numbers, own = (row["text_rows"], row["captions"]) if several else ([row["row"]], [row["caption"]])
        for number, caption in zip(numbers, own[: len(numbers)], strict=True):
            of_image.append(row["row"])
            captions.append(caption)
            kept.append(number)
    images, vectors = np.load(path / "image.npy"), np.load(path / "text.npy")[kept]
    return Source(name, unit(images), unit(vectors), np.array(of_image), has_words(captions, words), None)


def unit(rows: npt.ArrayLike) -> Array:
    """Return rows of unit length, float64."""
    return unit_rows(np.asarray(rows, dtype=np.float64))


def has_words(captions: Sequence[str], count: int) -> npt.NDArray[np.bool_]:
    """Return which of the 2 * ``count`` most frequent words each caption has; each half learns ``count`` of them."""
    own = [set(tokenize(caption)) - STOP for caption in captions]
    numbers = Counter(word for words in own for word in sorted(words)).most_common(2 * count)
    vocabulary = {word: number for number, (word, _) in enumerate(numbers)}
    found = np.zeros((len(own), len(vocabulary)), dtype=bool)
    for row, words in enumerate(own):
        found[row, [vocabulary[word] for word in words if word in vocabulary]] = True
    return found


def tf_idf(words: npt.NDArray[np.bool_], place: Indices, count: int, idf: Array) -> Array:
    """Return for each image the mean of its captions' tf-idf vectors of unit length (or zero): (count, v).

    Args:
        words: bool (k, v), the words of the captions.
        place: int64 (k,), the image of each, below ``count``.
        count: of images.
        idf: float64 (v,).
    """
    vectors = words * idf
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    sums = np.zeros((count, len(idf)))
    np.add.at(sums, place, np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0))
    return np.asarray(sums / np.maximum(np.bincount(place, minlength=count), 1)[:, None])


def probe(x: Array, labels: Array, images: Sequence[Array], sigma: float) -> list[Array]:
    """Return the predicted rate of each word in each image, by regression on texts with all possible noise.

    Args:
        x: float64 (n, d), texts that are not normalised yet.
        labels: float64 (n, words), 1 where the text has the word.
        images: float64 (m, d) each.
        sigma: of the noise.
    """
    squared = np.einsum("ij,ij->i", x, x) + sigma**2 * x.shape[1]
    z = x / np.sqrt(squared)[:, None]
    mean, rate = z.mean(axis=0), labels.mean(axis=0)
    covariance = z.T @ z / len(z) - np.outer(mean, mean)
    covariance[np.diag_indices_from(covariance)] += sigma**2 * np.mean(1 / squared) + 1e-6 / x.shape[1]
    weights = np.linalg.solve(covariance, z.T @ labels / len(z) - np.outer(mean, rate))
    return [(unit(rows) - mean) @ weights + rate for rows in images]


def named_scores(rates: Array, idf: Array, wanted: Array) -> Array:
    """Return for each image the cosine of its likeliest words with the captions, in percent: (m,)."""
    named = np.zeros_like(rates)
    np.put_along_axis(named, np.argsort(-rates, axis=1, kind="stable")[:, :NAMED], 1, axis=1)
    named *= idf
    return np.asarray(100 * np.einsum("ij,ij->i", named, wanted) / np.linalg.norm(named, axis=1))
