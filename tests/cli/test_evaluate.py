from __future__ import annotations

import json
from pathlib import Path

import pytest

from c3tools.captioning import evaluate_captions
from tests.conftest import C3

from ..captioning.conftest import make_captions_store, trained_captioner

pytest.importorskip("pycocoevalcap")


def test_the_test_images_are_captioned_and_scored(c3: C3, tmp_path: Path) -> None:
    store, _ = make_captions_store(tmp_path / "c3-store")
    trained_captioner().save(tmp_path / "c3-decoder")
    result = c3("evaluate", "--json", "scores.json", "--coco", "coco.json")
    assert result.exit_code == 0, result.stderr
    assert "16 captions" in result.stdout
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content == evaluate_captions(store, decoder=trained_captioner()).to_dict()
    captions = [row["caption"] for row in content["captions"]]
    assert [row["caption"] for row in json.loads((tmp_path / "coco.json").read_text())] == captions
    # what was written can be scored again, in both layouts
    for file in ("scores.json", "coco.json"):
        again = c3("evaluate", "--captions", file, "--against", "scores.json", "--resamples", "0", "--json")
        if file == "scores.json":
            assert again.exit_code == 0, again.stderr
            assert json.loads(again.stdout)["differences"]["CIDEr"]["difference"] == 0
        again = c3("evaluate", "--captions", file, "--resamples", "0", "--json")
        assert again.exit_code == 0, again.stderr
        assert json.loads(again.stdout)["scores"] == pytest.approx(content["scores"])


def test_notes_are_printed(c3: C3, tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text(json.dumps({"image": "a dog"}))
    (tmp_path / "theirs.json").write_text(json.dumps({"image": ["a dog", "a brown dog"]}))
    result = c3("evaluate", "--captions", "mine.json", "--references", "theirs.json", "--store", "none")
    assert result.exit_code == 0, result.stderr
    assert "with one image it is always 0" in " ".join(result.stderr.split())


def test_a_missing_decoder_and_a_damaged_one_are_named(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("evaluate", "--decoder", "other")
    assert result.exit_code == 1
    assert "no trained decoder at other" in " ".join(result.stderr.split())
    for _ in range(2):
        trained_captioner().save(tmp_path / "c3-decoder")
    weights = tmp_path / "c3-decoder" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = c3("evaluate")
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "weights.safetensors is damaged or was cut short" in message
    assert "--decoder c3-decoder.previous" in message
    assert c3("evaluate", "--decoder", "c3-decoder.previous").exit_code == 0


def test_two_ways_to_generate_captions_are_refused(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("evaluate", "--beams", "4", "--steer", "magic")
    assert result.exit_code == 1
    assert "exclude each other" in " ".join(result.stderr.split())
