"""A store in int8 keeps its model, and is continued with it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import Store, embed
from c3tools.devices import has_int8
from c3tools.encoders import load_encoder
from c3tools.errors import EncoderError, StoreError
from tests.encoders.test_loading import local_model

pytestmark = pytest.mark.skipif(not has_int8(), reason="this CPU has no avx512_vnni")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return local_model(tmp_path_factory.mktemp("int8") / "m")


def test_a_store_in_int8_is_continued_with_its_own_model(
    photos: Path, tmp_path: Path, model: str, quantized: list[Any]
) -> None:
    options: dict[str, Any] = {"workers": 0, "shard_size": 4}
    first = embed(photos, tmp_path / "s", model=model, precision="int8", **options)
    assert (first.info.precision, first.info.backend) == ("int8", "openvino")
    encoder = load_encoder(model, backend="openvino", precision="fp32")
    for number, photo in enumerate(sorted(photos.glob("*.jpg"))):  # calibrated on the photos of the user
        np.testing.assert_array_equal(quantized[0][number][0], encoder.preprocess.load(photo)[0])
    for photo in sorted(photos.glob("*.jpg")):
        shutil.copyfile(photo, photos / f"a{photo.name}")
    embed(photos, tmp_path / "s", device="cpu,cpu", **options)  # in processes, too
    rows = Store.open(tmp_path / "s").load("image")
    found = dict(zip(rows.keys, rows.embeddings, strict=True))
    for photo in photos.glob("0*.jpg"):
        np.testing.assert_array_equal(found[photo.stem], found[f"a{photo.stem}"])
    assert len(quantized) == 2  # both towers once


def test_a_store_in_int8_takes_no_other_model(tmp_path: Path, model: str, quantized: list[Any]) -> None:
    captions = tmp_path / "t.txt"
    captions.write_text("a dog\n")
    embed(captions, tmp_path / "s", model=model, precision="int8")
    captions.write_text("a dog\na cat\n")
    other = load_encoder(model, precision="int8")
    other.backend.sha256 = "0" * 64  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match=r"(?s)calibrated.*--precision"):
        embed(captions, tmp_path / "s", encoder=other)
    shutil.rmtree(tmp_path / "s" / ".encoder")
    with pytest.raises(EncoderError, match=r"(?s)\.encoder.*--store"):
        embed(captions, tmp_path / "s")
