"""The report of whole stores: agreement with plain numpy, what is left out or refused, and what is
shown."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from selectolax.lexbor import LexborHTMLParser

from c3tools import pages
from c3tools.errors import StoreError
from c3tools.geometry import collect
from c3tools.geometry.figures import all_figures
from c3tools.geometry.gap_map import gap_map
from c3tools.geometry.report import GapReport, gap_report
from c3tools.geometry.spaces import RECALL_PRESETS
from c3tools.store import Rows, Store, StoreInfo, create_store, shards
from c3tools.store.rows import embedding_matrix
from c3tools.transforms.sigma import sigma_by_rule
from tests.conftest import MODEL, build_store, make_store, unit_rows
from tests.geometry.spaces import (
    Told,
    hostile_store,
    paper_model,
    plain_measures,
    reported_measures,
    unit,
)
from tests.golden import drawn, recorded
from tests.stores import whole_store

GOLDEN = Path(__file__).parent / "golden"


def report(store: Store | Path, **options: Any) -> dict[str, Any]:
    return gap_report(store, **{"presets": ("raw",), **options}).to_dict()


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"EXACT_VALUES": 0},
        {"MAX_ITEMS": 100, "MAX_ROWS": 299, "EXACT_SCORES": 130 * 390 - 1, "PART_ROWS": 150},
    ],
)
def test_agrees_with_plain_numpy(
    tmp_path: Path, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most in limits.items():
        monkeypatch.setattr(collect, name, most)
    image, text, owner = paper_model(130, 16, captions=3, sigma=0.08)
    order = np.random.default_rng(3).permutation(390)
    x, y, owner = unit(image).astype(np.float32), unit(text[order]).astype(np.float32), owner[order]
    values = report(make_store(tmp_path / "s", x, y, owners=list(owner), part_rows=70))
    found, expected = reported_measures(values), plain_measures(x, y, owner)
    exact = {"n": 390, "items": 130, "text_independent_rows": 130, "length": expected["length"]}
    if len(limits) > 1:
        notes = " ".join(values["notes"] + report(tmp_path / "s", presets=None)["notes"])
        for part in (
            "--presets",
            "sample of 297 pairs",
            "sample of 50 image rows with all their 150 text rows",
        ):
            assert part in notes
        assert values["provenance"]["working_set"] == {"complete": False, "image": 50, "text": 150}
        for name in ("paired_cosine", "unpaired_cosine", "residual_rms"):
            low, high = values["pairs"][f"{name}_interval"]
            assert low < expected[name] < high
        assert values == report(tmp_path / "s")
    else:
        exact |= expected
    assert found | exact == pytest.approx(found, abs=1e-6)


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owners: Any,
    limits: dict[str, int],
    sizes: tuple[int, int],
) -> None:
    for name, most in limits.items():
        monkeypatch.setattr(collect, name, most)
    rows = [unit_rows(20, 8), unit_rows(20, 8, seed=1)]
    data = collect.collect(make_store(tmp_path / "s", *rows, owners=list(owners)), "image", "text")
    working, (images, texts) = data.working, data.places.values()
    assert (len(working.first), len(working.second), working.complete) == (
        *sizes,
        sizes == (20, 20),
    )
    for own, read, places in zip(
        rows, (working.first, working.second), (images, texts), strict=True
    ):
        np.testing.assert_allclose(read, own[np.unique(places)], atol=1e-7)
    if working.paired:
        assert [owners[row] for row in texts] == images[working.item_index].tolist()


def test_published_numbers_on_500_clip_pairs(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    image, text = np.load(folder / "image.npy"), np.load(folder / "text.npy")
    values = report(make_store(tmp_path / "s", unit(image), unit(text), split=None))
    found = (
        reported_measures(values) | values["noise"] | values["sigma"]["candidates"]["pair_cosine"]
    )
    published = {"length": 0.8514, "rmg": 0.5915, "paired_cosine": 0.310, "unpaired_cosine": 0.162}
    published |= {"raw image_to_text recall@1": 0.552, "raw text_to_image recall@1": 0.506}
    published |= {"residual_rms": 0.0358, "std_smallest": 0.020, "std_largest": 0.114}
    assert {name: found[name] for name in published} == pytest.approx(published, abs=5e-4)
    assert found["sigma"] == pytest.approx(0.093, abs=1e-3)


@pytest.mark.parametrize(
    ("row", "normalised"), [(np.nan, False), (0.0, False), (np.inf, True), (2.0, True)]
)
def test_rows_that_cannot_be_measured_are_refused_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: float, normalised: bool
) -> None:
    rows = unit_rows(60, 8)
    rows[:3] = row
    splits = ["val", "test"] * 30
    with monkeypatch.context() as patch:  # a writer refuses to sum what is not finite
        finite = lambda batch, dtype: np.nan_to_num(embedding_matrix(batch, dtype), posinf=1)  # noqa: E731
        patch.setattr(shards, "embedding_matrix", finite)
        store = make_store(
            tmp_path / "s", unit_rows(60, 8), rows, split=splits, normalised=normalised
        )
    for names in (None, ["text"]):
        with pytest.raises(StoreError, match=r"2 of 30 text rows .*\(text0, text2\)"):
            report(store, modalities=names, split="val")


def test_a_split_of_rows_with_norms_is_that_of_rows_of_norm_1(tmp_path: Path) -> None:
    """And the sigma that is recommended is that of trainings, whatever the split."""
    image, text, owner = paper_model(200, 8, captions=2)
    x, y, lengths = (
        *(unit(rows).astype(np.float32) for rows in (image, text)),
        np.linspace(0.5, 2, 400)[:, None],
    )
    options: Any = {"owners": [*owner], "split": ["train"] * 150 + ["test"] * 50}
    clean = make_store(tmp_path / "clean", x, y, **options)
    norms = make_store(
        tmp_path / "norms", x * lengths[::2], y * lengths, normalised=False, **options
    )
    found = [report(store, split="test") for store in (clean, norms)]
    assert reported_measures(found[1]) == pytest.approx(reported_measures(found[0]), abs=1e-6)
    gap = x[150:].mean(axis=0) - y[300:].mean(axis=0)
    assert found[0]["gap"]["length"] == pytest.approx(np.linalg.norm(gap), abs=1e-6)
    assert len(found[1]["notes"]) == len(found[0]["notes"]) + 1
    for values in found:
        assert values["pairs"]["n"] == 100
        assert "the train split (150 image, 300 text rows" in values["provenance"]["fitted_on"]
    for values in (found[0], report(clean)):
        assert values["sigma"]["value"] == pytest.approx(sigma_by_rule("auto", clean)[0], rel=1e-8)


def pairs_with_a_gap(items: int, gap: float, *, dim: int = 32, seed: int = 0) -> Any:
    """Rows of unit length around one mean, whose noise has a length of 0.3."""
    rng = np.random.default_rng(seed)
    base, axis = np.eye(dim)[:2]
    content = base + 0.1 * rng.normal(size=(items, dim))
    noise = 0.3 / np.sqrt(dim) * rng.normal(size=(items, dim))
    return unit(content + gap * axis), unit(content + noise)


@pytest.mark.parametrize(
    ("items", "gap", "answer"), [(12, 0.3, "yes"), (60, 0.13, "yes"), (60, 0.0, "no")]
)
def test_a_gap_is_found_by_what_pairs_differ_by(
    tmp_path: Path, items: int, gap: float, answer: str
) -> None:
    """Not by the spread of a modality, most of which a pair shares."""
    x, y = pairs_with_a_gap(items, gap)
    assert gap_report(make_store(tmp_path / "s", x, y)).verdict["gap"].answer == answer


@pytest.mark.parametrize("repeated", ["both", "images", "texts"])
def test_copies_are_no_evidence(tmp_path: Path, repeated: str) -> None:
    """Items with an equal row count as one: of the gap, its questions, the noise and the means."""
    rng = np.random.default_rng(0)
    x, y = (np.repeat(rows, 20, axis=0) for rows in pairs_with_a_gap(15, 0.3))
    if repeated == "images":
        y = unit(y + 1e-3 * rng.normal(size=y.shape))
    if repeated == "texts":
        x = unit(x + 1e-3 * rng.normal(size=x.shape))
    found = gap_report(make_store(tmp_path / "s", x, y), presets=("raw",))
    plain = gap_report(make_store(tmp_path / "plain", x[::20], y[::20]), presets=("raw",))
    for name in ("constant", "orthogonal", "gaussian", "isotropic"):
        assert found.assumptions[name].answer == plain.assumptions[name].answer, name
    assert found.noise is not None and found.noise.items == 15
    images = 300 if repeated == "texts" else 15
    counts = [each.independent_rows for each in found.modalities.values()]
    assert counts == [images, 15]
    ends = [each.gap.length_debiased.interval for each in (found, plain) if each.gap]
    assert ends[0] == pytest.approx(ends[1], abs=0.01)


def test_one_hit_of_sixty_is_no_fall_of_recall(tmp_path: Path) -> None:
    """Rows without content: which of them are found by chance, before Collapse and after."""
    rng = np.random.default_rng(9)
    gap = 8 * np.eye(64)[0]
    x = unit(rng.normal(size=(60, 64)) + gap)
    y = unit(rng.normal(size=(60, 64)) - gap)
    found = gap_report(make_store(tmp_path / "s", x, y), presets=("raw",))
    before, after = (found.spaces[name].recall for name in ("raw", "c2-collapse"))
    for direction, change in found.spaces["c2-collapse"].recall_change.items():
        difference = after[direction]["recall@1"].value - before[direction]["recall@1"].value
        assert change.value == pytest.approx(difference)
        assert change.interval is not None and change.interval[1] >= 0
    assert min(change.value for change in found.spaces["c2-collapse"].recall_change.values()) < 0
    assert "falls" not in found.verdict["collapse"].because


def test_without_a_gap_nothing_is_said_of_its_direction(tmp_path: Path) -> None:
    x, y = pairs_with_a_gap(200, 0.0)
    found = gap_report(make_store(tmp_path / "s", x, y), presets=("raw",))
    assert found.verdict["gap"].answer == "no"
    for name in ("constant", "orthogonal"):
        answer = found.assumptions[name]
        assert (answer.answer, answer.because) == (
            "unknown",
            "This check applies only if there is a gap.",
        )


def test_two_domains_with_opposite_gaps_have_gaps(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base, axis = np.eye(32)[:2]
    gap = 0.4 * rng.choice([-1, 1], size=(200, 1)) * axis
    content = base + 0.1 * rng.normal(size=(200, 32))
    x = unit(content + gap)
    y = unit(content - gap + 0.03 * rng.normal(size=(200, 32)))
    found = gap_report(make_store(tmp_path / "s", x, y), presets=("raw",))
    assert found.assumptions["constant"].answer == "no"
    gap_verdict, collapse = found.verdict["gap"], found.verdict["collapse"]
    assert gap_verdict.answer == "partly" and "gaps of their own" in gap_verdict.because
    assert collapse.answer == "no" and "varies by" in collapse.because
    assert "no gap to close" not in collapse.because


@pytest.mark.parametrize("items", [3, 5, 30])
def test_images_that_equal_their_texts_have_no_gap_and_no_noise(tmp_path: Path, items: int) -> None:
    x = unit_rows(items, 16)
    found = gap_report(make_store(tmp_path / "s", x, x), presets=("raw",))
    assert found.verdict["gap"].answer == "no"
    assert found.assumptions["gaussian"].answer == found.assumptions["isotropic"].answer
    assert found.assumptions["gaussian"].because.startswith("There is no alignment noise")
    assert "pairs are correct" not in found.verdict["unusual"].because


def test_clip_on_coco_is_not_unusual(tmp_path: Path, shared_data: Path) -> None:
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    image, text = np.load(folder / "image.npy"), np.load(folder / "text.npy")
    found = gap_report(make_store(tmp_path / "s", unit(image), unit(text)), presets=("raw",))
    assert found.assumptions["orthogonal"].answer == "no"
    assert (found.verdict["gap"].answer, found.verdict["unusual"].answer) == ("yes", "no")


def test_what_cannot_be_measured_is_refused(tmp_path: Path) -> None:
    store = make_store(
        tmp_path / "s", unit_rows(9, 4), unit_rows(9, 4, seed=1), split=["train"] * 7 + ["val"] * 2
    )
    create_store(tmp_path / "empty", StoreInfo(MODEL, 4))
    for place, options, named in (
        (store, {"split": "val"}, r"'image' of the store .* 2 rows in the split 'val'"),
        (store, {"modalities": ["text", "text"]}, "text, text"),
        (store, {"modalities": ["image", "text", "audio"]}, "image, text, audio"),
        (tmp_path / "empty", {}, "empty"),
    ):
        with pytest.raises(StoreError, match=named):
            report(place, **options)


def test_captions_of_one_image_count_as_one_row_whether_the_image_is_there_or_not(
    tmp_path: Path,
) -> None:
    for paired in (30, 5, 0):
        owners = [*np.repeat(np.arange(30) + 30 - paired, 3), None, None]
        store = make_store(
            tmp_path / f"{paired}", unit_rows(30, 8), unit_rows(92, 8, seed=1), owners=owners
        )
        values = report(store)
        assert (values["provenance"]["items"], values["provenance"]["pairs"]) == (
            paired,
            3 * paired,
        )
        assert [found["independent_rows"] for found in values["modalities"].values()] == [30, 32]
        assert report(store, modalities=["text"])["modalities"] == {
            "text": values["modalities"]["text"]
        }


@pytest.mark.parametrize("owners", [[None] * 4, [0, None, None, None], [0] * 4])
def test_stores_with_hardly_any_pairs(tmp_path: Path, owners: list[int | None]) -> None:
    found = gap_report(
        make_store(tmp_path / "s", unit_rows(3, 8), unit_rows(4, 8, seed=1), owners=owners)
    )
    values = found.to_dict()
    json.dumps(values, allow_nan=False)
    gap, pairs = values["gap"], values["pairs"]
    assert (values["verdict"]["corrupt"]["answer"], gap["length_interval"] is None) == (
        "unknown",
        pairs is not None,
    )
    if owners[0] is None:
        assert (pairs, values["retrieval"], values["assumptions"]["isotropic"]["answer"]) == (
            None,
            {},
            "unknown",
        )
    else:  # there is nothing to correct by, and as few pairs are groups of one
        assert (pairs["items"], pairs["residual_rms_debiased"]) == (1, pairs["residual_rms"])
        assert gap["group_length"][0] == pytest.approx(gap["instance_distance"])
    assert "image: 3 rows span at most 2 of 8 dimensions" in found.to_html()


def test_rows_that_are_all_equal(tmp_path: Path) -> None:
    x, reporter = np.eye(4)[[0] * 6], Told()
    values = gap_report(
        make_store(tmp_path / "s", x, np.roll(x, 1, axis=1)), reporter=reporter
    ).to_dict()
    assert (reporter.left, reporter.note) == (0, RECALL_PRESETS[-1])
    missing = [note.split()[0] for note in values["notes"] if "cannot be applied" in note]
    assert {*missing, *values["retrieval"]} == {*RECALL_PRESETS} != {*values["retrieval"]}
    assert values["retrieval"]["raw"]["image_to_text"]["recall@1"] == pytest.approx(1 / 6)


def test_one_modality_and_three(tmp_path: Path) -> None:
    keys, items = [f"k{row}" for row in range(60)], [f"item{row // 2}" for row in range(60)]
    image = Rows.of("image", items[::2], unit_rows(30, 8))
    audio = Rows.of("audio", keys, unit_rows(60, 8, seed=1), pair_key=items)
    text = Rows.of("text", keys, unit_rows(60, 8, seed=2), image_key=items)
    for name, rows in (
        ("three", (image, audio, text)),
        ("no texts", (image, audio)),
        ("one", (text,)),
    ):
        build_store(tmp_path / name, *rows, dtype="float32")
    names = None, ("text", "image"), ("audio", "text")
    found = [report(tmp_path / "three", modalities=chosen) for chosen in names]
    assert any("also has audio" in note for note in found[0]["notes"])
    # that with one row per item comes first
    assert [" ".join(values["modalities"]) for values in found] == [
        "image text",
        "image text",
        "audio text",
    ]
    assert ["Several audio rows" in values["notes"][0] for values in found] == [False, False, True]
    assert found[2]["pairs"]["n"] == 60
    spread = report(tmp_path / "no texts")["sigma"]["candidates"]["caption_spread"]
    assert (spread["sigma"], spread["missing"]) == (None, "the store has no texts")
    alone = gap_report(tmp_path / "one")
    assert (alone.gap, alone.pairs, list(alone.verdict), alone.modalities["text"].n) == (
        None,
        None,
        ["unusual"],
        60,
    )
    page = alone.to_html()
    assert ("one modality, text" in page, page.count("<svg"), "mathdefault" in page) == (
        True,
        1,
        False,
    )


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> GapReport:
    return gap_report(hostile_store(tmp_path_factory.mktemp("hostile") / "s"), presets=("whiten",))


@pytest.fixture(scope="module")
def page(hostile: GapReport) -> str:
    return hostile.to_html()


def test_json_and_page_are_the_golden_ones(
    hostile: GapReport, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``C3_RECORD=1 pytest tests/geometry`` makes them anew; drawings, styles and scripts are left
    out."""
    store, values = hostile.provenance["store"], hostile.to_dict()
    page = re.sub(
        r"(<svg|<style|<script).*?(</svg>|</style>|</script>)",
        "",
        page.replace(store, "s"),
        flags=re.DOTALL,
    )
    values["provenance"]["store"] = "s"
    if os.environ.get("C3_RECORD"):
        (GOLDEN / "page.html").write_text(page)
    assert page == (GOLDEN / "page.html").read_text()
    recorded(GOLDEN / "report.json", values)
    monkeypatch.setattr("c3tools.geometry.figures.MAX_POINTS", 20)
    figures = {
        name: [label, *drawn(figure)] for name, (figure, label) in all_figures(hostile).items()
    }
    recorded(GOLDEN / "figures.json", figures)


