"""The benchmarks whose tables the documentation shows still run; on small data, so that their figures mean nothing."""

from __future__ import annotations

import importlib
import json
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from c3tools.store import Rows

from .conftest import build_store, unit_rows
from .encoders.test_loading import local_model
from .stores import two_texts_per_image, unit, whole_store

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
    found = benchmark.Found(gaps, sigmas, cells)
    headings, rows = benchmark.table(found)
    assert [row[-2:] for row in rows] == [["+2.0", "2.0 to 2.0"], ["+5.0", "5.0 to 5.0"], ["+3.0", "3.0 to 3.0"]]
    means = without.mean(axis=2)
    assert rows[0][headings.index("C2_2")] == f"{means.mean():.1f} ± {means.std(ddof=1):.1f}"
    cells["100"][0][1] += np.arange(50)
    assert benchmark.table(found)[1][1][-1] != "5.0 to 5.0"


def test_the_probe_is_the_regression_on_texts_with_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("word_probe")
    rng = np.random.default_rng(0)
    x, images = 0.7 * unit_rows(40, 64, 1).astype(float), unit_rows(9, 64, 2).astype(float)
    labels = (x @ rng.normal(size=(64, 3)) > 0).astype(float)
    for sigma in (0.05, 0.15):
        noised = np.repeat(x, 2000, axis=0)
        noised = benchmark.unit(noised + sigma * rng.normal(size=noised.shape))
        targets, mean = np.repeat(labels, 2000, axis=0), noised.mean(axis=0)
        centred = noised - mean
        weights = np.linalg.solve(centred.T @ centred, centred.T @ (targets - labels.mean(axis=0)))
        expected = (images - mean) @ weights + labels.mean(axis=0)
        apart = [
            np.sqrt(np.mean((benchmark.probe(x, labels, [images], s)[0] - expected) ** 2)) / expected.std()
            for s in (sigma, 0.3 * sigma)
        ]
        assert apart[0] < 0.06
        assert apart[1] > 0.2


def test_the_score_is_the_cosine_of_named_words_with_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("word_probe")
    words = np.array([[1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]], dtype=bool)
    idf = np.array([1.0, 2, 1, 3, 1, 2, 1])
    wanted = benchmark.tf_idf(words, np.array([0, 0, 1]), 2, idf)
    rates = np.array([[9.0, 8, 7, 6, 5, 0, 0], [9.0, 8, 7, 6, 5, 0, 0]])
    second = (3 * 3 + 1) / np.sqrt(16 * (9 + 1 + 4))  # words 3 and 4 of the second caption are named; 5 is not
    assert benchmark.named_scores(rates, idf, wanted) == pytest.approx([50 * (1 + second), 0])


def test_the_linear_denoiser_finds_the_noise_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("sigma_probe")
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(4000, 30)) * np.geomspace(0.3, 0.02, 30)
    covariance = np.cov(texts, rowvar=False)
    for sigma in (0.03, 0.08):
        found = benchmark.denoiser_sigma(covariance, texts + sigma * rng.normal(size=texts.shape), texts)
        assert found == pytest.approx(sigma, rel=0.06)


def test_the_factor_of_a_rule_comes_from_the_other_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("sigma_probe")
    sigmas = np.linspace(0, 0.3, 301)

    def encoder(best: float, base: float) -> Any:
        curve = dict.fromkeys(benchmark.METHODS, (50 - 1000 * (sigmas - best) ** 2)[None])
        return benchmark.Result(curve, curve, {rule: np.full((1, 1), base) for rule in benchmark.WITH_FACTOR})

    results = {"a": encoder(0.08, 0.04), "b": encoder(0.06, 0.03), "c": encoder(0.12, 0.04)}
    results["d"] = encoder(0.2, np.nan)
    found = benchmark.leave_one_out(results, list(sigmas))[benchmark.SPREAD]
    assert set(found) == {"a", "b", "c"}  # one without the rule neither tells nor is told the factor
    sigma, factor, lost = found["c"]
    assert factor == pytest.approx(2, rel=0.02)
    assert sigma == pytest.approx(0.08, rel=0.02)
    assert lost["C3"] == pytest.approx(100 * 1000 * (sigma - 0.12) ** 2 / 50, abs=0.05)
    assert 2 < found["a"][1] < 3
    cells = benchmark.summary({name: of[2] for name, of in found.items()})
    assert float(cells[-1].split(" / ")[1]) == pytest.approx(lost["C3"][0], abs=0.05)


