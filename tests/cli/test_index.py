from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from c3tools.cli import app
from typer.testing import CliRunner, Result

from c3tools.index import Index

pytest.importorskip("faiss", reason="faiss is an extra")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["index", *arguments])


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_options_and_what_is_printed(here: Path) -> None:
    result = run("IVF4,Flat", "-o", "mine", "--split", "train", "--shard-rows", "100", "--recall", "0.9", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["factory"], report["rows"], len(report["shards"])) == ("IVF4,Flat", 180, 2)
    assert report["recall@10"] >= 0.9
    assert set(report["bias@10"]) == {"before", "after"}
    assert "Indexed 180 rows as IVF4,Flat in mine." in result.stderr
    assert "against exact search with nprobe" in result.stderr
    assert "text queries: the share of text rows among the 10 nearest is 1.00 before centring" in result.stderr
    assert Index.open("mine").rows.num_rows == 180


def test_again_and_anew(here: Path) -> None:
    assert "Indexed 270 rows" in run().stderr
    assert "There are no new rows for c3-index: 270 rows as Flat." in run().stderr
    assert "Indexed 270 rows" in run("--rebuild").stderr
    anew = run("--modality", "image").stderr
    assert "Rebuilding c3-index: its modality was all and is now image." in anew
    assert "Indexed 90 rows" in anew


def test_unknown_factory(here: Path) -> None:
    assert "FAISS cannot make the index 'Nonsense'" in refused("Nonsense")


def test_without_faiss(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert 'pip install "c3tools[cpu]"' in refused()
