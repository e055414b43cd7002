from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.errors import MissingExtraError, TransformError
from c3tools.transforms import PRESETS, Collapse, GaussianNoise, Pipeline, preset

from .conftest import Pairs


@pytest.mark.parametrize("name", PRESETS)
def test_saved_and_loaded_pipelines_give_the_same_bits(name: str, pairs: Pairs, tmp_path: Path) -> None:
    pipeline = pairs.fit(preset(name, sigma=0.07))
    loaded = Pipeline.load(pipeline.save(tmp_path / "p"))
    for modality, rows in pairs.rows.items():
        assert (loaded.transform(rows, modality=modality) == pipeline.transform(rows, modality=modality)).all()
    names: dict[str, Any] = {"keys": pairs.keys, "items": pairs.items}
    noised = [p.transform(pairs.y, modality="text", training=True, **names, epoch=3) for p in (pipeline, loaded)]
    assert (noised[0] == noised[1]).all()
    assert (loaded.name, loaded.dim, loaded.provenance) == (pipeline.name, pipeline.dim, pipeline.provenance)


def test_saving_twice_gives_the_same_files(pairs: Pairs, tmp_path: Path) -> None:
    pipeline = preset("whiten").fit(pairs.moments)
    pipeline.save(tmp_path / "a")
    Pipeline.load(tmp_path / "a").save(tmp_path / "b")
    for name in ("transform.json", "transform.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert not list(tmp_path.glob("*/.*"))


def test_recipe_records_where_it_comes_from(pairs: Pairs, tmp_path: Path) -> None:
    model = {"name": "ViT-B-16/openai", "weights_sha256": "ab12"}
    preset("c3").fit(pairs.moments, provenance={"model": model, "split": "train"}).save(tmp_path)
    record = json.loads((tmp_path / "transform.json").read_text())
    assert record["provenance"] == {"model": model, "split": "train", "n": {"image": 120, "text": 120}}
    assert record["dim"] == 24
    assert [step["step"] for step in record["steps"]] == ["normalize", "collapse", "gaussian-noise", "normalize"]
    assert record["steps"][2]["role"] == "training"


class TestDamage:
    @pytest.fixture
    def saved(self, pairs: Pairs, tmp_path: Path) -> Path:
        return preset("c3").fit(pairs.moments).save(tmp_path / "p")

    def test_changed_setting(self, saved: Path) -> None:
        path = saved / "transform.json"
        text = path.read_text()
        assert '"role": "training"' in text
        path.write_text(text.replace('"role": "training"', '"role": "both"'))
        with pytest.raises(TransformError, match=r"transform\.json is not a valid .*checksum"):
            Pipeline.load(saved)

    def test_truncated_recipe(self, saved: Path) -> None:
        path = saved / "transform.json"
        path.write_text(path.read_text()[:-40])
        with pytest.raises(TransformError, match=r"transform\.json is not a valid"):
            Pipeline.load(saved)

    def test_changed_and_truncated_tensors(self, saved: Path) -> None:
        path = saved / "transform.safetensors"
        payload = path.read_bytes()
        for damaged in (payload[:-1] + bytes([payload[-1] ^ 1]), payload[:-8], b""):
            path.write_bytes(damaged)
            with pytest.raises(TransformError, match=r"transform\.safetensors is not a valid .*checksum"):
                Pipeline.load(saved)
        path.unlink()
        with pytest.raises(TransformError, match=r"transform\.safetensors is not a valid"):
            Pipeline.load(saved)

    @pytest.mark.parametrize(
        ("items", "message"),
        [
            (np.arange(119), r"'4/items' has shape \(119,\), but its memory \(120, 24\)"),
            (np.arange(120.0), "'4/items' belongs to no step"),
        ],
    )
    def test_items_that_are_not_those_of_the_memory(
        self, pairs: Pairs, tmp_path: Path, items: np.ndarray, message: str
    ) -> None:
        pipeline = pairs.fit(preset("c3-retrieval"))
        pipeline.steps[4].state["items"] = items
        with pytest.raises(TransformError, match=message):
            Pipeline.load(pipeline.save(tmp_path))

    def test_newer_version(self, saved: Path) -> None:
        path = saved / "transform.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
        with pytest.raises(
            TransformError, match=r"version 2, but this version of c3tools reads version 1[\s\S]*Upgrade"
        ):
            Pipeline.load(saved)

    @pytest.mark.parametrize("content", ["[]", "{}", '{"format": "other"}', "\x00"])
    def test_something_else(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "transform.json").write_text(content)
        with pytest.raises(TransformError, match="not a valid saved pipeline"):
            Pipeline.load(tmp_path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(TransformError, match=r"no saved pipeline at [\s\S]*c3 export"):
            Pipeline.load(tmp_path)


def test_unfitted_pipelines_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TransformError, match="not fitted"):
        preset("c3").save(tmp_path)
    assert not list(tmp_path.iterdir())


YAML = """
name: mine
steps:
  - normalize
  - step: collapse
    modalities: [text, image]
  - {step: gaussian-noise, sigma: 0.05}
  - step: normalize
"""


class TestConfig:
    def test_yaml_and_json_mean_the_same(self, tmp_path: Path) -> None:
        (tmp_path / "p.yaml").write_text(YAML)
        from_yaml = Pipeline.from_config(tmp_path / "p.yaml")
        (tmp_path / "p.json").write_text(json.dumps(from_yaml.config()))
        from_json = Pipeline.from_config(str(tmp_path / "p.json"))
        assert from_yaml.config() == from_json.config()
        assert from_yaml.name == "mine"
        collapse, noise = from_yaml.steps[1:3]
        assert isinstance(collapse, Collapse) and collapse.modalities == ("text", "image")
        assert isinstance(noise, GaussianNoise) and (noise.sigma, noise.role) == (0.05, "training")

    def test_every_preset_survives_its_config(self) -> None:
        for name in PRESETS:
            config = preset(name).config()
            assert Pipeline.from_config(config).config() == config

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("steps: [normalise]", r"unknown step 'normalise'[\s\S]*normalize"),
            ("steps: [{step: gaussian-noise, sgima: 1}]", r"unknown settings .*: sgima[\s\S]*sigma"),
            ("steps: [{step: gaussian-noise, sigma: big}]", r"sigma is 'big', not float"),
            ("steps: [{step: gaussian-noise, sigma: true}]", "sigma is True"),
            ("steps: [{step: memory-projection, limit: 1.5}]", "limit is 1.5, not int"),
            ("steps: [{step: collapse, modalities: text}]", "modalities is 'text'"),
            ("steps: [{step: normalize, role: always}]", "role 'always'"),
            ("stages: [normalize]", "no list of steps"),
            ("steps: [normalize]\nnoise: 1", "unknown keys noise"),
            ("steps: [collapse, normalize]", "in a wrong order"),
            ("- normalize", "not contain a mapping"),
            ("steps: [", "not valid YAML"),
            ("steps: !!python/object/apply:os.system [exit]", "not valid YAML"),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, text: str, words: str) -> None:
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(TransformError, match=words):
            Pipeline.from_config(tmp_path / "p.yaml")

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(TransformError, match="cannot be read as a pipeline"):
            Pipeline.from_config(tmp_path / "none.json")
        (tmp_path / "p.json").write_text("{")
        with pytest.raises(TransformError, match="not valid JSON"):
            Pipeline.from_config(tmp_path / "p.json")

    def test_without_pyyaml(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def blocked(name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "yaml":
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", blocked)
        (tmp_path / "p.yaml").write_text(YAML)
        with pytest.raises(MissingExtraError, match=r"c3tools\[yaml\]"):
            Pipeline.from_config(tmp_path / "p.yaml")


def test_tensors_are_kept_in_double_precision(pairs: Pairs, tmp_path: Path) -> None:
    preset("c3").fit(pairs.moments).save(tmp_path)
    mean = Pipeline.load(tmp_path).steps[1].state["mean/text"]
    assert mean.dtype == np.float64
    np.testing.assert_allclose(mean.astype(np.float64), pairs.y.mean(axis=0), atol=1e-15)
