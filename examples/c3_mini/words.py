"""Represent the words of a caption as vectors, because the mean of contextual states blurs them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_WORD = re.compile(r"[a-z]+")
_LEAST = 8  # captions that have a word


def word_vectors(
    captions: Sequence[str], training: npt.NDArray[np.int64], dim: int = 512
) -> Floats:
    """Weighted word counts of captions, on their principal axes: float32 (m, dim); fewer axes where
    words are few.

    A word counts once, with its inverse document frequency among the ``training`` captions (rows of
    ``captions``); one that fewer than 8 of these have does not count.
    """
    words = [sorted(set(_WORD.findall(caption.lower()))) for caption in captions]
    frequency = Counter(word for row in training for word in words[row])
    kept = {
        word: i for i, word in enumerate(sorted(w for w, n in frequency.items() if n >= _LEAST))
    }
    weight = {word: np.log(len(training) / frequency[word]) for word in kept}
    scatter = np.zeros((len(kept), len(kept)))
    for row in training:
        own = [word for word in words[row] if word in kept]
        places, weights = [kept[word] for word in own], np.array([weight[word] for word in own])
        scatter[np.ix_(places, places)] += np.outer(weights, weights)
    axes = np.linalg.eigh(scatter)[1][:, -dim:]
    vectors = np.zeros((len(captions), axes.shape[1]), np.float32)
    for row, present in enumerate(words):
        for word in present:
            if word in kept:
                vectors[row] += weight[word] * axes[kept[word]]
    return vectors
