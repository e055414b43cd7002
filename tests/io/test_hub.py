"""Repositories of the Hugging Face hub, against a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch

from c3tools import Captioner, Pipeline, Store, preset
from c3tools.captioning import CaptionDecoder, CaptionTokenizer, DecoderConfig
from c3tools.errors import C3Error, DecoderError, OutputError, StoreError, UnreachableError
from c3tools.io import artifact as hub_module
from c3tools.store import (
    Failure,
    Rows,
    Shard,
    dataset,
    finish_store,
    write_shard,
)
from c3tools.store.verify import verify_store
from tests.conftest import C3, MODEL, build_store, make_store, unit_rows
from tests.servers import Hub

DIM = 8


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Nine images and eighteen texts, with splits of several kinds; the paths of images are absolute."""
    keys = [f"image{i}" for i in range(9)]
    splits = [["train", "train", "val", "extra-b"][i % 4] for i in range(9)]
    images = Rows.of("image", keys, unit_rows(9, DIM), path=[f"/home/me/{key}.jpg" for key in keys], split=splits)
    texts = Rows.of(
        "text",
        [f"text{i}" for i in range(18)],
        unit_rows(18, DIM, seed=1),
        caption=[f"caption {i}" for i in range(18)],
        image_key=[f"image{i // 2}" for i in range(18)],
        split=[splits[i // 2] for i in range(18)],
    )
    return build_store(tmp_path / "store", images, texts, part_rows=4)


@pytest.fixture
def captioner(pipeline: Pipeline) -> Captioner:
    """A captioner with random weights."""
    tokenizer = CaptionTokenizer.train([f"caption {i}" for i in range(20)], 300)
    config = DecoderConfig(dim=DIM, vocab_size=tokenizer.vocab_size, width=16, layers=1, heads=2, max_tokens=8)
    torch.manual_seed(0)
    record = {"model": dict(MODEL), "preset": "c3", "sigma": 0.1, "best_val_loss": 1.98694, "captions": {"train": 18}}
    return Captioner(CaptionDecoder(config).eval(), tokenizer, pipeline, record)


@pytest.fixture
def pipeline(store: Store) -> Pipeline:
    return preset("c3", sigma=0.1).fit(store)


def header_of(card: bytes | str) -> dict[str, object]:
    text = card.decode() if isinstance(card, bytes) else card
    return dict(huggingface_hub.RepoCard(text).data.to_dict())  # type: ignore[no-untyped-call]


def test_a_pipeline_comes_back_from_the_hub_bit_for_bit(hub: Hub, pipeline: Pipeline) -> None:
    address = pipeline.push_to_hub("me/c3", license="mit", private=True)
    assert address.startswith(f"{hub.endpoint}/me/c3/commit/")
    assert hub.private == {"models/me/c3": True}
    assert sorted(hub.last("models/me/c3")) == ["README.md", "config.json", "transform.json", "transform.safetensors"]
    again = [Pipeline.from_pretrained("me/c3"), Pipeline.load("hf-hub:me/c3")]
    for loaded in again:
        assert loaded.record() == pipeline.record()
    rows = unit_rows(5, DIM, seed=3)
    np.testing.assert_array_equal(
        again[0].transform(rows, modality="image"), pipeline.transform(rows, modality="image")
    )


def test_a_captioner_comes_back_from_the_hub_with_a_card_of_its_scores(hub: Hub, captioner: Captioner) -> None:
    captioner.push_to_hub(
        "me/captions",
        license="cc-by-4.0",
        data=["nlphuji/flickr30k", "captions of our own"],
        scores={"Flickr8k test": {"CIDEr": 49.61, "BLEU-4": 19.1}},
    )
    card = hub.last("models/me/captions")["README.md"]
    results: Any = huggingface_hub.ModelCard(card.decode()).data.eval_results  # type: ignore[attr-defined]
    assert {(r.dataset_name, r.metric_type): r.metric_value for r in results or []} == {
        ("validation", "loss"): 1.9869,
        ("Flickr8k test", "cider"): 49.61,
        ("Flickr8k test", "bleu-4"): 19.1,
    }
    header = header_of(card)
    assert header["license"] == "cc-by-4.0"
    assert header["library_name"] == "c3tools"
    assert header["pipeline_tag"] == "image-to-text"
    assert header["datasets"] == ["nlphuji/flickr30k"]  # the other one is no name on the hub
    assert "captions of our own" in card.decode()
    loaded = Captioner.load("hf-hub:me/captions")
    assert loaded.fingerprint() == captioner.fingerprint()
    assert Captioner.from_pretrained("me/captions").fingerprint() == captioner.fingerprint()


@pytest.mark.parametrize(
    ("record", "learned"),
    [
        ({"modality": "text", "monitor": "text"}, "captions alone, without images"),
        ({"modality": "image", "monitor": "reward"}, "images alone, without captions of them"),
        ({"modality": "image", "monitor": "cross-modal"}, "images and their captions"),
    ],
)
def test_the_card_of_a_captioner_says_what_it_learned_from(
    captioner: Captioner, record: dict[str, str], learned: str
) -> None:
    card = Captioner(captioner.decoder, captioner.tokenizer, captioner.pipeline, captioner.record | record).card()
    assert card.summary.endswith(f"It learned from {learned}.")


def test_a_store_is_a_data_set_and_a_store_again(
    hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "_FILE_BYTES", 3 * DIM * 2)  # three rows of float16
    store.push_to_hub("me/rows", license="cc0-1.0")
    files = hub.last("datasets/me/rows")
    assert sorted(name for name in files if name.startswith("data/image/")) == [
        "data/image/extra_b-00000-of-00001.parquet",
        "data/image/train-00000-of-00002.parquet",
        "data/image/train-00001-of-00002.parquet",
        "data/image/val-00000-of-00001.parquet",
    ]
    assert not any(b"/home/me" in content for content in files.values())
    header = header_of(files["README.md"])
    assert [config["config_name"] for config in header["configs"]] == ["image", "text"]  # type: ignore[attr-defined]
    text = files["README.md"].decode()
    for fact in ("test-model", "normalised | yes", "dimensions | 8", "preprocessing"):
        assert fact in text

    again = Store.from_pretrained("me/rows", output=tmp_path / "again")
    assert verify_store(again.path).findings == []
    for modality in ("image", "text"):
        before, after = store.load(modality), again.load(modality)
        order = [after.keys.index(key) for key in before.keys]
        assert len(after) == len(before)
        np.testing.assert_array_equal(after.embeddings[order], before.embeddings)
        assert [after.splits[row] for row in order] == before.splits
        np.testing.assert_allclose(again.moments(modality).mean, store.moments(modality).mean, atol=1e-7)
    assert again.load("image").select(np.arange(1)).column("path") == ["image0.jpg"]
    assert len(again.pairs()) == len(store.pairs())


def test_inputs_that_failed_are_in_the_data_set(hub: Hub, store: Store, tmp_path: Path) -> None:
    rows = Rows.of("text", ["lost#0"], unit_rows(1, DIM), image_key=["lost"])
    columns = {"key": rows.column("key"), "image_key": rows.column("image_key")}
    write_shard(store.path, store.info, Shard("text", 5, rows.embeddings, columns))
    failure = Failure("lost", "/home/me/lost.jpg", "decode", "OSError", "cannot read /home/me/lost.jpg")
    unnamed = Failure("'\\udce9.jpg'", "'/home/me/\\udce9.jpg'", "list", "UnicodeError", "the name is not UTF-8")
    refused = Failure("a.txt", "photos/a.txt", "list", "CorpusError", "it is no image")
    write_shard(store.path, store.info, Shard("image", 7, np.empty((0, DIM)), {"key": []}, [failure]))
    finish_store(store.path, [refused, unnamed])
    store = Store.open(store.path)
    store.push_to_hub("me/rows")
    assert not any(b"/home/me" in content for content in hub.last("datasets/me/rows").values())
    again = Store.from_pretrained("me/rows", output=tmp_path / "again")
    assert verify_store(again.path).findings == []
    assert again.recorded_failures() == [replace(failure, path="lost.jpg", message="")]


def test_a_modality_without_rows_is_left_out(hub: Hub, tmp_path: Path) -> None:
    rows = Rows.of("text", ["lost#0", "own"], unit_rows(2, DIM), image_key=["lost", None])
    store = build_store(tmp_path / "store", rows)
    failures = [Failure("lost", "lost.jpg", "decode", "OSError", "")]
    write_shard(store.path, store.info, Shard("image", 0, np.empty((0, DIM)), {"key": []}, failures))
    finish_store(store.path)
    store = Store.open(store.path)
    assert store.modalities == ["image", "text"]
    store.push_to_hub("me/rows")
    header = header_of(hub.last("datasets/me/rows")["README.md"])
    assert [config["config_name"] for config in header["configs"]] == ["text"]  # type: ignore[attr-defined]
    again = Store.from_pretrained("me/rows", output=tmp_path / "again")
    assert verify_store(again.path).findings == []
    assert again.recorded_failures() == failures
    finish_store(build_store(tmp_path / "none", rows.select(np.arange(0))).path)
    store = Store.open(tmp_path / "none")
    with pytest.raises(StoreError, match="has no rows to share"):
        store.save_pretrained(tmp_path / "rows")
    assert not (tmp_path / "rows").exists()


def test_datasets_reads_what_a_store_saves(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    folder = tmp_path / "data set"
    store.save_pretrained(folder)
    read = datasets.load_dataset(str(folder), "text", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in read.items()} == {"train": 10, "val": 4, "extra_b": 4}
    wanted = dict(zip(store.load("text").keys, store.load("text").embeddings, strict=True))
    for row in read["val"]:
        np.testing.assert_array_equal(np.asarray(row["embedding"], np.float32), wanted[row["key"]])


def test_a_smaller_store_leaves_nothing_of_a_larger_one(hub: Hub, tmp_path: Path) -> None:
    make_store(tmp_path / "large", unit_rows(9, DIM), unit_rows(9, DIM), split="val").push_to_hub("me/rows")
    make_store(tmp_path / "small", unit_rows(3, DIM), unit_rows(3, DIM)).push_to_hub("me/rows")
    assert sorted(name for name in hub.last("datasets/me/rows") if name.startswith("data/")) == [
        "data/image/train-00000-of-00001.parquet",
        "data/text/train-00000-of-00001.parquet",
    ]


def test_a_saved_data_set_that_lost_rows_is_refused(store: Store, tmp_path: Path) -> None:
    store.save_pretrained(tmp_path / "rows")
    file = tmp_path / "rows/data/text/val-00000-of-00001.parquet"
    train = file.with_name("train-00000-of-00001.parquet")
    file.write_bytes(train.read_bytes())
    with pytest.raises(StoreError, match=r"rows has 24 text rows, not 18"):
        Store.from_pretrained(tmp_path / "rows", output=tmp_path / "again")
    file.write_bytes(train.read_bytes()[:-200])
    with pytest.raises(StoreError, match=r"val-00000-of-00001.parquet cannot be read"):
        Store.from_pretrained(tmp_path / "rows", output=tmp_path / "again")
    file.unlink()
    with pytest.raises(StoreError, match=r"rows has 14 text rows, not 18"):
        Store.from_pretrained(tmp_path / "rows", output=tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_store_is_saved_over_nothing_but_a_data_set(store: Store, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="store is there"):
        store.save_pretrained(store.path)
    store.save_pretrained(tmp_path / "rows")
    store.save_pretrained(tmp_path / "rows")
    with pytest.raises(StoreError, match="already exists"):
        Store.from_pretrained(tmp_path / "rows", output=store.path)


@pytest.mark.parametrize("name", ["notes.txt", ".git/HEAD", "data/README.md", "data/train.csv"])
def test_a_folder_with_anything_but_a_data_set_is_not_replaced(store: Store, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "project"
    if not name.startswith("data"):
        store.save_pretrained(folder)
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("kept")
    with pytest.raises(OutputError, match="project is there"):
        store.save_pretrained(folder)
    assert file.read_text() == "kept"


def test_a_repository_of_another_class_is_named(hub: Hub, pipeline: Pipeline) -> None:
    pipeline.push_to_hub("me/c3")
    with pytest.raises(C3Error, match=r"(?s)me/c3 holds a Pipeline, not a Captioner.*Pipeline.from_pretrained"):
        Captioner.from_pretrained("me/c3")
    with pytest.raises(DecoderError, match="no finished decoder"):
        Captioner.load("hf-hub:me/c3")


def test_a_repository_of_another_program_is_not_fetched(hub: Hub, tmp_path: Path) -> None:
    hub.files["models/me/bert"] = [{"config.json": b'{"model_type": "bert"}', "model.safetensors": b"0" * 100}]
    with pytest.raises(C3Error, match="me/bert was not made by c3tools"):
        Pipeline.from_pretrained("me/bert")
    assert not list((tmp_path / "hub-cache").rglob("*.safetensors"))


def test_a_change_on_the_way_is_found(hub: Hub, captioner: Captioner) -> None:
    captioner.push_to_hub("me/captions")
    files = hub.last("models/me/captions")
    files["weights.safetensors"] = files["weights.safetensors"][:-1] + b"\0"
    with pytest.raises(DecoderError, match=r"weights.safetensors is damaged or was cut short"):
        Captioner.from_pretrained("me/captions")


def test_errors_say_what_would_help(hub: Hub, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreachableError, match=r"(?s)has no repository me/none.*hf auth login"):
        Pipeline.from_pretrained("me/none")
    with pytest.raises(C3Error, match="neither a folder on this machine nor the name of a repository"):
        Pipeline.from_pretrained("no-such-folder")
    pipeline.push_to_hub("me/c3")
    with pytest.raises(UnreachableError, match=r"(?s)of this kind or revision.*Check the name"):
        Pipeline.from_pretrained("me/c3", revision="v2")
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UnreachableError, match=r"(?s)does not let you write to me/c3 \(401\).*a token that may write"):
        pipeline.push_to_hub("me/c3")


def test_what_was_fetched_is_used_offline(hub: Hub, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline.push_to_hub("me/c3")
    Pipeline.from_pretrained("me/c3")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    assert Pipeline.from_pretrained("me/c3").record() == pipeline.record()
    with pytest.raises(UnreachableError, match=r"me/other is not on this machine, and http://127.* does not answer"):
        Pipeline.from_pretrained("me/other")
    with pytest.raises(UnreachableError, match=r"^http://127.* does not answer"):
        pipeline.push_to_hub("me/c3")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"class": "Pipeline"}', b'{"class": 1, "library_name": "x"}'])
def test_a_config_of_anything_names_no_class(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    assert hub_module.class_of(tmp_path) is None


def test_push_and_pull(hub: Hub, c3: C3, store: Store, captioner: Captioner, tmp_path: Path) -> None:
    pipeline = captioner.pipeline
    pipeline.save(tmp_path / "pipe")
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps({"scores": {"CIDEr": 50.25, "SPICE": None}}))
    result = c3("push", "store", "me/rows", "--license", "cc0-1.0", "--json", "-")
    assert json.loads(result.stdout)["class"] == "Store"
    captioner.save(tmp_path / "decoder")
    result = c3("push", "decoder", "me/captions", "--private", "--data", "COCO", "--scores", f"COCO val={scores}")
    assert result.exit_code == 0, result.stderr
    assert "Pushed the Captioner in decoder" in result.stderr
    assert hub.private == {"datasets/me/rows": False, "models/me/captions": True}
    assert "CIDEr | 50.25" in hub.last("models/me/captions")["README.md"].decode()
    assert c3("push", "pipe", "me/c3").exit_code == 0

    for name, folder in (("me/rows", "c3-store"), ("me/captions", "c3-decoder"), ("me/c3", "c3-pipeline")):
        result = c3("pull", name)
        assert result.exit_code == 0, result.stderr
        assert f"to {folder}." in result.stderr
    assert c3("verify", "c3-store").exit_code == 0
    assert Captioner.load("c3-decoder").fingerprint() == captioner.fingerprint()
    assert Pipeline.load("c3-pipeline").record() == pipeline.record()
    result = c3("pull", "me/c3")
    assert result.exit_code == 1
    assert "There is something at c3-pipeline already." in result.stderr


def test_pull_finds_a_store_that_has_the_name_of_a_model(hub: Hub, c3: C3, store: Store, pipeline: Pipeline) -> None:
    hub.files["models/me/coco"] = [{"config.json": b'{"model_type": "bert"}'}]
    result = c3("pull", "me/coco")
    assert result.exit_code == 1
    assert "me/coco was not made by c3tools" in result.stderr
    store.push_to_hub("me/coco")
    assert c3("pull", "me/coco", "-o", "one").exit_code == 0
    assert Store.open("one").count("image") == 9
    pipeline.push_to_hub("me/coco")
    assert c3("pull", "me/coco", "-o", "two").exit_code == 0
    assert Pipeline.load("two").record() == pipeline.record()
    result = c3("pull", "me/coco", "--dataset", "-o", "three")
    assert result.exit_code == 0, result.stderr
    assert Store.open("three").count("image") == 9
    pipeline.push_to_hub("me/c3")
    result = c3("pull", "me/c3", "--dataset", "-o", "four")
    assert result.exit_code == 1
    assert "has no repository me/c3 of this kind" in result.stderr


def test_push_says_what_it_does_not_understand(hub: Hub, c3: C3, pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = c3("push", "empty", "me/c3")
    assert (result.exit_code, hub.files) == (1, {})
    assert "empty holds nothing that can be pushed" in result.stderr
    pipeline.save(tmp_path / "pipe")
    result = c3("push", "pipe", "me/c3", "--scores", "COCO=none.json")
    assert result.exit_code == 1
    assert "there are no scores to read" in result.stderr
    result = c3("push", "pipe", "c3")
    assert "named ORG/NAME" in result.stderr


def test_commands_take_the_address_of_a_hub_from_the_environment(
    hub: Hub, captioner: Captioner, tmp_path: Path
) -> None:
    captioner.push_to_hub("me/captions")
    rows = tmp_path / "rows.npy"
    np.save(rows, unit_rows(2, DIM))
    code = "from c3tools.cli import main; main()"
    arguments = ["caption", "--embeddings", str(rows), "--decoder", "hf-hub:me/captions", "--json", "-"]
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert len(json.loads(done.stdout)) == 2
