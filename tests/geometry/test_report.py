from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from selectolax.lexbor import LexborHTMLParser

from c3tools.corpus.splits import hashed_split
from c3tools.errors import StoreError
from c3tools.geometry.report import GapReport, gap_report
from c3tools.identity import ModelIdentity
from c3tools.store import Shard, Store, StoreInfo, create_store, write_shard
from tests.conftest import make_store, unit_rows
from tests.geometry.spaces import hostile_store, paper_model, plain_measures, reported_measures, unit

ONLY_TWO = ("raw", "c2-collapse")


def test_agrees_with_plain_numpy_where_images_have_many_captions(tmp_path: Path) -> None:
    image, text, owner = paper_model(130, 16, captions=3, sigma=0.08)
    x, y = unit(image).astype(np.float32), unit(text).astype(np.float32)
    make_store(tmp_path / "s", x, y, owners=list(owner), part_rows=70)
    values = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    expected = plain_measures(x, y, owner, np.arange(130), np.arange(390))
    assert reported_measures(values) == pytest.approx(expected, abs=1e-6)
    assert values["pairs"]["n"] == 390
    assert values["pairs"]["items"] == 130
    assert values["modalities"]["text"]["independent_rows"] == 130


def test_published_numbers_on_500_clip_pairs(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    image, text = np.load(folder / "image.npy"), np.load(folder / "text.npy")
    make_store(tmp_path / "s", image, text, split=None)
    values = gap_report(tmp_path / "s", presets=ONLY_TWO).values
    train = np.array([hashed_split(f"image{i}") == "train" for i in range(500)])
    expected = plain_measures(image, text, np.arange(500), train, train)
    assert reported_measures(values) == pytest.approx(expected, abs=1e-6)
    assert values["gap"]["length"] == pytest.approx(0.8514, abs=5e-5)
    assert values["gap"]["rmg"] == pytest.approx(0.5915, abs=5e-5)
    assert values["pairs"]["paired_cosine"] == pytest.approx(0.310, abs=5e-4)
    assert values["pairs"]["unpaired_cosine"] == pytest.approx(0.162, abs=5e-4)
    assert values["pairs"]["residual_rms"] == pytest.approx(0.0358, abs=5e-5)
    assert values["retrieval"]["raw"]["image_to_text"]["recall@1"] == 0.552
    assert values["retrieval"]["raw"]["text_to_image"]["recall@1"] == 0.506
    assert values["assumptions"]["isotropic"]["answer"] == "no"
    assert (values["noise"]["std_smallest"], values["noise"]["std_largest"]) == pytest.approx((0.020, 0.114), abs=5e-4)
    assert values["sigma"]["candidates"]["pair_cosine"]["sigma"] == pytest.approx(0.093, abs=1e-3)
    assert any("limits the effective dimension" in note for note in values["notes"])


def test_split_narrows_and_subsets_are_compared(tmp_path: Path) -> None:
    x, y, _ = paper_model(120, 8)
    x, y = unit(x).astype(np.float32), unit(y).astype(np.float32)
    info = StoreInfo(ModelIdentity(name="m"), 8, dtype="float32")
    create_store(tmp_path / "s", info)
    keys, split = [f"i{k}" for k in range(120)], ["train", "val"] * 60
    write_shard(tmp_path / "s", info, Shard("image", 0, x, {"key": keys, "split": split}))
    text = {"key": [f"{k}#0" for k in keys], "image_key": keys, "split": split}
    write_shard(tmp_path / "s", info, Shard("text", 0, y, text))
    val = gap_report(tmp_path / "s", split="val", presets=ONLY_TWO).values
    assert val["modalities"]["image"]["n"] == val["pairs"]["n"] == 60
    expected = np.linalg.norm(x[1::2].mean(axis=0, dtype=float) - y[1::2].mean(axis=0, dtype=float))
    assert val["gap"]["length"] == pytest.approx(expected, abs=1e-6)
    both = gap_report(tmp_path / "s", by="split", presets=ONLY_TWO).values["subsets"]
    assert [(row["value"], row["pairs"]) for row in both] == [("train", 60), ("val", 60)]
    assert both[1]["length"] == pytest.approx(expected, abs=1e-6)
    assert both[1]["cosine_with_gap"] > 0.99
    with pytest.raises(StoreError, match="no column 'colour'"):
        gap_report(tmp_path / "s", by="colour")
    with pytest.raises(StoreError, match="has 120 values"):
        gap_report(tmp_path / "s", by="image_key")


def store_with_topics(path: Path, turn: float) -> None:
    """200 pairs, half of them of the topic ``b``, whose gap is turned by the angle ``turn``."""
    image, text, _ = paper_model(200, 8, gap=0.8, sigma=0.02)
    image[:, 7], text[:, 7] = 1.0, 1.0
    half = np.arange(200) >= 100
    for rows, sign in ((image, 0.4), (text, -0.4)):
        rows[half, 0], rows[half, 1] = sign * np.cos(turn), sign * np.sin(turn)
    info = StoreInfo(ModelIdentity(name="m"), 8, dtype="float32")
    create_store(path, info)
    keys, topics = [f"i{k}" for k in range(200)], ["a"] * 100 + ["b"] * 100
    write_shard(path, info, Shard("image", 0, unit(image).astype(np.float32), {"key": keys, "split": topics}))
    columns = {"key": [f"{k}#0" for k in keys], "image_key": keys}
    write_shard(path, info, Shard("text", 0, unit(text).astype(np.float32), columns))


@pytest.mark.parametrize(("turn", "answer"), [(0.0, "yes"), (np.pi / 3, "partly"), (np.pi / 2, "no")])
def test_a_gap_that_turns_with_a_column_is_seen(tmp_path: Path, turn: float, answer: str) -> None:
    store_with_topics(tmp_path / "s", turn)
    values = gap_report(tmp_path / "s", by="split", presets=ONLY_TWO).values
    found = values["assumptions"]["subsets"]
    assert found["answer"] == answer
    # two vectors of one length at an angle: each is off their mean by tan(angle / 2) of its length
    assert found["number"] == pytest.approx(np.tan(turn / 2), abs=0.02)
    assert [row["items"] for row in values["subsets"]] == [100, 100]


def test_chance_differences_of_small_subsets_are_taken_off(tmp_path: Path) -> None:
    x, y, _ = paper_model(400, 16, gap=0.3, sigma=0.2)
    info = StoreInfo(ModelIdentity(name="m"), 16, dtype="float32")
    create_store(tmp_path / "s", info)
    keys, topics = [f"i{k}" for k in range(400)], [f"topic {k % 40}" for k in range(400)]
    write_shard(tmp_path / "s", info, Shard("image", 0, unit(x).astype(np.float32), {"key": keys, "split": topics}))
    columns = {"key": [f"{k}#0" for k in keys], "image_key": keys}
    write_shard(tmp_path / "s", info, Shard("text", 0, unit(y).astype(np.float32), columns))
    rows = gap_report(tmp_path / "s", by="split", presets=ONLY_TWO).values["subsets"]
    # 40 subsets of ten items with the same gap
    assert np.mean([row["difference"] == 0 for row in rows]) > 0.9
    assert gap_report(tmp_path / "s", by="split", presets=ONLY_TWO).values["assumptions"]["subsets"]["answer"] == "yes"


def test_intervals_that_few_items_make_approximate_are_marked(tmp_path: Path) -> None:
    for items, marked in ((40, True), (320, False)):
        x, y, _ = paper_model(items, 8)
        make_store(tmp_path / str(items), unit(x).astype(np.float32), unit(y).astype(np.float32))
        report = gap_report(tmp_path / str(items), presets=ONLY_TWO)
        assert any("approximate" in note for note in report.values["notes"]) == marked
        tables = [table for section in report.sections() for table in section.tables]
        rows = {row[0]: row[2] for table in tables if table.columns[0] == "measure" for row in table.rows}
        assert rows["gap length"].startswith("≈") == rows["residual rms"].startswith("≈") == marked
        assert not rows["gap length, debiased"].startswith("≈")


def test_a_column_without_values_is_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "s", unit_rows(20, 4), unit_rows(20, 4, seed=1), split=None)
    with pytest.raises(StoreError, match="is empty for every pair"):
        gap_report(tmp_path / "s", by="split")


