from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from c3tools.captioning import CaptionDecoder, GenerationConfig, generate
from c3tools.captioning.magic import magic
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.errors import DecoderError

LIMIT = 6


class Letters:
    """A tokenizer of one letter per token."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefg"[token] for token in ids if token not in (PAD_ID, END_ID))


class Counting:
    """An encoder whose embedding of a text is how often it has each letter."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        rows = np.array([[text.count(letter) + 0.1 for letter in "abcdefg"] for text in texts])
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def inputs(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(n, 7)).astype(np.float32)


def write(model: CaptionDecoder, n: int, **settings: float) -> list[list[int]]:
    x, images = inputs(n)
    config = GenerationConfig("magic", max_tokens=LIMIT, **settings)  # type: ignore[arg-type]
    return magic(model, Letters(), x, images, config, Counting())  # type: ignore[arg-type]


def by_definition(model: CaptionDecoder, x: np.ndarray, image: np.ndarray, config: GenerationConfig) -> list[int]:
    """The formula, token by token, everything computed again without a cache."""
    written: list[int] = []
    for _ in range(LIMIT):
        scores = logits_after(model, x, written)
        scores[PAD_ID] = -torch.inf
        likely, tokens = scores.softmax(-1).topk(min(config.candidates, 7))
        texts = [Letters().decode([*written, token]) for token in tokens.tolist()]
        cosines = Counting().encode_texts(texts) @ (image / np.linalg.norm(image))
        view = torch.softmax(config.similarity_scale * torch.from_numpy(cosines), dim=-1)
        earlier = hidden_states(model, x, written)
        best, winner = -np.inf, -1
        for i, token in enumerate(tokens.tolist()):
            state = hidden_states(model, x, [*written, token])[-1]
            repeated = torch.cosine_similarity(state[None], earlier).max()
            score = (1 - config.alpha) * likely[i] - config.alpha * repeated + config.beta * view[i]
            if float(score) > best:
                best, winner = float(score), token
        if winner == END_ID:
            break
        written.append(winner)
    return written


def logits_after(model: CaptionDecoder, x: np.ndarray, written: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.from_numpy(x[None]), torch.tensor([[*written, PAD_ID]]))[0, len(written)]


def hidden_states(model: CaptionDecoder, x: np.ndarray, written: list[int]) -> torch.Tensor:
    """Those of the last prefix position and of every token."""
    with torch.no_grad():
        prefix = model.embed_prefix(torch.from_numpy(x[None]))
        tokens = model.tokens(torch.tensor([written], dtype=torch.long))
        return model.run(torch.cat([prefix, tokens], dim=1))[0, model.config.prefix_length - 1 :]


@pytest.mark.parametrize("settings", [{}, {"candidates": 3, "alpha": 0.6, "beta": 0.5, "similarity_scale": 5.0}])
def test_it_writes_what_the_formula_says(tiny_model: CaptionDecoder, settings: dict[str, float]) -> None:
    x, images = inputs(20)
    config = GenerationConfig("magic", max_tokens=LIMIT, **settings)  # type: ignore[arg-type]
    expected = [by_definition(tiny_model, row, image, config) for row, image in zip(x, images, strict=True)]
    assert write(tiny_model, 20, **settings) == expected
    assert len({len(caption) for caption in expected}) > 1


def test_without_its_terms_it_is_greedy_and_with_a_large_one_the_encoder_decides(tiny_model: CaptionDecoder) -> None:
    x, _ = inputs(30)
    assert write(tiny_model, 30, alpha=0.0, beta=0.0) == generate(tiny_model, x)
    assert write(tiny_model, 30) != generate(tiny_model, x)
    images = np.eye(7, dtype=np.float32)[[4]]
    config = GenerationConfig("magic", max_tokens=3, alpha=0.0, beta=1e6)
    assert magic(tiny_model, Letters(), x[:1], images, config, Counting()) == [[4, 4, 4]]  # type: ignore[arg-type]


def test_the_published_settings_are_the_default_and_texts_are_encoded_once(tiny_model: CaptionDecoder) -> None:
    config = GenerationConfig("magic")
    assert (config.candidates, config.alpha, config.beta) == (45, 0.1, 2.0)
    x, images = inputs(4)
    encoder = Counting()
    magic(tiny_model, Letters(), x, images, GenerationConfig("magic", max_tokens=1), encoder)  # type: ignore[arg-type]
    assert sorted(encoder.asked) == ["", "c", "d", "e", "f", "g"]  # four images, the same candidates


def test_without_an_encoder_it_is_refused(tiny_model: CaptionDecoder) -> None:
    x, images = inputs(1)
    with pytest.raises(DecoderError, match="no encoder was given"):
        magic(tiny_model, Letters(), x, images, GenerationConfig("magic"), None)  # type: ignore[arg-type]