def test_the_page_asks_for_nothing_and_runs_the_map_alone(page: str) -> None:
    # by the algorithm of the HTML standard: a caption could become an element
    tree = LexborHTMLParser(page)
    runs = (Path(pages.__file__).parent / "templates" / "map.js").read_text().rstrip("\n")
    assert [script.text() for script in tree.css("script:not([type])")] == [runs]
    assert len(tree.css("script")) == 2
    assert not tree.css("iframe, object, embed, form, base, foreignobject, animate, set")
    addresses = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"}
    for element in tree.css("*"):
        for name, value in element.attributes.items():
            assert not name.lower().startswith("on")
            assert name.lower() not in addresses or str(value).startswith(("#", "data:"))
    assert "<script>alert(1)</script>" in str(tree.text())
    assert "/script> é" in page
    assert not re.findall(r"url\((?!#)[^)]*\)", page)
    ids = re.findall(r' id="([^"]+)"', page)
    assert (page.count("<svg"), len(ids)) == (8, len(set(ids)))


def test_a_report_is_shown_in_notebooks_and_saved(
    hostile: GapReport, page: str, tmp_path: Path
) -> None:
    shown = hostile._repr_html_()
    for section in hostile.sections():
        for table in section.tables:
            assert f">{table.columns[-1]}</th>" in shown
            assert f">{table.rows[-1][0]}</t" in shown
    for name in ("deep/report.json", "report.html"):
        assert hostile.save(tmp_path / name) == tmp_path / name
    values = json.dumps(hostile.to_dict(), indent=2, ensure_ascii=False) + "\n"
    assert (tmp_path / "deep" / "report.json").read_text() == values
    assert (tmp_path / "report.html").read_text() == page
    files = {path.name for path in hostile.save_figures(tmp_path / "f")}
    assert (
        files
        == {path.name for path in (tmp_path / "f").iterdir()}
        >= {"spectra.png", "gap-length.svg"}
    )