def test_fewer_rows_than_dimensions_are_said_to_limit_the_dimension(tmp_path: Path) -> None:
    make_store(tmp_path / "s", unit_rows(12, 32), unit_rows(12, 32, seed=1))
    values = gap_report(tmp_path / "s").values
    assert values["modalities"]["image"]["limited_by_rows"]
    assert values["modalities"]["image"]["effective_dimension"] <= 11
    assert any("image: 12 rows span at most 11 of 32 dimensions" in note for note in values["notes"])


def test_unpaired_modalities_still_have_a_gap(tmp_path: Path) -> None:
    make_store(tmp_path / "s", unit_rows(30, 8), unit_rows(40, 8, seed=1), owners=[None] * 40)
    values = gap_report(tmp_path / "s").values
    assert values["gap"]["length"] > 0
    assert values["pairs"] is None
    assert values["retrieval"] == {}
    assert any(
        "No text row belongs to any image row" in note and "cannot be measured" in note for note in values["notes"]
    )
    assert values["assumptions"]["isotropic"]["answer"] == "unknown"
    assert values["sigma"]["recommended"] == "published"


@pytest.mark.parametrize("owners", [[0, None, None], [0, 0, 0]])
def test_the_pairs_of_a_single_item_are_reported_as_far_as_possible(tmp_path: Path, owners: list[int | None]) -> None:
    report = gap_report(make_store(tmp_path / "s", unit_rows(3, 8), unit_rows(3, 8, seed=1), owners=owners))
    values = report.values
    json.dumps(values, allow_nan=False)
    assert values["pairs"]["items"] == 1
    assert values["spaces"]["raw"]["separability"] is values["spaces"]["raw"]["separability_interval"] is None
    assert values["spaces"]["raw"]["modality_bias@10"] == {"image": 0.0, "text": 0.0}
    assert values["verdict"]["corrupt"]["answer"] == "unknown"
    assert "linear separability" in report.to_html()


