"""What commands make and print, each once; rooms test their verbs."""

from __future__ import annotations

import csv
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from typer.testing import Result

from c3tools import Captioner, ConnectedHeads, Index, Pipeline, Store, evaluate_captions, machine
from tests.conftest import C3, make_store, unit_rows
from tests.stores import make_vectors, unit, whole_store

from ..captioning.conftest import TOY, make_captions_store, trained_captioner
from ..connect.photos import save_photos, save_tiny_clip

QUICK = ("--size", "tiny", "--epochs", "1", "--precision", "fp32")


def done(result: Result) -> Result:
    assert result.exit_code == 0, result.output
    return result


def as_json(result: Result) -> Any:
    return json.loads(done(result).stdout)


def test_photos_are_embedded_without_options_and_continued(
    c3: C3, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = done(c3("embed", photos, "--workers", 0)).stderr
    assert "c3-mini" in said
    assert "--model ViT-B-32/openai" in " ".join(said.split())
    store = Store.open(tmp_path / "c3-store")
    assert (store.count("image"), store.count("text")) == (4, 20)
    assert as_json(c3("embed", photos, "--json", "--workers", 0))["modalities"]["image"]["already"] == 4
    (photos / "broken.jpg").write_text("no")
    assert "1 input was not embedded" in done(c3("embed", photos, "--workers", 0)).stdout
    assert c3("embed", photos, "--strict", "--workers", 0).exit_code == 1
    monkeypatch.setenv("C3_STORE", "elsewhere")
    (tmp_path / "t.txt").write_text("a dog\na cat\n")
    done(c3("embed", "t.txt"))
    assert Store.open(tmp_path / "elsewhere").modalities == ["text"]


def test_vectors_are_imported_and_left_out_rows_are_listed(c3: C3, tmp_path: Path) -> None:
    images, texts = make_vectors(8)
    images[2, 5] = np.nan
    np.save("i.npy", images * 2)
    np.save("t.npy", texts[::2])
    said = " ".join(done(c3("import", "--image", "i.npy", "--text", "t.npy", "--model", "ImageBind")).stderr.split())
    assert "row i was paired with row i" in said
    assert "1 row was left out" in said and "NaN" in said
    assert "Imported 7 image, 8 text rows into c3-store (7 pairs)" in said
    store = Store.open("c3-store")
    np.testing.assert_allclose(store.load("text").embeddings, texts[::2], atol=1e-3)
    assert store.info.model["name"] == "ImageBind"
    np.save("a.npy", unit(texts[1::2]))
    done(c3("import", "--image", "i.npy", "--other", "audio=a.npy", "--keep-norms", "--store", "kept"))
    assert Store.open("kept").modalities == ["image", "audio"]
    assert not Store.open("kept").info.normalised


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float16", 2e-4)])
def test_imported_clip_embeddings_have_the_published_numbers(
    c3: C3, shared_data: Path, dtype: str, tolerance: float
) -> None:
    folder = shared_data / "clip_embeddings" / "coco_val2017_vitb16_500"
    image, text = folder / "image.npy", folder / "text.npy"
    done(c3("import", "--image", image, "--text", text, "--dtype", dtype))
    values = as_json(c3("gap-report", "--presets", "raw", "--json"))
    x, y = unit(np.load(image)), unit(np.load(text))
    cosines, difference = x @ y.T, x - y
    off = ~np.eye(500, dtype=bool)
    num = (1 - np.trace(cosines) / 500) / 2
    within = [(1 - (rows @ rows.T)[off].mean()) / 2 for rows in (x, y)]
    retrieval = values["retrieval"]["raw"]
    for found, expected, published in (
        (values["gap"]["length"], np.linalg.norm(difference.mean(axis=0)), 0.8514),
        (values["gap"]["rmg"], num / (num + np.mean(within)), 0.5915),
        (values["pairs"]["paired_cosine"], np.diag(cosines).mean(), 0.310),
        (values["pairs"]["unpaired_cosine"], cosines[off].mean(), 0.162),
        (values["pairs"]["residual_rms"], np.sqrt(difference.var(axis=0).mean()), 0.0358),
        (retrieval["image_to_text"]["recall@1"], (cosines.argmax(1) == np.arange(500)).mean(), 0.552),
        (retrieval["text_to_image"]["recall@1"], (cosines.argmax(0) == np.arange(500)).mean(), 0.506),
    ):
        assert found == pytest.approx(expected, abs=tolerance)
        assert found == pytest.approx(published, abs=10.0 ** -len(str(published).split(".")[1]) / 2 + tolerance)


def test_a_report_is_a_verdict_or_all_tables_or_json(c3: C3, here: Path) -> None:
    short = done(c3("gap-report", "--presets", "raw"))
    full = done(c3("gap-report", "--presets", "raw", "--full", "--figures", "figures"))
    questions = ("Is there a modality gap?", "Will Collapse help?", "Will Corrupt help?", "Is anything unusual?")
    page = (here / "gap-report.html").read_text()
    assert all(words in text for words in questions for text in (short.stdout, full.stdout, page))
    assert ("gap length" in short.stdout, "gap length" in full.stdout) == (False, True)
    assert len(list((here / "figures").iterdir())) > 4
    (here / "gap-report.html").unlink()
    values = as_json(c3("gap-report", "--json"))
    assert not (here / "gap-report.html").exists()
    keys = {"n", "dim", "effective_dimension", "effective_rank", "participation_ratio", "mean_norm"}
    assert all(keys <= measured.keys() for measured in values["modalities"].values())
    assert {"length", "instance_distance", "rmg"} <= values["gap"].keys()
    assert {"n", "paired_cosine", "unpaired_cosine", "residual_rms"} <= values["pairs"].keys()
    for preset in ("raw", "c2-collapse"):
        assert {"recall@1", "recall@5", "recall@10"} <= values["retrieval"][preset]["image_to_text"].keys()
    compared = as_json(c3("gap-report", "c3-store", "c3-store", "--json"))
    assert len(compared["stores"]) == 2


def test_an_export_and_its_options(c3: C3, here: Path) -> None:
    result = done(c3("export", "--json"))
    assert json.loads(result.stdout)["rows"]["text"] == {"training": 120, "inference": 60}
    assert "text: 180 rows, 120 of them as training inputs" in result.stderr
    assert "already finished" in done(c3("export", "--workers", 1)).stderr
    options = ("--sigma", "0.1", "--seed", 3, "--epoch", 2, "--role", "training", "--dtype", "float32")
    done(
        c3("export", "-p", "c2-corrupt", "-f", "npy", "--modality", "image", "--train-on", "image", *options, "-o", "x")
    )
    assert np.load(next((here / "x").rglob("*.npy"))).shape[1] == 16
    assert Pipeline.load("x").sigma == 0.1
    assert "Indexed 180 rows as Flat" in done(c3("export", "-f", "faiss", "--modality", "text", "-o", "f")).stderr
    raw = Store.open("c3-store").load("text").embeddings[:5]
    assert Index.open("f").nearest(raw, "text", 1)[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert {"c1", "c3", "decap"} <= {entry["name"] for entry in as_json(c3("export", "--list", "--json"))}


def test_an_index_and_searches(c3: C3, here: Path) -> None:
    result = done(c3("index", "IVF4,Flat", "--split", "train", "--shard-rows", 100, "--recall", 0.9, "--json"))
    report = json.loads(result.stdout)
    assert (report["factory"], report["rows"], len(report["shards"])) == ("IVF4,Flat", 180, 2)
    assert "text queries: the share of text rows among the 10 nearest is 1.00 before centring" in result.stderr
    assert "Indexed 270 rows as Flat in c3-index" in done(c3("index", "--rebuild")).stderr
    assert "There are no new rows for c3-index" in done(c3("index")).stderr
    lines = [line.split() for line in done(c3("search", "--key", "img004#0", "-k", 1)).stdout.splitlines()]
    assert [line[1:3] for line in lines] == [["image", "img004"], ["text", "img004#0"]]
    np.save("q.npy", make_vectors(90)[0][:4])
    query = ("--vector", "q.npy", "--modality", "image", "--in", "text", "-k", 2)
    found = as_json(c3("search", *query, "--html", "page.html", "--json"))
    assert [{hit["key"] for hit in entry["hits"]} for entry in found] == [
        {f"img{i:03d}#0", f"img{i:03d}#1"} for i in range(4)
    ]
    assert "caption 0 of image 3" in (here / "page.html").read_text()


def test_a_decoder_is_trained_continued_and_replaced_if_asked(c3: C3, tmp_path: Path) -> None:
    _, world = make_captions_store(tmp_path / "c3-store", splits=False)
    command = ("train-decoder", *QUICK, "--sigma", "0.1")
    result = done(c3(*command, "--set", "dropout=0.3", "--json", "run.json"))
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["model"], record["preset"], record["sigma"], record["dim"]) == (TOY, "c3", 0.1, 32)
    assert (record["captions"], record["changes"]) == ({"train": 144, "val": 16}, ["dropout=0.3"])
    assert "There is no val split" in result.stderr
    assert "(kept)" in result.stdout
    captioner = Captioner.load(tmp_path / "c3-decoder")
    assert captioner.to_dict() == record
    assert len(captioner.caption(embeddings=world.images.embeddings[:1])) == 1
    first = (tmp_path / "c3-decoder" / "weights.safetensors").read_bytes()
    assert "there is nothing to do" in done(c3(*command, "--set", "dropout=0.3")).stderr
    refused = c3(*command, "--seed", 1)
    assert (refused.exit_code, "seed 0, not 1" in " ".join(refused.stderr.split())) == (1, True)
    assert (tmp_path / "c3-decoder" / "weights.safetensors").read_bytes() == first
    done(c3(*command, "--seed", 1, "--overwrite"))
    assert (tmp_path / "c3-decoder.previous" / "weights.safetensors").read_bytes() == first
    done(c3("train-decoder", "--from", "c3-decoder", "--pairs", 0.5, "--epochs", 1, "-o", "tuned"))
    assert Captioner.load(tmp_path / "tuned").record["from"] == "c3-decoder"
    assert not list(tmp_path.glob(".*"))


def test_captions_are_written_in_every_form_and_only_added_to(c3: C3, photos: Path, tmp_path: Path) -> None:
    first = min(photos.glob("*.jpg"))
    (photos / "broken.jpg").write_bytes(b"no image")
    first.with_suffix(".txt").write_text("my own words\n")
    command = ("caption", photos, "--json", "a.json", "--csv", "a.csv", "--txt", "--xmp", "--html", "a.html")
    result = c3(*command)
    assert (result.exit_code, "1 of 5 files could not be read" in " ".join(result.stderr.split())) == (1, True)
    rows = json.loads((tmp_path / "a.json").read_text())
    assert [row["path"] for row in rows] == [str(path) for path in sorted(photos.glob("0*.jpg"))]
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
    for row in rows[1:]:
        assert Path(row["path"]).with_suffix(".txt").read_text() == row["caption"] + "\n"
        assert row["caption"] in Path(row["path"]).with_suffix(".xmp").read_text()
    assert first.with_suffix(".txt").read_text() == "my own words\n"
    assert (tmp_path / "a.html").read_text().count("data:image/jpeg") == 4
    (photos / "broken.jpg").unlink()
    assert "4 of 4 captions already existed" in done(c3(*command)).stderr
    assert c3(*command, "--beams", 2).exit_code == 1
    assert json.loads((tmp_path / "a.json").read_text()) == rows


def test_embeddings_are_captioned_without_an_encoder_and_scored(c3: C3, workplace: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    store = Store.open("c3-store")
    expected = trained_captioner().caption(embeddings=store.load("image").embeddings)
    np.savez("two.npz", photos=store.load("image").embeddings, others=unit_rows(3, 32))
    for options in (("c3-store",), ("two.npz", "--key", "photos")):
        rows = as_json(c3("caption", "--embeddings", *options, "--json"))
        assert [row["caption"] for row in rows] == expected
    done(c3("evaluate", "--json", "scores.json", "--coco", "coco.json"))
    scores = json.loads((workplace / "scores.json").read_text())
    assert scores == evaluate_captions(store, decoder=trained_captioner()).to_dict()
    assert len(json.loads((workplace / "coco.json").read_text())) == 16


def test_a_table_names_the_command_of_each_row_and_keeps_finished_cells(c3: C3, workplace: Path) -> None:
    pytest.importorskip("pycocoevalcap")
    quick = ("--size", "tiny", "--epochs", "1", "--precision", "fp32", "--seeds", "1")
    done(c3("ablate", "--methods", "C1,C3", *quick, "--sigma", "0.1", "--json", "runs.json"))
    rows = json.loads((workplace / "runs.json").read_text())
    assert sorted((row["method"], row["seed"], row["sigma"]) for row in rows) == [("C1", 0, 0.0), ("C3", 0, 0.1)]
    assert all("CIDEr" in row["scores"] for row in rows)
    commands = [
        line.strip() for line in (workplace / "c3-ablation" / "table.md").read_text().splitlines() if "$" in line
    ]
    assert len(commands) <= 3
    again = as_json(c3(*rows[1]["command"].split()[1:], "-o", "elsewhere", "--json"))
    assert [row["scores"] for row in again] == [rows[1]["scores"]]
    more = c3("ablate", "--methods", "C1,C3,CLIPRe", *quick, "--sigma", "0.1", "--json")
    assert done(more).stderr.count("already finished") == 2
    assert all(name in done(c3("ablate", "--list")).stdout for name in ("C2_1", "CapDec", "paired", "LAFITE"))


def test_heads_and_towers_are_connected(c3: C3, workplace: Path) -> None:
    heads = ("connect", "heads", "--dim", 16, "--hidden", 32, "--batch-size", 40, "--epochs", 2, "--precision", "fp32")
    done(c3(*heads, "--json", "run.json"))
    record = json.loads((workplace / "run.json").read_text())
    assert record["pairs"]["train"] == 112
    assert "there is nothing to do" in done(c3(*heads)).stderr
    done(c3("connect", "apply", "-o", "connected"))
    store = Store.open("connected")
    assert store.info.model["weights_sha256"] == ConnectedHeads.load("c3-heads").sha256
    assert store.load("text").captions == Store.open("c3-store").load("text").captions
    save_photos(workplace / "photos", 4)
    tiny = save_tiny_clip(workplace / "tiny")
    quick = ("--epochs", 1, "--batch-size", 16, "--precision", "fp32", "--patience", 0)
    done(c3("connect", "lit", "photos", "--model", tiny, *quick))
    done(c3("embed", "photos", "--model", "local-dir:c3-model", "--store", "lit", "--backend", "torch", "--workers", 0))
    assert Store.open("lit").count("image") > 8


def test_moments_are_shown_saved_loaded_and_merged(c3: C3, tmp_path: Path) -> None:
    make_store(tmp_path / "c3-store", unit_rows(20, 8), unit_rows(30, 8))
    assert "Length of the modality gap" in c3("means").stdout
    for name in ("m", "n"):
        done(c3("means", "--save", f"{name}.safetensors"))
    merge = ("--merge", "m.safetensors", "--merge", "n.safetensors", "--save", "two.safetensors")
    assert as_json(c3("means", *merge, "--json")) == {"output": "two.safetensors", "rows": {"image": 40, "text": 60}}
    done(c3("means", "--load", "two.safetensors"))
    rows = as_json(c3("means", "--json"))["means"]
    assert [row["n"] for row in rows if row["source"] != "store"] == [40, 60]
    done(c3("means", "--unload"))
    assert {row["source"] for row in as_json(c3("means", "--json"))["means"]} == {"store"}


def test_verify_has_an_exit_code_for_damage(c3: C3, tmp_path: Path) -> None:
    shard = whole_store(tmp_path / "c3-store").path / "text" / "part-00001.parquet"
    whole = done(c3("verify"))
    assert "c3-store is complete and undamaged." in whole.stdout
    assert "text: 60 rows in 3 shards, rows read" in whole.stdout
    assert "of 1 shards read" in c3("verify", "--sample").stdout
    assert "of 2 shards read" in c3("verify", "--sample", "0.5", "--seed", 3).stdout
    shard.unlink()
    result = c3("verify", "--store", "c3-store", "--json", "-")
    assert result.exit_code == 3
    value = json.loads(result.stdout)
    assert value["whole"] is False
    assert any("part-00001" in str(finding) for finding in value["findings"])
    assert c3("verify", "--repair").exit_code == 3  # until it is made again


def test_stores_are_split_and_merged(c3: C3, workplace: Path) -> None:
    assert done(c3("split", "new", "--fractions", "0.5,0.25,0.25")).exit_code == 0
    assert set(Store.open("new").split_counts("image")) == {"train", "val", "test"}
    done(c3("merge", "both", "c3-store", "other", "--prefix"))
    assert Store.open("both").count("image") == 160


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("init-gap", "--toy", "--seeds", 2), "closed form"),
        (("depth", "--width", 16, "--layers", 4, "--rows", 50, "--every", 2), "eff. dim"),
        (("gap-after-training", "--pairs", 12, "--dim", 16, "--spans", 3, 5, "--steps", 40, "--every", 20), "loss"),
        (("stable-region", "--pairs", 30, "--dim", 16), "The lead is in proportion to tau:"),
        (("temperature", "--steps", 2, "--scale", 5, "--scale", 50, "--batch", 16), "logit scale"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_simulation_prints_a_table_and_draws_a_figure(
    c3: C3, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    shown = " ".join(done(c3("simulate", *arguments)).stdout.split())
    assert words in shown and "The paper:" in shown
    assert (tmp_path / f"simulate-{arguments[0]}.svg").read_text().startswith("<?xml")
    before = sorted(tmp_path.iterdir())
    assert isinstance(as_json(c3("simulate", *arguments, "--json")), dict)
    assert sorted(tmp_path.iterdir()) == before  # nothing is drawn beside JSON unless it is asked for


def test_models_and_the_machine_are_described(c3: C3) -> None:
    found = as_json(c3("models", "--json"))
    assert {model["name"] for model in found[1:]} == {"/".join(pair) for pair in open_clip.list_pretrained()}
    assert (found[0]["name"], found[0]["dim"], found[0]["here"]) == ("c3-mini", 256, True)
    named = done(c3("models", "xlm-roberta-BASE")).stdout
    assert "xlm-roberta-base-ViT-B-32" in named
    described = as_json(c3("info", "--json"))
    assert described["packages"]["torch"] == importlib.metadata.version("torch")
    assert described["devices"][-1]["auto"] in described["devices"][-1]["precisions"]
    assert "c3tools" in done(c3("info")).stdout


def test_an_extra_lists_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=1.26", 'no-such-package>=1; extra == "cloud"', 'numpy>=1; extra == "yaml"', 'x; extra == "dev"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert machine.missing_by_extra() == {"cloud": ["no-such-package"], "yaml": []}
