from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from c3tools import devices
from c3tools.captioning import SIZES, Captioner, GenerationConfig, LanguageModelSize, fit_captioner, generate, load_size
from c3tools.errors import DecoderError, MissingExtraError
from c3tools.transforms import preset

from .conftest import DIM, World, make_world

pytest.importorskip("transformers")
from c3tools.captioning.language_model import MAPPERS, LanguageModelDecoder, pretrained

from .language_models import save_tiny_gpt2

FP32 = devices.pick("cpu", "fp32")
Train = Callable[..., Captioner]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_gpt2(tmp_path_factory.mktemp("gpt2"), make_world().texts.captions)


@pytest.fixture(scope="module")
def train(gpt2: Path) -> Train:
    world = make_world()

    def fit(*changes: str, epochs: int = 2) -> Captioner:
        rows, val = world.split(held_out=20)
        return fit_captioner(
            rows,
            val,
            preset("c3", sigma=0.02).fit(world.moments),
            size="paper",
            set=(f"model={gpt2}", "warmup_steps=2", "learning_rate=3e-3", f"epochs={epochs}", *changes),
            compute=FP32,
        )

    return fit


def decoder_of(gpt2: Path, **changes: object) -> LanguageModelDecoder:
    chosen = load_size("paper", [f"model={gpt2}", *(f"{name}={value}" for name, value in changes.items())])
    assert isinstance(chosen, LanguageModelSize)
    torch.manual_seed(0)
    return pretrained(chosen, DIM)[0].eval()


def test_the_papers_settings() -> None:
    paper = SIZES["paper"]
    assert isinstance(paper, LanguageModelSize)
    assert (paper.model, paper.mapper, paper.prefix_length, paper.frozen) == ("gpt2", "mlp", 10, False)
    training = paper.training
    assert (training.learning_rate, training.batch_size, training.epochs) == (2e-5, 40, 10)
    assert (training.warmup_steps, training.decay) == (5000, "linear")
    mapper = MAPPERS["mlp"](512, 768, 10)
    assert isinstance(mapper, nn.Sequential)
    first, between, last = mapper
    assert isinstance(between, nn.Tanh)
    assert [first.in_features, first.out_features, last.in_features, last.out_features] == [512, 3840, 3840, 7680]


@pytest.mark.parametrize("mapper", list(MAPPERS))
def test_greedy_equals_the_computation_without_cache(gpt2: Path, mapper: str) -> None:
    decoder = decoder_of(gpt2, mapper=mapper, prefix_length=3)
    language_model: Any = decoder.language_model
    language_model.transformer.h[0].mlp.c_proj.weight.data.mul_(30)  # scores that depend on what was written
    x = np.random.default_rng(0).normal(size=(6, DIM)).astype(np.float32)
    expected = []
    for row in torch.from_numpy(x):
        written: list[int] = []
        for _ in range(12):
            tokens = torch.tensor([[*written, decoder.pad_id]])
            with torch.no_grad():
                token = int(decoder(row[None], tokens)[0, len(written)].argmax())
            if token == decoder.end_id:
                break
            written.append(token)
        expected.append(written)
    assert generate(decoder, x, GenerationConfig(max_tokens=12)) == expected
    assert len({tuple(caption) for caption in expected}) > 1
    beams = generate(decoder, x, GenerationConfig("beam", beams=1, max_tokens=12))
    assert beams == expected


def test_padding_is_no_token_of_the_model_and_token_0_counts(gpt2: Path) -> None:
    decoder = decoder_of(gpt2)
    assert decoder.pad_id == decoder.config.vocab_size
    tokens = torch.tensor([[0, 5, decoder.end_id]])
    padded = torch.tensor([[0, 5, decoder.end_id, decoder.pad_id, decoder.pad_id]])
    x = torch.randn(1, DIM)
    torch.testing.assert_close(decoder(x, padded)[:, :3], decoder(x, tokens))
    assert decoder(x, tokens).shape == (1, 3, decoder.config.vocab_size)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_model_stays_as_it_was(gpt2: Path, train: Train, frozen: bool) -> None:
    before = decoder_of(gpt2).language_model.state_dict()
    captioner = train(f"frozen={str(frozen).lower()}", epochs=1)
    assert isinstance(captioner.decoder, LanguageModelDecoder)
    after = captioner.decoder.language_model.state_dict()
    same = [torch.equal(before[name], after[name]) for name in before]
    assert all(same) if frozen else not any(same)
    captioner.decoder.train()
    assert captioner.decoder.language_model.training is not frozen
    assert captioner.decoder.mapper.training


def test_it_learns_to_caption_and_is_saved_without_its_source(
    train: Train, world: World, tmp_path: Path, gpt2: Path
) -> None:
    captioner = train("batch_size=8", "learning_rate=1e-2", epochs=15)
    losses = [epoch["val_loss"] for epoch in captioner.record["history"]]
    assert losses[-1] < 0.5 * losses[0]
    images = world.images.embeddings[-10:]
    written = captioner.caption(embeddings=images)
    assert all(set(caption.split()) & {"on", "the"} for caption in written)
    captioner.save(tmp_path / "decoder")
    moved = shutil.move(gpt2, gpt2.with_name("away"))
    try:
        loaded = Captioner.load(tmp_path / "decoder")
    finally:
        shutil.move(moved, gpt2)
    assert loaded.caption(embeddings=images) == written
    beams = GenerationConfig("beam", beams=3)
    assert loaded.caption(embeddings=images, generation=beams) == captioner.caption(embeddings=images, generation=beams)
    # GPT-2 ties its output layer to its token embeddings: they stay tied, and are written once
    model: Any = loaded.decoder.language_model
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    size_on_disk = (tmp_path / "decoder" / "weights.safetensors").stat().st_size
    assert size_on_disk < 4 * sum(p.numel() for p in loaded.decoder.parameters()) + 20_000


def test_the_same_seed_gives_the_same_weights(train: Train) -> None:
    first, second = train(epochs=1), train(epochs=1)
    assert first.decoder.digest() == second.decoder.digest()


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, train: Train, tmp_path: Path) -> None:
    for change, message in (
        (f"model={tmp_path / 'nowhere'}", "nowhere' cannot be loaded"),
        ("mapper=conv", "There is no mapper 'conv'"),
    ):
        with pytest.raises(DecoderError, match=message):
            train(change)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"(?s)transformers.*c3tools\[hf\]"):
        train()