def test_one_modality_says_what_cannot_be_said(tmp_path: Path) -> None:
    info = StoreInfo(ModelIdentity(name="m"), 4, dtype="float32")
    create_store(tmp_path / "s", info)
    write_shard(tmp_path / "s", info, Shard("text", 0, unit_rows(9, 4), {"key": [str(k) for k in range(9)]}))
    values = gap_report(tmp_path / "s").values
    assert values["gap"] is None
    assert values["modalities"]["text"]["n"] == 9
    assert "one modality, text" in values["notes"][0]
    assert "Embed another modality" in values["notes"][0]


def test_a_report_on_one_of_two_modalities_does_not_say_that_the_store_has_one(tmp_path: Path) -> None:
    make_store(tmp_path / "s", unit_rows(9, 4), unit_rows(9, 4, seed=1))
    note = gap_report(tmp_path / "s", modalities=["image"]).values["notes"][0]
    assert note == "This report is on one modality, image, so there are no gap and no pairs to measure."


def test_other_modalities_can_be_chosen(tmp_path: Path) -> None:
    x, y, _ = paper_model(30, 8)
    store = make_store(tmp_path / "s", unit(x).astype(np.float32), unit(y).astype(np.float32))
    audio = {"key": [f"audio{k}" for k in range(30)], "pair_key": [f"image{k}" for k in range(30)]}
    write_shard(tmp_path / "s", store.info, Shard("audio", 0, unit(x[:, ::-1]).astype(np.float32), audio))
    values = gap_report(tmp_path / "s", modalities=("audio", "text")).values
    assert set(values["modalities"]) == {"audio", "text"}
    assert values["pairs"]["n"] == 30
    assert "audio_to_text" in values["retrieval"]["raw"]
    default = gap_report(tmp_path / "s").values
    assert set(default["modalities"]) == {"image", "text"}
    assert any("also has audio" in note for note in default["notes"])
    means = {"image": unit(x), "text": unit(y), "audio": unit(x[:, ::-1])}
    assert [(row["first"], row["second"]) for row in default["modality_gaps"]] == [
        ("image", "text"),
        ("image", "audio"),
        ("text", "audio"),
    ]
    for row in default["modality_gaps"]:
        expected = np.linalg.norm(means[row["first"]].mean(axis=0) - means[row["second"]].mean(axis=0))
        assert row["length"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(StoreError, match="two different modalities"):
        gap_report(tmp_path / "s", modalities=("text", "text"))
    with pytest.raises(StoreError, match="no modality 'video'"):
        gap_report(tmp_path / "s", modalities=("video", "text"))


def test_rows_that_are_all_equal_are_measured_as_far_as_possible(tmp_path: Path) -> None:
    x = np.tile(np.eye(4, dtype=np.float32)[0], (6, 1))
    make_store(tmp_path / "s", x, np.roll(x, 1, axis=1))
    values = gap_report(tmp_path / "s").values
    assert values["gap"]["length"] == pytest.approx(np.sqrt(2))
    assert values["modalities"]["image"]["effective_dimension"] == 0
    assert values["retrieval"]["raw"]["image_to_text"]["recall@1"] == pytest.approx(1 / 6)


def test_unknown_presets_are_refused(tmp_path: Path) -> None:
    make_store(tmp_path / "s", unit_rows(5, 4), unit_rows(5, 4, seed=1))
    with pytest.raises(StoreError, match="cannot measure recall for 'c3'"):
        gap_report(tmp_path / "s", presets=("c3",))


def test_a_store_of_another_folder_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no store"):
        gap_report(tmp_path / "nothing")
    assert isinstance(make_store(tmp_path / "s", unit_rows(3, 4), unit_rows(3, 4)), Store)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> GapReport:
    """The report of a store whose names and captions hold markup."""
    return gap_report(hostile_store(tmp_path_factory.mktemp("hostile") / "s"), presets=ONLY_TWO)


@pytest.fixture(scope="module")
def page(hostile: GapReport) -> str:
    """Its page."""
    return hostile.to_html()


def test_the_page_stands_alone_and_shows_text_as_text(page: str) -> None:
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 2
    # the only addresses are the names of the SVG and XLink vocabularies
    assert not re.findall(r'(?:src|href)="(?!#|data:,)[^"]*"', page)
    assert not re.findall(r"url\((?!#)[^)]*\)", page)
    assert page.count("<svg") == 9
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


class Tags(HTMLParser):
    """Whether every element is closed where it must be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[tuple[str, tuple[int, int]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "br", "img", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def test_the_page_is_well_formed(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.wrong == []
    assert tags.open == []


def test_the_page_as_browsers_parse_it_asks_for_nothing_and_runs_nothing(page: str) -> None:
    """By the algorithm of the HTML standard, which mends what is not well formed: a caption could become an element."""
    tree = LexborHTMLParser(page)
    elements = tree.css("*")
    assert len(elements) > 500
    names = {str(element.tag).lower() for element in elements}
    assert not names & {"script", "iframe", "object", "embed", "form", "base", "foreignobject", "animate", "set"}
    for element in elements:
        for name, value in element.attributes.items():
            assert not name.lower().startswith("on"), (element.tag, name)
            if name.lower() in {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"}:
                assert str(value).startswith(("#", "data:")), (element.tag, name, value)
    assert str(tree.text()).count("<script>alert(1)</script>") >= 2


def test_a_report_is_saved_by_the_ending_and_draws_its_figures(hostile: GapReport, page: str, tmp_path: Path) -> None:
    assert hostile.save(tmp_path / "deep" / "report.json") == [tmp_path / "deep" / "report.json"]
    assert json.loads((tmp_path / "deep" / "report.json").read_text()) == hostile.to_dict()
    assert hostile.save(tmp_path / "report.html") == [tmp_path / "report.html"]
    assert (tmp_path / "report.html").read_text() == page
    assert hostile.figures.keys() >= {"spectra", "projection", "recall", "gap-length"}
    names = {path.name for path in hostile.save_figures(tmp_path / "figures")}
    assert names == {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"spectra.png", "spectra.svg", "projection.png", "recall.svg", "gap-length.svg"} <= names


def test_terminal_page_and_notebook_show_the_same_tables(hostile: GapReport, page: str) -> None:
    tables = [table for section in hostile.sections() for table in section.tables]
    assert {"measure", "question", "preset", "rule"} <= {table.columns[0] for table in tables}
    recall = next(table for table in tables if table.columns[0] == "preset")
    share = hostile.to_dict()["retrieval"]["raw"]["image_to_text"]["recall@1"]
    assert recall.rows[0][:2] == ["raw", f"{100 * share:.1f}"]
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows)
        for shown in (page, hostile._repr_html_()):
            assert f">{table.columns[-1]}</th>" in shown
            assert f">{table.rows[-1][0]}</t" in shown


def test_the_page_of_one_modality(tmp_path: Path) -> None:
    info = StoreInfo(ModelIdentity(name="m"), 4, dtype="float32")
    create_store(tmp_path / "s", info)
    write_shard(tmp_path / "s", info, Shard("image", 0, unit_rows(9, 4), {"key": list("abcdefghi")}))
    page = gap_report(tmp_path / "s").to_html()
    assert "The geometry of one modality" in page
    assert "one modality, image" in page
    # a spectrum of less than one power of ten: its axis has no labels in mathematical notation
    assert page.count("<svg") == 1
    assert "mathdefault" not in page


def test_the_page_without_pairs(tmp_path: Path) -> None:
    report = gap_report(make_store(tmp_path / "s", unit_rows(20, 4), unit_rows(20, 4, seed=1), owners=[None] * 20))
    json.dumps(report.to_dict(), allow_nan=False)
    page = report.to_html()
    assert "cannot be measured" in page
    assert "unknown" in page
