from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import StoreError
from c3tools.moments import Moments, load_moments, save_moments, unit_rows


@given(
    st.integers(1, 60), st.integers(1, 8), st.lists(st.integers(0, 60), max_size=6), st.randoms()
)
@settings(max_examples=80)
def test_rows_and_their_merged_parts_have_the_moments_of_numpy(
    n: int, dim: int, cuts: list[int], random: Random
) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    x = rng.normal(size=(n, dim)) * 10.0 ** rng.integers(-3, 4) + rng.normal(size=dim)
    pieces = [
        Moments.from_rows(p)
        for p in np.split(rng.permutation(x), sorted({min(c, n) for c in cuts}))
    ]
    random.shuffle(pieces)
    expected = Moments(n, x.mean(axis=0), np.atleast_2d(np.cov(x.T, bias=True)) * n)
    for found in (Moments.from_rows(x), Moments.merge_all(pieces, dim)):
        assert found.n == n
        scale = np.abs(expected.scatter).max() + np.abs(expected.mean).max() + 1e-12
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-9 * scale)
        np.testing.assert_allclose(found.scatter, expected.scatter, rtol=1e-8, atol=1e-9 * scale)


def test_sums_are_of_double_precision_and_centred() -> None:
    # whose sum is infinite in float16
    moments = Moments.from_rows(np.ones((200_000, 1), dtype=np.float16))
    assert (moments.n, moments.mean[0], moments.scatter[0, 0]) == (200_000, 1.0, 0.0)
    x = 1e8 + np.array([[1.0], [2.0], [3.0]])  # where E x^2 - (E x)^2 gives 0 or less
    assert Moments.from_rows(x[:1]).merge(Moments.from_rows(x[1:])).covariance[
        0, 0
    ] == pytest.approx(2 / 3)


def test_empty_is_neutral_and_other_dimensions_are_refused() -> None:
    x, empty = Moments.from_rows(np.arange(6.0).reshape(3, 2)), Moments.empty(2)
    assert empty.of_unit_rows and not x.of_unit_rows
    for length, near in ((1.004, True), (1.006, False), (0.994, False)):
        assert Moments.from_rows(length * np.eye(2)).of_unit_rows == near
    assert empty.merge(x) is x.merge(empty) is x
    with pytest.raises(FrozenInstanceError):
        empty.n = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="dimensions 2 and 3"):
        empty.merge(Moments.empty(3))


def test_repr_is_one_short_line() -> None:
    moments = Moments.from_rows(np.full((3, 512), 0.5))
    assert repr(moments) == "Moments(n=3, dim=512, norm of the mean 11.31)"


def test_saved_moments_are_exact(tmp_path: Path) -> None:
    groups = {
        "val": Moments.empty(5),
        "train": Moments.from_rows(np.random.default_rng(1).normal(size=(50, 5))),
    }
    save_moments(tmp_path / "m", groups, {"modality": "text", "a": 1})
    save_moments(tmp_path / "again", dict(reversed(groups.items())), {"a": 1, "modality": "text"})
    assert (tmp_path / "m").read_bytes() == (tmp_path / "again").read_bytes()
    loaded, header = load_moments(tmp_path / "m")
    assert (header, loaded["val"].n, loaded["train"].n) == ({"modality": "text", "a": 1}, 0, 50)
    np.testing.assert_array_equal(loaded["train"].mean, groups["train"].mean)
    np.testing.assert_allclose(loaded["train"].scatter, groups["train"].scatter, rtol=1e-14)


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(StoreError, match=r"moments file .* does not exist"):
        load_moments(path)
    save_moments(path, {"train": Moments.empty(3)}, {})
    payload = path.read_bytes()
    for damaged in (b"", payload[:20], json.dumps({}).encode()):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match="not a readable moments file"):
            load_moments(path)


def test_unit_rows_keep_their_dtype_and_leave_zero_at_zero() -> None:
    for dtype in (np.float32, np.float64):
        rows = np.array([[3, 4], [0, 0], [-5, 12]], dtype=dtype)
        units = unit_rows(rows)  # type: ignore[type-var]
        assert units.dtype == dtype
        np.testing.assert_array_equal(units, (rows / np.array([[5], [1], [13]], dtype=dtype)))
        assert unit_rows(rows[:0]).shape == (0, 2)  # type: ignore[type-var]
