from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from c3tools.captioning import Captioner
from c3tools.metrics import score_captions
from c3tools.store import Shard, Store, StoreInfo, create_store, write_shard

from .captions_store import TOY, make_captions_store

pytest.importorskip("pycocoevalcap")
C3 = Callable[..., Result]


@pytest.fixture
def store(c3: C3, tmp_path: Path) -> Store:
    return make_captions_store(tmp_path / "c3-store")[0]


def train(c3: C3) -> None:
    result = c3("train-decoder", "--sigma", "0.02", "--size", "tiny", "--epochs", "3", "--precision", "fp32")
    assert result.exit_code == 0, result.stderr


def references_of(store: Store) -> dict[str, list[str]]:
    rows = store.load("text", split="test")
    found: dict[str, list[str]] = {}
    for owner, caption in zip(rows.column("image_key"), rows.column("caption"), strict=True):
        found.setdefault(owner, []).append(caption)
    return found


def test_the_test_images_are_captioned_and_scored(c3: C3, store: Store, tmp_path: Path) -> None:
    train(c3)
    result = c3("evaluate", "--json", "scores.json", "--coco", "coco.json")
    assert result.exit_code == 0, result.stderr
    assert "16 captions" in result.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    captions = {row["key"]: row["caption"] for row in scores["captions"]}
    images = store.load("image", split="test")
    assert list(captions) == images.keys
    captioner = Captioner.load(tmp_path / "c3-decoder")
    assert list(captions.values()) == captioner.caption(images.embeddings)
    expected = score_captions(captions, references_of(store)).corpus
    assert scores["scores"] == pytest.approx(expected)
    for name, (low, high) in scores["intervals"].items():
        assert low <= expected[name] <= high
    results = json.loads((tmp_path / "coco.json").read_text())
    assert [row["caption"] for row in results] == list(captions.values())
    # what was written can be scored again, in both layouts
    for file in ("scores.json", "coco.json"):
        again = c3("evaluate", "--captions", file, "--json", "again.json")
        assert again.exit_code == 0, again.stderr
        assert json.loads((tmp_path / "again.json").read_text())["scores"] == pytest.approx(expected)


def test_perfect_captions_from_a_file_against_references_in_a_file(c3: C3, store: Store, tmp_path: Path) -> None:
    references = references_of(store)
    (tmp_path / "mine.json").write_text(json.dumps([{"key": k, "caption": v[0]} for k, v in references.items()]))
    (tmp_path / "theirs.jsonl").write_text(
        "".join(json.dumps({"image": f"{k}.png", "captions": v}) + "\n" for k, v in references.items())
    )
    for options in ((), ("--references", "theirs.jsonl", "--store", "none")):
        result = c3("evaluate", "--captions", "mine.json", *options, "--resamples", "0", "--json")
        assert result.exit_code == 0, result.stderr
        scores = json.loads(result.stdout)["scores"]
        assert scores["BLEU-4"] == pytest.approx(100, abs=1e-4)
        assert scores["ROUGE-L"] == pytest.approx(100)


def test_two_sets_of_captions_are_compared(c3: C3, store: Store, tmp_path: Path) -> None:
    references = references_of(store)
    (tmp_path / "good.json").write_text(json.dumps({k: v[0] for k, v in references.items()}))
    (tmp_path / "bad.json").write_text(json.dumps(dict.fromkeys(references, "a photo of something")))
    result = c3("evaluate", "--captions", "good.json", "--against", "bad.json", "--json", "out.json")
    assert result.exit_code == 0, result.stderr
    value = json.loads((tmp_path / "out.json").read_text())
    cider = value["differences"]["CIDEr"]
    assert cider["difference"] == pytest.approx(value["scores"]["CIDEr"], abs=5)
    assert cider["p_value"] < 0.01


def test_captions_without_references_are_listed(c3: C3, store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"elsewhere": "a dog", "image00": "a dog"}))
    result = c3("evaluate", "--captions", "mine.json")
    assert result.exit_code == 1
    assert "1 of 2 captions have no reference to be scored against: elsewhere" in " ".join(result.stderr.split())


