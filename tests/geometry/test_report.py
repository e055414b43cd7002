"""The report of whole stores: agreement with plain numpy, what is left out or refused, and what is shown."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selectolax.lexbor import LexborHTMLParser

from c3tools import pages
from c3tools.errors import StoreError
from c3tools.geometry import collect
from c3tools.geometry.figures import all_figures
from c3tools.geometry.report import GapReport, gap_report
from c3tools.geometry.spaces import RECALL_PRESETS
from c3tools.store import Rows, Store, StoreInfo, create_store
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import MODEL, build_store, make_store, unit_rows
from tests.geometry.spaces import Told, hostile_store, paper_model, plain_measures, reported_measures, unit
from tests.golden import drawn, recorded

GOLDEN = Path(__file__).parent / "golden"
MAP = Path(pages.__file__).parent / "templates" / "map.js"


def report(store: Store | Path, **options: Any) -> dict[str, Any]:
    return gap_report(store, **{"presets": ("raw",), **options}).to_dict()


@pytest.mark.parametrize("change", ["as it is", "shuffled", "float32", "sampled pairs"])
def test_agrees_with_plain_numpy(tmp_path: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image, text, owner = paper_model(130, 16, captions=3, sigma=0.08)
    x, y = unit(image).astype(np.float32), unit(text).astype(np.float32)
    if change == "shuffled":
        order = np.random.default_rng(3).permutation(len(y))
        y, owner = y[order], owner[order]
    if change == "float32":
        monkeypatch.setattr(collect, "EXACT_VALUES", 0)
    if change == "sampled pairs":
        for name, most in (("MAX_ITEMS", 100), ("MAX_ROWS", 299), ("EXACT_SCORES", 130 * 390 - 1), ("PART_ROWS", 150)):
            monkeypatch.setattr(collect, name, most)
    values = report(make_store(tmp_path / "s", x, y, owners=list(owner), part_rows=70))
    expected = plain_measures(x, y, owner)
    if change == "sampled pairs":
        assert any("--presets" in note for note in report(tmp_path / "s", presets=None)["notes"])
        assert any("sample of 297 pairs" in note for note in values["notes"])
        assert any("sample of 50 image rows with all their 150 text rows" in note for note in values["notes"])
        assert values["provenance"]["working_set"] == {"complete": False, "image": 50, "text": 150}
        for name in ("paired_cosine", "unpaired_cosine", "residual_rms"):
            low, high = values["pairs"][f"{name}_interval"]
            assert low < expected[name] < high
        assert values["gap"]["length"] == pytest.approx(expected["length"], abs=1e-6)
        assert values == report(tmp_path / "s")
    else:
        assert reported_measures(values) == pytest.approx(expected, abs=2e-6)
    assert (values["pairs"]["n"], values["pairs"]["items"]) == (390, 130)
    assert values["modalities"]["text"]["independent_rows"] == 130


@pytest.mark.parametrize(
    ("owners", "limits", "sizes"),
    [
        (range(20), {"EXACT_SCORES": 400, "EXACT_ROWS": 40}, (20, 20)),
        (range(20), {"EXACT_ROWS": 39, "PART_ITEMS": 7}, (7, 7)),
        ([3] * 10 + [8] * 10, {"EXACT_SCORES": 39, "PART_ROWS": 1}, (1, 10)),  # one item at least
        ([None] * 20, {"PART_ITEMS": 20}, (20, 20)),
        ([None] * 20, {"PART_ITEMS": 19}, (19, 19)),
    ],
)
def test_what_is_compared_is_all_or_a_sample_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owners: Any, limits: dict[str, int], sizes: tuple[int, int]
) -> None:
    for name, most in limits.items():
        monkeypatch.setattr(collect, name, most)
    rows = [unit_rows(20, 8), unit_rows(20, 8, seed=1)]
    data = collect.collect(make_store(tmp_path / "s", *rows, owners=list(owners)), "image", "text")
    working, (images, texts) = data.working, data.places.values()
    assert (len(working.first), len(working.second), working.complete) == (*sizes, sizes == (20, 20))
    for own, read, places in zip(rows, (working.first, working.second), (images, texts), strict=True):
        np.testing.assert_allclose(read, own[np.unique(places)], atol=1e-7)
    if working.paired:
        assert [owners[row] for row in texts] == images[working.item_index].tolist()


def test_the_modality_with_one_row_per_item_comes_first(tmp_path: Path) -> None:
    keys, items = [f"k{row}" for row in range(6)], [f"item{row // 2}" for row in range(6)]
    image = Rows.of("image", items[::2], unit_rows(3, 8))
    audio = Rows.of("audio", keys, unit_rows(6, 8, seed=1), pair_key=items)
    text = Rows.of("text", keys, unit_rows(6, 8, seed=2), image_key=items)
    store = build_store(tmp_path / "s", image, audio, text, dtype="float32")
    pairs = [("image", "text"), ("text", "image"), ("audio", "text")]
    found = [collect.collect(store, *names) for names in pairs]
    assert [(data.first, data.notes != []) for data in found] == [("image", False), ("image", False), ("audio", True)]
    assert (found[-1].pairs, "Several audio rows" in found[-1].notes[0]) == (6, True)


def test_published_numbers_on_500_clip_pairs(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    image, text = np.load(folder / "image.npy"), np.load(folder / "text.npy")
    values = report(make_store(tmp_path / "s", unit(image), unit(text), split=None))
    found = [values["gap"][name] for name in ("length", "rmg")]
    found += [values["pairs"][name] for name in ("paired_cosine", "unpaired_cosine", "residual_rms")]
    assert found == pytest.approx([0.8514, 0.5915, 0.310, 0.162, 0.0358], abs=5e-4)
    assert [way["recall@1"] for way in values["retrieval"]["raw"].values()] == [0.552, 0.506]
    assert (values["noise"]["std_smallest"], values["noise"]["std_largest"]) == pytest.approx((0.020, 0.114), abs=5e-4)
    assert values["sigma"]["candidates"]["pair_cosine"]["sigma"] == pytest.approx(0.093, abs=1e-3)


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("modalities", [None, ["text"]])
@pytest.mark.parametrize(("row", "normalised"), [(np.nan, False), (0.0, False), (np.inf, True), (2.0, True)])
def test_rows_that_cannot_be_measured_are_refused_by_key(
    tmp_path: Path, modalities: list[str] | None, row: float, normalised: bool
) -> None:
    rows = unit_rows(60, 8)
    rows[:3] = row
    store = make_store(tmp_path / "s", unit_rows(60, 8), rows, split=["val", "test"] * 30, normalised=normalised)
    with pytest.raises(StoreError, match=r"2 of 30 text rows .*\(text0, text2\)"):
        report(store, modalities=modalities, split="val")


def test_a_split_of_rows_with_norms_is_that_of_rows_of_norm_1(tmp_path: Path) -> None:
    x, y = (unit(rows).astype(np.float32) for rows in paper_model(200, 8)[:2])
    lengths, splits = np.linspace(0.5, 2, 200, dtype=np.float32)[:, None], ["train"] * 150 + ["test"] * 50
    clean = make_store(tmp_path / "clean", x, y, split=splits)
    norms = make_store(tmp_path / "norms", x * lengths, y * lengths, split=splits, normalised=False)
    found = [report(store, split="test") for store in (clean, norms)]
    assert reported_measures(found[1]) == pytest.approx(reported_measures(found[0]), abs=1e-6)
    assert found[0]["gap"]["length"] == pytest.approx(np.linalg.norm((x - y)[150:].mean(axis=0)), abs=1e-6)
    assert len(found[1]["notes"]) == len(found[0]["notes"]) + 1
    for values in found:
        assert values["pairs"]["n"] == 50
        assert "the train split (150 image, 150 text rows" in values["provenance"]["fitted_on"]


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", unit_rows(9, 4), unit_rows(9, 4, seed=1), split=["train"] * 7 + ["val"] * 2)
    with pytest.raises(StoreError, match=r"'image' of the store .* 2 rows in the split 'val'"):
        report(store, split="val")
    for names in (("text", "text"), ("image", "text", "audio")):
        with pytest.raises(StoreError, match=", ".join(names)):
            report(store, modalities=names)
    create_store(tmp_path / "empty", StoreInfo(MODEL, 4))
    with pytest.raises(StoreError, match="empty"):
        report(tmp_path / "empty")


@pytest.mark.parametrize("paired", [30, 5, 0])
def test_captions_of_one_image_count_as_one_row_whether_the_image_is_there_or_not(tmp_path: Path, paired: int) -> None:
    owners = [*np.repeat(np.arange(30) + 30 - paired, 3), None, None]
    store = make_store(tmp_path / "s", unit_rows(30, 8), unit_rows(92, 8, seed=1), owners=owners)
    values, alone = report(store), report(store, modalities=["text"])
    assert (values["provenance"]["items"], values["provenance"]["pairs"]) == (paired, 3 * paired)
    assert [values["modalities"][name]["independent_rows"] for name in ("image", "text")] == [30, 32]
    assert alone["modalities"]["text"] == values["modalities"]["text"]


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ([None] * 4, {"pairs": None, "retrieval": {}, "corrupt": "unknown", "isotropic": "unknown"}),
        ([0, None, None, None], {"items": 1, "corrupt": "unknown"}),
        ([0, 0, 0, 0], {"items": 1, "corrupt": "unknown"}),
    ],
)
def test_stores_with_hardly_any_pairs(tmp_path: Path, owners: list[int | None], expected: dict[str, Any]) -> None:
    found = gap_report(make_store(tmp_path / "s", unit_rows(3, 8), unit_rows(4, 8, seed=1), owners=owners))
    values = found.to_dict()
    json.dumps(values, allow_nan=False)
    assert (values["gap"]["length_interval"] is None) == ("items" in expected)
    if "items" in expected:  # there is nothing to correct by
        assert values["pairs"]["residual_rms_debiased"] == values["pairs"]["residual_rms"]
    if owners[-1] == 0:  # as few pairs are groups of one
        assert values["gap"]["group_length"][0] == pytest.approx(values["gap"]["instance_distance"])
    flat = {**values, **(values["pairs"] or {})}
    flat |= {name: answer["answer"] for part in ("verdict", "assumptions") for name, answer in values[part].items()}
    assert {name: flat[name] for name in expected} == expected
    assert "image: 3 rows span at most 2 of 8 dimensions" in found.to_html()


def test_rows_that_are_all_equal(tmp_path: Path) -> None:
    x = np.tile(np.eye(4, dtype=np.float32)[0], (6, 1))
    reporter = Told()
    values = gap_report(make_store(tmp_path / "s", x, np.roll(x, 1, axis=1)), reporter=reporter).to_dict()
    assert (reporter.done, reporter.note) == (reporter.total, RECALL_PRESETS[-1])
    missing = [note.split()[0] for note in values["notes"] if "cannot be applied" in note]
    assert {*missing, *values["retrieval"]} == {*RECALL_PRESETS} != {*values["retrieval"]}
    assert values["gap"]["length"] == pytest.approx(np.sqrt(2))
    assert values["modalities"]["image"]["effective_dimension"] == 0
    assert values["retrieval"]["raw"]["image_to_text"]["recall@1"] == pytest.approx(1 / 6)


def test_one_modality_and_three(tmp_path: Path) -> None:
    keys = [f"image{k}" for k in range(30)]
    images = Rows.of("image", keys, unit_rows(30, 8))
    texts = Rows.of("text", [f"t{key}" for key in keys], unit_rows(30, 8, seed=1), image_key=keys)
    audio = Rows.of("audio", [f"a{key}" for key in keys[:29]], unit_rows(29, 8, seed=2), pair_key=keys[:29])
    for name, rows in (("three", (images, texts, audio)), ("one", (texts,))):
        build_store(tmp_path / name, *rows, dtype="float32")
    build_store(tmp_path / "photos and sounds", images, audio, dtype="float32")
    alone = report(tmp_path / "photos and sounds")["sigma"]["candidates"]["caption_spread"]
    assert (alone["sigma"], alone["missing"]) == (None, "the store has no texts")
    default, pair = report(tmp_path / "three"), report(tmp_path / "three", modalities=("audio", "text"))
    assert (set(default["modalities"]), set(pair["modalities"])) == ({"image", "text"}, {"audio", "text"})
    assert any("also has audio" in note for note in default["notes"])
    assert pair["pairs"]["n"] == 29
    found = gap_report(tmp_path / "one")
    assert (found.gap, found.pairs, list(found.verdict), found.modalities["text"].n) == (None, None, ["unusual"], 30)
    page = found.to_html()
    assert ("one modality, text" in page, page.count("<svg"), "mathdefault" in page) == (True, 1, False)


def test_the_report_recommends_the_sigma_of_trainings(tmp_path: Path) -> None:
    """Whatever the split of the report; 40 images with two captions, of which the second half is of the test split."""
    image, text, owner = paper_model(40, 8, captions=2)
    splits = ["train"] * 20 + ["test"] * 20
    store = make_store(tmp_path / "s", unit(image), unit(text), owners=list(owner), split=splits)
    sigma = sigma_by_rule("auto", store)[0]
    for split in (None, "test"):
        assert report(store, split=split)["sigma"]["value"] == pytest.approx(sigma, rel=1e-8)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> GapReport:
    """The report of a store whose names and captions hold markup."""
    return gap_report(hostile_store(tmp_path_factory.mktemp("hostile") / "s"), presets=("whiten",))


@pytest.fixture(scope="module")
def page(hostile: GapReport) -> str:
    """Its page."""
    return hostile.to_html()


def test_json_and_page_are_the_golden_ones(hostile: GapReport, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``C3_RECORD=1 pytest tests/geometry`` makes them anew; drawings, styles and scripts are left out."""
    store, values = hostile.provenance["store"], hostile.to_dict()
    page = re.sub(r"(<svg|<style|<script).*?(</svg>|</style>|</script>)", "", page.replace(store, "s"), flags=re.DOTALL)
    values["provenance"]["store"] = "s"
    if os.environ.get("C3_RECORD"):
        (GOLDEN / "page.html").write_text(page)
    assert page == (GOLDEN / "page.html").read_text()
    recorded(GOLDEN / "report.json", values)
    monkeypatch.setattr("c3tools.geometry.figures.MAX_POINTS", 20)
    figures = {name: [label, *drawn(figure)] for name, (figure, label) in all_figures(hostile).items()}
    recorded(GOLDEN / "figures.json", figures)


