"""Random generators from seeds.

Noise is keyed by (seed, epoch, key): the same item gets the same noise in the same epoch of the
same run, whatever the order of the rows and however many workers draw it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

_Words = npt.NDArray[np.uint64]
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_CODES = 1 << 16
_CACHED_ROWS = 128  # drawn at a time: a block of 512 dimensions stays in the cache


def generator(seed: int, *scope: object) -> np.random.Generator:
    """Return a generator that depends only on ``seed`` and ``scope`` (any printable values)."""
    key = int.from_bytes(_hash(seed, *scope).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))


def torch_seed(seed: int, *scope: object) -> int:
    """Return a seed for torch, drawn from `generator`."""
    return int(generator(seed, *scope).integers(2**62))


def keyed_normal(seed: int, epoch: int, keys: Sequence[str], dim: int) -> npt.NDArray[np.float32]:
    """Draw standard normal noise, float32 (len(keys), dim), each row from (seed, epoch, its key).

    A hash of the three starts a stream of 64-bit words (`_words`). They are cut into codes of 16
    bits, each code looks up one of 65,536 quantiles of the normal distribution, and four values at
    a time are rotated by the 4 x 4 Hadamard matrix (a rotation of independent normals gives
    independent normals; Wallace, ACM TOMS 22, 1996). So every number is half the sum or difference
    of four quantiles: variance 1, excess kurtosis -2.6e-5, largest value 8.8, tail beyond 5 short
    by 1.2%.

    Whole blocks are drawn at once, which numpy's generators cannot do for rows of different keys.
    Only integer arithmetic, look-ups and float32 sums are used, so that all versions of numpy and
    all processors give the same numbers.
    """
    quarter = math.ceil(dim / 4)
    noise = np.empty((len(keys), 4, quarter), dtype=np.float32)
    prefix = _hash(seed, epoch, "")
    for start in range(0, len(keys), _CACHED_ROWS):
        block_keys = keys[start : start + _CACHED_ROWS]
        block = noise[start : start + _CACHED_ROWS]
        words = _words(_digests_after(prefix, block_keys), quarter)
        codes = words.view("<u2").reshape(len(block_keys), 4, quarter)
        values = np.empty((4, len(block_keys), quarter), np.float32)
        for i in range(4):
            # every code is a valid index; "wrap" spares the bounds check's temporary
            np.take(_quantiles(), codes[:, i], out=values[i], mode="wrap")

        # Multiply by the Hadamard matrix
        sums = values[:2] + values[2:]
        differences = values[:2] - values[2:]
        np.add(sums[0], sums[1], out=block[:, 0])
        np.subtract(sums[0], sums[1], out=block[:, 1])
        np.add(differences[0], differences[1], out=block[:, 2])
        np.subtract(differences[0], differences[1], out=block[:, 3])
    return np.ascontiguousarray(noise.reshape(len(keys), 4 * quarter)[:, :dim])


def stable_fractions(keys: Sequence[str], salt: str = "") -> npt.NDArray[np.float64]:
    """Return a number in [0, 1] for each key (len(keys),); it depends only on key and ``salt``, on
    every machine.
    """
    return np.asarray(_digests_after(_hash(salt, ""), keys)[:, 1] / 2.0**64)


def stable_hashes(keys: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return a 64-bit hash of each key (len(keys),), the same on every machine."""
    return np.ascontiguousarray(_digests_after(_hash(), keys)[:, 0]).view(np.int64)


@cache
def _quantiles() -> npt.NDArray[np.float32]:
    """Return half of the normal quantile at the middle of each of 65,536 equal shares, ascending.

    The outermost value, which represents the whole tail, is chosen so that the variance of all is
    exactly 1/4.
    """
    inverse = NormalDist().inv_cdf
    upper = [inverse((code + 0.5) / _CODES) for code in range(_CODES // 2, _CODES)]
    others = math.fsum(value * value for value in upper[:-1])
    upper[-1] = math.sqrt(_CODES / 2 - others)
    half = np.array(upper) / 2
    return np.concatenate([-half[::-1], half]).astype(np.float32)


def _words(digests: _Words, count: int) -> _Words:
    """Return ``count`` words (n, count) for each of the digests (n, 2) by SplitMix64.

    The two halves of a digest are its start and its step. Steele, Lea and Flood, Fast splittable
    pseudorandom number generators, OOPSLA 2014.
    """
    starts = digests[:, :1]
    steps = np.bitwise_or(digests[:, 1:], np.uint64(1))  # odd, so that no word repeats
    numbers = np.arange(1, count + 1, dtype=np.uint64)
    words = np.multiply(steps, numbers, dtype=np.uint64)  # (n, count)
    words += starts
    for shift, factor in _MIX:
        words ^= words >> shift
        words *= factor
    words ^= words >> np.uint64(31)
    return words.astype("<u8", copy=False)


def _digests_after(prefix: hashlib.blake2b, keys: Sequence[str]) -> _Words:
    """Return the digests (n, 2) of what ``prefix`` has hashed so far followed by each of the
    keys.
    """
    digests = []
    for key in keys:
        hashed = prefix.copy()
        hashed.update(key.encode())
        digests.append(hashed.digest())
    halves = np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64, copy=False)
    return halves.reshape(-1, 2)


def _hash(*parts: object) -> hashlib.blake2b:
    return hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=16)
