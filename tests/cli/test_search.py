from __future__ import annotations

import json
from pathlib import Path
from shutil import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from c3tools.cli import app
from typer.testing import CliRunner, Result

import c3tools.encoders
from c3tools.assets.paths import PHOTOS
from tests.conftest import C3
from tests.stores import gap_store, make_vectors

pytest.importorskip("faiss", reason="faiss is an extra")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    gap_store(folder / "c3-store")
    arguments = ["index", "--store", str(folder / "c3-store"), "-o", str(folder / "c3-index")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["search", *arguments])


def hits_of(*arguments: str) -> list[dict[str, Any]]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_a_row_finds_itself_and_its_texts() -> None:
    (found,) = hits_of("--key", "img004", "-k", "3")
    assert found["query"] == "img004"
    assert [hit["modality"] for hit in found["hits"]] == ["image"] * 3 + ["text"] * 3
    assert found["hits"][0]["key"] == "img004"
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-3)
    assert {hit["key"] for hit in found["hits"][3:5]} == {"img004#0", "img004#1"}


def test_within_one_modality() -> None:
    (found,) = hits_of("--key", "img010#1", "--in", "image", "-k", "2")
    assert [hit["modality"] for hit in found["hits"]] == ["image", "image"]
    assert found["hits"][0] == {
        "score": found["hits"][0]["score"],
        "key": "img010",
        "modality": "image",
        "path": "img010.jpg",
    }


def test_vectors_from_a_file(here: Path) -> None:
    images, texts = make_vectors()
    np.save("q.npy", images[:4])
    found = hits_of("--vector", "q.npy", "--modality", "image", "--in", "text", "-k", "2")
    assert [{hit["key"] for hit in entry["hits"]} for entry in found] == [
        {f"img{i:03d}#0", f"img{i:03d}#1"} for i in range(4)
    ]
    np.save("one.npy", texts[8])
    (found_one,) = hits_of("--vector", "one.npy", "-k", "1", "--in", "text")
    assert found_one["hits"][0]["key"] == "img004#0"


def test_texts_go_through_the_recorded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    _, texts = make_vectors()
    asked = []

    def load(*, recorded: dict[str, Any], **options: Any) -> SimpleNamespace:
        asked.append(recorded["name"])
        return SimpleNamespace(encode_texts=lambda queries: texts[[int(q) for q in queries]])

    monkeypatch.setattr(c3tools.encoders, "resolve_encoder", load)
    found = hits_of("12", "20", "--in", "image", "-k", "1")
    assert [entry["hits"][0]["key"] for entry in found] == ["img006", "img010"]
    assert asked == ["synthetic"]


def test_photos_find_themselves_and_one_that_cannot_be_read_is_named(c3: C3, tmp_path: Path) -> None:
    names = sorted(path.name for path in (PHOTOS / "images").iterdir())[:6]
    for name in names:
        copy(PHOTOS / "images" / name, tmp_path)
    assert c3("embed", *names, "--backend", "torch").exit_code == 0
    assert c3("index").exit_code == 0
    queries = [part for name in reversed(names) for part in ("--image", name)]
    found = json.loads(c3("search", *queries, "-k", "1", "--backend", "torch", "--json").stdout)
    assert [entry["query"] for entry in found] == names[::-1]
    assert [entry["hits"][0]["path"] for entry in found] == names[::-1]
    assert all(entry["hits"][0]["score"] == pytest.approx(1, abs=1e-3) for entry in found)
    Path("broken.jpg").write_bytes(b"not a photo")
    result = c3("search", "--image", names[0], "--image", "broken.jpg", "--backend", "torch")
    assert result.exit_code == 1
    assert "broken.jpg cannot be read as an image" in " ".join(result.stderr.split())


def test_printed_lines() -> None:
    result = run("--key", "img004#0", "-k", "1")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert [line[1:] for line in lines] == [
        ["image", "img004", "img004.jpg"],
        ["text", "img004#0", "caption", "0", "of", "image", "4", "img004.jpg"],
    ]


def test_page_and_vectors(here: Path) -> None:
    result = run("--key", "img004", "-k", "2", "--html", "sheet.html")
    assert result.exit_code == 0, result.output
    assert "Wrote sheet.html" in result.stderr
    page = Path("sheet.html").read_text()
    assert page.count("<figure>") == 2
    assert "caption 0 of image 4" in page
    (found,) = hits_of("--key", "img004", "-k", "1", "--vectors")
    assert found["hits"][0]["embedding"] == found["embedding"]


class TestBadInput:
    def test_queries(self) -> None:
        assert "Exactly one kind of query is needed, but these were given: none" in refused()
        assert "query is empty" in refused(" ")
        assert "embeddings are written as JSON only" in refused("--key", "img001", "--vectors")
        assert "given: text, key" in refused("a dog", "--key", "img001")
        assert "The store c3-store has no row with the key 'x'" in refused("--key", "x")
        assert "no audio rows. Its modalities are image, text" in refused("--key", "img001", "--in", "audio")

    def test_dimension(self) -> None:
        np.save("wrong.npy", np.eye(3))
        assert "16 dimensions, but these have 3" in refused("--vector", "wrong.npy")

    def test_the_folder_of_the_page_is_missing(self) -> None:
        assert "the folder none does not exist" in refused("--key", "img001", "--html", "none/sheet.html")
        assert not Path("none").exists()

    def test_no_index(self) -> None:
        assert "no index at none" in refused("--key", "img001", "--index", "none")

    def test_damaged_index(self, here: Path, tmp_path: Path) -> None:
        import shutil

        copy = tmp_path / "copy"
        shutil.copytree(here / "c3-index", copy)
        shard = copy / "part-00000.faiss"
        shard.write_bytes(shard.read_bytes()[:500])
        assert "is damaged" in refused("--key", "img001", "--index", str(copy))
