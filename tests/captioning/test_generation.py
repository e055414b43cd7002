from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from c3tools.captioning.generation import GenerationConfig, generate
from c3tools.captioning.model import CaptionDecoder
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.errors import DecoderError

from .conftest import greedy_without_cache, logits_after


def inputs(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def test_greedy_equals_the_computation_without_cache(tiny_model: CaptionDecoder) -> None:
    x = inputs(200)
    expected = [greedy_without_cache(tiny_model, row) for row in x]
    assert generate(tiny_model, x, GenerationConfig(batch_size=64)) == expected
    assert len({len(caption) for caption in expected}) > 2  # captions end at different steps
    assert len({tuple(caption) for caption in expected}) > 20


def test_wide_beams_find_the_best_caption_of_all(tiny_model: CaptionDecoder) -> None:
    x = inputs(3)
    limit, alpha = 3, 0.7

    def score(x: np.ndarray, ids: list[int]) -> float:
        likely = [float(logits_after(tiny_model, x, ids[:t]).log_softmax(-1)[ids[t]]) for t in range(len(ids))]
        return sum(likely) / float(len(ids) ** alpha)

    words = [token for token in range(7) if token not in (PAD_ID, END_ID)]
    tiny_model.config = replace(tiny_model.config, max_tokens=limit)
    found = generate(tiny_model, x, GenerationConfig("beam", beams=200, length_penalty=alpha))
    for row, caption in zip(x, found, strict=True):
        best, winner = -np.inf, None
        for length in range(limit + 1):
            for option in itertools.product(words, repeat=length):
                value = score(row, [*option, END_ID] if length < limit else list(option))
                if value > best:
                    best, winner = value, list(option)
        assert caption == winner


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_a_caption_does_not_depend_on_its_batch(tiny_model: CaptionDecoder, method: str) -> None:
    x, keys = inputs(30), [f"k{i}" for i in range(30)]
    sizes = (GenerationConfig(method, batch_size=size) for size in (30, 1))  # type: ignore[arg-type]
    together, alone = (generate(tiny_model, x, config, keys) for config in sizes)
    assert together == alone


def test_samples_follow_the_probabilities(tiny_model: CaptionDecoder) -> None:
    x = np.repeat(inputs(1), 20_000, axis=0)
    keys = [str(i) for i in range(len(x))]
    tiny_model.config = replace(tiny_model.config, max_tokens=1)
    found = generate(tiny_model, x, GenerationConfig("nucleus", top_p=1.0, batch_size=20_000), keys)
    expected = logits_after(tiny_model, x[0], []).softmax(-1).numpy()
    counts = np.bincount([ids[0] if ids else END_ID for ids in found], minlength=7) / len(x)
    np.testing.assert_allclose(counts, expected, atol=0.012)  # more than three standard errors


def test_samples_depend_on_seed_and_key_and_a_small_nucleus_is_greedy(tiny_model: CaptionDecoder) -> None:
    x, keys = inputs(50), [f"k{i}" for i in range(50)]
    first = generate(tiny_model, x, GenerationConfig("nucleus", seed=1), keys)
    assert generate(tiny_model, x, GenerationConfig("nucleus", seed=1), keys) == first
    assert generate(tiny_model, x, GenerationConfig("nucleus", seed=2), keys) != first
    assert generate(tiny_model, x, GenerationConfig("nucleus", top_p=1e-6), keys) == generate(tiny_model, x)


def test_wrong_settings_are_refused() -> None:
    wrong: list[dict[str, Any]] = [{"beams": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0}]
    for settings in (*wrong, {"temperature": float("nan")}, {"method": "best"}):
        with pytest.raises(DecoderError):
            GenerationConfig(**settings)


def test_the_options_of_the_commands_mean_one_method() -> None:
    of = GenerationConfig.from_options
    assert [of(), of(built_in=False)] == [GenerationConfig("beam", beams=5), GenerationConfig()]
    assert [of(beams=1), of(beams=3)] == [GenerationConfig(), GenerationConfig("beam", beams=3)]
    assert of(steer="magic") == GenerationConfig("magic")
    nucleus = GenerationConfig("nucleus", top_p=0.5, temperature=2.0, seed=4)
    assert of(top_p=0.5, temperature=2.0, seed=4) == nucleus
    with pytest.raises(DecoderError, match="clip"):
        of(steer="clip")
