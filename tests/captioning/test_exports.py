"""Decoders that are trained on what `c3 export` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from c3tools import evaluate_captions, train_captioner
from c3tools.errors import StoreError, TransformError
from c3tools.export import export_store
from c3tools.store import Store
from c3tools.store.verify import verify_store
from c3tools.transforms import Pipeline
from tests.conftest import Messages

TINY: Any = {"size": "tiny", "epochs": 1, "precision": "fp32", "set": ["batch_size=32"]}


@pytest.fixture(scope="module")
def collapsed(captions_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished export, to which no noise was added."""
    folder = tmp_path_factory.mktemp("exports") / "collapsed"
    return export_store(captions_store, output=folder, preset="c2-collapse", dtype="float32").output


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"preset": "c2-collapse"}, {"dtype": "float32"}),
        ({"preset": "c3", "sigma": 0.1}, {"before_noise": True}),
    ],
    ids=["finished", "before-noise"],
)
def test_an_export_gives_the_weights_of_the_store(
    captions_store: Store, tmp_path: Path, settings: Any, options: Any
) -> None:
    export = export_store(captions_store, output=tmp_path / "export", **settings, **options).output
    own = train_captioner(export, output=tmp_path / "own", **TINY)
    train_captioner(captions_store, output=tmp_path / "other", **settings, **TINY)
    for name in ("weights.safetensors", "transform.safetensors", "tokenizer.json"):
        assert len({(tmp_path / folder / name).read_bytes() for folder in ("own", "other")}) == 1, (
            name
        )
    # it knows the whole pipeline: rows as the encoder gives them, and rows of the export, get the
    # same captions
    known = [
        evaluate_captions(store, decoder=own, resamples=0) for store in (captions_store, export)
    ]
    assert known[0].captions == known[1].captions


def test_what_contradicts_the_pipeline_of_an_export_is_refused_or_told(
    captions_store: Store, collapsed: Path, tmp_path: Path
) -> None:
    noised = export_store(captions_store, output=tmp_path / "noised", preset="c3", sigma=0.1).output
    cases: Any = {
        "its own sigma": (noised, {"sigma": 0.1}),
        "auto": (collapsed, {"sigma": "auto"}),
        "preset": (collapsed, {"preset": "c3"}),
    }
    for named, (store, options) in cases.items():
        with pytest.raises(TransformError, match=named):
            train_captioner(store, output=tmp_path / "d", **options, **TINY)
    with pytest.raises(TransformError, match="c2-collapse adds no noise"):
        export_store(
            captions_store, output=tmp_path / "none", preset="c2-collapse", before_noise=True
        )
    own = train_captioner(noised, output=tmp_path / "own", **TINY)
    asked: Any = {"--steer": {"steer": "magic"}, "CLIPScore": {"metrics": ["CLIPScore"]}}
    for option, given in asked.items():
        with pytest.raises(StoreError, match=rf"(?s)is an export\..*: {option} compare"):
            evaluate_captions(collapsed, decoder=own, **given)
    with pytest.raises(TransformError, match=r"c2-collapse, tag .* the decoder .* steps differ"):
        evaluate_captions(collapsed, decoder=own, resamples=0)
    # noise on a finished export is another method
    said = Messages()
    captioner = train_captioner(collapsed, sigma=0.05, output=tmp_path / "d", reporter=said, **TINY)
    assert any("0.05" in text and "--before-noise" in text for text in said.texts)
    assert [step.kind for step in captioner.pipeline.steps][-2:] == ["gaussian-noise", "normalize"]
    assert captioner.record["sigma"] == 0.05
    # sigma 0 asks for none
    said = Messages()
    plain = train_captioner(collapsed, sigma=0, output=tmp_path / "0", reporter=said, **TINY)
    assert not any("is added" in text for text in said.texts)
    assert not plain.pipeline.noisy


@pytest.mark.parametrize("with_pipeline", [True, False])
def test_rows_of_another_program_are_trained_on(
    captions_store: Store, collapsed: Path, tmp_path: Path, *, with_pipeline: bool
) -> None:
    rows, folder, said = Store.open(collapsed).load("text"), tmp_path / "rows", Messages()
    (folder / "text").mkdir(parents=True)
    columns = {
        "key": rows.keys,
        "embedding": rows.embeddings.tolist(),
        "caption": rows.captions,
        "split": rows.splits,
    }
    pq.write_table(pa.table(columns), folder / "text" / "part-00000.parquet")
    if with_pipeline:
        Pipeline.load(collapsed).save(folder)
    options: Any = {} if with_pipeline else {"preset": "c1"}
    own = train_captioner(folder, output=tmp_path / "own", reporter=said, **options, **TINY)
    assert not any("unfinished" in text for text in said.texts)
    with pytest.raises(StoreError, match="another program"):
        verify_store(folder)
    train_captioner(collapsed, output=tmp_path / "other", **TINY)
    weights = {(tmp_path / name / "weights.safetensors").read_bytes() for name in ("own", "other")}
    assert len(weights) == 1 or not with_pipeline  # c1 normalises unit rows again, which rounds
    expected = (captions_store.info.model, "c2-collapse") if with_pipeline else ({}, "c1")
    assert (own.record["model"], own.pipeline.name) == expected


def test_exports_for_other_programs_are_refused(captions_store: Store, tmp_path: Path) -> None:
    for form in ("npy", "safetensors", "hf"):
        export = export_store(
            captions_store, output=tmp_path / form, preset="c1", format=form
        ).output
        with pytest.raises(StoreError, match=rf"export to {form}.*\n.*-f parquet"):
            Store.open(export)
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"vector": [1.0]}), tmp_path / "text" / "part-00000.parquet")
    with pytest.raises(StoreError, match="embedding"):
        Store.open(tmp_path)
