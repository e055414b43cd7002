from __future__ import annotations

import hashlib

import numpy as np
from scipy import stats
from scipy.linalg import hadamard

from c3tools.seeds import generator, keyed_normal, stable_fractions, stable_hashes, torch_seed

KEYS = [f"k{i}" for i in range(2000)]


def splitmix64(z: int) -> int:
    """Java's SplittableRandom.mix64."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def independent(seed: int, epoch: int, key: str, dim: int) -> np.ndarray:
    """One row by another route: Python's integers, scipy's quantiles, a matrix product."""
    quarter = -(-dim // 4)
    digest = int.from_bytes(
        hashlib.blake2b(f"{seed}\x1f{epoch}\x1f{key}".encode(), digest_size=16).digest(), "little"
    )
    words = [
        splitmix64((digest + (digest >> 64 | 1) * (place + 1)) % 2**64) for place in range(quarter)
    ]
    codes = [(word >> shift) & 0xFFFF for word in words for shift in (0, 16, 32, 48)]
    quantiles = stats.norm.ppf((np.arange(65536) + 0.5) / 65536)
    quantiles[[0, -1]] = np.array([-1, 1]) * np.sqrt((65536 - (quantiles[1:-1] ** 2).sum()) / 2)
    values = quantiles[codes].reshape(4, quarter)
    rotated: np.ndarray = hadamard(4) / 2 @ values
    return rotated.reshape(-1)[:dim]


def test_keyed_normal_is_what_its_docstring_says() -> None:
    keys = ["a", "img 1#0", "naïve", ""]
    for dim in (1, 2, 3, 4, 33, 512):
        noise = keyed_normal(3, 7, keys, dim)
        assert noise.dtype == np.float32
        np.testing.assert_allclose(noise, [independent(3, 7, key, dim) for key in keys], atol=2e-6)


def test_known_values() -> None:
    # fixed: recipes and reports depend on these numbers staying the same from version to version
    digest = hashlib.sha256(keyed_normal(3, 1, KEYS, 512).astype("<f4").tobytes()).hexdigest()
    assert digest.startswith("d9423de22fc53ee6")
    np.testing.assert_allclose(
        keyed_normal(0, 0, ["key"], 3), [[-1.1672176, 1.6905304, 0.11065296]], rtol=1e-6
    )
    np.testing.assert_allclose(stable_fractions(["key"]), 0.36444743768619714, rtol=1e-15)
    assert [int(generator(3, "a").integers(2**32)), torch_seed(3, "a")] == [
        1798893179,
        2903926400082656158,
    ]


def test_rows_do_not_depend_on_their_batch() -> None:
    whole, order = keyed_normal(5, 1, KEYS, 33), np.random.default_rng(0).permutation(len(KEYS))
    for rows in np.split(order, [1, 3, 131, 500]):
        assert (keyed_normal(5, 1, [KEYS[row] for row in rows], 33) == whole[rows]).all()


def test_hashes_of_keys_are_the_first_half_of_their_digests() -> None:
    keys = ["", "img000", "いぬ"]
    digests = [hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys]
    hashes = stable_hashes(keys)
    assert hashes.dtype == np.int64
    assert hashes.tolist() == [
        int.from_bytes(digest[:8], "little", signed=True) for digest in digests
    ]
    assert stable_hashes([]).shape == (0,)
