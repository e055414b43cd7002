from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c3tools.encoders.backends import int8

from c3tools import Store, embed
from c3tools.devices import has_int8
from c3tools.encoders import load_encoder
from c3tools.errors import EncoderError, StoreError
from tests.encoders.test_loading import local_model

pytestmark = pytest.mark.skipif(not has_int8(), reason="this CPU has no avx512_vnni")


@pytest.fixture
def model(tmp_path: Path) -> str:
    return local_model(tmp_path / "m")


def test_a_store_in_int8_is_continued_with_its_own_model(
    photos: Path, tmp_path: Path, model: str, quantized: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"workers": 0, "shard_size": 4}
    first = embed(photos, tmp_path / "s", model=model, precision="int8", **options)
    assert (first.summary.precision, first.summary.backend) == ("int8", "openvino")
    (inputs,) = quantized
    encoder = load_encoder(model, backend="openvino", precision="fp32")
    for number, photo in enumerate(sorted(photos.glob("*.jpg"))):  # calibrated on the photos of the user
        np.testing.assert_array_equal(inputs["image"][number][0], encoder.preprocess.load(photo)[0])
    assert first.modalities == ["image", "text"]
    # elsewhere: nothing in the cache, no NNCF, and other photos
    monkeypatch.setenv("C3_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(int8, "require_nncf", pytest.fail)
    for photo in sorted(photos.glob("*.jpg")):
        shutil.copyfile(photo, photos / f"a{photo.name}")
    again = embed(photos, tmp_path / "s", **options)
    assert (again.summary.precision, again.summary.modalities["image"].embedded) == ("int8", 4)
    rows = again.load("image")
    half = dict(zip(rows.keys, rows.embeddings, strict=True))
    for photo in photos.glob("0*.jpg"):
        np.testing.assert_array_equal(half[photo.stem], half[f"a{photo.stem}"])
    assert len(quantized) == 1
    embed(photos, tmp_path / "s", precision="int8", retry_failed=True, **options)  # said again: still that model
    assert len(quantized) == 1


def test_worker_processes_take_the_model_of_the_store(
    photos: Path, tmp_path: Path, model: str, quantized: list[Any]
) -> None:
    options: dict[str, Any] = {"model": model, "precision": "int8", "workers": 0, "shard_size": 2}
    embed(photos, tmp_path / "one", **options)
    embed(photos, tmp_path / "two", device="cpu,cpu", **options)
    assert len(quantized) == 1
    one, two = (Store.open(tmp_path / name).load("text") for name in ("one", "two"))
    np.testing.assert_array_equal(one.embeddings, two.embeddings)


def test_a_store_in_int8_without_its_model_is_refused(
    photos: Path, tmp_path: Path, model: str, quantized: list[Any]
) -> None:
    captions = tmp_path / "t.txt"
    captions.write_text("a dog\n")
    embed(captions, tmp_path / "s", model=model, precision="int8")
    shutil.rmtree(tmp_path / "s" / ".encoder")
    assert embed(captions, tmp_path / "s").summary.modalities["text"].already == 1  # nothing to embed
    captions.write_text("a dog\na cat\n")
    with pytest.raises(EncoderError, match=r"(?s)s/.encoder is missing.*another --store"):
        embed(captions, tmp_path / "s")
    description = json.loads((tmp_path / "s" / "store.json").read_text())
    assert description["precision"] == "int8"
    (tmp_path / "s" / "store.json").write_text(json.dumps(description | {"backend": "torch"}))
    with pytest.raises(EncoderError, match=r"(?s)s/.encoder is missing.*another --store"):  # of earlier versions
        embed(captions, tmp_path / "s")


def test_another_int8_model_than_that_of_the_store_is_refused(tmp_path: Path, model: str, quantized: list[Any]) -> None:
    captions = tmp_path / "t.txt"
    captions.write_text("a dog\n")
    embed(captions, tmp_path / "s", model=model, precision="int8")
    kept = tmp_path / "s" / ".encoder" / "model.json"
    record = json.loads(kept.read_text())
    kept.write_text(json.dumps(record | {"sha256": dict.fromkeys(record["sha256"], "0" * 64)}))
    captions.write_text("a dog\na cat\n")
    with pytest.raises(StoreError, match=r"(?s)calibrated on different inputs.*without --precision"):
        embed(captions, tmp_path / "s", encoder=load_encoder(model, precision="int8"))
