"""MAGIC, ZeroCap and ESPER, each against its formulas, and the language models that they start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c3tools import Captioner, train_captioner
from c3tools.captioning.config import TrainingConfig
from c3tools.captioning.esper import EsperTask
from c3tools.captioning.generation import generate
from c3tools.captioning.model import CaptionDecoder
from c3tools.captioning.steering import CANDIDATES, write_steered
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.captioning.train import fit
from c3tools.errors import DecoderError
from c3tools.store import Rows

from .conftest import ANIMALS, DIM, logits_after, make_captions_store
from .language_models import save_tiny_gpt2

LIMIT = 6


class Letters:
    """A tokenizer of one letter per token."""

    def decode(self, ids: Sequence[int]) -> str:
        return "".join("abcdefg"[token] for token in ids if token not in (PAD_ID, END_ID))


class Counting:
    """An encoder whose embedding of a text is how often it has each letter."""

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows = np.array([[text.count(letter) + 0.1 for letter in "abcdefg"] for text in texts])
        unit: npt.NDArray[np.float32] = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        return unit


def given_inputs(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    return rng.normal(size=(n, 6)).astype(np.float32), rng.normal(size=(n, 7)).astype(np.float32)


def steered(model: CaptionDecoder, n: int, method: str) -> list[list[int]]:
    x, images = given_inputs(n)
    unit = images / np.linalg.norm(images, axis=1, keepdims=True)
    return write_steered(model, Letters(), x, unit, method, Counting())  # type: ignore[arg-type]


def hidden_states(model: CaptionDecoder, x: np.ndarray, written: list[int]) -> torch.Tensor:
    """Those of the last prefix position and of every token."""
    with torch.no_grad():
        hidden: torch.Tensor = model(torch.from_numpy(x[None]), torch.tensor([[*written, PAD_ID]]))[1]
    return hidden[0]


def magic_by_definition(model: CaptionDecoder, x: np.ndarray, image: np.ndarray, candidates: int) -> list[int]:
    """The formula, token by token, everything computed again without a cache."""
    written: list[int] = []
    for _ in range(LIMIT):
        likely, tokens = logits_after(model, x, written).softmax(-1).topk(min(candidates, 7))
        texts = [Letters().decode([*written, token]) for token in tokens.tolist()]
        cosines = Counting().encode_texts(texts) @ (image / np.linalg.norm(image))
        view = torch.softmax(100 * torch.from_numpy(cosines), dim=-1)
        earlier = hidden_states(model, x, written)
        best, winner = -np.inf, -1
        for i, token in enumerate(tokens.tolist()):
            state = hidden_states(model, x, [*written, token])[-1]
            repeated = torch.cosine_similarity(state[None], earlier).max()
            score = 0.9 * likely[i] - 0.1 * repeated + 2 * view[i]
            if float(score) > best:
                best, winner = float(score), token
        if winner == END_ID:
            break
        written.append(winner)
    return written


@pytest.mark.parametrize("candidates", [45, 3])
@pytest.mark.parametrize("method", ["magic", "zerocap"])
def test_methods_follow_their_formulas(
    tiny_model: CaptionDecoder, monkeypatch: pytest.MonkeyPatch, method: str, candidates: int
) -> None:
    by_definition, n = (magic_by_definition, 8) if method == "magic" else (zerocap_by_definition, 3)
    monkeypatch.setitem(CANDIDATES, method, candidates)
    expected = [by_definition(tiny_model, x, image, candidates) for x, image in zip(*given_inputs(n), strict=True)]
    assert steered(tiny_model, n, method) == expected
    assert len({tuple(caption) for caption in expected}) > 1


def zerocap_by_definition(model: CaptionDecoder, x: np.ndarray, image: np.ndarray, candidates: int) -> list[int]:
    """The formulas, text by text: keys and values of two layers are moved, and all else is computed from them."""
    unit = torch.from_numpy(image / np.linalg.norm(image))

    def after(written: list[int], keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
        cache = model.new_cache()
        cache.extend(zip(keys, values, strict=True))
        logits, _ = model.decode_step(torch.tensor(written[-1:]), cache)
        return logits[0, 1:].log_softmax(-1)  # without padding

    def cosine(ids: list[int]) -> torch.Tensor:
        return torch.from_numpy(Counting().encode_texts([Letters().decode(ids)])[0]) @ unit

    def following(written: list[int]) -> torch.Tensor:
        with torch.no_grad():
            _, _, cache = model.prefill(torch.from_numpy(x[None]))
            for token in written[:-1]:
                model.decode_step(torch.tensor([token]), cache)
            keys, values = ([layer[part] for layer in cache] for part in (0, 1))
            p_0 = after(written, keys, values)
        for _ in range(5):
            keys, values = ([part.detach().requires_grad_() for part in parts] for parts in (keys, values))
            p = after(written, keys, values)
            likely, tokens = p.topk(min(candidates, len(p)))
            q = torch.stack([100 * cosine([*written, token + 1]) for token in tokens.tolist()]).softmax(-1)
            loss = -(q * likely).sum() + 0.2 * (p.exp() * (p - p_0)).sum()
            context = [*keys, *values]
            slopes = torch.autograd.grad(loss, context)
            moved = [part - 0.3 * slope / slope.norm() ** 0.9 for part, slope in zip(context, slopes, strict=True)]
            keys, values = moved[:2], moved[2:]
        with torch.no_grad():
            return (0.99 * after(written, keys, values) + 0.01 * p_0).log_softmax(-1)

    beams: list[tuple[list[int], float]] = [([], 0.0)]
    for step in range(LIMIT):
        grown = [(written, total) for written, total in beams if written and written[-1] == END_ID]
        for written, total in (beam for beam in beams if beam not in grown):
            p = following(written) if step else logits_after(model, x, written)[1:].log_softmax(-1)
            grown += [([*written, token + 1], total + float(p[token])) for token in range(len(p))]
        beams = sorted(grown, key=lambda beam: -beam[1] / len(beam[0]))[:5]
    captions = [[token for token in written if token != END_ID] for written, _ in beams]
    return max(captions, key=lambda written: float(cosine(written)))


@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), smoothing=st.floats(0, 1), seed=st.integers(0, 100))
def test_rewards_advantages_and_losses_are_their_formulas(lengths: list[int], smoothing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    B, T = len(lengths), 6
    real = np.arange(T) < np.array(lengths)[:, None]
    log_p, log_p_lm, values = (rng.normal(size=(B, T)) * real for _ in range(3))
    cosines = rng.uniform(-1, 1, B)
    as_torch = [torch.from_numpy(array) for array in (cosines, log_p, log_p_lm, real, values)]
    cosine, p, p_lm, is_real, value = as_torch
    advantages = EsperTask.advantages(cosine, p, p_lm, value, is_real, smoothing)
    for row, length in enumerate(lengths):
        r = -0.15 * (log_p[row] - log_p_lm[row])
        r[length - 1] += 50 * cosines[row] - 10
        V = [*values[row, :length], 0.0]
        delta = [r[t] + V[t + 1] - V[t] for t in range(length)]
        expected = [sum(smoothing**k * delta[t + k] for k in range(length - t)) for t in range(length)]
        np.testing.assert_allclose(advantages[row, :length], expected, atol=1e-9)
        assert not advantages[row, length:].any()
    ratio = np.exp(log_p - log_p_lm)[real]
    own = advantages.numpy()[real]
    terms = [-min(a * b, np.clip(a, 0.8, 1.2) * b) for a, b in zip(ratio, own, strict=True)]
    assert float(EsperTask.policy_loss(p, p_lm, advantages, is_real)) == pytest.approx(np.mean(terms), abs=1e-9)


class Animals:
    """An encoder whose embedding of a text says which animal it names."""

    def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        named = [[float(animal in text) for animal in ANIMALS] + [0.1] for text in texts]
        rows = np.pad(np.array(named, np.float32), ((0, 0), (0, DIM - len(ANIMALS) - 1)))
        unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


def pictures(n: int, seed: int) -> Rows:
    """Images of one animal each, as `Animals` sees them."""
    rng = np.random.default_rng(seed)
    chosen = [ANIMALS[number] for number in rng.integers(0, len(ANIMALS), n)]
    noisy = Animals().encode_texts(chosen) + 0.02 * rng.normal(size=(n, DIM)).astype(np.float32)
    return Rows.of("image", [f"{seed}-{i}" for i in range(n)], noisy / np.linalg.norm(noisy, axis=1, keepdims=True))


@torch.no_grad()
def test_a_language_model_writes_and_scores_without_an_embedding(language_model: Captioner) -> None:
    model = language_model.decoder
    assert isinstance(model, CaptionDecoder)
    assert language_model.is_language_model
    x, tokens = torch.zeros(1, DIM), torch.tensor([[5, 9, 7, END_ID]])
    logits = model(x, tokens)[0][0]
    shown = torch.cat([torch.tensor([END_ID]), tokens[0, :-1]])
    torch.testing.assert_close(logits, model.predict(model.embed_tokens(shown[None]), 0)[0][0])
    written = generate(model, np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32))
    assert written[0] == written[1] == written[2]
    assert {"on", "the"} <= set(language_model.tokenizer.decode(written[0]).split())
    with pytest.raises(DecoderError, match="--steer magic"):
        language_model.caption(embeddings=np.eye(1, DIM, dtype=np.float32))


def test_esper_learns_what_images_show_from_images_alone(language_model: Captioner, tmp_path: Path) -> None:
    before = language_model.decoder.digest()
    train, val = pictures(128, 0), pictures(32, 1)
    training = TrainingConfig(epochs=12, batch_size=32, learning_rate=3e-3, weight_decay=0.0)
    captioner = fit(EsperTask(train, val, language_model, Animals(), training, "cpu"))  # type: ignore[arg-type]
    best = captioner.record["best_val_loss"]
    assert best == min(epoch["val_loss"] for epoch in captioner.record["history"])
    captioner.save(tmp_path / "esper")
    written = Captioner.load(tmp_path / "esper").caption(embeddings=val.embeddings, beams=1)
    closeness = float((Animals().encode_texts(written) * val.embeddings).sum(axis=1).mean())
    assert closeness == pytest.approx(1 - best, abs=1e-3)
    assert closeness > 0.4  # one animal for all images comes to about 0.2
    # the language model is as it was, also in the captioner
    assert language_model.decoder.digest() == before
    own, whole = language_model.decoder.state_dict(), captioner.decoder.state_dict()
    assert all(torch.equal(whole[name], value) for name, value in own.items() if name != "positions")


def test_a_language_model_of_transformers_is_trained_steered_and_put_behind_a_mapper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    store, world = make_captions_store(tmp_path / "c3-store")
    gpt2 = save_tiny_gpt2(tmp_path / "gpt2", world.texts.captions)
    settings = (f"model={gpt2}", "warmup_steps=2", "batch_size=32", "learning_rate=5e-3", "max_tokens=12")
    options: dict[str, Any] = {"size": "paper", "epochs": 1, "precision": "fp32", "device": "cpu"}
    train_captioner(store, output=tmp_path / "lm", set=settings, unconditional=True, **options)
    lm = Captioner.load(tmp_path / "lm")
    assert lm.is_language_model
    image = pictures(1, 2).embeddings
    for method in ("magic", "zerocap"):
        monkeypatch.setitem(CANDIDATES, method, 20)
        assert lm.caption(embeddings=image, steer=method, encoder=Animals())  # type: ignore[arg-type]
    training = TrainingConfig(epochs=1, batch_size=10)
    captioner = fit(EsperTask(pictures(20, 0), pictures(8, 1), lm, Animals(), training, "cpu"))  # type: ignore[arg-type]
    captioner.save(tmp_path / "esper")
    assert Captioner.load(tmp_path / "esper").caption(embeddings=image) == captioner.caption(embeddings=image)
