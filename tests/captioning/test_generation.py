from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest

from c3tools.captioning.generation import GenerationConfig, GenerationOptions, generate
from c3tools.captioning.model import CaptionDecoder
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.errors import DecoderError
from c3tools.io.artifact import digest_of
from tests.conftest import unit_rows

from .conftest import greedy_without_cache, logits_after


def test_greedy_equals_the_computation_without_cache(tiny_model: CaptionDecoder) -> None:
    x = unit_rows(200, 6)
    expected = [greedy_without_cache(tiny_model, row) for row in x]
    assert generate(tiny_model, x, GenerationConfig(batch_size=64)) == expected
    assert len({len(caption) for caption in expected}) > 2  # captions end at different steps
    assert len({tuple(caption) for caption in expected}) > 20


def test_wide_beams_find_the_best_caption_of_all(tiny_model: CaptionDecoder) -> None:
    x, limit, alpha = unit_rows(3, 6), 3, 0.7
    tiny_model.config = replace(tiny_model.config, max_tokens=limit)

    def score(x: Any, caption: Any) -> float:
        ids = [*caption, END_ID][:limit]
        likely = [
            float(logits_after(tiny_model, x, ids[:t]).log_softmax(-1)[ids[t]])
            for t in range(len(ids))
        ]
        return sum(likely) / float(len(ids) ** alpha)

    words = [token for token in range(7) if token not in (PAD_ID, END_ID)]
    captions = [caption for length in range(limit + 1) for caption in product(words, repeat=length)]
    found = generate(tiny_model, x, GenerationConfig("beam", beams=200, length_penalty=alpha))
    assert found == [list(max(captions, key=partial(score, row))) for row in x]


def test_samples_follow_the_probabilities(tiny_model: CaptionDecoder) -> None:
    x = np.repeat(unit_rows(1, 6), 20_000, axis=0)
    keys = [str(i) for i in range(len(x))]
    tiny_model.config = replace(tiny_model.config, max_tokens=1)
    found = generate(tiny_model, x, GenerationConfig("nucleus", top_p=1.0, batch_size=20_000), keys)
    expected = logits_after(tiny_model, x[0], []).softmax(-1).numpy()
    counts = np.bincount([ids[0] if ids else END_ID for ids in found], minlength=7) / len(x)
    np.testing.assert_allclose(counts, expected, atol=0.012)  # more than three standard errors


def test_samples_depend_on_seed_and_key_and_a_small_nucleus_is_greedy(
    tiny_model: CaptionDecoder,
) -> None:
    x, keys = unit_rows(50, 6), [f"k{i}" for i in range(50)]
    settings: Any = ({"seed": 1}, {"seed": 1, "batch_size": 7}, {"seed": 2}, {"top_p": 1e-6})
    made = [generate(tiny_model, x, GenerationConfig("nucleus", **own), keys) for own in settings]
    assert made[0] == made[1] != made[2]
    assert made[3] == generate(tiny_model, x)
    wrong: Any = (
        {"beams": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"temperature": 0.0},
        {"method": "best"},
    )
    for own in (*wrong, {"temperature": float("nan")}):
        with pytest.raises(DecoderError):
            GenerationConfig(**own)


@pytest.mark.parametrize(
    ("options", "built_in", "config"),
    [
        ({}, True, GenerationConfig("beam", beams=5)),
        ({}, False, GenerationConfig()),
        ({"beams": 1}, True, GenerationConfig()),
        ({"beams": 2}, True, GenerationConfig("beam", beams=2)),
        ({"steer": "magic"}, True, GenerationConfig("magic")),
        (
            {"top_p": 0.5, "temperature": 2.0, "seed": 4},
            True,
            GenerationConfig("nucleus", top_p=0.5, temperature=2.0, seed=4),
        ),
    ],
)
def test_the_options_of_the_commands_mean_one_method(
    options: dict[str, Any], built_in: bool, config: GenerationConfig
) -> None:
    assert GenerationOptions(**options).config(built_in=built_in) == config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steer": "clip"}, "clip"),
        ({"beams": 2, "top_p": 0.5}, "--top-p and --steer exclude"),
    ],
)
def test_options_that_mean_several_methods_or_none_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DecoderError, match=message):
        GenerationOptions(**options).config()


@dataclass(frozen=True)
class LaterConfig(GenerationConfig):
    """The settings of a later version, which has another field."""

    repetition_penalty: float = 1.0


def test_a_setting_that_is_added_does_not_change_the_digest_of_captions() -> None:
    assert digest_of(LaterConfig()) == digest_of(GenerationConfig())
    assert digest_of(LaterConfig(repetition_penalty=1.2)) != digest_of(GenerationConfig())
