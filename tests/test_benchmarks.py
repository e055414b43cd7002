"""The benchmarks whose tables the documentation shows still run; on small data, so that their figures mean nothing."""

from __future__ import annotations

import importlib
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from .conftest import unit_rows
from .encoders.test_loading import local_model
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


@pytest.mark.parametrize("how", [["auto", "openvino:int8"], ["auto", "torch:fp32"]])
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
    monkeypatch.setattr(benchmark, "what_limits", lambda *_: "a sentence")
    monkeypatch.setattr(benchmark, "c3_embed", embed)
    (tmp_path / "photos-of-the-user").mkdir()
    photos = tmp_path / "photos-of-the-user"
    arguments = Namespace(folder=photos, count=1, rounds=1, how=how, model=None, peer=None, before=None)
    benchmark.measure(arguments, tmp_path)
    said = capsys.readouterr().out
    assert said.count("smallest cosine with torch:fp32") == len({*how, "torch:fp32"})


def test_what_limits_is_a_sentence_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    measuring = importlib.import_module("measuring")
    for name, rate in {"matrix_product": 1e12, "copy_bandwidth": 2e10}.items():
        monkeypatch.setattr(measuring, name, lambda *_, rate=rate: rate)
    said = measuring.what_limits(local_model(tmp_path / "m"), "image", 100.0, "fp32", 32)
    assert re.search(r"100\.0 images/s in fp32 are \d+ GFLOP/s .* \d+% of this machine's .* GB/s, \d+% of", said)
    flops, weights = measuring.operations("c3-mini", "image")
    assert 1.5e9 < flops < 3e9  # EfficientNet-Lite0: 0.41 G multiply-adds at 224 pixels
    assert 4 * 3e6 < weights < 4 * 6e6


def test_an_old_commit_can_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    measuring = importlib.import_module("measuring")
    if not (measuring.ROOT / ".git").exists():
        pytest.skip("not a checkout")
    source = measuring.checkout("HEAD", tmp_path / "before")
    done = measuring.run([*measuring.C3, "--version"], env=measuring.os.environ | {"PYTHONPATH": str(source)})
    assert done.stdout.startswith("c3tools ")
    where = [measuring.sys.executable, "-P", "-c", "import c3tools, c3tools.cli; print(c3tools.cli.__file__)"]
    said = measuring.run(where, env=measuring.os.environ | {"PYTHONPATH": str(source)}).stdout.strip()
    assert said == str(source / "c3tools" / "cli" / "__init__.py")


def test_what_a_gpu_is_for_runs_on_a_cpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("gpu")
    monkeypatch.setattr("sys.argv", ["gpu.py", "--device", "cpu", "--small"])
    benchmark.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert {len(row) for row in rows} == {4}
    found = {what: float(value.replace(",", "")) for _, what, value, _ in rows}
    assert found["agreement of photos, c3-mini, fp32"] == pytest.approx(1, abs=1e-5)
    assert found["agreement of captions with the CPU"] == 100
    assert all(value > 0 for value in found.values())
    if not torch.cuda.is_available():
        monkeypatch.setattr("sys.argv", ["gpu.py"])
        with pytest.raises(SystemExit, match="no CUDA GPU"):
            benchmark.main()


def test_what_collapse_adds_is_compared_on_the_same_heads_decoders_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("gap_and_sigma")
    rng = np.random.default_rng(0)
    # 3 seeds of heads, 2 of decoders, 50 images: C3 adds 2 at one scale and 5 at the other, everywhere
    without = rng.normal(40, 20, size=(3, 2, 50))
    cells = {scale: [np.array([each, each + gain]) for each in without] for scale, gain in {"14": 2, "100": 5}.items()}
    gaps = {scale: [0.1, 0.2, 0.3] for scale in cells}
    sigmas = {(scale, name): [0.1, 0.1, 0.1] for scale in cells for name in benchmark.METHODS}
    headings, rows = benchmark.table(gaps, sigmas, cells)
    assert [row[-2:] for row in rows] == [["+2.0", "2.0 to 2.0"], ["+5.0", "5.0 to 5.0"], ["+3.0", "3.0 to 3.0"]]
    means = without.mean(axis=2)
    assert rows[0][headings.index("C2_2")] == f"{means.mean():.1f} ± {means.std(ddof=1):.1f}"
    cells["100"][0][1] += np.arange(50)
    assert benchmark.table(gaps, sigmas, cells)[1][1][-1] != "5.0 to 5.0"
