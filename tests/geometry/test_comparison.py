from __future__ import annotations

import re
from pathlib import Path

import pytest
from c3tools.geometry.comparison import gap_reports

from c3tools.errors import StoreError
from c3tools.identity import ModelIdentity
from c3tools.store import Shard, StoreInfo, create_store, write_shard
from tests.conftest import make_store, unit_rows
from tests.geometry.spaces import hostile_store

ONLY_TWO = ("raw", "c2-collapse")


def test_two_stores_of_different_models_are_compared_with_a_note(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1)):
        info = StoreInfo(ModelIdentity(name=name), 4, dtype="float32")
        create_store(tmp_path / name, info)
        keys = [str(k) for k in range(20 + seed)]
        write_shard(tmp_path / name, info, Shard("image", 0, unit_rows(len(keys), 4, seed), {"key": keys}))
        text = {"key": [f"{k}t" for k in keys], "image_key": keys}
        write_shard(tmp_path / name, info, Shard("text", 0, unit_rows(len(keys), 4, seed + 7), text))
    values = gap_reports([tmp_path / "a", tmp_path / "b"]).to_dict()
    assert [report["provenance"]["model"] for report in values["stores"]] == ["a", "b"]
    assert "two models, a and b" in values["notes"][0]
    assert "number of rows searched" in values["notes"][1]


def test_two_stores_side_by_side(tmp_path: Path) -> None:
    make_store(tmp_path / "other", unit_rows(20, 4), unit_rows(20, 4, seed=1))
    reports = gap_reports([hostile_store(tmp_path / "s"), tmp_path / "other"], presets=ONLY_TWO)
    assert [values["modalities"]["image"]["n"] for values in reports.to_dict()["stores"]] == [30, 20]
    *verdicts, measures = reports.sections()
    assert [section.title for section in verdicts] == [f"Verdict: {tmp_path / name}" for name in ("s", "other")]
    rows = {row[0]: row[1:] for row in measures.tables[0].rows}
    lengths = [f"{values['gap']['length']:.3f}" for values in reports.values]
    assert [cell.split()[0] for cell in rows["Gap length"]] == lengths
    assert "Recall@1, %, image to text, before" in rows
    assert reports.save(tmp_path / "page.html") == [tmp_path / "page.html"]
    page = (tmp_path / "page.html").read_text()
    assert "side by side" in page
    assert "<script" not in page
    with pytest.raises(StoreError, match="at most two stores, not 3"):
        gap_reports([tmp_path / "s"] * 3)


def test_two_stores_of_which_one_has_one_modality(tmp_path: Path) -> None:
    info = StoreInfo(ModelIdentity(name="m"), 8, dtype="float32")
    create_store(tmp_path / "one", info)
    write_shard(tmp_path / "one", info, Shard("text", 0, unit_rows(9, 8), {"key": list("abcdefghi")}))
    gap_reports([hostile_store(tmp_path / "s"), tmp_path / "one"], presets=ONLY_TWO).save(tmp_path / "page.html")
    assert "9 text" in (tmp_path / "page.html").read_text()


def test_every_pair_of_modalities(tmp_path: Path) -> None:
    store = hostile_store(tmp_path / "s")
    audio = {"key": [f"a{i}" for i in range(29)], "pair_key": [f"photo{i}" for i in range(29)]}
    write_shard(store.path, store.info, Shard("audio", 0, unit_rows(29, 8, seed=9), audio))
    reports = gap_reports([store], modalities=("all",), presets=ONLY_TWO)
    values = reports.to_dict()["reports"]
    names = [set(report["modalities"]) for report in values]
    assert names == [{"image", "text"}, {"image", "audio"}, {"audio", "text"}]
    assert [report["pairs"]["n"] for report in values] == [60, 29, 58]
    shown = reports._repr_html_()
    for words in ("image and text", "image and audio", "audio and text"):
        assert words in shown
    written = reports.save(tmp_path / "r" / "all.html")
    links = re.findall(r'<a href="([^"]+)"', written[0].read_text())
    assert [path.name for path in written[1:]] == links
    assert len(links) == 3
    for link in links:
        assert "The geometry of" in (tmp_path / "r" / link).read_text()
    assert "Every pair of modalities in the store" in (tmp_path / "r" / links[0]).read_text()
    reports.save_figures(tmp_path / "f")
    assert len(list((tmp_path / "f").glob("*/spectra.png"))) == 3
    with pytest.raises(StoreError, match="not for every pair"):
        gap_reports([store, store], modalities=("all",))
