"""The benchmarks whose tables the documentation shows still run; on small data, so that their figures mean nothing."""

from __future__ import annotations

import importlib
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from .conftest import unit_rows
from .stores import whole_store

FOLDER = Path(__file__).parents[1] / "benchmarks"


def test_the_table_of_presets_has_numbers_in_every_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("preset_table")
    header, _, *rows = benchmark.table(unit_rows(120, 16, 1), unit_rows(120, 16, 2), 2)
    assert len(rows) == len(benchmark.PRESETS)
    for row in rows:
        cells = row.strip("| ").split(" | ")
        assert len(cells) == header.count("|") - 1
        assert all(re.fullmatch(r"-?\d+\.\d+ ± \d+\.\d+", cell) for cell in cells[1:])


def test_the_table_of_biases_has_a_line_for_each_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("index_recall")
    benchmark.print_bias(whole_store(tmp_path / "store", images=60), split="val")
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(benchmark.BIAS_PRESETS)


@pytest.mark.parametrize("how", [["auto", "torch:int8"], ["auto", "torch:fp32"]])
def test_embedding_is_always_compared_with_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: list[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("embed_images")

    def embed(_: object, store: Path, *options: object) -> tuple[dict[str, Any], SimpleNamespace]:
        whole_store(store)
        return {"backend": "torch", "precision": "fp32", "modalities": {"image": {"rate": 2.0}}}, SimpleNamespace(
            seconds=1.0
        )

    monkeypatch.setattr(benchmark, "random_weights", lambda path: path)
    monkeypatch.setattr(benchmark, "child_rate", lambda *_: 2.0)
    monkeypatch.setattr(benchmark, "c3_embed", embed)
    (tmp_path / "photos-of-the-user").mkdir()
    photos = tmp_path / "photos-of-the-user"
    arguments = Namespace(folder=photos, count=1, rounds=1, how=how, model=None, peer=None)
    benchmark.measure(arguments, tmp_path)
    said = capsys.readouterr().out
    assert said.count("smallest cosine with torch:fp32") == len({*how, "torch:fp32"})
