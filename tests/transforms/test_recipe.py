"""Pipelines on disk and as plain data: the same again, damage found, mistakes named; and light to load."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from c3tools.errors import MissingExtraError, TransformError
from c3tools.transforms import Pipeline, preset
from c3tools.transforms.steps import (
    AdaptiveNoise,
    GaussianNoise,
    MemoryProjection,
    Normalize,
    Retrieval,
    Whiten,
)
from tests.golden import recorded
from tests.stores import assert_close

from .conftest import P

MODEL = {"name": "ViT-B-16/öpenai", "weights_sha256": "ab12"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pipeline = preset("c3").fit(P.moments, provenance={"model": MODEL, "split": "train"})
    return pipeline.save(tmp_path / "p")


def test_a_saved_pipeline_says_where_it_comes_from(saved: Path, tmp_path: Path) -> None:
    text = (saved / "transform.json").read_text("utf-8")
    record = json.loads(text)
    assert text == json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    assert record["provenance"] == {"model": MODEL, "split": "train", "n": {"image": 120, "text": 120}}
    assert [step["step"] for step in record["steps"]] == ["normalize", "collapse", "gaussian-noise", "normalize"]
    assert (record["dim"], record["steps"][2]["role"]) == (24, "training")
    loaded = Pipeline.load(saved / "transform.json")
    mean = loaded.steps[1].state["centre/text"]
    assert mean.dtype == np.float64
    assert_close(mean, P.y.mean(axis=0), 1e-15)
    loaded.save(tmp_path / "again")
    for name in ("transform.json", "transform.safetensors"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    recorded(Path(__file__).parent / "golden" / "card.json", loaded.card())
    with pytest.raises(TransformError, match="not fitted"):
        preset("c3").save(tmp_path / "unfitted")
    assert not (tmp_path / "unfitted").exists()


def test_damage_is_found(saved: Path) -> None:
    files = [(path := saved / f"transform.{suffix}", path.read_bytes()) for suffix in ("json", "safetensors")]
    (_, text), (_, arrays) = files
    damaged = [text.replace(b'"training"', b'"both"'), text[:-40], b'{"format": "other"}', None]
    for (path, whole), contents in zip(files, (damaged, [arrays[:-1] + b"x", arrays[:-8], None]), strict=True):
        for content in contents:
            path.write_bytes(content) if content else path.unlink()
            with pytest.raises(TransformError, match=path.name):
                Pipeline.load(saved)
        path.write_bytes(whole)


YAML = """
name: mine
steps:
  - normalize
  - step: collapse
    modalities: [text, image]
  - {step: gaussian-noise, sigma: 0.05}
  - step: normalize
"""


def test_yaml_and_json_mean_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.yaml").write_text(YAML)
    from_yaml = Pipeline.from_config(tmp_path / "p.yaml")
    (tmp_path / "p.json").write_text(json.dumps(from_yaml.config()))
    assert from_yaml.config() == Pipeline.from_config(str(tmp_path / "p.json")).config()
    collapse, noise = from_yaml.steps[1:3]
    found = (from_yaml.name, vars(collapse)["modalities"], vars(noise)["sigma"], noise.role)
    assert found == ("mine", ("text", "image"), 0.05, "training")
    for sigma in ("auto", "pairs"):
        assert Pipeline.from_config(preset("c3", sigma=sigma).config()).sigma == sigma
    (tmp_path / "p.json").write_text("{")
    with pytest.raises(TransformError, match=r"p\.json"):
        Pipeline.from_config(tmp_path / "p.json")
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingExtraError, match=r"c3tools\[yaml\]"):
        Pipeline.from_config(tmp_path / "p.yaml")


def test_settings_at_their_limits_are_accepted() -> None:
    steps = [Whiten(shrinkage=1), MemoryProjection(tau=0, neighbours=1, limit=1), Retrieval(neighbours=1)]
    for step in (*steps, AdaptiveNoise(mix=0), AdaptiveNoise(mix=1), GaussianNoise(0)):
        pipeline = Pipeline([Normalize(), step, Normalize()])
        assert Pipeline.from_config(pipeline.config()).config() == pipeline.config()


def test_mistakes_are_named(tmp_path: Path) -> None:
    for text, words in {
        "steps: [normalise]": r"'normalise'[\s\S]*normalize",
        "steps: [{step: gaussian-noise, sgima: 1}]": r"sgima[\s\S]*sigma",
        "steps: [{step: gaussian-noise, sigma: big}]": "sigma",
        "steps: [{step: gaussian-noise, role: both}]": "both",
        "steps: [{step: gaussian-noise, sigma: .inf}]": "inf",
        "steps: [{step: retrieval, tau: .nan}]": r"retrieval.*tau",
        "steps: [{step: retrieval, neighbours: 0}]": r"retrieval.*neighbours",
        "steps: [{step: whiten, shrinkage: 0}]": r"whiten.*shrinkage",
        "steps: [{step: whiten, shrinkage: 1.1}]": r"whiten.*shrinkage",
        "steps: [{step: adaptive-noise, mix: 1.1}]": r"adaptive-noise.*mix",
        "steps: [{step: collapse, modalities: text}]": "modalities",
        "stages: [normalize]": "steps|stages",
        "steps: [normalize]\nnoise: 1": "noise",
        "steps: [collapse, normalize]": "order",
        "- normalize": "object",
        "steps: [": "not valid YAML",
        "\xff": r"p\.yaml.*utf-8",
    }.items():
        (tmp_path / "p.yaml").write_text(text, "latin-1")
        with pytest.raises(TransformError, match=words):
            Pipeline.from_config(tmp_path / "p.yaml")
