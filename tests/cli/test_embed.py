from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from c3tools.encoders import Encoder, loading
from c3tools.store import Store
from tests.conftest import C3, make_store, unit_rows


@pytest.fixture(autouse=True)
def _one_encoder(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the bundled model once for all tests of this file; every other name takes the real path."""
    real = loading.load_encoder

    def load(model: str = "c3-mini", **options: Any) -> Encoder:
        return encoder if model == "c3-mini" and options.get("random_init") is None else real(model, **options)

    monkeypatch.setattr(loading, "load_encoder", load)


def test_a_folder_of_photos_without_options(c3: C3, photos: Path, tmp_path: Path) -> None:
    result = c3("embed", photos, "--workers", 0)
    assert result.exit_code == 0, result.output
    assert "c3-mini" in result.stderr
    assert "--model ViT-B-32/openai" in " ".join(result.stderr.split())
    store = Store.open(tmp_path / "c3-store")
    assert (store.count("image"), store.count("text")) == (4, 20)
    again = c3("embed", photos, "--json", "--workers", 0)
    value = json.loads(again.stdout)
    assert value["modalities"]["image"]["already"] == 4


def test_texts_alone_and_the_store_from_the_environment(
    c3: C3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.txt").write_text("a dog\na cat\n")
    monkeypatch.setenv("C3_STORE", "elsewhere")
    assert c3("embed", "t.txt").exit_code == 0
    assert Store.open(tmp_path / "elsewhere").modalities == ["text"]


def test_failures_are_told_and_strict_makes_them_an_exit_code(c3: C3, photos: Path) -> None:
    (photos / "broken.jpg").write_text("no")
    result = c3("embed", photos, "--workers", 0)
    assert result.exit_code == 0
    assert "1 input was not embedded" in result.stdout
    assert "1 image has no caption: broken" in result.stdout
    assert c3("embed", photos, "--strict", "--workers", 0).exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["empty"], "There are no images in empty"),
        (["photos", "--captions", "missing.json"], "The file missing.json does not exist"),
        (["t.jsonl", "--text-column", "alt"], "no column 'alt'; its columns are: text"),
        (["t.jsonl", "--model", "ViT-Z/none"], "There is no model"),
        (["t.jsonl", "--dtype", "int8"], "There is no dtype"),
        (["t.jsonl", "--store", "t.jsonl"], "is a file"),
        (["t.jsonl", "--store", "other"], "is of the model test-model"),
    ],
)
def test_bad_input_is_one_clear_error(c3: C3, photos: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "t.jsonl").write_text('{"text": "a dog"}\n')
    make_store(tmp_path / "other", unit_rows(2, 256), unit_rows(2, 256))
    if "other" in arguments:
        arguments = [*arguments, "--model", "c3-mini", "--dtype", "float32"]
    result = c3("embed", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_what_was_embedded_stays_when_a_later_run_fails(c3: C3, photos: Path, tmp_path: Path) -> None:
    c3("embed", photos, "--workers", 0)
    assert c3("embed", "nowhere").exit_code == 1
    assert Store.open(tmp_path / "c3-store").count("image") == 4
