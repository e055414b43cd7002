from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from fractions import Fraction
from operator import add, mul, sub
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.errors import StoreError
from c3tools.moments import Moments, load_moments, save_moments, unit_rows


def exact_sums(rows: npt.NDArray[Any]) -> tuple[list[int], list[int]]:
    """The sums, and the sums of products, as integers of Python in units of 2**-24 and 2**-48."""
    columns = [[int(Fraction(float(value)) * 2**24) for value in column] for column in rows.T]
    products = [sum(map(mul, one, other)) for one in columns for other in columns]
    return [sum(column) for column in columns], products


def sums_of(moments: Moments) -> tuple[list[int], list[int]]:
    products = [
        int(high) * 2**32 + int(low)
        for high, low in zip(moments.high.flat, moments.low.flat, strict=True)
    ]
    return moments.sums.tolist(), products


@given(
    st.integers(1, 60),
    st.integers(1, 5),
    st.integers(-7, 16),
    st.lists(st.integers(0, 60), max_size=6),
    st.randoms(),
)
@settings(max_examples=80)
def test_sums_are_exact_in_any_parts_and_order(
    n: int, dim: int, exponent: int, cuts: list[int], random: Random
) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    size = min(2.0**exponent, 65_000)
    x = (rng.uniform(-1, 1, (n, dim)) * size).astype(np.float16)
    x[:, 0] = x[0, 0]  # a constant column
    x[rng.random((n, dim)) < 0.1] = 2.0**-24  # the smallest subnormal
    whole = Moments.from_rows(x)
    assert sums_of(whole) == exact_sums(x)
    pieces = np.split(rng.permutation(x), sorted({min(cut, n) for cut in cuts}))
    parts = [Moments.from_rows(piece) for piece in pieces]
    random.shuffle(parts)
    assert Moments.total(parts, dim) == whole
    assert whole - parts[0] == Moments.total(parts[1:], dim)
    assert whole - whole == Moments.empty(dim)

    precise = x.astype(np.longdouble)
    centred = precise - precise.mean(axis=0)
    tolerance = 2e-15 * float(np.abs(precise).max()) ** 2
    np.testing.assert_allclose(
        whole.mean, precise.mean(axis=0).astype(float), rtol=1e-15, atol=1e-18
    )
    np.testing.assert_allclose(
        whole.covariance, (centred.T @ centred / n).astype(float), rtol=1e-14, atol=tolerance
    )


@pytest.mark.parametrize(
    ("mean", "size"), [(0, 0.05), (0, 1), (0, 25), (0, 60_000), (60_000, 0), (60_000, 100)]
)
def test_large_blocks_are_exact(mean: float, size: float) -> None:
    noise = np.random.default_rng(0).normal(size=(20_000, 3)).clip(-1, 1)
    x = (mean + size * noise).astype(np.float16)
    assert sums_of(Moments.from_rows(x)) == exact_sums(x)


def test_a_million_equal_rows_have_no_scatter() -> None:
    moments = Moments.from_rows(np.full((1_000_000, 1), 0.1, np.float16))
    assert moments.mean[0] == np.float16(0.1)
    assert moments.scatter[0, 0] == 0
    # whose sum is infinite in float16
    moments = Moments.from_rows(np.ones((200_000, 1), dtype=np.float16))
    assert (moments.n, moments.mean[0], moments.scatter[0, 0]) == (200_000, 1.0, 0.0)


def test_moments_of_a_mean_and_a_scatter_are_the_nearest() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)) + 3
    mean = x.mean(axis=0)
    scatter = (x - mean).T @ (x - mean)
    found = Moments.of(50, mean, scatter)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found.scatter, scatter, rtol=1e-12)
    rounded = Moments.from_rows(x)  # to multiples of 2**-24
    np.testing.assert_allclose(rounded.mean, mean, atol=2**-25)
    np.testing.assert_allclose(rounded.covariance, scatter / 50, atol=1e-7)


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000])
def test_values_that_no_sum_can_hold_are_refused(value: float) -> None:
    with pytest.raises(StoreError, match="finite values below 65,536"):
        Moments.from_rows([[value, 1.0]])


def test_empty_is_neutral_and_other_dimensions_are_refused() -> None:
    x, empty = Moments.from_rows(np.arange(6.0).reshape(3, 2)), Moments.empty(2)
    assert empty.of_unit_rows and not x.of_unit_rows
    for length, near in ((1.004, True), (1.006, False), (0.994, False)):
        assert Moments.from_rows(length * np.eye(2)).of_unit_rows == near
    assert empty + x == x + empty == x != empty
    with pytest.raises(FrozenInstanceError):
        empty.n = 1  # type: ignore[misc]
    for join in (add, sub):
        with pytest.raises(ValueError, match="dimensions 2 and 3"):
            join(empty, Moments.empty(3))


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
    assert loaded == groups


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
