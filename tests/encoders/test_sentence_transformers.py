"""Models of sentence-transformers, tiny and with random weights: `c3` does with them what it does with others."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, normalizers, processors
from tokenizers.models import BPE

import c3tools
from c3tools import Store, load_encoder, verify_store
from c3tools.corpus.images import read_sound
from c3tools.encoders import Encoder
from c3tools.encoders.plugins import find_plugin
from c3tools.errors import C3Error, EncoderError, MissingExtraError, StoreError
from tests.conftest import C3, as_json, copy_photos, done

st = pytest.importorskip("sentence_transformers", reason="the extra st is not installed")
soundfile = pytest.importorskip("soundfile", reason="the extra st is not installed")
hf = pytest.importorskip("transformers", reason="the extra st is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of the libraries

RATE = 8000  # of sounds, samples per second
LENGTH = 32  # tokens of a text, a character each, with start and end
LAYERS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
embed = partial(c3tools.embed, dtype="float32")  # as exact as what it is compared with
UNIT: dict[str, Any] = {"normalize_embeddings": True}
QUICK = ["--size", "tiny", "--epochs", "1", "--sigma", "0.1"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders clip, siglip2, clap (audio and text) and text."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    letters = ["<pad>", "<unk>", "<s>", "</s>", *map(chr, range(32, 127))]
    tokens = Tokenizer(BPE({letter: number for number, letter in enumerate(letters)}, [], unk_token="<unk>"))
    tokens.normalizer = normalizers.Lowercase()
    ends = [("<s>", 2), ("</s>", 3)]
    tokens.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=ends)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=tokens, model_max_length=LENGTH, **special)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    words: dict[str, Any] = {**LAYERS, **ids, "vocab_size": len(letters), "max_position_embeddings": 2 * LENGTH}

    def save(name: str, model: Any, processor: Any) -> None:
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)

    pixels = {**LAYERS, "image_size": 32, "patch_size": 8}
    clip = hf.CLIPConfig(text_config=words, vision_config=pixels, projection_dim=16)
    look = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    save("clip", hf.CLIPModel(clip), hf.CLIPProcessor(image_processor=look, tokenizer=tokenizer))

    patches = {**LAYERS, "num_patches": 16, "patch_size": 16}
    siglip = hf.Siglip2Config(text_config={**words, "projection_size": 32}, vision_config=patches)
    look = hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=16)
    save("siglip2", hf.Siglip2Model(siglip), hf.Siglip2Processor(image_processor=look, tokenizer=tokenizer))

    window = {"spec_size": 64, "num_mel_bins": 32, "window_size": 2}
    blocks = {
        "patch_embeds_hidden_size": 16,
        "hidden_size": 128,
        "depths": [1] * 4,
        "num_attention_heads": [1, 1, 2, 2],
    }
    clap = hf.ClapConfig(text_config=words, audio_config={**window, **blocks}, projection_dim=16)
    hear = hf.ClapFeatureExtractor(
        truncation="rand_trunc",
        feature_size=32,
        sampling_rate=RATE,
        max_length_s=1,
        fft_window_size=256,
        hop_length=80,
        frequency_max=4000,
    )
    save("clap", hf.ClapModel(clap), hf.ClapProcessor(feature_extractor=hear, tokenizer=tokenizer))

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters[4:], *(f"##{letter}" for letter in letters[4:])]
    bert = hf.BertConfig(**{**words, "vocab_size": len(pieces)})
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    save("text", hf.BertModel(bert), hf.BertTokenizerFast(vocab=vocabulary, model_max_length=LENGTH))
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tones of four rates, one of them of two channels and longer than the model hears, and a file that is none."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(10):
        rate = (RATE, 11025, 16000, 44100)[number % 4]
        tone = np.sin(2 * np.pi * (200 + 150 * number) * np.arange(rate * (3 if number == 9 else 1) // 2) / rate)
        path = folder / f"tone{number}.{'flac' if number % 2 else 'wav'}"
        soundfile.write(path, np.stack([tone, tone], 1) if number == 9 else tone, rate)
        path.with_suffix(".txt").write_text(f"tone number {number}\n")
    (folder / "none.mp3").write_bytes(b"no")
    return folder


def loaded(models: Path, name: str) -> Any:
    return st.SentenceTransformer(str(models / name), device="cpu", local_files_only=True)


def contents(store: Path) -> dict[str, bytes]:
    return {str(file.relative_to(store)): file.read_bytes() for file in store.rglob("*.parquet")}


def works(c3: C3, kind: str, store: Path) -> None:
    """The commands on a store of ``kind`` and text, in an empty folder."""
    report = as_json(c3("gap-report", store, "--json"))
    assert set(report["modalities"]) == {kind, "text"}
    assert report["pairs"]["n"] > 0
    done(c3("index", "--store", store))
    opened = Store.open(store)
    caption = opened.load("text").captions[0]
    hits = as_json(c3("search", caption, "-k", "50", "--json"))[0]["hits"]
    assert {kind, "text"} == {hit["modality"] for hit in hits}
    assert next(hit["caption"] for hit in hits if hit["modality"] == "text") == caption
    done(c3("train-decoder", "--store", store, *QUICK))
    captions = as_json(c3("caption", "--embeddings", store, "--modality", kind, "--json"))
    assert len(captions) == opened.count(kind)


@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_images_and_texts_are_embedded_as_the_library_does(name: str, models: Path, photos: Path, c3: C3) -> None:
    (photos / "broken.jpg").write_bytes(b"no")
    Image.new("RGB", (1, 3), "red").save(photos / "thin.png")
    model = f"st:{models / name}"
    found = [embed(photos, f"store-{n}", model=model, workers=n, batch_size=3) for n in (0, 2)]
    assert contents(Path("store-0")) == contents(Path("store-2"))
    store = embed(photos, "store-0")
    assert (store.summary.modalities["image"].embedded, store.summary.modalities["image"].already) == (0, 5)
    assert [failure.key for failure in store.recorded_failures()] == ["broken"]
    assert store.info.normalised
    longest = {"clip": 32, "siglip2": 64}[name]
    assert (store.info.backend, store.info.precision, store.info.model["max_length"]) == ("st", "fp32", longest)
    own, images, texts = loaded(models, name), store.load("image"), store.load("text")
    opened = [Image.open(path).convert("RGB") for path in images.column("path")]
    np.testing.assert_allclose(images.embeddings, own.encode(opened, **UNIT), atol=1e-6)
    padded: Any = {"processing_kwargs": {"text": {"padding": "max_length"}}} if name == "siglip2" else {}
    expected = own.encode(texts.captions, **UNIT, **padded)
    np.testing.assert_allclose(texts.embeddings, expected, atol=1e-6)
    assert found[0].summary.modalities["text"].truncated == sum(len(text) > longest - 2 for text in texts.captions)
    if name == "clip":
        works(c3, "image", store.path)
        for options in ((), ("--steer", "magic"), ("--steer", "zerocap")):
            done(c3("caption", photos / "thin.png", *options))


def test_sounds_and_their_captions(models: Path, sounds: Path, c3: C3) -> None:
    np.random.seed(7)
    drawn = np.random.rand()
    np.random.seed(7)
    store = embed(sounds, "store", model=f"st:{models / 'clap'}")
    assert np.random.rand() == drawn
    rows = store.load("audio")
    assert rows.keys == [f"tone{number}" for number in range(10)]
    assert rows.column("duration") == pytest.approx([0.5] * 9 + [1.5], abs=1e-4)
    assert [failure.key for failure in store.recorded_failures()] == ["none"]
    own = loaded(models, "clap")
    for path, row in zip(rows.column("path")[:9], rows.embeddings, strict=False):
        inputs = {"array": read_sound(path, RATE)[0], "sampling_rate": RATE}
        np.testing.assert_allclose(row, own.encode(inputs, **UNIT), atol=1e-6)
    again = embed(sounds, "again", model=f"st:{models / 'clap'}")  # cut at the same random place
    assert contents(store.path) == contents(again.path)
    works(c3, "audio", store.path)
    with pytest.raises(EncoderError, match="takes text and audio, but not image"):
        embed(copy_photos(Path("photos"), 1), "other", model=f"st:{models / 'clap'}")


def test_a_sound_is_resampled_and_its_channels_are_one(tmp_path: Path) -> None:
    seconds = np.arange(44100) / 44100
    tone, high = np.sin(2 * np.pi * 440 * seconds), np.sin(2 * np.pi * 9000 * seconds)
    soundfile.write(tmp_path / "a.wav", np.stack([tone + 0.1 * high, tone - 0.1 * high], 1) / 2, 44100, subtype="FLOAT")
    sound, length = read_sound(tmp_path / "a.wav", RATE)
    assert (len(sound), length) == (RATE, 1.0)
    np.testing.assert_allclose(sound, np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) / 2, atol=1e-4)


@pytest.mark.usefixtures("c3")
def test_a_model_for_texts_alone(models: Path, photos: Path) -> None:
    model = f"st:{models / 'text'}"
    with pytest.raises(EncoderError, match="takes text, but not image"):
        embed(photos, "refused", model=model)
    assert not Path("refused", "store.json").exists()
    lines = ["a dog", "https://example.org/photo.jpg", str(next(photos.glob("*.jpg")))]
    Path("texts.txt").write_text("\n".join(lines))
    rows = embed("texts.txt", model=model).load("text")
    expected = loaded(models, "text").encode(lines, **UNIT)
    np.testing.assert_allclose(rows.embeddings, expected, atol=1e-6)
    with pytest.raises(StoreError, match="Embeddings of different models cannot be mixed"):
        embed("texts.txt", model="c3-mini")


def test_prompts_for_queries_and_documents(models: Path, tmp_path: Path, c3: C3) -> None:
    own = loaded(models, "clip")
    own.prompts = {"query": "find: ", "document": "about: "}
    own.save(str(tmp_path / "prompted"))
    Path("texts.txt").write_text("a dog\na cat\na bird\n")
    model = f"st:{tmp_path / 'prompted'}"
    store = embed("texts.txt", model=model)
    rows = store.load("text").embeddings
    np.testing.assert_allclose(rows[:1], own.encode_document(["a dog"], **UNIT), atol=1e-6)
    assert np.abs(rows[:1] - own.encode(["a dog"], prompt="", **UNIT)).max() > 1e-3
    assert (store.info.model["query_prompt"], store.info.model["document_prompt"]) == ("find: ", "about: ")
    done(c3("index"))
    index = c3tools.Index.open("c3-index")

    def cosine(prompt: str) -> float:
        (hits,) = index.rank(own.encode(["a dog"], prompt=prompt, **UNIT), "text", 3)
        return next(hit.cosine for hit in hits if hit.caption == "a dog")

    def found(*options: str) -> float:
        hits = as_json(c3("search", "a dog", "--json", *options))[0]["hits"]
        return float(next(hit["cosine"] for hit in hits if hit["caption"] == "a dog"))

    assert found() == pytest.approx(cosine("find: "), abs=1e-5)
    assert found("--query-prompt", "seek: ") == pytest.approx(cosine("seek: "), abs=1e-5)
    other = embed("texts.txt", "other", model=model, query_prompt="seek: ")
    assert other.info.model["query_prompt"] == "seek: "
    with pytest.raises(StoreError, match="records another query prompt: 'seek: '"):
        embed("texts.txt", "other", query_prompt="find: ")


@pytest.mark.usefixtures("c3")
def test_dimensions_can_be_left_out(models: Path, photos: Path) -> None:
    store = embed(photos, model=f"st:{models / 'clip'}", truncate_dim=8)
    rows, own = store.load("text"), loaded(models, "clip")
    expected = own.encode(rows.captions, truncate_dim=8, **UNIT)
    np.testing.assert_allclose(rows.embeddings, expected, atol=1e-6)
    (photos / "captions.jsonl").unlink()
    Path("more.txt").write_text("a dog")
    assert embed("more.txt").info.dim == 8  # as recorded
    with pytest.raises(EncoderError, match="does not take such an option"):
        load_encoder("c3-mini", truncate_dim=8)


def test_a_model_that_compares_by_dot_product_keeps_its_norms(models: Path, tmp_path: Path) -> None:
    own = st.SentenceTransformer(str(models / "text"), device="cpu", similarity_fn_name="dot")
    own.save(str(tmp_path / "dot"))
    (tmp_path / "texts.txt").write_text("a dog\na cat\n")
    store = embed(tmp_path / "texts.txt", tmp_path / "store", model=f"st:{tmp_path / 'dot'}")
    assert not store.info.normalised
    np.testing.assert_allclose(store.load("text").embeddings, own.encode(["a dog", "a cat"]), atol=1e-5)


@pytest.mark.usefixtures("c3")
def test_long_texts_are_cut_or_divided(models: Path) -> None:
    long = "a dog runs along the beach and a cat looks at the sea from a wall"
    parts = ["a dog runs along the beach and a", "cat looks at the sea from a wall"]  # 30 letters fit
    Path("texts.txt").write_text(f"a bird\n{long}\n")
    model, own = f"st:{models / 'text'}", loaded(models, "text")
    encoder: Any = load_encoder(model)
    batches = encoder.token_batches([*"abc", "a" * 9000, "b" * 9000], None)
    assert [len(batch) for _, batch in batches] == [3, 1, 1]
    stores = {how: embed("texts.txt", how, model=model, long_texts=how) for how in ("chunk", "mean")}
    cut = embed("texts.txt", "cut", model=model)
    assert [store.summary.modalities["text"].truncated for store in (cut, *stores.values())] == [1, 0, 0]
    rows = stores["chunk"].load("text")
    assert rows.keys == ["texts:1", *(f"texts:2~{number}" for number in range(2))]
    assert (rows.captions[1:], rows.items[1:]) == (parts, ["texts:2"] * 2)
    vectors = own.encode(["a bird", *parts], **UNIT)
    np.testing.assert_allclose(rows.embeddings, vectors, atol=1e-6)
    rows = stores["mean"].load("text")
    assert rows.captions == ["a bird", long]
    mean = vectors[1:].mean(axis=0)
    np.testing.assert_allclose(rows.embeddings, [vectors[0], mean / np.linalg.norm(mean)], atol=1e-6)
    Path("texts.txt").write_text(f"a bird\n{long}\na fish\n")
    assert embed("texts.txt", "chunk").summary.modalities["text"].embedded == 1  # as recorded
    Path("texts.txt").write_text("a bird\n")
    assert embed("texts.txt", "chunk", prune=True).summary.modalities["text"].gone == [
        "texts:2~0",
        "texts:2~1",
        "texts:3",
    ]
    copy_photos(Path("photos"), 1)
    embed("photos", "mixed", model=f"st:{models / 'clip'}", long_texts="chunk")
    Path("texts.txt").write_text(f"{long * 3}\n")
    assert embed("texts.txt", "mixed").summary.modalities["text"].embedded > 1
    assert not verify_store("mixed").findings
    with pytest.raises(StoreError, match="--long-texts is mean, but the store chunk was made with chunk"):
        embed("texts.txt", "chunk", long_texts="mean")


def test_open_clip_divides_long_texts_too(encoder: Encoder) -> None:
    assert encoder.chunks(["dog " * 80, "a dog", "x" * 500]) == [[" ".join(["dog"] * 40)] * 2, ["a dog"], ["x" * 500]]
    assert encoder.chunks(["x" * 500 + " a"]) == [["x" * 500, "a"]]


def test_what_cannot_be_loaded_is_one_error(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.encoders.st.answers", lambda address: False)
    with pytest.raises(EncoderError, match=r"(?s)does not answer.*st:PATH"):
        load_encoder("st:nobody/nothing")
    with pytest.raises(EncoderError, match="could not be loaded"):
        load_encoder(f"st:{tmp_path}")
    for options in ({"random_init": 1}, {"backend": "openvino"}):
        with pytest.raises(EncoderError, match="does not take such an option"):
            load_encoder(f"st:{models / 'clip'}", **options)
    with pytest.raises(C3Error, match="is not a model of open_clip"):
        c3tools.connect_towers([tmp_path], model=f"st:{models / 'clip'}")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match="sentence-transformers"):
        load_encoder(f"st:{models / 'clip'}")


def test_kinds_of_models(models: Path) -> None:
    for name in ("c3-mini", "ViT-B-32/openai", "local-dir:x", "hf-hub:a/b", "ViT-B-32/C:/weights.pt", "nothing:x"):
        assert find_plugin(name) is None
    assert load_encoder(f"st:{models / 'clip'}", precision="bf16").compute.precision == "bf16"
