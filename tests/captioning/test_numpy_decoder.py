from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c3tools.captioning import CaptionDecoder, DecoderConfig, GenerationConfig, generate
from c3tools.captioning.model import TorchScores
from c3tools.captioning.numpy_decoder import NumpyDecoder, NumpyScores, gelu


def numpy_copy(model: CaptionDecoder) -> NumpyDecoder:
    return NumpyDecoder(model.config, {name: value.numpy() for name, value in model.state_dict().items()})


@given(rows=st.integers(1, 4), heads=st.integers(1, 3), prefix=st.integers(1, 3), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_scores_are_those_of_torch(rows: int, heads: int, prefix: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = DecoderConfig(dim=5, vocab_size=9, width=12, layers=2, heads=heads, prefix_length=prefix, max_tokens=6)
    expected_from = CaptionDecoder(config).eval()
    found_from = numpy_copy(expected_from)
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 5)).astype(np.float32)
    expected, cache = expected_from.start(x)
    found, own_cache = found_from.start(x)
    for _ in range(5):
        np.testing.assert_allclose(found.values, expected.values.numpy(), rtol=1e-4, atol=1e-5)
        chosen = rng.integers(0, rows, rows)  # as beams are reordered
        expected_from.select(cache, chosen)
        found_from.select(own_cache, chosen)
        tokens = rng.integers(1, 9, rows)
        expected, found = expected_from.extend(tokens, cache), found_from.extend(tokens, own_cache)


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_the_captions_are_those_of_torch(
    tiny_model: CaptionDecoder, method: Literal["greedy", "beam", "nucleus"]
) -> None:
    x = np.random.default_rng(3).normal(size=(60, 6)).astype(np.float32)
    keys = [str(row) for row in range(60)]
    config = GenerationConfig(method, beams=3, batch_size=25)
    assert generate(numpy_copy(tiny_model), x, config, keys) == generate(tiny_model, x, config, keys)


@given(
    values=st.lists(st.lists(st.integers(-40, 40), min_size=6, max_size=6), min_size=2, max_size=2),
    uniform=st.floats(0, 1, exclude_max=True),
    top_p=st.sampled_from([1e-6, 0.5, 0.9, 1.0]),
    count=st.integers(1, 12),
)
@settings(deadline=None)
def test_choices_are_those_of_torch(values: list[list[int]], uniform: float, top_p: float, count: int) -> None:
    scores = np.array(values, dtype=np.float32) / 4 + np.arange(6, dtype=np.float32) / 100  # without ties in a row
    scores[:, 0] = -np.inf
    own, theirs = NumpyScores(scores), TorchScores(torch.from_numpy(scores.copy()))
    assert own.best().tolist() == theirs.best().tolist()
    draws = np.array([uniform, uniform / 2])
    assert own.sample(draws, top_p, 0.7).tolist() == theirs.sample(draws, top_p, 0.7).tolist()
    found, places = own.extend(np.array([[-0.3, -1.7]]), count)
    expected, _ = theirs.extend(np.array([[-0.3, -1.7]]), count)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    shifted = scores - scores.max(axis=1, keepdims=True)
    normed = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)) + np.array([[-0.3], [-1.7]])
    np.testing.assert_allclose(found[0], normed.ravel()[places[0]], rtol=1e-4, atol=1e-5)
    assert len(set(places[0].tolist())) == count


def test_gelu_is_the_normal_distribution_function_times_its_argument() -> None:
    x = np.linspace(-9, 9, 4001, dtype=np.float32)
    exact = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.astype(np.float64)])
    assert np.abs(gelu(x) - exact).max() < 2e-6
    assert np.abs(gelu(x) - exact)[np.abs(x) < 3].max() < 6e-7


def test_other_weights_are_refused(tiny_model: CaptionDecoder) -> None:
    weights = {name: value.numpy() for name, value in tiny_model.state_dict().items()}
    with pytest.raises(ValueError, match=r"tokens.weight has shape \(2, 2\)"):
        NumpyDecoder(tiny_model.config, {**weights, "tokens.weight": np.zeros((2, 2))})
    with pytest.raises(ValueError, match=r"other has shape \(1,\), but the architecture has no such weight"):
        NumpyDecoder(tiny_model.config, {**weights, "other": np.zeros(1)})
    del weights["positions"]
    with pytest.raises(KeyError, match="positions"):
        NumpyDecoder(tiny_model.config, weights)


def test_parameters_are_counted_as_torch_counts_them(tiny_model: CaptionDecoder) -> None:
    assert numpy_copy(tiny_model).count_parameters() == tiny_model.count_parameters()
