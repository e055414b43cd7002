"""Whole models: their towers, what of them is trained, and what is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from c3tools import connect_towers, embed
from c3tools.connect.contrastive import TrainingSettings
from c3tools.connect.geometry import measure
from c3tools.connect.towers import TowersSettings
from c3tools.encoders import load_network
from c3tools.errors import C3Error, OutputError
from tests.bombs import slow_jpeg
from tests.conftest import Messages
from tests.golden import recorded

from .photos import save_photos, save_tiny_clip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_clip(tmp_path_factory.mktemp("tiny") / "m")


@pytest.mark.parametrize("mode", ["lit", "full"])
def test_a_model_is_trained_on_the_photos_that_can_be_decoded(
    tmp_path: Path, tiny: str, mode: str
) -> None:
    photos, said = save_photos(tmp_path / "photos"), Messages()
    broken = photos / "plain-red-3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    options: dict[str, Any] = {
        "mode": mode,
        "model": tiny,
        "precision": "fp32",
        "batch_size": 32,
        "chunk": 12,
    }
    options |= {"patience": 1, "seed": 5}
    connected = connect_towers(photos, output=tmp_path / "out", reporter=said, **options)
    record = connected.record
    before, after = (load_network(name).model.state_dict() for name in (tiny, connected.name))
    changed = {
        name.partition(".")[0]
        for name, value in before.items()
        if not torch.equal(value, after[name])
    }
    value = {
        name: record[name]
        for name in ("augment", "outcome", "pairs", "photos", "settings", "unreadable")
    }
    value |= {
        "changed": sorted(changed),
        "files": sorted(path.name for path in (tmp_path / "out").iterdir()),
    }
    value["log"] = json.loads((tmp_path / "out" / "geometry.json").read_text())["points"][:3]
    value["said"] = said.texts[0].replace(str(tmp_path), "")
    recorded(Path(__file__).parent / "golden" / f"{mode}.json", value, rel=2e-3)
    assert any(
        text.startswith(f"The training stopped early at step {record['steps']}")
        for text in said.texts
    )
    assert float(after["logit_scale"].exp()) == pytest.approx(record["logit_scale"], rel=1e-5)
    # the scores are those of what was written, as every command encodes it
    how: dict[str, Any] = {
        "backend": "torch",
        "precision": "fp32",
        "dtype": "float32",
        "workers": 0,
    }
    pairs = embed(photos, tmp_path / "c3-store", model=connected.name, **how).pairs(split="val")
    expected = measure(
        pairs.first.embeddings, pairs.second.embeddings, pairs.item_index, ("image", "text")
    )
    scores = record["scores"]["val"]
    cosine = pytest.approx(expected["paired_cosine"], abs=1e-5)
    assert (scores["paired_cosine"], scores["recall"]) == (cosine, expected["recall"])
    again = connect_towers(photos, output=tmp_path / "out", reporter=said, **options)
    assert again.record == record
    assert "nothing to do" in said.texts[-1]
    with pytest.raises(OutputError, match="--output"):  # the folder that a training starts from
        connect_towers(
            photos, output=tmp_path / "out", overwrite=True, **{**options, "model": connected.name}
        )


def test_a_photo_that_takes_too_long_to_decode_is_left_out(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, said = save_photos(tmp_path / "photos"), Messages()
    (photos / "plain-red-3.png").write_bytes(slow_jpeg())
    monkeypatch.setattr("c3tools.connect.towers.IMAGE_SECONDS", 2.0)
    connected = connect_towers(photos, output=tmp_path / "out", model=tiny, epochs=1, reporter=said)
    assert connected.record["unreadable"] == 1
    assert "plain-red-3.png (took longer than 2 s to decode" in said.texts[0]


def test_a_tokenizer_of_transformers_is_written_with_its_model(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    from tests.encoders.test_other_models import TEXTS, other_model

    model, photos = other_model(tmp_path / "siglip", "siglip"), save_photos(tmp_path / "photos", 3)
    connected = connect_towers(
        photos, output=tmp_path / "out", model=model, epochs=1, precision="fp32"
    )
    first, second = (load_network(name).tokenizer(TEXTS) for name in (model, connected.name))
    assert torch.equal(first, second)


def test_photos_without_captions_or_split_and_wrong_options_are_refused(
    tmp_path: Path, tiny: str
) -> None:
    photos, said = save_photos(tmp_path / "photos", 3), Messages()
    cases: Any = (
        (photos / "dark-red-0.png", {"model": None}, "'train'.*none"),
        (photos, {"train_split": "other"}, "test, train, val"),
        ("nowhere", {"mode": "half"}, "'half'"),
        ("nowhere", {"chunk": 0}, "chunk.*0"),
        ("nowhere", {"logit_scale": "x"}, "'x'"),
    )
    for paths, options, named in cases:
        with pytest.raises(C3Error, match=named):
            connect_towers(
                paths, output=tmp_path / "out", reporter=said, **{"model": tiny, **options}
            )
    assert "c3-mini" in said.texts[0]
    assert not (tmp_path / "out").exists()


@dataclass(frozen=True, kw_only=True)
class LaterTraining(TrainingSettings):
    """The settings of a training in a later version, which has one more."""

    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LaterTowers(TowersSettings):
    """The options of `connect_towers` in a later version, which has two more."""

    label_smoothing: float = 0.0
    crops: int = 1


def test_an_option_and_a_setting_that_are_added_disown_no_towers(
    tmp_path: Path, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = save_photos(tmp_path / "photos")
    messages = Messages()
    options: dict[str, Any] = {"model": tiny, "precision": "fp32", "epochs": 1, "batch_size": 32}
    connect_towers(photos, output=tmp_path / "out", **options)
    monkeypatch.setattr("c3tools.connect.towers.TrainingSettings", LaterTraining)
    monkeypatch.setattr("c3tools.connect.towers.TowersSettings", LaterTowers)
    connect_towers(photos, output=tmp_path / "out", reporter=messages, **options)
    assert "nothing to do" in messages.texts[-1]