def test_the_page_asks_for_nothing_and_runs_the_map_alone(page: str) -> None:
    tree = LexborHTMLParser(page)  # by the algorithm of the HTML standard: a caption could become an element
    elements = tree.css("*")
    names = {str(element.tag).lower() for element in elements}
    assert [script.text() for script in tree.css("script:not([type])")] == [MAP.read_text().rstrip("\n")]
    assert len(tree.css("script")) == 2
    assert not names & {"iframe", "object", "embed", "form", "base", "foreignobject", "animate", "set"}
    addresses = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"}
    for name, value in (pair for element in elements for pair in element.attributes.items()):
        assert not name.lower().startswith("on")
        assert name.lower() not in addresses or str(value).startswith(("#", "data:"))
    assert "<script>alert(1)</script>" in str(tree.text())
    assert "/script> é" in page
    assert not re.findall(r"url\((?!#)[^)]*\)", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert (page.count("<svg"), len(ids)) == (8, len(set(ids)))


def test_a_notebook_shows_the_tables_of_the_page(hostile: GapReport) -> None:
    shown = hostile._repr_html_()
    for table in (table for section in hostile.sections() for table in section.tables):
        assert f">{table.columns[-1]}</th>" in shown
        assert f">{table.rows[-1][0]}</t" in shown


def test_a_report_is_saved_by_the_ending(hostile: GapReport, page: str, tmp_path: Path) -> None:
    for name in ("deep/report.json", "report.html"):
        assert hostile.save(tmp_path / name) == tmp_path / name
    values = json.dumps(hostile.to_dict(), indent=2, ensure_ascii=False) + "\n"
    assert (tmp_path / "deep" / "report.json").read_text() == values
    assert (tmp_path / "report.html").read_text() == page
    files = {path.name for path in hostile.save_figures(tmp_path / "f")}
    assert files == {path.name for path in (tmp_path / "f").iterdir()} >= {"spectra.png", "gap-length.svg"}