def build_store_of_words(path: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Build a store of 240 images with two captions each, whose embeddings are sums of the words; return its rows."""
    rng = np.random.default_rng(0)
    nouns = [f"noun{i}" for i in range(12)]
    said = [sorted(rng.choice(12, 4, replace=False)) for _ in range(240)]
    means = 0.6 * np.array([np.eye(12, 16)[list(of)].sum(axis=0) for of in said])
    images = means + 0.15 * rng.normal(size=means.shape) + 0.5 * np.eye(16)[13]
    texts = np.repeat(means, 2, axis=0) + 0.1 * rng.normal(size=(480, 16)) - 0.5 * np.eye(16)[13]
    captions = [" ".join(nouns[word] for word in of) for of in said for _ in (0, 1)]
    splits = [("train", "train", "val", "test")[i % 4] for i in range(240)]
    pairs = two_texts_per_image(splits, unit(images).astype(np.float32), unit(texts).astype(np.float32))
    table = pairs[1].table.drop_columns(["caption"]).append_column("caption", pa.array([captions]).flatten())
    build_store(path, pairs[0], Rows("text", pairs[1].embeddings, table))
    return images, texts, captions


def test_collapse_is_compared_by_the_words_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("gap_and_sigma")
    build_store_of_words(tmp_path / "store")
    found, sigmas = benchmark.Found(), [0.0, 0.05, 0.1, 1.0]
    for _ in range(2):  # seeds of the heads
        found.gaps.setdefault("50", []).append(1.0)
        benchmark.name_words(found, "50", tmp_path / "store", sigmas)
    assert [each.shape for each in found.cells["50"]] == [(2, 1, 60)] * 2
    headings, rows = benchmark.curve_table(found, [f"{sigma:g}" for sigma in sigmas])
    assert headings == ["sigma", "logit scale 50"]
    assert [row[0] for row in rows] == ["0", "0.05", "0.1", "1"]
    assert min(float(score.split(" ")[0]) for score in benchmark.table(found)[1][0][4:6]) > 60
    # with one sigma to choose from, what Collapse adds is the difference of the two scores
    benchmark.name_words(found, "100", tmp_path / "store", [0.05])
    without, with_ = found.cells["100"][0]
    assert np.array_equal(found.curves["100"][0], with_ - without)
    assert np.array_equal(found.curves["100"][0][0], found.curves["50"][0][1])
    assert found.curves["100"][0].any()


def test_rules_of_sigma_are_compared_on_a_store_and_on_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module("sigma_probe")
    images, texts, captions = build_store_of_words(tmp_path / "store")
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "image.npy", images)
    np.save(folder / "text.npy", texts[::2])
    meta = [json.dumps({"row": i, "caption": captions[2 * i]}) for i in range(240)]
    (folder / "meta.jsonl").write_text("\n".join(meta))
    sweep = {"cider": {method: {"0": [1.0], "0.1": [5.0, 7.0], "0.25": [3.0]} for method in benchmark.METHODS}}
    (tmp_path / "sweep.json").write_text(json.dumps(sweep))
    arguments = [f"a store={tmp_path / 'store'}", str(folder), "--halves", "3", "--sigmas", "0,0.05,0.1,0.25"]
    arguments += ["--sweep", str(tmp_path / "sweep.json"), "--out", str(tmp_path / "probe.json")]
    monkeypatch.setattr("sys.argv", ["sigma_probe.py", *arguments])
    benchmark.main()
    lines = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    spread = [line for line in lines if line[0] == benchmark.SPREAD]
    assert [line[2] for line in spread[:2]] == ["–", "–"]  # a caption each: neither a sigma nor a loss
    captions_lose = {line[0]: line[2] for line in lines if len(line) == 3 and " / " in line[2]}
    assert captions_lose["0.25"].endswith("/ 50.0")
    saved = json.loads((tmp_path / "probe.json").read_text())
    assert np.shape(saved["a store"]["val"]["C3"]) == (3, 4)
    assert saved["arrays"]["rules"][benchmark.SPREAD] == [[None]] * 3
    # the words are in the embeddings, so they are found; two images with the same noise are no nearer than texts
    assert np.mean(saved["a store"]["test"]["C3"], axis=0).max() > 60
    spreads, cosines = (np.mean(saved["a store"]["rules"][rule]) for rule in (benchmark.SPREAD, benchmark.COSINE))
    assert spreads < cosines