def test_a_store_of_another_model_is_refused_with_both_names(c3: C3, store: Store, tmp_path: Path) -> None:
    train(c3)
    same = "toy-model (111111111111)"
    for name, changes, message in (
        ("other", {"weights_sha256": "2" * 64, "name": "other-model"}, f"of the model {same}, these embeddings of"),
        ("wider", {}, f"trained on embeddings of 32 dimensions ({same}); these have 5"),
    ):
        dim = 32 if changes else 5
        info = StoreInfo({**TOY, **changes}, dim, dtype="float32")
        create_store(tmp_path / name, info)
        columns = {"key": ["a"], "path": ["a.png"], "width": [1], "height": [1], "split": ["test"]}
        import numpy as np

        write_shard(tmp_path / name, info, Shard("image", 0, np.eye(1, dim, dtype=np.float32), columns))
        columns = {"key": ["a#0"], "caption": ["a dog"], "image_key": ["a"], "split": ["test"]}
        write_shard(tmp_path / name, info, Shard("text", 0, np.eye(1, dim, dtype=np.float32), columns))
        result = c3("evaluate", "--store", name)
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())


def test_a_missing_decoder_and_a_damaged_one_are_named(c3: C3, store: Store, tmp_path: Path) -> None:
    result = c3("evaluate")
    assert result.exit_code == 1
    assert "no trained decoder at c3-decoder" in " ".join(result.stderr.split())
    train(c3)
    train(c3)
    weights = tmp_path / "c3-decoder" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = c3("evaluate")
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "weights.safetensors is damaged or was cut short" in message
    assert "--decoder c3-decoder.previous" in message
    assert c3("evaluate", "--decoder", "c3-decoder.previous").exit_code == 0


def test_java_scores_are_added_or_said_to_be_missing(
    c3: C3, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({k: v[0] for k, v in references_of(store).items()}))
    options = ("evaluate", "--captions", "mine.json", "--json", "out.json", "--meteor", "--spice", "--resamples", "20")
    if shutil.which("java"):
        result = c3(*options)
        assert result.exit_code == 0, result.stderr
        value = json.loads((tmp_path / "out.json").read_text())
        assert value["scores"]["METEOR"] == pytest.approx(100, abs=1)
        assert "METEOR" in result.stdout
        assert value["intervals"]["METEOR"][0] <= value["scores"]["METEOR"] + 1e-9
    monkeypatch.setattr("c3tools.metrics.captions.shutil.which", lambda name: None)
    result = c3(*options)
    assert result.exit_code == 0, result.stderr
    value = json.loads((tmp_path / "out.json").read_text())
    assert "METEOR" not in value["scores"]
    assert "CIDEr" in value["scores"]
    assert "METEOR is left out: it runs in Java" in " ".join(result.stderr.split())


def test_images_without_captions_are_left_out_and_listed(c3: C3, store: Store, tmp_path: Path) -> None:
    train(c3)
    known = references_of(store)
    named = list(known)
    (tmp_path / "some.json").write_text(json.dumps({key: known[key] for key in named[3:]}))
    result = c3("evaluate", "--references", "some.json", "--json", "out.json", "--resamples", "0")
    assert result.exit_code == 0, result.stderr
    value = json.loads((tmp_path / "out.json").read_text())
    assert (value["n"], value["left_out"]) == (13, named[:3])
    assert f"3 images have no captions to score against and are left out: {', '.join(named[:3])}." in " ".join(
        result.stderr.split()
    )


def test_one_caption_only_is_scored_and_said(c3: C3, store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"image": "a dog"}))
    (tmp_path / "theirs.json").write_text(json.dumps({"image": ["a dog", "a brown dog"]}))
    result = c3("evaluate", "--captions", "mine.json", "--references", "theirs.json", "--json", "out.json")
    assert result.exit_code == 0, result.stderr
    scores = json.loads((tmp_path / "out.json").read_text())["scores"]
    assert scores["BLEU-2"] == pytest.approx(100, abs=1e-4)
    assert scores["CIDEr"] == 0
    assert "with one image it is 0" in " ".join(result.stderr.split())


def test_longer_beams_and_their_length_penalty(c3: C3, store: Store, tmp_path: Path) -> None:
    train(c3)
    for penalty, name in (("0", "short"), ("3", "long")):
        result = c3(
            "evaluate", "--beams", "4", "--length-penalty", penalty, "--resamples", "0", "--json", f"{name}.json"
        )
        assert result.exit_code == 0, result.stderr
    lengths = [
        sum(len(row["caption"]) for row in json.loads((tmp_path / f"{name}.json").read_text())["captions"])
        for name in ("short", "long")
    ]
    assert lengths[0] < lengths[1]
    both = c3("evaluate", "--beams", "4", "--magic")
    assert both.exit_code == 1
    assert "three ways to write a caption" in " ".join(both.stderr.split())


def test_an_empty_split_is_said(c3: C3, store: Store) -> None:
    train(c3)
    result = c3("evaluate", "--split", "restval")
    assert result.exit_code == 1
    assert "no images in the split 'restval'; it has test: 16, train: 56, val: 8" in " ".join(result.stderr.split())
