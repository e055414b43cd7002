"""Repositories of the Hugging Face hub, against a hub on this machine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest

from c3tools import Captioner, Pipeline, Store, export_store, preset, verify_store
from c3tools.errors import C3Error, DecoderError, StoreError, UnreachableError
from c3tools.identity import ModelIdentity
from c3tools.io.hub import class_of, download_repository
from c3tools.store import Failure, Rows, StoreWriter
from tests.captioning.conftest import trained_captioner
from tests.conftest import C3, add_shard, as_json, build_store, unit_rows
from tests.servers import Hub
from tests.stores import two_texts_per_image

DIM = 8


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Nine images and eighteen texts, with splits of several kinds; the paths of images are
    absolute."""
    splits = [["train", "train", "val", "extra-b"][i % 4] for i in range(9)]
    paths = [f"/home/me/image{i}.jpg" for i in range(9)]
    rows = two_texts_per_image(splits, unit_rows(9, DIM), unit_rows(18, DIM, seed=1), path=paths)
    return build_store(tmp_path / "store", *rows, part_rows=4)


def test_a_captioner_comes_back_with_a_card(hub: Hub) -> None:
    captioner = trained_captioner()
    captioner.push_to_hub("me/captions", license="cc-by-4.0")
    files = hub.last("models/me/captions")
    card: Any = huggingface_hub.ModelCard(files["README.md"].decode())
    data = card.data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "cc-by-4.0",
        "c3tools",
        "image-to-text",
    )
    assert f"| validation loss | {captioner.record['best_val_loss']:.4g} |" in card.text
    (result,) = data.eval_results
    assert (result.metric_type, result.metric_value) == ("loss", captioner.record["best_val_loss"])
    assert data.base_model is None
    assert "It learned from" in card.text
    for loaded in (Captioner.load("hf-hub:me/captions"), Captioner.from_pretrained("me/captions")):
        assert loaded.fingerprint() == captioner.fingerprint()
    name = "weights.safetensors"
    hub.files["models/me/changed"] = [{**files, name: files[name][:-1] + b"\0"}]
    with pytest.raises(DecoderError, match=name):
        Captioner.from_pretrained("me/changed")


def test_a_card_links_to_the_encoder_on_the_hub(hub: Hub, tmp_path: Path) -> None:
    rows = {"image": unit_rows(30, DIM), "text": unit_rows(30, DIM, seed=1)}
    pipeline = preset("c2-collapse").fit(rows)
    for model, base in {"st:org/clip": "org/clip", "ViT-B-32/openai": None}.items():
        pipeline.provenance["model"] = {"name": model}
        pipeline.push_to_hub("me/pipeline")
        card: Any = huggingface_hub.ModelCard(hub.last("models/me/pipeline")["README.md"].decode())
        assert card.data.base_model == base
    (tmp_path / "org" / "clip").mkdir(parents=True)
    with contextlib.chdir(tmp_path):
        assert ModelIdentity(name="st:org/clip").repository is None  # a folder


def test_a_store_is_a_data_set_and_a_store_again(hub: Hub, store: Store, tmp_path: Path) -> None:
    failure = Failure(
        "lost", "/home/me/lost.jpg", "decode", "OSError", "cannot read /home/me/lost.jpg"
    )
    unnamed = Failure(
        "'\\udce9.jpg'", "'/home/me/\\udce9.jpg'", "list", "UnicodeError", "the name is not UTF-8"
    )
    add_shard(store.path, store.info, "audio", 0, np.empty((0, DIM)), {"key": []}, [failure])
    StoreWriter(store.path).finish([unnamed])
    store = Store.open(store.path)
    build_store(tmp_path / "large", store.load("image"), part_rows=1).push_to_hub("me/rows")
    store.push_to_hub("me/rows", license="cc0-1.0")
    files = hub.last("datasets/me/rows")
    assert sum("image/" in name for name in files) == 3  # nothing is left of the larger one
    assert not any(b"/home/me" in content for content in files.values())
    card: Any = huggingface_hub.RepoCard(files["README.md"].decode())
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == ["image", "text"]
    for fact in ("test-model", "normalised | yes", "dimensions | 8", "train 5, val 2, extra-b 2"):
        assert fact in card.text

    again = Store.from_pretrained("me/rows", output=tmp_path / "again")
    assert verify_store(again.path).whole
    for modality in ("image", "text"):
        before, after = store.load(modality), again.load(modality)
        np.testing.assert_array_equal(after.embeddings, before.embeddings)
        assert (after.keys, after.splits) == (before.keys, before.splits)
    assert again.load("image").column("path")[0] == "image0.jpg" and len(again.pairs()) == len(
        store.pairs()
    )
    assert [(f.path, f.message) for f in again.recorded_failures()] == [
        ("lost.jpg", ""),
        (r"\udce9.jpg", ""),
    ]


