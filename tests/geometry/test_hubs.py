"""The rows that are found most: against all cosines at once in plain numpy, and what is shown."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
from selectolax.lexbor import LexborHTMLParser

from c3tools.geometry import hubs
from c3tools.geometry.hubs import find_hubs
from c3tools.geometry.report import gap_report
from c3tools.store import Rows
from c3tools.transforms import preset
from tests.conftest import MODEL, build_store, make_store, unit_rows
from tests.geometry.spaces import EVIL, unit


@pytest.mark.parametrize("most_queries", [1_000, 45])
def test_lists_are_those_of_all_cosines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most_queries: int
) -> None:
    """Of train queries, in the rows of the split that is searched, without the query's own item."""
    monkeypatch.setattr(hubs, "MOST_QUERIES", most_queries)
    x, y = unit_rows(60, 8), unit_rows(120, 8, seed=1)
    owner = np.repeat(np.arange(60), 2)
    y = unit(y + 2 * x[owner]).astype(np.float32)
    is_train = np.arange(60) % 4 > 0
    store = make_store(
        tmp_path / "s",
        x,
        y,
        owners=[*owner],
        split=["train" if each else "test" for each in is_train],
        part_rows=25,
        dtype="float32",
    )
    fitted = preset("c2-collapse").fit(store)
    found = find_hubs(store, "text", "image", fitted, split="all")
    assert found is not None
    assert (found.queries, found.searched) == (45, 120)
    assert found.mean_lists == pytest.approx(45 * 10 / 120)

    images = unit(x - x[is_train].mean(axis=0))[is_train]
    texts = unit(y - y[is_train[owner]].mean(axis=0))
    cosines = images @ texts.T
    cosines[np.flatnonzero(is_train)[:, None] == owner] = -np.inf
    lists = np.bincount(np.argsort(-cosines, axis=1)[:, :10].ravel(), minlength=120)
    assert found.lists == sorted(lists, reverse=True)[:10]
    assert found.keys == [f"text{row}" for row in np.argsort(-lists, kind="stable")[:10]]
    assert found.labels == [f"caption {key.removeprefix('text')}" for key in found.keys]

    # Of 90 captions 45 are drawn at most; 15 test photos are too few to be searched
    asked_by_text = find_hubs(store, "image", "text", fitted, split="all")
    assert asked_by_text is not None
    assert asked_by_text.queries == min(90, most_queries)
    assert find_hubs(store, "image", "text", fitted, split="test") is None


def test_a_photo_of_most_lists_is_shown_on_the_page(tmp_path: Path, photos: Path) -> None:
    """Beside its key and the number of its lists, in terminal, page and JSON; text is escaped."""
    paths = sorted(photos.glob("*.jpg"))
    x, y = unit_rows(60, 8), unit_rows(60, 8, seed=1)
    texts = [f"{EVIL} {'word ' * 60}"] * 60
    keys = [f"photo{row}" for row in range(60)]
    images = Rows.of("image", keys, x, path=[str(paths[0])] * 60, split=["train"] * 60)
    captions = Rows.of("text", keys, y, image_key=keys, caption=texts, split=["train"] * 60)
    report = gap_report(build_store(tmp_path / "s", images, captions, model=MODEL))
    values = report.to_dict()["hubs"]
    assert values["image"]["rows"][0]["key"] == report.hubs["image"].keys[0]
    assert values["text"]["rows"][0]["label"] == texts[0]
    section = next(
        each for each in report.sections() if each.title == "Rows that are found most often"
    )
    assert [len(table.rows) for table in section.tables] == [10, 10]
    assert len(section.tables[1].rows[0][2]) == 201

    page = report.to_html()
    assert EVIL not in page
    pictures = LexborHTMLParser(page).css("figure div img")
    assert [picture.attributes["alt"] for picture in pictures] == report.hubs["image"].keys
    content = str(pictures[0].attributes["src"]).removeprefix("data:image/jpeg;base64,")
    assert base64.b64decode(content)[:2] == b"\xff\xd8"
