from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from c3tools.cli import app
from typer.testing import CliRunner, Result

from c3tools import Pipeline, Store
from c3tools.transforms.sigma import sigma_by_rule


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", *arguments])


def ok(*arguments: str) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def test_what_is_printed(here: Path) -> None:
    result = ok("--json")
    report = json.loads(result.stdout)
    assert report["rows"]["text"] == {"training": 120, "inference": 60}
    assert (report["output"], report["parts"], report["kept"]) == ("c3-export", 6, 0)
    assert "text: 180 rows, 120 of them as training inputs" in result.stderr
    assert 'c3tools.Pipeline.load("c3-export")' in result.stderr
    again = ok("--workers", "1")
    assert "6 files were already finished" in again.stderr


def test_options_reach_the_export(here: Path) -> None:
    options = ("--sigma", "0.1", "--seed", "3", "--epoch", "2", "--role", "training", "--dtype", "float32")
    ok("-p", "c2-corrupt", "-f", "npy", "--modality", "image", "--train-on", "image", *options)
    record = json.loads((here / "c3-export" / "export.json").read_text())
    settings = {"format": "npy", "dtype": "float32", "role": "training", "train_on": "image", "seed": 3, "epoch": 2}
    assert record["provenance"]["settings"] == settings
    assert record["rows"] == {"image": {"training": 90, "inference": 0}}
    assert Pipeline.load("c3-export").sigma == 0.1
    ok("-p", "c3", "--sigma", "auto", "-o", "c3-export", "--overwrite")
    assert Pipeline.load("c3-export").provenance["sigma"].endswith("from texts alone")
    result = ok("-p", "c3", "--sigma", "pairs", "-o", "c3-export", "--overwrite")
    pipeline = Pipeline.load("c3-export")
    assert pipeline.sigma == sigma_by_rule("pairs", Store.open("c3-store"))[0]
    assert "the cosine of 60 images outside the test split with their 120 captions." in " ".join(result.stderr.split())


def test_pairs_are_for_noise_on_texts(here: Path) -> None:
    message = refused("--sigma", "pairs", "--train-on", "image")
    assert "adds its noise to texts, but this one trains on image. For generators, use `c3 train-generator" in message


def test_faiss_index_of_a_preset(here: Path) -> None:
    pytest.importorskip("faiss", reason="faiss is an extra")
    from c3tools.index import Index

    assert "Indexed 180 rows as Flat" in ok("--format", "faiss", "--modality", "text").stderr
    raw = Store.open("c3-store").load("text").embeddings[:5]
    scores, rows = Index.open("c3-export").nearest(raw, "text", 1)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(scores, 1, atol=1e-5)
    assert Pipeline.load("c3-export").name == "c3"
    again = ok("-f", "faiss", "--modality", "text", "-p", "c1").stderr
    assert "Rebuilding c3-export: its pipeline is different." in again
    assert Pipeline.load("c3-export").name == "c1"
    part = here / "c3-export" / "part-00000.faiss"
    first = part.stat().st_mtime_ns
    ok("-f", "faiss", "--modality", "text", "-p", "c1")
    assert part.stat().st_mtime_ns == first
    ok("-f", "faiss", "--modality", "text", "-p", "c1", "--overwrite")
    assert part.stat().st_mtime_ns > first


@pytest.mark.parametrize(
    "option", ["--role=training", "--epoch=0", "--dtype=float16", "--workers=1", "--executor=local"]
)
def test_options_that_an_index_would_ignore_are_refused(here: Path, option: str) -> None:
    assert f"{option.partition('=')[0]} cannot be used with -f faiss" in refused("-f", "faiss", option)
    assert not (here / "c3-export").exists()


def test_list_of_presets(here: Path) -> None:
    names = [entry["name"] for entry in json.loads(ok("--list", "--json").stdout)]
    assert {"c1", "c3", "decap", "gr-clip"} <= set(names)
    assert "CapDec" in ok("--list").stdout


def test_mistakes_end_the_command_with_a_message(here: Path) -> None:
    assert "c3 embed" in refused("--store", "nowhere")
    assert not (here / "c3-export").exists()
    assert "no preset 'c4'" in refused("--preset", "c4")
    assert "There is no export format 'hdf5'" in refused("--format", "hdf5")
    assert "parquet, npy, safetensors, hf; faiss makes an index" in refused("--format", "csv")
    assert "sigma must be a number of at least 0, 'auto' or 'pairs', not 'much'" in refused("--sigma", "much")
    (here / "p.yaml").write_text("steps: [normalize]\n")
    assert "sigma can only be set for a preset" in refused("--pipeline", "p.yaml", "--sigma", "0.1")
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("keep")
    for option in ([], ["--overwrite"]):
        assert "contains other files (notes.txt), not a former export" in refused("-o", "mine", *option)
        assert "other files" in refused("-o", "c3-store", *option)


def test_an_interrupted_command_ends_with_130(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from c3tools.export.export import ExportWork

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ExportWork, "_block", interrupted)
    assert run("--workers", "1").exit_code == 130
