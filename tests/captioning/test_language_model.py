from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from c3tools import Captioner, Store, train_captioner
from c3tools.captioning.config import (
    SIZES,
    LanguageModelConfig,
    LanguageModelSize,
    TrainingConfig,
    load_size,
)
from c3tools.captioning.esper import EsperTask
from c3tools.captioning.generation import GenerationConfig, generate
from c3tools.captioning.language_model import LanguageModelDecoder
from c3tools.captioning.steering import CANDIDATES
from c3tools.captioning.train_captioner import DecoderTask
from c3tools.errors import DecoderError, MissingExtraError
from c3tools.transforms import preset
from tests.conftest import unit_rows

from .conftest import ANIMALS, CPU, DIM, counting_encoder, fit, greedy_without_cache, make_world

hf = pytest.importorskip("transformers")
END = "<|endoftext|>"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model as its users have one, a folder: a GPT-2 of 2 layers and width 16, with
    random weights.

    Its byte-level tokenizer is learned from the captions of the toy world.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # as in GPT-2, id 0 is a real token and end-of-text is the last one
    trainer = trainers.BpeTrainer(vocab_size=299, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(make_world().texts.captions, trainer)
    tokenizer.add_special_tokens([END])
    fast = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    end_id = fast.convert_tokens_to_ids(END)
    config = hf.GPT2Config(
        vocab_size=len(fast),
        n_positions=64,
        n_embd=16,
        n_layer=2,
        n_head=2,
        bos_token_id=end_id,
        eos_token_id=end_id,
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    hf.GPT2LMHeadModel(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def train(gpt2: Path, *changes: str) -> Captioner:
    world = make_world()
    settings = (f"model={gpt2}", "warmup_steps=2", "learning_rate=1e-2", "batch_size=8", *changes)
    pipeline = preset("c3", sigma=0.02).fit(world.moments)
    return fit(DecoderTask(*world.split(held_out=20), pipeline, load_size("paper", settings), CPU))


def decoder_of(gpt2: Path, **changes: Any) -> LanguageModelDecoder:
    torch.manual_seed(0)
    size = LanguageModelSize(str(gpt2), SIZES["paper"].training, **changes)
    return LanguageModelDecoder.pretrained(size, DIM)[0].eval()


def test_the_mapper_is_that_of_the_paper() -> None:
    architecture = {
        "model_type": "gpt2",
        "n_embd": 768,
        "n_layer": 1,
        "vocab_size": 50,
        "n_positions": 60,
    }
    mapper: Any = LanguageModelDecoder(
        LanguageModelConfig(512, 50, 49, architecture, 10, 40, False)
    ).mapper
    assert [str(layer) for layer in mapper] == [
        "Linear(in_features=512, out_features=3840, bias=True)",
        "Tanh()",
        "Linear(in_features=3840, out_features=7680, bias=True)",
    ]


def test_greedy_equals_the_computation_without_cache(gpt2: Path) -> None:
    decoder = decoder_of(gpt2, prefix_length=3, max_tokens=12)
    language_model: Any = decoder.language_model
    # scores that depend on what was written
    language_model.transformer.h[0].mlp.c_proj.weight.data.mul_(30)
    x = unit_rows(6, DIM)
    expected = [greedy_without_cache(decoder, row) for row in x]
    assert generate(decoder, x) == expected
    assert generate(decoder, x, GenerationConfig("beam", beams=1)) == expected
    assert len({tuple(caption) for caption in expected}) > 1
    logits, hidden = decoder(torch.from_numpy(x), torch.tensor([[1, 2]] * len(x)))
    # the last layer's, which MAGIC compares
    torch.testing.assert_close(language_model.lm_head(hidden), logits)


def test_words_are_scored_only_where_one_follows(gpt2: Path) -> None:
    decoder = decoder_of(gpt2, prefix_length=3)
    language_model: Any = decoder.language_model
    scored: list[tuple[int, ...]] = []
    language_model.lm_head.register_forward_pre_hook(lambda _, x: scored.append(x[0].shape))
    x = torch.from_numpy(unit_rows(6, DIM))
    decoder(x, torch.tensor([[1, 2]] * len(x)))
    decoder.prefill(x)
    assert scored == [(6, 2, 16), (6, 1, 16)]  # not the prefix


def test_a_frozen_model_stays_as_it_was(gpt2: Path) -> None:
    before = decoder_of(gpt2).language_model.state_dict()
    decoder: Any = train(gpt2, "frozen=true", "epochs=1").decoder
    after = decoder.language_model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    decoder.train()
    assert (decoder.language_model.training, decoder.mapper.training) == (False, True)


def test_it_learns_to_caption_and_is_saved_without_its_source(tmp_path: Path, gpt2: Path) -> None:
    captioner = train(gpt2, "epochs=8")
    losses = [epoch["val_loss"] for epoch in captioner.record["history"]]
    assert losses[-1] < 0.6 * losses[0]
    images = make_world().images.embeddings[-10:]
    written = captioner.caption(embeddings=images)
    captioner.save(tmp_path / "decoder")
    moved = shutil.move(gpt2, gpt2.with_name("away"))
    try:
        loaded = Captioner.load(tmp_path / "decoder")
    finally:
        shutil.move(moved, gpt2)
    assert loaded.caption(embeddings=images) == written


def test_without_an_embedding_it_is_steered_and_put_behind_a_mapper(
    captions_store: Store, tmp_path: Path, gpt2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (
        f"model={gpt2}",
        "warmup_steps=2",
        "batch_size=32",
        "learning_rate=5e-3",
        "max_tokens=12",
    )
    options: Any = {"size": "paper", "epochs": 1, "precision": "fp32", "device": "cpu"}
    train_captioner(
        captions_store, output=tmp_path / "lm", set=settings, unconditional=True, **options
    )
    lm, images, encoder = (
        Captioner.load(tmp_path / "lm"),
        make_world().images,
        counting_encoder(ANIMALS),
    )
    for method in ("magic", "zerocap"):
        monkeypatch.setitem(CANDIDATES, method, 20)
        assert lm.caption(embeddings=images.embeddings[:1], steer=method, encoder=encoder)
    learned, val = (images.select(np.arange(start, start + 10)) for start in (0, 10))
    captioner = fit(EsperTask(learned, val, lm, encoder, TrainingConfig(1, 10, 1e-3), "cpu"))
    captioner.save(tmp_path / "esper")
    written = captioner.caption(embeddings=images.embeddings[-1:])
    assert Captioner.load(tmp_path / "esper").caption(embeddings=images.embeddings[-1:]) == written


def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, gpt2: Path, tmp_path: Path
) -> None:
    for changes, named in (
        ([f"model={tmp_path / 'nowhere'}"], "nowhere"),
        (["max_tokens=0"], "0"),
        (["frozen=true", "prefix_length=0"], "without a prefix"),
    ):
        with pytest.raises(DecoderError, match=named):
            train(gpt2, *changes)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r'install "transformers>='):
        train(gpt2)
