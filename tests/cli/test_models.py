from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest

from c3tools.encoders import models
from tests.conftest import C3


def test_every_listed_model_is_one_that_open_clip_has(c3: C3) -> None:
    result = c3("models", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found[0] == {
        "name": "c3-mini",
        "dim": 256,
        "image_size": 352,
        "context_length": 77,
        "source": "bundled",
        "here": True,
    }
    assert {model["name"] for model in found[1:]} == {"/".join(pair) for pair in open_clip.list_pretrained()}
    by_name = {model["name"]: model for model in found}
    large = by_name["ViT-L-14-336/openai"]
    assert (large["dim"], large["image_size"], large["context_length"]) == (768, 336, 77)
    assert by_name["ViT-B-32/laion2b_s34b_b79k"]["source"] == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"


def test_names_are_searched_and_never_cut(c3: C3) -> None:
    result = c3("models", "xlm-roberta-BASE")
    assert result.exit_code == 0
    assert "c3-mini" not in result.stdout
    assert "local-dir:PATH" in result.stderr
    cells = [line.split("│")[1].strip() for line in result.stdout.splitlines() if line.startswith("│")]
    assert "".join(cells) == "xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k"


def test_weights_that_were_fetched_are_found(c3: C3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_DOWNLOADS", tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert c3("models", "ViT-B-32/openai", "--here").exit_code == 1
    (tmp_path / "ViT-B-32.pt").write_bytes(b"weights")
    found = c3("models", "ViT-B-32/openai", "--here", "--json")
    assert [model["name"] for model in json.loads(found.stdout)] == ["ViT-B-32/openai"]


def test_no_model_of_that_name_is_one_error(c3: C3) -> None:
    result = c3("models", "no-such-model")
    assert result.exit_code == 1
    assert "No model has 'no-such-model' in its name" in result.stderr
    assert "hf-hub:ORG/NAME" in result.stderr
