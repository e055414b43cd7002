"""ESPER: its formulas, and a mapper that learns from images alone."""

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

from c3tools import devices
from c3tools.captioning import Captioner, TrainingConfig, fit_captioner, train_captioner
from c3tools.captioning.baselines.esper import (
    clipped_policy_loss,
    generalized_advantages,
    sample,
    token_log_probabilities,
    token_rewards,
)
from c3tools.captioning.config import UNCONDITIONAL
from c3tools.captioning.training import fit_esper
from c3tools.errors import DecoderError, StoreError
from c3tools.store import Rows
from c3tools.training.checkpoints import CheckpointDir
from c3tools.transforms import preset
from tests.conftest import C3

from .conftest import ANIMALS, DIM, TOY, make_captions_store, make_world

CPU = devices.pick("cpu", "fp32")


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


@pytest.fixture(scope="module")
def language_model() -> Captioner:
    world = make_world()
    train, val = world.split(held_out=20)
    return fit_captioner(
        train,
        val,
        preset("c1").fit(world.moments),
        size="tiny",
        set=UNCONDITIONAL,
        training=TrainingConfig(epochs=4, batch_size=16, learning_rate=5e-3, contrastive_margin=0.5),
        compute=CPU,
        record={"model": TOY},
    )


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    smoothing=st.floats(0, 1),
    seed=st.integers(0, 100),
)
def test_rewards_advantages_and_loss_are_their_formulas(lengths: list[int], smoothing: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    B, T = len(lengths), 6
    real = np.arange(T) < np.array(lengths)[:, None]
    log_p, log_p_lm, values = (rng.normal(size=(B, T)) * real for _ in range(3))
    cosines = rng.uniform(-1, 1, B)
    as_torch = [torch.from_numpy(array) for array in (cosines, log_p, log_p_lm, real, values)]
    rewards = token_rewards(*as_torch[:4])
    advantages = generalized_advantages(rewards, as_torch[4], as_torch[3], smoothing)
    for row, length in enumerate(lengths):
        r = -0.15 * (log_p[row] - log_p_lm[row])
        r[length - 1] += 50 * cosines[row] - 10
        np.testing.assert_allclose(rewards[row, :length], r[:length], atol=1e-9)
        V = [*values[row, :length], 0.0]
        delta = [r[t] + V[t + 1] - V[t] for t in range(length)]
        expected = [sum(smoothing**k * delta[t + k] for k in range(length - t)) for t in range(length)]
        np.testing.assert_allclose(advantages[row, :length], expected, atol=1e-9)
        assert not advantages[row, length:].any()
    ratio = np.exp(log_p - log_p_lm)[real]
    own = advantages.numpy()[real]
    terms = [-min(a * b, np.clip(a, 0.8, 1.2) * b) for a, b in zip(ratio, own, strict=True)]
    loss = clipped_policy_loss(as_torch[1], as_torch[2], advantages, as_torch[3])
    assert float(loss) == pytest.approx(np.mean(terms), abs=1e-9)


def test_samples_are_drawn_from_the_decoder(language_model: Captioner) -> None:
    """How often each first token is drawn is its probability; log-probabilities are those of its scores."""
    model = language_model.decoder
    torch.manual_seed(0)
    x = torch.zeros(4000, DIM)
    tokens = sample(model, x)
    logits = model(x[:1], tokens[:1])
    expected = logits[0, 0].detach().softmax(-1)
    counts = torch.bincount(tokens[:, 0], minlength=len(expected)) / len(tokens)
    assert float((counts - expected).abs().max()) < 0.03
    log_p = token_log_probabilities(model, model(x[:50], tokens[:50]).detach(), tokens[:50])
    for row in range(50):
        scores = model(x[:1], tokens[row : row + 1])[0].detach()
        scores[:, model.pad_id] = -torch.inf
        length = int((tokens[row] != model.pad_id).sum())
        assert tokens[row, length - 1] == model.end_id or length == model.config.max_tokens
        for t in range(length):
            assert float(log_p[row, t]) == pytest.approx(float(scores[t].log_softmax(-1)[tokens[row, t]]), abs=1e-4)


def test_the_mapper_starts_near_the_language_model(language_model: Captioner) -> None:
    model = language_model.decoder
    torch.manual_seed(0)
    behind = model.behind_prefix(4).eval()
    x = torch.from_numpy(pictures(8, 3).embeddings)
    tokens = sample(model, x)
    real = tokens != model.pad_id
    own, other = (token_log_probabilities(one, one(x, tokens), tokens)[real] for one in (model, behind))
    uniform = np.log(model.config.vocab_size)
    assert float((own - other).detach().abs().mean()) < 0.3 * uniform
    assert {name for name, p in behind.named_parameters() if p.requires_grad} == {
        name for name in behind.state_dict() if name.startswith("prefix")
    }


def test_it_learns_what_images_show_from_images_alone(language_model: Captioner, tmp_path: Path) -> None:
    before = language_model.decoder.digest()
    train, val = pictures(128, 0), pictures(32, 1)
    training = TrainingConfig(epochs=12, batch_size=32, learning_rate=3e-3, weight_decay=0.0)
    captioner = fit_esper(train, val, language_model, Animals(), training=training, compute=CPU)
    losses = [epoch["val_loss"] for epoch in captioner.record["history"]]
    assert captioner.record["best_val_loss"] == min(losses)
    written = captioner.caption(embeddings=val.embeddings)
    closeness = float((Animals().encode_texts(written) * val.embeddings).sum(axis=1).mean())
    assert closeness == pytest.approx(1 - min(losses), abs=1e-3)
    assert closeness > 0.4  # one animal for all images comes to about 0.2
    assert language_model.decoder.digest() == before
    # the language model in it is as it was
    own, whole = language_model.decoder.state_dict(), captioner.decoder.state_dict()
    assert all(torch.equal(whole[name], value) for name, value in own.items() if name != "positions")
    captioner.save(tmp_path / "esper")
    assert Captioner.load(tmp_path / "esper").caption(embeddings=val.embeddings) == written


def test_the_norms_of_images_change_nothing(language_model: Captioner) -> None:
    """A store of ``c3 import --keep-norms`` has images of any length; CLIP's have about 10."""
    train, val = pictures(20, 0), pictures(8, 1)
    options: dict[str, Any] = {"training": TrainingConfig(epochs=2, batch_size=10), "compute": CPU}
    unit = fit_esper(train, val, language_model, Animals(), **options)
    longer, validation = (Rows.of("image", rows.keys, 8 * rows.embeddings) for rows in (train, val))
    scaled = fit_esper(longer, validation, language_model, Animals(), **options)
    losses = [[(e["train_loss"], e["val_loss"]) for e in one.record["history"]] for one in (unit, scaled)]
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-6)
    assert scaled.caption(embeddings=validation.embeddings) == unit.caption(embeddings=val.embeddings)


