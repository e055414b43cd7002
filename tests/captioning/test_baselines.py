"""MAGIC, ZeroCap and ESPER, each against its formulas, and the language models that they start
from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from c3tools import Captioner
from c3tools.captioning.config import UNCONDITIONAL, TrainingConfig
from c3tools.captioning.esper import EsperTask
from c3tools.captioning.generation import generate
from c3tools.captioning.model import CaptionDecoder
from c3tools.captioning.steering import CANDIDATES, write_steered
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.errors import DecoderError
from c3tools.reporter import Progress
from c3tools.store import Rows
from tests.conftest import unit_rows
from tests.golden import recorded

from .conftest import DIM, World, counting_encoder, greedy_without_cache, logits_after, task_of
from .test_settings import GOLDEN

LIMIT = 6


# a tokenizer of one letter per token
LETTERS: Any = SimpleNamespace(
    decode=lambda ids: "".join("abcdefg"[i] for i in ids if i not in (PAD_ID, END_ID))
)
COUNTING = counting_encoder("abcdefg", 7)


@torch.no_grad()
def hidden_states(model: CaptionDecoder, x: Any, written: Any) -> Any:
    """Those of the last prefix position and of every token."""
    return model(torch.from_numpy(x[None]), torch.tensor([[*written, PAD_ID]]))[1][0]


def magic_by_definition(model: CaptionDecoder, x: Any, image: Any, candidates: int) -> Any:
    """The formula, token by token, everything computed again without a cache."""
    written: Any = []
    for _ in range(LIMIT):
        likely, tokens = logits_after(model, x, written).softmax(-1).topk(min(candidates, 7))
        texts = [[*written, token] for token in tokens.tolist()]
        cosines = COUNTING.encode_texts([*map(LETTERS.decode, texts)]) @ image
        view = torch.softmax(100 * torch.from_numpy(cosines), dim=-1)
        earlier, states = (
            hidden_states(model, x, written),
            [hidden_states(model, x, ids)[-1:] for ids in texts],
        )
        repeated = torch.stack([torch.cosine_similarity(state, earlier).max() for state in states])
        winner = texts[int((0.9 * likely - 0.1 * repeated + 2 * view).argmax())]
        if winner[-1] == END_ID:
            break
        written = winner
    return written


@pytest.mark.parametrize("candidates", [45, 3])
def test_methods_follow_their_formulas(
    tiny_model: CaptionDecoder, monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    for method, n, by_definition in (
        ("magic", 8, magic_by_definition),
        ("zerocap", 3, zerocap_by_definition),
    ):
        monkeypatch.setitem(CANDIDATES, method, candidates)
        x, images = unit_rows(n, 6), unit_rows(n, 7, 1)
        expected = [
            by_definition(tiny_model, *rows, candidates) for rows in zip(x, images, strict=True)
        ]
        progress = Progress()
        written = write_steered(tiny_model, LETTERS, x, images, method, COUNTING, progress)
        assert written == expected
        assert len({*map(tuple, expected)}) > 1


def zerocap_by_definition(model: CaptionDecoder, x: Any, image: Any, candidates: int) -> Any:
    """The formulas, text by text: keys and values of two layers are moved, and all else is computed
    from them."""

    def after(written: Any, keys: Any, values: Any) -> Any:
        cache = model.new_cache()
        cache.extend(zip(keys, values, strict=True))
        # without padding
        return model.decode_step(torch.tensor(written[-1:]), cache)[0][0, 1:].log_softmax(-1)

    def cosine(ids: Any) -> Any:
        return torch.tensor(COUNTING.encode_texts([LETTERS.decode(ids)])[0] @ image)

    def following(written: Any) -> Any:
        with torch.no_grad():
            _, _, cache = model.prefill(torch.from_numpy(x[None]))
            for token in written[:-1]:
                model.decode_step(torch.tensor([token]), cache)
            keys, values = ([layer[part] for layer in cache] for part in (0, 1))
            p_0 = after(written, keys, values)
        for _ in range(5):
            keys, values = (
                [part.detach().requires_grad_() for part in parts] for parts in (keys, values)
            )
            p = after(written, keys, values)
            likely, tokens = p.topk(min(candidates, len(p)))
            q = torch.stack(
                [100 * cosine([*written, token + 1]) for token in tokens.tolist()]
            ).softmax(-1)
            loss = -(q * likely).sum() + 0.2 * (p.exp() * (p - p_0)).sum()
            slopes = torch.autograd.grad(loss, context := [*keys, *values])
            moved = [
                part - 0.3 * slope / slope.norm() ** 0.9
                for part, slope in zip(context, slopes, strict=True)
            ]
            keys, values = moved[:2], moved[2:]
        with torch.no_grad():
            return (0.99 * after(written, keys, values) + 0.01 * p_0).log_softmax(-1)

    beams: Any = [([], 0.0)]
    for step in range(LIMIT):
        grown = [(written, total) for written, total in beams if written and written[-1] == END_ID]
        for written, total in (beam for beam in beams if beam not in grown):
            p = following(written) if step else logits_after(model, x, written)[1:].log_softmax(-1)
            grown += [([*written, token + 1], total + float(p[token])) for token in range(len(p))]
        beams = sorted(grown, key=lambda beam: -beam[1] / len(beam[0]))[:5]
    return max(
        ([token for token in written if token != END_ID] for written, _ in beams), key=cosine
    )


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    smoothing=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_rewards_advantages_and_losses_are_their_formulas(
    lengths: list[int], smoothing: float, seed: int
) -> None:
    rng, B, T = np.random.default_rng(seed), len(lengths), 6
    real = np.arange(T) < np.array(lengths)[:, None]
    log_p, log_p_lm, values = rng.normal(size=(3, B, T)) * real
    cosines = rng.uniform(-1, 1, B)
    cosine, p, p_lm, value, is_real = map(
        torch.from_numpy, (cosines, log_p, log_p_lm, values, real)
    )
    advantages = EsperTask.advantages(cosine, p, p_lm, value, is_real, smoothing)
    expected = np.zeros((B, T))
    for row, length in enumerate(lengths):
        r = -0.15 * (log_p[row] - log_p_lm[row])
        r[length - 1] += 50 * cosines[row] - 10
        V = [*values[row, :length], 0.0]
        delta = [r[t] + V[t + 1] - V[t] for t in range(length)]
        expected[row, :length] = [
            sum(smoothing**k * delta[t + k] for k in range(length - t)) for t in range(length)
        ]
    np.testing.assert_allclose(advantages, expected, atol=1e-9)
    ratio, own = np.exp(log_p - log_p_lm)[real], expected[real]
    loss = -np.minimum(ratio * own, ratio.clip(0.8, 1.2) * own).mean()
    assert float(EsperTask.policy_loss(p, p_lm, advantages, is_real)) == pytest.approx(
        loss, abs=1e-9
    )


def test_the_first_step_of_esper_is_the_one_on_record(world: World) -> None:
    """Of a language model that has not learned anything, so that no result hangs on the last
    bits."""
    untrained = task_of(world, TrainingConfig(1, 16, 1e-3), "c1", *UNCONDITIONAL)
    start, encoder = (
        Captioner(untrained.model, untrained.tokenizer, untrained.pipeline),
        counting_encoder("aeiou"),
    )
    train, val = (
        Rows.of("image", [str(i) for i in range(n)], unit_rows(n, DIM, n)) for n in (24, 501)
    )
    task, before = (
        EsperTask(train, val, start, encoder, TrainingConfig(2, 16, 1e-3), "cpu"),
        start.decoder.digest(),
    )
    losses, slopes = list[float](), list[Any]()

    def update(loss: Any) -> float:
        task.optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        slopes.append(float(nn.utils.clip_grad_norm_(task.model.parameters(), 1e9)))
        task.optimizer.step()
        return losses[-1]

    loss, count = task.step(1, update)
    assert (len(task.val), task.model.config.prefix_length, task.plan.rise, count) == (
        500,
        10,
        1,
        8,
    )
    recorded(GOLDEN / "esper.json", {"losses": losses, "slope": slopes[0], "loss": loss}, rel=2e-3)
    written = map(start.tokenizer.decode, generate(task.model, val.embeddings[:500]))
    cosines = (encoder.encode_texts([*written]) * val.embeddings[:500]).sum(axis=1)
    assert task.validate()[0] == pytest.approx(1 - cosines.mean())
    # the language model is as it was, also behind the mapper
    assert start.decoder.digest() == before
    own, whole = start.decoder.state_dict(), task.model.state_dict()
    assert all(
        torch.equal(whole[name], value) for name, value in own.items() if name != "positions"
    )


def test_a_language_model_writes_without_an_embedding(language_model: Captioner) -> None:
    x = unit_rows(3, DIM)
    written = generate(language_model.decoder, x)
    assert written == [greedy_without_cache(language_model.decoder, x[0])] * 3
    assert {"on", "the"} <= set(language_model.tokenizer.decode(written[0]).split())
    with pytest.raises(DecoderError, match="--steer magic"):
        language_model.caption(embeddings=x)
    with pytest.raises(DecoderError, match=r"magic needs? .*toy-model"):
        language_model.caption(embeddings=x, steer="magic")