def test_a_sample_of_the_rows_are_dots_that_the_slider_moves_with_partners_and_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = whole_store(tmp_path / "store")
    monkeypatch.setattr("c3tools.geometry.gap_map.MOST", 9)
    monkeypatch.setattr("c3tools.geometry.gap_map.PHOTO_BYTES", 1)
    (tmp_path / "photos").mkdir()
    for number in range(8, 30):
        Image.new("RGB", (224, 112)).save(tmp_path / "photos" / f"img{number:03d}.jpg")
    data = json.loads(
        gap_map(
            store, collect.collect(store, "image", "text", split="train"), split="train", by="width"
        )
    )
    images, texts = data["modalities"]
    (row,) = (row for row, photo in enumerate(images["photo"]) if photo)
    assert images["label"][row] == min(name for name in images["label"] if name >= "img008")
    photo = base64.b64decode(images["photo"].pop(row).partition(",")[2])
    assert Image.open(io.BytesIO(photo)).size == (112, 56)
    means = {name: store.load(name, "train").embeddings.mean(axis=0) for name in ("image", "text")}
    gap = means["image"] - means["text"]
    for modality in (images, texts):  # around the mean of all rows, of which these are a sample
        name = modality["name"]
        by_key = dict(zip(store.load(name).keys, store.load(name).embeddings, strict=True))
        captions = store.load(name).captions if name == "text" else store.load(name).keys
        key_of = dict(zip(captions, by_key, strict=True))
        rows = np.array([by_key[key_of[label]] for label in modality["label"]], np.float64)
        along = (rows - means[name]) @ gap / np.linalg.norm(gap)
        assert modality["x"] == pytest.approx(along, abs=2e-3)
    assert np.subtract(images["shift"], texts["shift"]) == pytest.approx([data["gap"], 0], abs=2e-4)
    for item, row in data["pairs"]:
        assert int(texts["label"][row].split()[-1]) == int(images["label"][item][3:])
    recorded(GOLDEN / "map.json", data)
    with pytest.raises(StoreError, match="'colour'"):
        gap_report(store, by="colour")


