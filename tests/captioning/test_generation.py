from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from c3tools.captioning import CaptionDecoder, GenerationConfig, generate
from c3tools.captioning.magic import generate_magic
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.errors import DecoderError

LIMIT = 6


def inputs(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)


def greedy_without_cache(model: CaptionDecoder, x: np.ndarray) -> list[int]:
    """The definition: the whole sequence is computed again for every token."""
    written: list[int] = []
    for _ in range(LIMIT):
        tokens = torch.tensor([[*written, PAD_ID]])
        with torch.no_grad():
            scores = model(torch.from_numpy(x[None]), tokens)[0, len(written)]
        scores[PAD_ID] = -torch.inf
        token = int(scores.argmax())
        if token == END_ID:
            break
        written.append(token)
    return written


def test_greedy_equals_the_computation_without_cache(tiny_model: CaptionDecoder) -> None:
    x = inputs(200)
    expected = [greedy_without_cache(tiny_model, row) for row in x]
    assert generate(tiny_model, x, GenerationConfig(batch_size=64)) == expected
    assert len({len(caption) for caption in expected}) > 2  # captions end at different steps
    assert len({tuple(caption) for caption in expected}) > 20


def test_wide_beams_find_the_best_caption_of_all(tiny_model: CaptionDecoder) -> None:
    x = inputs(3)
    limit, alpha = 3, 0.7
    words = [token for token in range(7) if token not in (PAD_ID, END_ID)]
    config = GenerationConfig("beam", beams=200, length_penalty=alpha, max_tokens=limit)
    found = generate(tiny_model, x, config)
    for row, caption in zip(x, found, strict=True):
        best, winner = -np.inf, None
        for length in range(limit + 1):
            for option in itertools.product(words, repeat=length):
                ids = [*option, END_ID] if length < limit else list(option)
                score = score_without_padding(tiny_model, row, ids) / len(ids) ** alpha
                if score > best:
                    best, winner = score, list(option)
        assert caption == winner


def score_without_padding(model: CaptionDecoder, x: np.ndarray, ids: list[int]) -> float:
    with torch.no_grad():
        scores = model(torch.from_numpy(x[None]), torch.tensor([ids]))[0]
    scores[:, PAD_ID] = -torch.inf
    return float(scores.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].sum())


def test_more_beams_do_not_write_less_likely_captions(tiny_model: CaptionDecoder) -> None:
    x = inputs(100)
    means = []
    for beams in (1, 2, 6):
        found = generate(tiny_model, x, GenerationConfig("beam", beams=beams, length_penalty=0.0))
        ended = [[*ids, END_ID][:LIMIT] for ids in found]
        means.append(np.mean([score_without_padding(tiny_model, r, i) for r, i in zip(x, ended, strict=True)]))
    assert means == sorted(means)


@pytest.mark.parametrize("method", ["greedy", "beam", "nucleus"])
def test_a_caption_does_not_depend_on_its_batch(tiny_model: CaptionDecoder, method: str) -> None:
    x, keys = inputs(30), [f"k{i}" for i in range(30)]
    together = generate(tiny_model, x, GenerationConfig(method, batch_size=30), keys)  # type: ignore[arg-type]
    alone = generate(tiny_model, x, GenerationConfig(method, batch_size=1), keys)  # type: ignore[arg-type]
    assert together == alone


def test_samples_follow_the_probabilities(tiny_model: CaptionDecoder) -> None:
    x = np.repeat(inputs(1), 20_000, axis=0)
    keys = [str(i) for i in range(len(x))]
    found = generate(tiny_model, x, GenerationConfig("nucleus", top_p=1.0, max_tokens=1, batch_size=20_000), keys)
    with torch.no_grad():
        scores = tiny_model(torch.from_numpy(x[:1]), torch.tensor([[2]]))[0, 0]
    scores[PAD_ID] = -torch.inf
    expected = scores.softmax(-1).numpy()
    counts = np.bincount([ids[0] if ids else END_ID for ids in found], minlength=7) / len(x)
    np.testing.assert_allclose(counts, expected, atol=0.012)  # more than three standard errors


def test_samples_depend_on_seed_and_key_and_a_small_nucleus_is_greedy(tiny_model: CaptionDecoder) -> None:
    x, keys = inputs(50), [f"k{i}" for i in range(50)]
    first = generate(tiny_model, x, GenerationConfig("nucleus", seed=1), keys)
    assert generate(tiny_model, x, GenerationConfig("nucleus", seed=1), keys) == first
    assert generate(tiny_model, x, GenerationConfig("nucleus", seed=2), keys) != first
    assert generate(tiny_model, x, GenerationConfig("nucleus", top_p=1e-6), keys) == generate(tiny_model, x)


