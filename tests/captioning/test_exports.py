"""Decoders that are trained on what `c3 export` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c3tools.captioning import Captioner, evaluate_captions, train_captioner
from c3tools.errors import DecoderError, TransformError
from c3tools.export import export_store
from c3tools.store import Store
from tests.conftest import Messages

TINY: dict[str, Any] = {"size": "tiny", "epochs": 1, "precision": "fp32", "set": ["batch_size=32"]}


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        ({"preset": "c2-collapse", "dtype": "float32"}, {"preset": "c2-collapse"}),
        ({"preset": "c3", "sigma": 0.1, "before_noise": True}, {"preset": "c3", "sigma": 0.1}),
    ],
    ids=["finished", "before-noise"],
)
def test_an_export_gives_the_weights_of_the_store(
    captions_store: Store, tmp_path: Path, options: dict[str, Any], settings: dict[str, Any]
) -> None:
    export = export_store(captions_store, tmp_path / "export", **options).output
    own = train_captioner(export, output=tmp_path / "own", **TINY)
    train_captioner(captions_store, output=tmp_path / "other", **settings, **TINY)
    for name in ("weights.safetensors", "transform.safetensors", "tokenizer.json"):
        assert (tmp_path / "own" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name
    # it knows the whole pipeline: rows as the encoder gives them, and rows of the export, get the same captions
    known = [evaluate_captions(store, decoder=own, split="test", resamples=0) for store in (captions_store, export)]
    assert known[0].captions == known[1].captions


def test_noise_on_a_finished_export_is_said_to_be_another_method(captions_store: Store, tmp_path: Path) -> None:
    export = export_store(captions_store, tmp_path / "export", preset="c2-collapse", dtype="float32").output
    said = Messages()
    captioner = train_captioner(export, sigma=0.05, output=tmp_path / "d", reporter=said, **TINY)
    assert any("0.05" in text and "--before-noise" in text for text in said.texts)
    assert [step.kind for step in captioner.pipeline.steps][-2:] == ["gaussian-noise", "normalize"]
    assert Captioner.load(tmp_path / "d").record["sigma"] == 0.05


def test_what_contradicts_the_pipeline_of_an_export_is_refused(captions_store: Store, tmp_path: Path) -> None:
    noised = export_store(captions_store, tmp_path / "noised", preset="c3", sigma=0.1).output
    plain = export_store(captions_store, tmp_path / "plain", preset="c2-collapse").output
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (noised, {"sigma": 0.1}, "its own sigma"),
        (plain, {"sigma": "auto"}, "auto"),
        (plain, {"preset": "c3"}, "preset"),
    ]
    for store, options, named in cases:
        with pytest.raises(DecoderError, match=named):
            train_captioner(store, output=tmp_path / "d", **options, **TINY)
    with pytest.raises(TransformError, match="c2-collapse adds no noise"):
        export_store(captions_store, tmp_path / "none", preset="c2-collapse", before_noise=True)
    train_captioner(noised, output=tmp_path / "own", **TINY)
    with pytest.raises(DecoderError, match="c2-collapse"):
        evaluate_captions(plain, decoder=tmp_path / "own", split="test", resamples=0)