def test_clouds_of_the_map_are_no_further_apart_than_chance_explains(tmp_path: Path) -> None:
    """The means of 79 rows without a gap are 0.16 apart."""
    rng = np.random.default_rng(1)
    keys = [f"{number}" for number in range(79)]
    images, texts = (unit(rng.normal(size=(79, 512))) for _ in range(2))
    store = build_store(
        tmp_path / "store",
        Rows.of("image", keys, images),
        Rows.of("text", keys, texts, image_key=keys),
        dtype="float32",
    )
    data = json.loads(gap_map(store, collect.collect(store, "image", "text")))
    length = np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0))
    differences = images - texts
    chance = differences.var(axis=0, ddof=1).sum() / 79
    assert length == pytest.approx(0.16, abs=0.01)
    assert data["gap"] == pytest.approx(np.sqrt(max(length**2 - chance, 0)), abs=1e-3)


def test_reader_closes_the_gap_in_a_browser(tmp_path: Path, browser: Any) -> None:
    page = gap_report(whole_store(tmp_path / "store")).save(tmp_path / "report.html")
    browser.get(page.as_uri())

    def text(selector: str) -> str:
        return str(browser.find_element("css selector", selector).get_attribute("textContent"))

    def shown() -> Any:
        time.sleep(0.1)
        return browser.execute_script(
            "return document.querySelector('.gap-map canvas').toDataURL()"
        )

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
