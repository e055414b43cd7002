"""A language model of captions: a decoder without a prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from c3tools.captioning import CaptionDecoder, Captioner, DecoderConfig, GenerationConfig, generate, train_captioner
from c3tools.captioning.model import Decoder
from c3tools.captioning.tokenizer import END_ID, PAD_ID
from c3tools.captioning.training import contrastive_loss
from c3tools.encoders import Encoder
from c3tools.errors import DecoderError
from tests.conftest import C3

from .conftest import DIM, make_captions_store, make_world
from .language_models import save_tiny_gpt2

QUICK = ("batch_size=16", "learning_rate=5e-3")


@pytest.fixture(scope="module")
def built_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a language model of the toy world's captions; its store is beside it."""
    folder = tmp_path_factory.mktemp("built-in")
    store, _ = make_captions_store(folder / "c3-store")
    options: dict[str, Any] = {"size": "tiny", "set": QUICK, "epochs": 4, "precision": "fp32", "device": "cpu"}
    train_captioner(store, output=folder / "lm", unconditional=True, **options)
    return folder / "lm"


def test_it_learns_the_captions_and_no_embedding(built_in: Path) -> None:
    captioner = Captioner.load(built_in)
    assert captioner.is_language_model
    assert captioner.record["changes"][:2] == ["prefix_length=0", "contrastive_margin=0.5"]
    losses = [epoch["val_loss"] for epoch in captioner.record["history"]]
    assert losses[-1] < 0.8 * losses[0]
    # whatever is given for an embedding, the same is written, by numpy and by torch
    x = np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float32)
    sampled = GenerationConfig("nucleus", seed=1)
    for config in (GenerationConfig("beam", beams=3), sampled):
        written = generate(captioner.decoder, x, config, ["a", "b", "c"])
        assert written == generate(captioner.decoder, x, config, ["a", "b", "c"])
        assert written == generate(captioner.decoder, x[::-1], config, ["a", "b", "c"])
    (likeliest,) = generate(captioner.decoder, x[:1])
    assert {"on", "the"} <= set(captioner.tokenizer.decode(likeliest).split())


def test_the_scores_are_the_probabilities_of_the_next_token(built_in: Path) -> None:
    """A token's score does not depend on what follows it, and the first one follows the end-of-text token."""
    model = Captioner.load(built_in).decoder
    assert isinstance(model, CaptionDecoder)
    x = torch.zeros(1, DIM)
    tokens = torch.tensor([[5, 9, 7, END_ID]])
    logits = model(x, tokens)[0]
    shown = torch.cat([torch.tensor([END_ID]), tokens[0, :-1]])
    torch.testing.assert_close(logits, model.logits(model.run(model.tokens(shown)[None]))[0])
    again, hidden = model.score(x, tokens)
    torch.testing.assert_close(again[0], logits)
    torch.testing.assert_close(model.logits(hidden), again)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), margin=st.floats(0.1, 1.5))
def test_the_contrastive_loss_is_its_formula(lengths: list[int], margin: float) -> None:
    torch.manual_seed(len(lengths))
    hidden = torch.randn(len(lengths), 5, 3)
    real = torch.arange(5) < torch.tensor(lengths)[:, None]
    expected = []
    for states, length in zip(hidden, lengths, strict=True):
        terms = [
            max(0.0, margin - 1 + float(torch.cosine_similarity(states[i], states[j], dim=0)))
            for i in range(length)
            for j in range(length)
            if i != j
        ]
        expected.append(sum(terms) / max(len(terms), 1))
    assert float(contrastive_loss(hidden, real, margin)) == pytest.approx(np.mean(expected), abs=1e-5)


def test_the_contrastive_loss_keeps_hidden_states_apart(tmp_path: Path) -> None:
    store, world = make_captions_store(tmp_path / "c3-store")

    def nearness(margin: str) -> float:
        captioner = train_captioner(
            store,
            output=tmp_path / margin,
            size="tiny",
            set=(*QUICK, f"contrastive_margin={margin}"),
            unconditional=True,
            epochs=2,
            precision="fp32",
            device="cpu",
        )
        model = captioner.decoder
        tokens = torch.tensor(captioner.tokenizer.encode(list(world.references["image00"][:1]), 40))
        with torch.no_grad():
            states = torch.nn.functional.normalize(model.score(torch.zeros(1, DIM), tokens)[1][0], dim=-1)
        return float((states @ states.T).triu(1).sum())

    assert nearness("1.0") < nearness("0")


def cached_steps(model: Decoder, tokens: list[int]) -> torch.Tensor:
    """Scores of what follows each token, computed step by step from caches that were taken apart and rebuilt."""
    logits, _, cache = model.prefill(torch.zeros(1, DIM))
    rows = [logits]
    for token in tokens:
        cache = model.cache_of(cache.tensors())
        rows.append(model.decode_step(torch.tensor([token]), cache)[0])
        whole = model.prefill(torch.zeros(1, DIM))[2]
        for earlier in tokens[: len(rows) - 1]:
            model.decode_step(torch.tensor([earlier]), whole)
        cache = whole
    return torch.cat(rows)


