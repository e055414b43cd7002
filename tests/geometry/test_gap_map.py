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
    for name, value in (("MOST", 9), ("PHOTO_BYTES", 1)):
        monkeypatch.setattr(f"c3tools.geometry.gap_map.{name}", value)
    (tmp_path / "photos").mkdir()
    for number in range(8, 30):
        Image.new("RGB", (224, 112)).save(tmp_path / "photos" / f"img{number:03d}.jpg")
    data = json.loads(gap_map(store, collect(store, "image", "text", split="train"), split="train", by="width"))
    images, texts = data["modalities"]
    found = [row for row, photo in enumerate(images["photo"]) if photo]
    assert [images["label"][row] for row in found] == [min(name for name in images["label"] if name >= "img008")]
    with Image.open(io.BytesIO(base64.b64decode(images["photo"].pop(found[0]).partition(",")[2]))) as photo:
        assert photo.size == (112, 56)
    for modality in (images, texts):  # moved by their shifts, both means are at one point
        assert np.mean([modality["x"], modality["y"]], axis=1) == pytest.approx([0, 0], abs=1e-4)
    assert np.subtract(images["shift"], texts["shift"]) == pytest.approx([data["gap"], 0], abs=2e-4)
    assert [row for _, row in data["pairs"]] == [*range(9)]
    for item, row in data["pairs"]:
        assert f"img{int(texts['label'][row].split()[-1]):03d}" == images["label"][item]
    recorded(Path(__file__).parent / "golden" / "map.json", data)
    with pytest.raises(StoreError, match="'colour'"):
        c3tools.gap_report(store, by="colour")


def test_reader_closes_the_gap_in_a_browser(tmp_path: Path, browser: Any) -> None:
    page = c3tools.gap_report(whole_store(tmp_path / "store")).save(tmp_path / "report.html")
    browser.get(page.as_uri())

    def text(selector: str) -> str:
        return str(browser.find_element("css selector", selector).get_attribute("textContent"))

    def dots() -> set[tuple[int, ...]]:
        """Return the columns of the canvas that have something drawn."""
        time.sleep(0.1)
        return set(
            browser.execute_script(
                "const c = document.querySelector('.gap-map canvas'), w = c.width, h = c.height;"
                "const p = c.getContext('2d').getImageData(0, 0, w, h).data, x = new Set();"
                "for (let i = 3; i < p.length; i += 4) if (p[i]) x.add(((i - 3) / 4) % w);"
                "return [...x];"
            )
        )

    apart = dots()
    assert float(text(".gap-map output").split()[-1]) > 0
    slider = browser.find_element("name", "collapse")
    slider.send_keys("\ue010")  # End
    assert text(".gap-map output").endswith("0.00")
    assert dots() != apart
    canvas = browser.find_element("css selector", ".gap-map canvas")
    canvas.send_keys("\ue011")  # Home
    assert "img000" in text(".gap-map .spoken")
    assert "caption 0 of image 0" in text(".gap-map .card")
    browser.find_element("name", "words").send_keys("caption 1 of image 7")
    assert text(".gap-map .found").startswith("1 of 90")
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
