"""Commands on a store in an object store, whose every seventh request fails, give what they give on disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import Result

from c3tools.io import locations
from tests.conftest import C3, as_json, contents, done, put_store
from tests.servers import Faults
from tests.stores import gap_store, whole_store

URL = "s3://bucket/runs/store"


def refusal(result: Result) -> str:
    """What a command that has to fail prints to standard error, on one line."""
    assert (result.exit_code, "Traceback" in result.output) == (1, False), result.output
    return " ".join(result.stderr.split())


def test_search_and_copies_are_the_same(c3: C3, tmp_path: Path, s3: Faults) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    put_store(gap_store(tmp_path / "store").path, URL)
    put_store(whole_store(tmp_path / "other", images=20).path, "s3://bucket/runs/other")
    s3.every = 7
    found, copies = [], []
    for base, out in ((".", "disk"), ("s3://bucket/runs", "s3")):
        done(c3("index", "--store", f"{base}/store", "-o", f"{out}-index"))
        query = ("search", "--key", "img004", "--index", f"{out}-index", "--store", f"{base}/store", "--json")
        found.append(as_json(c3(*query)))
        (tmp_path / out).mkdir()
        done(c3("split", f"{out}/split", "--store", f"{base}/other", "--fractions", "0.5,0.25,0.25"))
        done(c3("merge", f"{out}/merged", f"{base}/other", f"{out}/split", "--prefix"))
        copies.append(contents(tmp_path / out))
    assert found[0] == found[1]
    assert found[0][0]["hits"][0]["key"] == "img004"
    assert copies[0] == copies[1]
    assert len(copies[0]) > 4


def test_results_by_url(c3: C3, tmp_path: Path, s3: Faults) -> None:
    put_store(whole_store(tmp_path / "c3-store", images=20).path, URL)
    s3.every = 7
    base = "s3://bucket/results"
    options = ("--html", f"{base}/page.html", "--json", f"{base}/values.json", "--figures", f"{base}/figures")
    done(c3("gap-report", URL, "--split", "all", "--presets", "raw", *options))
    results = locations.location(base)
    assert locations.read_all(results / "page.html").startswith(b"<!doctype html>")
    assert json.loads(locations.read_all(results / "values.json"))["provenance"]["store"] == URL
    assert sum(map(len, locations.names_in(results / "figures"))) > 4
    done(c3("means", "--store", URL, "--save", f"{base}/there.safetensors"))
    done(c3("means", "--store", URL, "--load", f"{base}/there.safetensors"))
    done(c3("verify", URL))
    assert [path for path in tmp_path.iterdir() if path.name.startswith("s3:")] == []


@pytest.mark.parametrize("command", ["verify URL", "means", "gap-report URL", "index", "train-decoder", "split new"])
def test_what_cannot_be_read_is_one_error(
    c3: C3, s3: Faults, command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("C3_STORE", URL)
    words = command.replace("URL", URL).split()
    assert f"There is no store at {URL}" in refusal(c3(*words))
    s3.every, s3.answer = 1, "403 Forbidden"
    assert "credentials" in refusal(c3(*words))
    monkeypatch.setitem(sys.modules, "upath", None)
    assert 'pip install "c3tools[s3]"' in refusal(c3(*words))
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_one_error(c3: C3, tmp_path: Path, s3: Faults) -> None:
    whole_store(tmp_path / "c3-store")
    for options in (["means", "--save", "s3://nowhere/m"], ["gap-report", "--html", "s3://nowhere/page.html"]):
        assert options[-1] in refusal(c3(*options))
    s3.every, s3.answer = 1, "403 Forbidden"
    assert "s3://bucket/m" in refusal(c3("means", "--save", "s3://bucket/m"))
