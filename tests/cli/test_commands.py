"""What commands make, each once; rooms test their verbs, test_words.py what is printed."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
import re
from pathlib import Path

import faiss
import numpy as np
import open_clip
import pytest
from typer.testing import CliRunner, Result

from c3tools import Rows, Store, embed, gap_report, machine
from tests.conftest import C3, as_json, build_store, copy_photos, done, unit_rows
from tests.stores import whole_store

from ..captioning.conftest import trained_captioner


def test_photos_are_embedded_without_options(
    c3: C3, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done(c3("embed", photos, "--workers", 0))
    assert Store.open("c3-store").count("image") == 4
    (photos / "broken.jpg").write_text("no")
    assert "1 input was not embedded" in done(c3("embed", photos, "--workers", 0)).stdout
    assert c3("embed", photos, "--strict", "--workers", 0).exit_code == 1
    monkeypatch.setenv("C3_STORE", "elsewhere")
    (tmp_path / "t.txt").write_text("a dog\na cat\n")
    done(c3("embed", "t.txt"))
    assert as_json(c3("verify", "--json"))["store"] == "elsewhere"
    again = embed("t.txt", "elsewhere", workers=0)
    assert pickle.loads(pickle.dumps(again)).summary.to_dict() == again.summary.to_dict()


def test_a_file_that_cannot_be_captioned_is_named_after_the_captions_of_others(
    c3: C3, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    for kept in (False, True):
        result = c3("caption", photos, "--json", "a.json", "--html", "a.html")
        said = " ".join(result.stderr.split())
        assert (result.exit_code, "4 of 5 captions already existed." in said) == (0, kept)
        assert re.search(
            "broken.jpg: Unidentified.* Wrote a.json and a.html 1 of 5 files could not be read",
            said,
        )
    assert c3("caption", photos, "--json", "a.json", "--strict").exit_code == 1
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["path"] for row in rows] == [str(path) for path in sorted(photos.glob("0*.jpg"))]
    assert re.findall(r"^ ?(\d+)  ", result.stdout, re.MULTILINE) == [row["key"] for row in rows]
    assert (tmp_path / "a.html").read_text().count("data:image/jpeg") == 4


@pytest.mark.usefixtures("workplace")
def test_embeddings_are_captioned_without_an_encoder(c3: C3) -> None:
    images = Store.open("c3-store").load("image").embeddings
    expected = trained_captioner().caption(embeddings=images)
    np.savez("two.npz", photos=images, others=unit_rows(3, 32))
    for options in (("c3-store",), ("two.npz", "--array", "photos")):
        assert [
            row["caption"] for row in as_json(c3("caption", "--embeddings", *options, "--json"))
        ] == expected


@pytest.mark.usefixtures("workplace")
def test_a_table_names_its_command(c3: C3, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setattr("c3tools.metrics.java_metrics.missing_java", lambda: "it needs Java")
    words = (
        "ablate-captions --methods C1,C3 --size tiny --epochs 1 --precision fp32 --seeds 1 "
        "--sigma 0.1 --json"
    )
    rows = as_json(c3(*words.split()))
    (command,) = re.findall(
        r"^    c3 (ablate.*)", Path("c3-ablation/table.md").read_text(), re.MULTILINE
    )
    again = as_json(c3(*command.split(), "-o", "elsewhere", "--json"))
    assert [row["scores"] for row in again] == [row["scores"] for row in rows]


def test_verify_has_an_exit_code_for_damage(c3: C3, tmp_path: Path) -> None:
    folder = whole_store(tmp_path / "c3-store").path
    (folder / "text" / "part-00001.parquet").unlink()
    (folder / "image" / "part-00000.parquet").write_bytes(b"cut")
    result = c3("verify", "--store", "c3-store", "--json", "-")
    assert (result.exit_code, json.loads(result.stdout)["whole"]) == (3, False)
    result = c3("verify", "--repair")
    assert result.exit_code == 3  # until it is made again
    assert "Repaired: image/part-00000.parquet was removed" in result.stdout
    said = " ".join(result.stderr.split())
    for kind, file, remedy in (
        ("checksum", "image/part-00000.parquet", "--repair"),
        ("files", "text", "--forget"),
    ):
        assert re.search(rf"defect \({kind}\) c3-store/{file}.*: .*{remedy}", said)


def test_models_and_the_machine_are_described(c3: C3) -> None:
    found = as_json(c3("models", "--json"))
    assert {model["name"] for model in found[1:]} == {
        "/".join(pair) for pair in open_clip.list_pretrained()
    }
    described = as_json(c3("info", "--json"))
    assert described["packages"]["torch"] == importlib.metadata.version("torch")
    assert f"{described['devices'][0]['memory'] / 2**30:.1f} GiB" in done(c3("info")).stdout


def test_two_builds_of_faiss_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    described = machine.describe_machine()
    assert described["faiss"]["version"] == faiss.__version__
    assert described["faiss"]["gpus"] == 0
    described["packages"]["faiss-gpu-cuvs"] = faiss.__version__
    said = [line for line in machine.machine_report(described) if "faiss" in str(line)]
    assert any("faiss-cpu and faiss-gpu-cuvs install the same files" in str(line) for line in said)


def test_an_extra_lists_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "numpy>=1.26",
        'no-such-package>=1; extra == "cloud"',
        'numpy>=1; extra == "yaml"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert machine.describe_machine()["extras"] == {"cloud": ["no-such-package"], "yaml": []}


def test_a_dash_reads_standard_input(c3: C3, here: Path) -> None:
    from c3tools.cli import app

    def piped(lines: str, *arguments: str) -> Result:
        return done(CliRunner().invoke(app, arguments, lines))

    piped("a dog\n\na cat\n", "embed", "-", "--store", "piped")
    assert Store.open("piped").load("text").captions == ["a dog", "a cat"]
    piped("a bird\n", "embed", "-", "--store", "piped")
    done(c3("index", "--store", "piped"))
    found = as_json(piped("a dog\n\nsome cat\n", "search", "-", "--json"))
    assert [result["query"] for result in found] == ["a dog", "some cat"]
    paths = sorted(copy_photos(here / "photos", 2).glob("*.jpg"))
    captions = as_json(piped("".join(f"{path}\n" for path in paths), "caption", "-", "--json"))
    assert [row["key"] for row in captions] == [path.stem for path in paths]


def test_a_page_is_not_made_beside_json_and_is_shown_in_the_browser(
    c3: C3, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    assert as_json(c3("gap-report", "--json")) == gap_report("c3-store").to_dict()
    as_json(c3(*"simulate depth --width 8 --layers 1 --rows 9 --json".split()))
    assert [path.name for path in here.iterdir()] == ["c3-store"]
    done(c3("gap-report", "--open"))
    assert "Is there a modality gap?" in (here / "gap-report.html").read_text()
    done(c3("gap-report", "--open", "--html", here / "own.html", "--json"))
    assert shown == [(here / name).as_uri() for name in ("gap-report.html", "own.html")]


def test_a_long_document_is_one_line_of_the_hits_and_whole_in_the_json(
    c3: C3, tmp_path: Path
) -> None:
    document = "The harbour.\n\n" + "A boat lies at the quay. " * 100
    texts = Rows.of("text", ["a", "b"], unit_rows(2, 8), caption=[document, "a dog"])
    build_store(tmp_path / "c3-store", texts)
    done(c3("index"))
    line = done(c3("search", "--key", "a", "-k", "1")).stdout.splitlines()[1]
    start = "The harbour. A boat lies at the quay. A boat"
    assert f"a  {start}" in line and line.endswith("…") and len(line) < 250
    (hit,) = as_json(c3("search", "--key", "a", "-k", "1", "--json"))[0]["hits"]
    assert hit["caption"] == document


def test_a_modality_of_which_every_input_failed_stops_no_command(c3: C3, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"photo{number}.png").write_bytes(b"broken")
        (tmp_path / f"photo{number}.txt").write_text(f"a dog {number}\n")
    embed(tmp_path, tmp_path / "c3-store", workers=0)
    assert Store.open("c3-store").modalities == ["text"]
    for command in ("index", "export", "gap-report"):
        done(c3(command))


@pytest.mark.usefixtures("here")
def test_rows_are_left_out_listed_and_taken_back(c3: C3) -> None:
    images = Store.open("c3-store").load("image").keys
    done(c3("pairs", "--mark-worst", 0.5, "--html", "p.html", "--table", "pairs.parquet"))
    marked = done(c3("leave-out", "pairs.parquet")).stdout
    assert re.match(r"(\d+) rows are left out of c3-store, \1 of them new\.", marked)
    done(c3("leave-out", "--key", images[0], "--key", images[1], "--reason", "blurred"))
    rows = as_json(c3("leave-out", "--json"))
    reasons = {row["key"]: row["reason"] for row in rows if row["modality"] == "image"}
    assert reasons == {images[0]: "blurred", images[1]: "blurred"}
    assert len(rows) > len(reasons)
    assert "No rows are left out" in done(c3("leave-out", "--undo")).stdout
    assert as_json(c3("leave-out", "--json")) == []
