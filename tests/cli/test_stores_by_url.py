"""Commands on a store in an object store, whose every seventh request fails, give what they give on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import Result

from c3tools.io import locations
from tests.conftest import C3, put_store, store_files
from tests.servers import Faults
from tests.stores import gap_store, whole_store

from ..captioning.conftest import make_captions_store

URL = "s3://bucket/runs/store"
QUICK = ("--size", "tiny", "--epochs", "1", "--precision", "fp32")
COMMANDS = {
    "verify": ("verify", URL),
    "means": ("means", "--store", URL),
    "gap-report": ("gap-report", URL),
    "index": ("index", "--store", URL),
    "train-decoder": ("train-decoder", "--store", URL),
    "split": ("split", "new", "--store", URL),
}


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def same_files(first: Path, second: Path) -> None:
    names = [file.relative_to(first) for file in store_files(first)]
    assert len(names) > 2
    assert names == [file.relative_to(second) for file in store_files(second)]
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_search_and_copies_are_the_same(c3: C3, tmp_path: Path, s3: Faults) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    put_store(gap_store(tmp_path / "store"), URL)
    put_store(whole_store(tmp_path / "other", images=20).path, "s3://bucket/runs/other")
    s3.every = 7
    found = []
    for base in (".", "s3://bucket/runs"):
        out = f"from-{base[:2]}"
        done(c3("index", "--store", f"{base}/store", "-o", f"{out}-index"))
        query = ("search", "--key", "img004", "--index", f"{out}-index", "--store", f"{base}/store", "--json")
        found.append(json.loads(done(c3(*query)).stdout))
        (tmp_path / out).mkdir()
        done(c3("split", f"{out}/split", "--store", f"{base}/other", "--fractions", "0.5,0.25,0.25"))
        done(c3("merge", f"{out}/merged", f"{base}/other", f"{out}/split", "--prefix"))
    assert found[0] == found[1]
    assert found[0][0]["hits"][0]["key"] == "img004"
    for name in ("merged", "split"):
        same_files(tmp_path / "from-." / name, tmp_path / "from-s3" / name)


def test_decoders_and_their_scores_are_the_same(
    c3: C3, tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap")
    put_store(make_captions_store(tmp_path / "disk")[0].path, URL)
    s3.every = 7
    results = []
    for store, folder in (("disk", "one"), (URL, "other")):
        monkeypatch.setenv("C3_STORE", store)
        done(c3("train-decoder", *QUICK, "-o", folder))
        scores = json.loads(done(c3("evaluate", "--decoder", folder, "--resamples", 0, "--json")).stdout)
        results.append((scores, (tmp_path / folder / "weights.safetensors").read_bytes()))
    assert results[0] == results[1]


def test_results_by_url(c3: C3, tmp_path: Path, s3: Faults) -> None:
    whole_store(tmp_path / "c3-store", images=20)
    put_store(tmp_path / "c3-store", URL)
    s3.every = 7
    base = "s3://bucket/results"
    options = ("--html", f"{base}/page.html", "--json", f"{base}/values.json", "--figures", f"{base}/figures")
    done(c3("gap-report", "c3-store", URL, "--split", "all", "--presets", "raw", *options))
    results = locations.location(base)
    assert locations.read_all(results / "page.html").startswith(b"<!doctype html>")
    compared = json.loads(locations.read_all(results / "values.json"))
    assert [report["provenance"]["store"] for report in compared["stores"]] == ["c3-store", URL]
    assert len(locations.names_in(results / "figures")[0]) == 2
    done(c3("means", "--store", URL, "--save", f"{base}/there.safetensors"))
    done(c3("means", "--store", URL, "--load", f"{base}/there.safetensors"))
    done(c3("verify", URL))
    assert [path for path in tmp_path.iterdir() if path.name.startswith("s3:")] == []


def test_damage_is_not_copied_and_nothing_is_left(c3: C3, tmp_path: Path, s3: Faults) -> None:
    whole_store(tmp_path / "other")
    damaged = whole_store(tmp_path / "store").path / "image" / "part-00001.parquet"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:60] + b"\0" + content[61:])
    put_store(tmp_path / "store", URL)
    before = sorted(path.name for path in tmp_path.iterdir())
    for command in (["merge", "new", URL, "other", "--prefix"], ["split", "new", "--store", URL]):
        assert "image/part-00001.parquet" in refused(c3(*command))
    assert "s3://bucket/new" in refused(c3("split", "s3://bucket/new", "--store", "store"))
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == before[-len(before) :]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_read_is_one_error(
    c3: C3, s3: Faults, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = COMMANDS[command]
    assert f"There is no store at {URL}" in refused(c3(*words))
    s3.every, s3.answer = 1, "403 Forbidden"
    assert "credentials" in refused(c3(*words))
    monkeypatch.setitem(sys.modules, "upath", None)
    assert 'pip install "c3tools[s3]"' in refused(c3(*words))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_one_error(c3: C3, tmp_path: Path, s3: Faults) -> None:
    whole_store(tmp_path / "c3-store")
    for options in (["means", "--save", "s3://nowhere/m"], ["gap-report", "--html", "s3://nowhere/page.html"]):
        assert options[-1] in refused(c3(*options))
    s3.every, s3.answer = 1, "403 Forbidden"
    assert "s3://bucket/m" in refused(c3("means", "--save", "s3://bucket/m"))