def test_a_cache_can_be_taken_apart(built_in: Path) -> None:
    model = Captioner.load(built_in).decoder
    tokens = torch.tensor([[5, 9, 7, 4]])
    expected = model(torch.zeros(1, DIM), tokens)[0]
    torch.testing.assert_close(cached_steps(model, [5, 9, 7]), expected, atol=1e-5, rtol=1e-4)


def test_a_language_model_of_transformers_is_trained_and_steered_alike(tmp_path: Path, encoder: Encoder) -> None:
    pytest.importorskip("transformers")
    store, world = make_captions_store(tmp_path / "c3-store")
    gpt2 = save_tiny_gpt2(tmp_path / "gpt2", world.texts.captions)
    settings = (f"model={gpt2}", "warmup_steps=2", *QUICK)
    options: dict[str, Any] = {"size": "paper", "epochs": 2, "precision": "fp32", "device": "cpu"}
    train_captioner(store, output=tmp_path / "lm", set=settings, unconditional=True, **options)
    captioner = Captioner.load(tmp_path / "lm")
    assert captioner.is_language_model
    model = captioner.decoder
    assert not any(name.startswith("mapper") for name in model.state_dict())
    tokens = torch.tensor([[5, 9, 7, 4]])
    expected = model(torch.zeros(1, DIM), tokens)[0]
    torch.testing.assert_close(cached_steps(model, [5, 9, 7]), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.score(torch.zeros(1, DIM), tokens)[0][0], expected)

    class Words:
        """An encoder that sees whether a text has the word cow."""

        def encode_texts(self, texts: list[str]) -> np.ndarray:
            seen = np.array(["o" in text for text in texts], dtype=np.float32)[:, None]
            return np.hstack([seen, 1 - seen, np.zeros((len(texts), DIM - 2), np.float32)])

    image = np.eye(1, DIM, dtype=np.float32)
    for method in ("magic", "zerocap"):
        config = GenerationConfig(method, max_tokens=3, candidates=20, beams=2, gradient_steps=2)
        (written,) = captioner.caption(embeddings=image, generation=config, encoder=Words())  # type: ignore[arg-type]
        assert "o" in written
    with pytest.raises(DecoderError, match="nothing to train"):
        train_captioner(
            store,
            output=tmp_path / "b",
            set=(*settings, "frozen=true"),
            unconditional=True,
            **options,
        )


def test_it_is_not_asked_for_what_it_cannot_do(built_in: Path, tmp_path: Path) -> None:
    captioner = Captioner.load(built_in)
    image = make_world().images.embeddings[:1]
    with pytest.raises(DecoderError, match=r"(?s)reads no embedding.*--steer magic"):
        captioner.caption(embeddings=image)
    for options in ({"pairs": 0.5}, {"preset": "c3"}, {"monitor": "cross-modal"}):
        with pytest.raises(DecoderError, match="is a language model: it reads no embedding"):
            train_captioner(built_in.parent / "c3-store", output=tmp_path / "a", start=built_in, **options)
    with pytest.raises(DecoderError, match="ESPER learns from all images by its own settings"):
        train_captioner(built_in.parent / "c3-store", output=tmp_path / "a", start=built_in, esper=True, preset="c3")
    for options in ({"sigma": 0.1}, {"preset": "c3"}, {"pairs": 0.5}, {"monitor": "cross-modal"}):
        with pytest.raises(DecoderError, match="nothing about embeddings can be set"):
            train_captioner(built_in.parent / "c3-store", output=tmp_path / "a", unconditional=True, **options)
    with pytest.raises(DecoderError, match="architecture is that of the decoder"):
        train_captioner(built_in.parent / "c3-store", output=tmp_path / "a", unconditional=True, start=built_in)
    assert not (tmp_path / "a").exists()


def test_training_continues_from_one(built_in: Path, tmp_path: Path) -> None:
    more = train_captioner(built_in.parent / "c3-store", output=tmp_path / "more", start=built_in, epochs=1)
    assert more.is_language_model
    assert more.record["training"]["contrastive_margin"] == 0.5
    assert more.record["best_val_loss"] <= Captioner.load(built_in).record["best_val_loss"]


def test_the_command_trains_one_and_steers_it(c3: C3, photos: Path) -> None:
    assert c3("embed", photos, "--backend", "torch", "--precision", "fp32").exit_code == 0
    quick = ("--size", "tiny", "--epochs", "2", "--set", "max_tokens=4", "--precision", "fp32")
    result = c3("train-decoder", "--unconditional", *quick)
    assert result.exit_code == 0, result.stderr
    path = min(photos.glob("*.jpg"))
    refused = c3("caption", path)
    assert refused.exit_code == 1
    assert "--steer magic" in refused.stderr
    wrong = c3("caption", path, "--steer", "clip")
    assert wrong.exit_code == 1
    assert "Choose magic or zerocap" in wrong.stderr
    steered = c3("caption", path, "--steer", "magic", "--backend", "torch", "--precision", "fp32", "--json")
    assert steered.exit_code == 0, steered.stderr


@pytest.mark.parametrize("heads", [1, 2])
def test_padding_is_never_written(heads: int) -> None:
    torch.manual_seed(heads)
    config = DecoderConfig(dim=4, vocab_size=6, width=8, layers=1, heads=heads, prefix_length=0, max_tokens=5)
    x = np.zeros((2, 4), np.float32)
    assert all(PAD_ID not in ids for ids in generate(CaptionDecoder(config).eval(), x))
