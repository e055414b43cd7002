from __future__ import annotations

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import c3tools
from c3tools.errors import StoreError
from c3tools.geometry.collect import collect
from c3tools.geometry.gap_map import gap_map
from tests.golden import recorded
from tests.stores import whole_store


def test_a_sample_of_the_rows_are_dots_that_the_slider_moves_with_partners_and_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = whole_store(tmp_path / "store")
    monkeypatch.setattr("c3tools.geometry.gap_map.MOST", 9)
    monkeypatch.setattr("c3tools.geometry.gap_map.PHOTO_BYTES", 1)
    (tmp_path / "photos").mkdir()
    for number in range(8, 30):
        Image.new("RGB", (224, 112)).save(tmp_path / "photos" / f"img{number:03d}.jpg")
    data = json.loads(gap_map(store, collect(store, "image", "text", split="train"), split="train", by="width"))
    images, texts = data["modalities"]
    (row,) = (row for row, photo in enumerate(images["photo"]) if photo)
    assert images["label"][row] == min(name for name in images["label"] if name >= "img008")
    photo = base64.b64decode(images["photo"].pop(row).partition(",")[2])
    assert Image.open(io.BytesIO(photo)).size == (112, 56)
    for modality in (images, texts):  # moved by their shifts, both means are at one point
        assert np.mean([modality["x"], modality["y"]], axis=1) == pytest.approx([0, 0], abs=1e-4)
    assert np.subtract(images["shift"], texts["shift"]) == pytest.approx([data["gap"], 0], abs=2e-4)
    for item, row in data["pairs"]:
        assert int(texts["label"][row].split()[-1]) == int(images["label"][item][3:])
    recorded(Path(__file__).parent / "golden" / "map.json", data)
    with pytest.raises(StoreError, match="'colour'"):
        c3tools.gap_report(store, by="colour")


def test_reader_closes_the_gap_in_a_browser(tmp_path: Path, browser: Any) -> None:
    page = c3tools.gap_report(whole_store(tmp_path / "store")).save(tmp_path / "report.html")
    browser.get(page.as_uri())

    def text(selector: str) -> str:
        return str(browser.find_element("css selector", selector).get_attribute("textContent"))

    def shown() -> Any:
        time.sleep(0.1)
        return browser.execute_script("return document.querySelector('.gap-map canvas').toDataURL()")

    apart = shown()
    assert float(text(".gap-map output").split()[-1]) > 0
    browser.find_element("name", "collapse").send_keys("\ue010")  # End
    assert text(".gap-map output").endswith("0.00")
    assert shown() != apart
    browser.find_element("css selector", ".gap-map canvas").send_keys("\ue011")  # Home
    assert "img000" in text(".gap-map .spoken")
    assert "caption 0 of image 0" in text(".gap-map .card")
    browser.find_element("name", "words").send_keys("caption 1 of image 7")
    assert text(".gap-map .found").startswith("1 of 90")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