def test_a_data_set_is_read_by_datasets_and_refused_if_it_is_damaged_or_in_the_way(
    store: Store, tmp_path: Path
) -> None:
    datasets.disable_progress_bars()
    rows, file = tmp_path / "rows", tmp_path / "rows" / "text" / "part-00001.parquet"
    store.save_pretrained(rows)
    read = datasets.load_dataset(
        str(rows), "text", split="train", cache_dir=str(tmp_path / "cache")
    )
    np.testing.assert_array_equal(
        np.asarray(read["embedding"], np.float32), store.load("text").embeddings
    )
    for there in (store.path, rows):
        with pytest.raises(StoreError, match="already exists"):
            store.save_pretrained(there)
    export_store(store, output=tmp_path / "export", preset="c1")
    with pytest.raises(StoreError, match=r"(?s)an export.*Pipeline.push_to_hub"):
        Store.open(tmp_path / "export").save_pretrained(tmp_path / "shared")
    content = file.read_bytes()
    for damaged in (file.with_name("part-00000.parquet").read_bytes(), content[:-200], None):
        file.unlink() if damaged is None else file.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"part-00001.parquet"):
            Store.from_pretrained(rows, output=tmp_path / "new")
    with pytest.raises(StoreError, match="has no rows to share"):
        build_store(tmp_path / "none", Rows.of("image", [], np.empty((0, DIM)))).save_pretrained(
            tmp_path / "new"
        )
    assert not (tmp_path / "new").exists()


def test_errors_say_what_would_help(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = trained_captioner().pipeline
    pipeline.push_to_hub("me/c3")
    hub.files["models/me/bert"] = [
        {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"0" * 100}
    ]

    def refused(
        error: type[C3Error], said: str, call: Callable[..., object], name: str, **options: str
    ) -> None:
        with pytest.raises(error, match=f"(?s){said}"):
            call(name, **options)

    refused(UnreachableError, "me/none.*hf auth login", Pipeline.from_pretrained, "me/none")
    refused(C3Error, "ORG/NAME", Pipeline.from_pretrained, "no-such-folder")
    refused(C3Error, "is a folder on this machine", download_repository, str(tmp_path))
    refused(C3Error, "me/bert was not made by c3tools", Pipeline.from_pretrained, "me/bert")
    assert not list((tmp_path / "hub-cache").rglob("model.safetensors"))
    refused(UnreachableError, "me/c3", Pipeline.from_pretrained, "me/c3", revision="v2")
    refused(
        C3Error,
        r"a Pipeline, not a Captioner.*Pipeline\.from_pretrained",
        Captioner.from_pretrained,
        "me/c3",
    )
    refused(DecoderError, "decoder", Captioner.load, "hf-hub:me/c3")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    refused(UnreachableError, r"me/c3 .*\(401\).*TOKEN", pipeline.push_to_hub, "me/c3")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    refused(
        UnreachableError,
        "me/other cannot be reached: http://127.0.0.1:1 does not answer",
        Pipeline.from_pretrained,
        "me/other",
    )
    refused(UnreachableError, "http://127", pipeline.push_to_hub, "me/c3")


def test_a_pipeline_comes_back_and_is_used_offline(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = trained_captioner().pipeline
    assert pipeline.push_to_hub("me/c3").startswith(f"{hub.endpoint}/me/c3/commit/")
    assert sorted(hub.last("models/me/c3")) == [
        "README.md",
        "config.json",
        "transform.json",
        "transform.safetensors",
    ]
    rows = unit_rows(5, 32, seed=3)
    expected = pipeline.transform(rows, modality="image")
    for endpoint in (hub.endpoint, "http://127.0.0.1:1"):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        for loaded in (Pipeline.from_pretrained("me/c3"), Pipeline.load("hf-hub:me/c3")):
            assert loaded.record() == pipeline.record()
            np.testing.assert_array_equal(loaded.transform(rows, modality="image"), expected)


def test_a_config_of_anything_names_no_class(tmp_path: Path) -> None:
    for content in ("", "[]", "{}", '{"class": "Pipeline"}', '{"class": 1, "library_name": "x"}'):
        (tmp_path / "config.json").write_text(content)
        assert class_of(tmp_path) is None


def test_push_and_pull(hub: Hub, c3: C3, store: Store, tmp_path: Path) -> None:
    captioner = trained_captioner()
    pipeline = captioner.pipeline

    def run(words: str, code: int = 0) -> str:
        result = c3(*words.split())
        assert result.exit_code == code, result.output
        return " ".join(result.stderr.split())

    pipeline.save(tmp_path / "pipe")
    captioner.save(tmp_path / "decoder")
    assert (
        as_json(c3("push", "store", "me/rows", "--license", "cc0-1.0", "--json"))["class"]
        == "Store"
    )
    assert "Pushed the Captioner in decoder: " in run("push decoder me/captions --private")
    assert hub.private == {"datasets/me/rows": False, "models/me/captions": True}
    run("push pipe me/c3")
    for name, folder in (
        ("me/rows", "c3-store"),
        ("me/captions", "c3-decoder"),
        ("me/c3", "c3-pipeline"),
    ):
        assert f"to {folder}." in run(f"pull {name}")
    run("verify --store c3-store")
    assert Captioner.load("c3-decoder").fingerprint() == captioner.fingerprint()
    for name in ("me/c3", "me/rows", "me/captions"):
        assert "there is nothing to do." in run(f"pull {name}")
    (tmp_path / "c3-pipeline" / "notes.txt").write_text("mine")
    assert "c3-pipeline" in run("pull me/c3", 1)  # something else is there
    hub.files["models/me/rows"] = [{"config.json": b'{"model_type": "bert"}'}]
    run("pull me/rows -o two")  # the store, since the model is of another program
    pipeline.push_to_hub("me/rows")
    run("pull me/rows -o three")
    assert Pipeline.load("three").record() == pipeline.record()
    run("pull me/rows --dataset -o four")
    assert Store.open("four").count("image") == Store.open("two").count("image") == 9
    run("pull me/c3 --dataset -o five", 1)
    hub.files["models/me/bad"] = [
        {"config.json": b'{"class": "Pipeline", "library_name": "c3tools"}'}
    ]
    run("pull me/bad -o six", 1)