def test_wrong_settings_and_inputs_are_refused(tiny_model: CaptionDecoder) -> None:
    with pytest.raises(DecoderError, match="6 dimensions, but the input has shape"):
        generate(tiny_model, np.zeros((2, 5), np.float32))
    with pytest.raises(DecoderError, match="Sampling depends on the keys"):
        generate(tiny_model, inputs(2), GenerationConfig("nucleus"))
    with pytest.raises(DecoderError, match="There is no generation method 'best'"):
        GenerationConfig("best")  # type: ignore[arg-type]
    for wrong in ({"beams": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"temperature": 0.0}, {"max_tokens": 0}):
        with pytest.raises(DecoderError):
            GenerationConfig("nucleus", **wrong)


def test_the_options_of_the_commands_mean_one_method() -> None:
    assert GenerationConfig.from_options() == GenerationConfig("greedy")
    assert GenerationConfig.from_options(beams=3, length_penalty=1.0) == GenerationConfig(
        "beam", beams=3, length_penalty=1.0
    )
    sampled = GenerationConfig("nucleus", top_p=0.5, temperature=2.0, seed=4)
    assert GenerationConfig.from_options(top_p=0.5, temperature=2.0, seed=4) == sampled
    assert GenerationConfig.from_options(magic=True) == GenerationConfig("magic")
    for both in ({"beams": 2, "magic": True}, {"beams": 2, "top_p": 0.5}, {"top_p": 0.5, "magic": True}):
        with pytest.raises(DecoderError, match="exclude each other"):
            GenerationConfig.from_options(**both)


class Letters:
    """A tokenizer of one letter per token."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefg"[token] for token in ids if token not in (PAD_ID, END_ID))


class Counting:
    """An encoder whose embedding of a text is how often it has each letter."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.asked += texts
        rows = np.array([[text.count(letter) + 0.1 for letter in "abcdefg"] for text in texts])
        unit: npt.NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return unit


def magic_inputs(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(n, 7)).astype(np.float32)


def generate_by_magic(model: CaptionDecoder, n: int, **settings: float) -> list[list[int]]:
    x, images = magic_inputs(n)
    config = GenerationConfig("magic", max_tokens=LIMIT, **settings)  # type: ignore[arg-type]
    return generate_magic(model, Letters(), x, images, config, Counting())  # type: ignore[arg-type]


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
        logits: torch.Tensor = model(torch.from_numpy(x[None]), torch.tensor([[*written, PAD_ID]]))
    return logits[0, len(written)]


def hidden_states(model: CaptionDecoder, x: np.ndarray, written: list[int]) -> torch.Tensor:
    """Those of the last prefix position and of every token."""
    with torch.no_grad():
        prefix = model.embed_prefix(torch.from_numpy(x[None]))
        tokens = model.tokens(torch.tensor([written], dtype=torch.long))
        return model.run(torch.cat([prefix, tokens], dim=1))[0, model.config.prefix_length - 1 :]


@pytest.mark.parametrize("settings", [{}, {"candidates": 3, "alpha": 0.6, "beta": 0.5, "similarity_scale": 5.0}])
def test_magic_follows_its_formula(tiny_model: CaptionDecoder, settings: dict[str, float]) -> None:
    x, images = magic_inputs(20)
    config = GenerationConfig("magic", max_tokens=LIMIT, **settings)  # type: ignore[arg-type]
    expected = [by_definition(tiny_model, row, image, config) for row, image in zip(x, images, strict=True)]
    assert generate_by_magic(tiny_model, 20, **settings) == expected
    assert len({len(caption) for caption in expected}) > 1


def test_magic_without_its_terms_is_greedy_and_with_a_large_one_the_encoder_decides(tiny_model: CaptionDecoder) -> None:
    x, _ = magic_inputs(30)
    assert generate_by_magic(tiny_model, 30, alpha=0.0, beta=0.0) == generate(tiny_model, x)
    assert generate_by_magic(tiny_model, 30) != generate(tiny_model, x)
    images = np.eye(7, dtype=np.float32)[[4]]
    config = GenerationConfig("magic", max_tokens=3, alpha=0.0, beta=1e6)
    assert generate_magic(tiny_model, Letters(), x[:1], images, config, Counting()) == [[4, 4, 4]]  # type: ignore[arg-type]


def test_the_published_settings_of_magic_are_the_default_and_texts_are_encoded_once(tiny_model: CaptionDecoder) -> None:
    config = GenerationConfig("magic")
    assert (config.candidates, config.alpha, config.beta) == (45, 0.1, 2.0)
    x, images = magic_inputs(4)
    encoder = Counting()
    generate_magic(tiny_model, Letters(), x, images, GenerationConfig("magic", max_tokens=1), encoder)  # type: ignore[arg-type]
    assert sorted(encoder.asked) == ["", "c", "d", "e", "f", "g"]  # four images, the same candidates


def test_magic_without_an_encoder_is_refused(tiny_model: CaptionDecoder) -> None:
    x, images = magic_inputs(1)
    with pytest.raises(DecoderError, match="needs an encoder"):
        generate_magic(tiny_model, Letters(), x, images, GenerationConfig("magic"), None)  # type: ignore[arg-type]
