"""Commands on a store in an object store, whose every seventh request fails, give what they give on
disk."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from c3tools.io.locations import location
from tests.conftest import C3, as_json, contents, contents_at_url, done, put_store
from tests.servers import Faults
from tests.stores import whole_store

BASE = "s3://bucket/runs"
URL = f"{BASE}/store"
COMMANDS = (
    "verify --store BASE/store",
    "index --store BASE/store -o OUT-index",
    "split -o OUT/split --store BASE/store --fractions 0.5,0.25,0.25",
    "merge BASE/store OUT/split -o OUT/merged --prefix",
    "means save BASE/m.safetensors --store BASE/store",
    "means load BASE/m.safetensors --store BASE/store",
    "search --key img004 --index OUT-index --store BASE/store --json",
)


def test_commands_make_the_same(c3: C3, tmp_path: Path, s3: Faults) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    put_store(whole_store(tmp_path / "store", images=20).path, URL)
    s3.every = 7
    found: list[Any] = []
    for base, out in ((".", "disk"), (BASE, "s3")):
        (tmp_path / out).mkdir()
        for line in COMMANDS:
            said = done(c3(*line.replace("BASE", base).replace("OUT", out).split()))
        found.append((as_json(said), contents(tmp_path / out)))
    assert found[0] == found[1]
    assert found[0][0][0]["hits"][0]["key"] == "img004"
    assert len(found[0][1]) > 4
    files = f"--html {BASE}/of/page.html --json {BASE}/of/values.json --figures {BASE}/of/figures"
    done(c3(*f"gap-report --store {URL} --split all --presets raw {files}".split()))
    made = contents_at_url(location(f"{BASE}/of"))
    assert (made["page.html"][:15], len(made) > 6) == (b"<!doctype html>", True)
    assert json.loads(made["values.json"])["provenance"]["store"] == URL
    assert not [*tmp_path.glob("s3:*")]


def test_what_cannot_be_reached_is_one_error(
    c3: C3, tmp_path: Path, s3: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("C3_STORE", URL)
    whole_store(tmp_path / "disk")
    before = contents(tmp_path)

    def refused(said: str, *commands: str) -> None:
        for command in commands:
            result = c3(*command.split())
            assert (result.exit_code, "Traceback" in result.output) == (1, False), result.output
            assert said in " ".join(result.stderr.split()), command

    reading = ("verify", "means show", "gap-report", "index", "train-decoder", "split -o new")
    refused(f"There is no store at {URL}", *reading)
    refused(
        "s3://nowhere/m",
        "means save s3://nowhere/m --store disk",
        "gap-report --store disk --html s3://nowhere/m",
    )
    s3.every, s3.answer = 1, "403 Forbidden"
    refused("credentials", *reading)
    refused("s3://bucket/m", "means save s3://bucket/m --store disk")
    monkeypatch.setitem(sys.modules, "upath", None)
    refused('"s3fs>=', *reading)
    assert contents(tmp_path) == before
