"""Commands on a store in an object store, whose every seventh request fails, give what they give on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from c3tools.io import locations
from c3tools.io.locations import read_all
from c3tools.moments import load_moments
from tests.conftest import C3, put_store, store_files
from tests.servers import Faults
from tests.stores import gap_store, whole_store

from ..captioning.conftest import make_captions_store

URL = "s3://bucket/runs/store"
QUICK = ("--size", "tiny", "--epochs", "1", "--precision", "fp32")


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


def test_index_and_search(c3: C3, tmp_path: Path, s3: Faults) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    put_store(gap_store(tmp_path / "disk"), URL)
    s3.every = 7
    for store, output in (("disk", "one"), (URL, "other")):
        done(c3("index", "--store", store, "-o", output))
    records = [json.loads((tmp_path / output / "index.json").read_text()) for output in ("one", "other")]
    assert [record.pop("store") for record in records] == ["../disk", URL]
    assert records[0] == records[1]
    for output in ("one", "other"):
        (tmp_path / output / "index.json").unlink()
        (tmp_path / output / "index.json").write_text(json.dumps(records[0]))
    same_files(tmp_path / "one", tmp_path / "other")
    found = [
        json.loads(done(c3("search", "--key", "img004", "--index", "one", "--store", store, "--json")).stdout)
        for store in ("disk", URL)
    ]
    assert found[0] == found[1]
    assert found[0][0]["hits"][0]["key"] == "img004"


def test_decoders_their_scores_and_the_table(
    c3: C3, tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap")
    put_store(make_captions_store(tmp_path / "disk")[0].path, URL)
    s3.every = 7
    results = []
    for store, folder in (("disk", "one"), (URL, "other")):
        monkeypatch.setenv("C3_STORE", store)
        done(c3("train-decoder", *QUICK, "-o", folder))
        done(c3("evaluate", "--decoder", folder, "--resamples", 0, "--json", f"{folder}.json"))
        table = done(c3("ablate", *QUICK, "--seeds", 1, "--methods", "CLIPRe", "-o", f"{folder}-table", "--json"))
        scores = json.loads((tmp_path / f"{folder}.json").read_text())
        results.append((scores, [run["scores"] for run in json.loads(table.stdout)]))
        assert store in (tmp_path / f"{folder}-table" / "table.md").read_text()
    assert results[0] == results[1]
    weights = [(tmp_path / folder / "weights.safetensors").read_bytes() for folder in ("one", "other")]
    assert weights[0] == weights[1]


def test_merge_and_split_read_what_is_by_url(c3: C3, tmp_path: Path, s3: Faults) -> None:
    for name in ("store", "other"):
        put_store(whole_store(tmp_path / name, images=20).path, f"s3://bucket/runs/{name}")
    s3.every = 7
    for base in (".", "s3://bucket/runs"):
        out, first, second = f"from-{base[:2]}", f"{base}/store", f"{base}/other"
        done(c3("merge", f"{out}/merged", first, second, "--prefix"))
        done(c3("merge", f"{out}/kept", first, second, "--keep", "first"))
        done(c3("split", f"{out}/split", "--store", first, "--fractions", "0.5,0.25,0.25"))
    for name in ("merged", "kept", "split"):
        same_files(tmp_path / "from-." / name, tmp_path / "from-s3" / name)


def test_merge_and_split_copy_no_damage_and_leave_nothing(c3: C3, tmp_path: Path, s3: Faults) -> None:
    whole_store(tmp_path / "other")
    damaged = whole_store(tmp_path / "store").path / "image" / "part-00001.parquet"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:60] + b"\0" + content[61:])
    put_store(tmp_path / "store", URL)
    for command in (["merge", "new", URL, "other", "--prefix"], ["split", "new", "--store", URL]):
        assert f"{URL}/image/part-00001.parquet" in refused(c3(*command))
    assert f"done marker. Check and repair the store first: c3 verify {URL}" in refused(c3(*command))
    for command in (["merge", "s3://bucket/new", URL, "other"], ["split", "s3://bucket/new"]):
        assert "aws s3 cp --recursive" in refused(c3(*command))
    s3.every = 1
    assert f"{URL}/store.json could not be reached" in refused(c3("split", "new", "--store", URL))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere.safetensors", "other", "store"]


def test_results_by_url(c3: C3, tmp_path: Path, s3: Faults) -> None:
    whole_store(tmp_path / "c3-store", images=20)
    put_store(whole_store(tmp_path / "other", images=20).path, URL)
    s3.every = 7
    base = "s3://bucket/results"
    options = ("--html", f"{base}/page.html", "--json", f"{base}/values.json", "--figures", f"{base}/figures")
    done(c3("gap-report", "c3-store", URL, "--split", "all", "--presets", "raw", *options))
    results = locations.location(base)
    assert read_all(results / "page.html").startswith(b"<!doctype html>")
    compared = json.loads(read_all(results / "values.json"))
    assert [report["provenance"]["store"] for report in compared["stores"]] == ["c3-store", URL]
    folders = locations.names_in(results / "figures")[0]
    assert folders == ["1-c3-store", "2-store"]
    names = locations.names_in(results / "figures" / folders[1])[1]
    assert len(names) > 4
    for name in names:
        beginning = b"\x89PNG" if name.endswith("png") else b"<?xml"
        assert read_all(results / "figures" / folders[1] / name).startswith(beginning)

    done(c3("means", "--save", "here.safetensors"))
    done(c3("means", "--store", URL, "--save", f"{base}/there.safetensors"))
    groups, header = load_moments(results / "there.safetensors")
    assert header["source"] == "store"
    assert groups["image"].n == load_moments(tmp_path / "here.safetensors")[0]["image"].n == 16
    merged = ("--merge", "here.safetensors", "--merge", f"{base}/there.safetensors")
    done(c3("means", *merged, "--save", f"{base}/both.safetensors"))
    rows = means_of(c3, "--load", f"{base}/both.safetensors")
    assert [row["n"] for row in rows if row["source"] == "here.safetensors + there.safetensors"] == [32, 64]
    done(c3("verify", URL))
    assert {row["source"] for row in means_of(c3, "--unload")} == {"store"}
    assert [path for path in tmp_path.iterdir() if path.name.startswith("s3:")] == []


def means_of(c3: C3, *options: str) -> list[dict[str, Any]]:
    """The table of `c3 means` on the store at `URL`."""
    table: list[dict[str, Any]] = json.loads(done(c3("means", "--store", URL, *options, "--json")).stdout)["means"]
    return table


class TestBadInput:
    COMMANDS = (
        ["verify", URL],
        ["verify", URL, "--repair"],
        ["means", "--store", URL],
        ["gap-report", URL],
        ["index", "--store", URL],
        ["train-decoder", "--store", URL],
        ["split", "new", "--store", URL],
        ["merge", "new", URL, "s3://bucket/other"],
    )

    def test_what_cannot_be_read(self, c3: C3, s3: Faults, monkeypatch: pytest.MonkeyPatch) -> None:
        import s3fs

        for command in self.COMMANDS:
            assert f"There is no store at {URL}" in refused(c3(*command))
            elsewhere = [word.replace("bucket", "nowhere") for word in command]
            assert "There is no store at s3://nowhere/runs/store" in refused(c3(*elsewhere))
        s3.every, s3.answer = 1, "403 Forbidden"
        for command in self.COMMANDS:
            message = refused(c3(*command))
            assert f"Access to {URL}" in message
            assert "credentials in the environment" in message
        s3.every = 0
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        s3fs.S3FileSystem.clear_instance_cache()
        for command in self.COMMANDS:
            assert "Unable to locate credentials" in refused(c3(*command))

    def test_without_the_extra(self, c3: C3, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "upath", None)
        for command in self.COMMANDS:
            assert 'pip install "c3tools[s3]"' in refused(c3(*command))

    def test_what_cannot_be_written(self, c3: C3, tmp_path: Path, s3: Faults) -> None:
        whole_store(tmp_path / "c3-store")
        for options in (["means", "--save", "s3://nowhere/m"], ["gap-report", "--html", "s3://nowhere/page.html"]):
            assert f"{options[-1]} cannot be written" in refused(c3(*options))
        s3.every, s3.answer = 1, "403 Forbidden"
        assert "Access to s3://bucket/m was refused" in refused(c3("means", "--save", "s3://bucket/m"))

    @pytest.mark.parametrize("command", [["index", "-o"], ["train-decoder", "-o"], ["ablate", "-o"]], ids=" ".join)
    def test_results_that_stay_on_this_machine(self, c3: C3, tmp_path: Path, command: list[str]) -> None:
        assert "a path on this machine is needed" in refused(c3(*command, "s3://bucket/x"))
        assert list(tmp_path.iterdir()) == []