def test_an_interrupted_run_ends_as_if_it_had_not_been(
    language_model: Captioner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, val = pictures(20, 0), pictures(8, 1)
    options: dict[str, Any] = {"training": TrainingConfig(epochs=3, batch_size=10), "compute": CPU}
    whole = fit_esper(train, val, language_model, Animals(), **options)

    class Failing(Animals):
        asked = 0

        def encode_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
            Failing.asked += 1
            if Failing.asked == 5:  # two updates and a validation make an epoch
                raise KeyboardInterrupt
            return super().encode_texts(texts)

    checkpoints = CheckpointDir(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit_esper(train, val, language_model, Failing(), checkpoints=checkpoints, **options)
    again = fit_esper(train, val, language_model, Failing(), checkpoints=checkpoints, **options)
    assert Failing.asked == 5 + 6
    assert again.decoder.digest() == whole.decoder.digest()


def test_a_language_model_of_transformers_can_be_put_behind_a_mapper(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from .language_models import save_tiny_gpt2

    store, world = make_captions_store(tmp_path / "c3-store")
    settings = (f"model={save_tiny_gpt2(tmp_path / 'gpt2', world.texts.captions)}", "max_tokens=12")
    options: dict[str, Any] = {"size": "paper", "epochs": 1, "precision": "fp32", "device": "cpu"}
    lm = train_captioner(store, output=tmp_path / "lm", set=settings, unconditional=True, **options)
    training = TrainingConfig(epochs=1, batch_size=10)
    captioner = fit_esper(pictures(20, 0), pictures(8, 1), lm, Animals(), training=training, compute=CPU)
    captioner.save(tmp_path / "esper")
    images = pictures(3, 2).embeddings
    assert Captioner.load(tmp_path / "esper").caption(embeddings=images) == captioner.caption(embeddings=images)


def test_what_is_missing_is_said(language_model: Captioner, captioner: Captioner, tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match="this decoder reads embeddings"):
        fit_esper(pictures(4, 0), pictures(4, 1), captioner, Animals(), compute=CPU)
    with pytest.raises(DecoderError, match="there are 4 and 0"):
        fit_esper(pictures(4, 0), pictures(4, 1).select(np.arange(0)), language_model, Animals(), compute=CPU)
    store, _ = make_captions_store(tmp_path / "c3-store")
    with pytest.raises(DecoderError, match="ESPER starts from a language model"):
        train_captioner(store, output=tmp_path / "a", esper=True)
    with pytest.raises(DecoderError, match="by its own settings"):
        train_captioner(store, output=tmp_path / "a", esper=True, start=tmp_path / "lm", pairs=0.5)
    from tests.conftest import build_store

    texts = make_world().texts
    only = build_store(tmp_path / "texts", texts, model=TOY)
    language_model.save(tmp_path / "lm")
    with pytest.raises(StoreError, match=r"has no images; it has text"):
        train_captioner(only, output=tmp_path / "a", esper=True, start=tmp_path / "lm")


def test_the_command_trains_it_from_a_language_model(c3: C3, photos: Path) -> None:
    assert c3("embed", photos, "--backend", "torch", "--precision", "fp32").exit_code == 0
    quick = ("--epochs", "1", "--precision", "fp32", "--device", "cpu")
    assert c3("train-decoder", "--unconditional", *quick, "--size", "tiny", "-o", "c3-lm").exit_code == 0
    result = c3("train-decoder", "--esper", "--from", "c3-lm", *quick)
    assert result.exit_code == 0, result.stderr
    assert "(kept)" in result.stdout
    assert c3("caption", min(photos.glob("*.jpg")), "--backend", "torch").exit_code == 0
