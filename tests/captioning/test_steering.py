"""Captions that the encoder steers, each against its formula, computed token by token without a cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch

from c3tools.captioning import CaptionDecoder, GenerationConfig, generate
from c3tools.captioning.baselines.steering import generate_steered
from c3tools.captioning.model import KeyValueCache
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
    return generate_steered(model, Letters(), x, images, config, Counting())  # type: ignore[arg-type]


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
    x, images = magic_inputs(8)
    config = GenerationConfig("magic", max_tokens=LIMIT, **settings)  # type: ignore[arg-type]
    expected = [by_definition(tiny_model, row, image, config) for row, image in zip(x, images, strict=True)]
    assert generate_by_magic(tiny_model, 8, **settings) == expected
    assert len({len(caption) for caption in expected}) > 1


def test_magic_without_its_terms_is_greedy_and_with_a_large_one_the_encoder_decides(tiny_model: CaptionDecoder) -> None:
    x, _ = magic_inputs(30)
    assert generate_by_magic(tiny_model, 30, alpha=0.0, beta=0.0) == generate(tiny_model, x)
    assert generate_by_magic(tiny_model, 30) != generate(tiny_model, x)
    images = np.eye(7, dtype=np.float32)[[4]]
    config = GenerationConfig("magic", max_tokens=3, alpha=0.0, beta=1e6)
    assert generate_steered(tiny_model, Letters(), x[:1], images, config, Counting()) == [[4, 4, 4]]  # type: ignore[arg-type]


def test_the_published_settings_of_magic_are_the_default_and_texts_are_encoded_once(tiny_model: CaptionDecoder) -> None:
    config = GenerationConfig("magic")
    assert (config.candidates, config.alpha, config.beta) == (45, 0.1, 2.0)
    x, images = magic_inputs(4)
    encoder = Counting()
    generate_steered(tiny_model, Letters(), x, images, GenerationConfig("magic", max_tokens=1), encoder)  # type: ignore[arg-type]
    assert sorted(encoder.asked) == ["", "c", "d", "e", "f", "g"]  # four images, the same candidates


def test_magic_without_an_encoder_is_refused(tiny_model: CaptionDecoder) -> None:
    x, images = magic_inputs(1)
    with pytest.raises(DecoderError, match="needs an encoder"):
        generate_steered(tiny_model, Letters(), x, images, GenerationConfig("magic"), None)  # type: ignore[arg-type]


def after(
    model: CaptionDecoder, written: Sequence[int], keys: list[torch.Tensor], values: list[torch.Tensor]
) -> torch.Tensor:
    """Log-probabilities of the next token, by attention over given keys and values (layers of (H, S, W / H))."""
    h = model.tokens.weight[written[-1]] + model.positions[keys[0].shape[1]]
    for layer, block in enumerate(model.blocks):
        q, k, v = block.attention.qkv(block.norm1(h)).view(3, model.config.heads, 1, -1)  # type: ignore[operator, union-attr]
        k, v = torch.cat([keys[layer], k], dim=1), torch.cat([values[layer], v], dim=1)
        y = ((q @ k.mT) * k.shape[-1] ** -0.5).softmax(-1) @ v
        h = h + block.attention.out(y.transpose(0, 1).reshape(-1))  # type: ignore[operator, union-attr]
        h = h + block.down(torch.nn.functional.gelu(block.up(block.norm2(h))))  # type: ignore[operator]
    logits: torch.Tensor = model.norm(h) @ model.tokens.weight.T
    return logits[1:].log_softmax(-1)  # without padding, which is token 0


def zerocap_by_definition(
    model: CaptionDecoder, x: np.ndarray, image: np.ndarray, config: GenerationConfig
) -> list[int]:
    """The formulas of the paper, beam by beam."""
    unit = torch.from_numpy(image / np.linalg.norm(image))

    def cosine(ids: list[int]) -> torch.Tensor:
        return torch.from_numpy(Counting().encode_texts([Letters().decode(ids)])[0]) @ unit

    def following(written: list[int]) -> torch.Tensor:
        with torch.no_grad():
            _, _, cache = model.prefill(torch.from_numpy(x[None]))
            assert isinstance(cache, KeyValueCache)
            for token in written[:-1]:
                model.decode_step(torch.tensor([token]), cache)
            keys, values = (
                [part[layer, 0, :, : cache.length] for layer in range(2)] for part in (cache.keys, cache.values)
            )
            p_0 = after(model, written, keys, values)
        for _ in range(config.gradient_steps):
            keys, values = ([part.detach().requires_grad_() for part in parts] for parts in (keys, values))
            p = after(model, written, keys, values)
            likely, tokens = p.topk(min(config.candidates, len(p)))
            q = torch.stack([100 * cosine([*written, token + 1]) for token in tokens.tolist()]).softmax(-1)
            loss = -(q * likely).sum() + 0.2 * (p.exp() * (p - p_0)).sum()
            context = [*keys, *values]
            slopes = torch.autograd.grad(loss, context)
            moved = [part - 0.3 * slope / slope.norm() ** 0.9 for part, slope in zip(context, slopes, strict=True)]
            keys, values = moved[:2], moved[2:]
        with torch.no_grad():
            p = after(model, written, keys, values)
        return (0.99 * p + 0.01 * p_0).log_softmax(-1)

    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for step in range(LIMIT):
        grown = []
        for written, total in beams:
            if written and written[-1] == END_ID:
                grown.append((written, total))
                continue
            p = following(written) if step else logits_after(model, x, written)[1:].log_softmax(-1)
            grown += [([*written, token + 1], total + float(p[token])) for token in range(len(p))]
        beams = sorted(grown, key=lambda beam: -beam[1] / len(beam[0]))[: config.beams]
    captions = [[token for token in written if token != END_ID] for written, _ in beams]
    return max(captions, key=lambda written: float(cosine(written)))


@pytest.mark.parametrize("settings", [{}, {"candidates": 3, "beams": 2, "gradient_steps": 2}])
def test_zerocap_follows_its_formulas(tiny_model: CaptionDecoder, settings: dict[str, int]) -> None:
    x, images = magic_inputs(3)
    config = GenerationConfig("zerocap", max_tokens=LIMIT, **settings)
    expected = [zerocap_by_definition(tiny_model, row, image, config) for row, image in zip(x, images, strict=True)]
    assert generate_steered(tiny_model, Letters(), x, images, config, Counting()) == expected  # type: ignore[arg-type]
    assert len({tuple(caption) for caption in expected}) > 1


def test_zerocap_moves_captions_towards_the_image(tiny_model: CaptionDecoder) -> None:
    """With one beam nothing but the shift can bring a caption closer to its image."""
    x, images = magic_inputs(10)
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)

    def closeness(steps: int) -> float:
        config = GenerationConfig("zerocap", beams=1, max_tokens=LIMIT, gradient_steps=steps)
        written = generate_steered(tiny_model, Letters(), x, images, config, Counting())  # type: ignore[arg-type]
        texts = [Letters().decode(ids) for ids in written]
        return float((Counting().encode_texts(texts) * unit).sum(axis=1).mean())

    assert closeness(5) > closeness(1) > closeness(0)
