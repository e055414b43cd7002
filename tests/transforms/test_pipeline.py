"""Pipelines: noise, memories, torch modules; what is refused; on disk the same again, damage found,
mistakes named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from c3tools import TransformModule
from c3tools.errors import MissingExtraError, TransformError
from c3tools.moments import Moments
from c3tools.seeds import keyed_normal, stable_hashes
from c3tools.transforms import Pipeline, preset
from c3tools.transforms.pipeline import FORMAT
from c3tools.transforms.steps import (
    AdaptiveNoise,
    Collapse,
    FairScale,
    GapShift,
    GaussianNoise,
    MemoryProjection,
    Normalize,
    Procrustes,
    ProjectOutGap,
    Retrieval,
    Standardize,
    Step,
    Whiten,
)
from tests.golden import recorded
from tests.stores import assert_close, unit

from .conftest import MOMENTS, ROWS, Array, P, X, Y, between, make_pairs, retrieved


def test_two_steps_draw_different_noise() -> None:
    pipeline = between(GaussianNoise(0.1), GaussianNoise(0.2))
    first, second = (
        keyed_normal(0, 0, [f"{own}{key}" for key in P.keys], 24) for own in ("", "1\x1f")
    )
    expected = unit(Y + 0.1 * first + 0.2 * second)
    got = pipeline.transform(Y, training=True, keys=P.keys)
    assert_close(got, expected)
    module = TransformModule(pipeline).train()
    assert_close(module(torch.from_numpy(Y), P.keys).numpy(), expected)


def test_steps_are_fitted_on_what_the_steps_before_leave() -> None:
    steps = [Normalize(), ProjectOutGap(), Normalize(), Collapse(), Normalize()]
    pipeline = Pipeline(steps).fit(MOMENTS, ROWS)
    u = unit((X.mean(0) - Y.mean(0))[None])[0]
    expected = unit(Y - (Y @ u)[:, None] * u).mean(0)
    assert_close(pipeline.steps[3].state["centre/text"], expected, 1e-7)
    # unknown after normalising again
    with pytest.raises(TransformError, match="collapse needs the moments"):
        Pipeline(steps).fit(MOMENTS)
    steps[1] = ProjectOutGap(role="training")  # which inference inputs do not go through
    centred = Pipeline(steps).fit(ROWS).steps[3]
    assert_close(centred.state["centre/text"], Y.mean(0), 1e-7)
    scaled = between(FairScale(), Collapse()).fit(MOMENTS)  # known after scaling
    expected = scaled.steps[1].state["scale/text"] * Y.mean(0)
    assert_close(scaled.steps[2].state["centre/text"], expected, 2**-25)


@given(st.integers(2, 20), st.integers(0, 2**31))
@settings(max_examples=20)
def test_procrustes_of_few_pairs_is_the_fitted_rotation_nearest_to_the_identity(
    n: int, seed: int
) -> None:
    pairs = make_pairs(n, 24, seed)
    x, y = (rows - rows.mean(axis=0) for rows in pairs)
    with pytest.warns(UserWarning, match=f"{n} pairs.* {n - 1} of 24 dimensions"):
        found = Procrustes().matrix(x, y)
        order = np.random.default_rng(0).permutation(n)
        assert_close(Procrustes().matrix(x[order], y[order]), found, 1e-8)
    assert_close(found @ found.T, np.eye(24), 1e-10)
    # the limit of scipy's solution for pairs that also contain a little of every axis, mapped to
    # itself
    little = 1e-5 * np.eye(24)
    expected, _ = orthogonal_procrustes(np.vstack([x, little]), np.vstack([y, little]))
    assert_close(found, expected, 1e-4)


def test_input_is_left_alone_and_may_be_short() -> None:
    y = Y.astype(np.float32)
    preset("c3").fit(MOMENTS).transform(y, modality="text", training=True, keys=P.keys)
    assert (y == Y.astype(np.float32)).all()
    assert_close(preset("c1").fit().transform(np.array([[3e-30, 4e-30]])), [[0.6, 0.8]])


def test_the_modality_is_asked_for_where_it_makes_a_difference() -> None:
    for name in ("c3", "decap", "ridge"):
        with pytest.raises(
            TransformError, match=r"image and text[\s\S]*modality='image' or modality='text'"
        ):
            preset(name).fit(ROWS).transform(X)
    alone = preset("c3").fit({"image": X})
    assert (alone.transform(X) == alone.transform(X, modality="image")).all()
    for name in ("c1", "project-out-gap", "lafite"):
        pipeline = preset(name).fit(MOMENTS)
        assert (pipeline.transform(X) == pipeline.transform(X, modality="image")).all()


@pytest.mark.parametrize(
    ("name", "rows", "options", "words"),
    [
        ("c3", np.ones((2, 24)), {"modality": "audio"}, "'audio', only for image, text"),
        ("c3", np.where(np.eye(24)[:12], np.nan, 1), {}, "12 of 12 rows .*row 0"),
        ("c1", np.eye(25)[:, :24], {}, "Row 24 has norm 0"),
        ("c1", np.ones(24), {}, r"\(24,\)[\s\S]*v\[None, :\]"),
        ("c3", np.ones((2, 24)), {"training": True, "keys": ["a"]}, "1 keys for 2 rows"),
    ],
)
def test_what_transform_refuses(name: str, rows: Any, options: dict[str, Any], words: str) -> None:
    pipeline = preset(name).fit(MOMENTS)
    with pytest.raises(TransformError, match=words):
        pipeline.transform(rows, **{"modality": "text", **options})


@pytest.mark.parametrize(
    ("pipeline", "step"),
    [
        (preset("c3"), "collapse"),
        (preset("c2-corrupt", sigma="auto"), "gaussian-noise"),
    ],
)
def test_a_pipeline_that_is_not_fitted_names_the_step(pipeline: Pipeline, step: str) -> None:
    with pytest.raises(TransformError, match=f"not fitted.*{step}"):
        pipeline.transform(Y, modality="text")


def test_a_pipeline_does_not_know_a_modality_without_moments() -> None:
    pipeline = preset("c3").fit({"text": MOMENTS["text"], "image": Moments.empty(24)})
    assert pipeline.provenance["n"] == {"text": 120}
    assert not pipeline.knows("image")


def test_a_step_of_training_alone_needs_no_moments_of_inference_inputs() -> None:
    assert between(Collapse(role="training")).fit({"text": Y}).knows("image")


@pytest.fixture
def fitted_for_a() -> Pipeline:
    """A pipeline fitted on embeddings of the model a."""
    return preset("c3").fit(MOMENTS, provenance={"model": {"name": "a", "weights_sha256": "1"}})


@pytest.mark.parametrize("model", [{"name": "renamed", "weights_sha256": "1"}, None])
def test_the_same_weights_and_an_unknown_model_pass(
    fitted_for_a: Pipeline, model: dict[str, str] | None
) -> None:
    fitted_for_a.check_model(model)


@pytest.mark.parametrize("model", [{"name": "b", "weights_sha256": "2"}, {"name": "b"}])
def test_another_model_is_refused(fitted_for_a: Pipeline, model: dict[str, str]) -> None:
    with pytest.raises(TransformError, match="model a"):
        fitted_for_a.check_model(model)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ([Normalize(), GaussianNoise(), Collapse(), Normalize()], "gaussian-noise.*collapse"),
        ([Normalize(), Collapse(), GaussianNoise()], "end with normalize"),
        ([Collapse(), Normalize()], "norm 1"),
        ([Normalize(), AdaptiveNoise(role="both"), Normalize()], "only for training inputs"),  # type: ignore[arg-type]
    ],
)
def test_orders_that_cost_accuracy_are_refused(steps: list[Step], words: str) -> None:
    with pytest.raises(TransformError, match=words):
        Pipeline(steps)


@pytest.mark.parametrize("step", [Collapse(), GapShift(), Standardize(), Whiten()])
def test_a_mean_is_not_subtracted_twice(step: Step) -> None:
    steps = [Normalize(), Collapse(), Normalize(), step, Normalize()]
    with pytest.raises(TransformError, match=f"{step.kind} comes after collapse.* twice"):
        Pipeline(steps)


def retrieving(memory: Array, items: list[str], **changes: Any) -> Pipeline:
    return between(Retrieval(**changes)).fit({"text": memory}, items={"text": items})


def kept(pipeline: Pipeline) -> Array:
    """The memory (m, d) that the second step keeps."""
    return np.asarray(pipeline.steps[1].state["memory"], np.float64)


def test_the_mean_of_the_nearest_rows_is_added() -> None:
    """With more neighbours than the memory has rows, all of these are weighed."""
    for neighbours, tau, weight in (
        (10, 0.05, 1.0),
        (1, 0.05, 1.0),
        (3, 0.2, 0.4),
        (5, 0.0, 1.0),
        (500, 0.1, 2.0),
    ):
        pipeline = retrieving(Y, P.items, neighbours=neighbours, tau=tau, weight=weight)
        expected = [retrieved(q, kept(pipeline), neighbours, tau, weight) for q in unit(X)]
        assert_close(pipeline.transform(3 * X, modality="image"), expected)


@given(
    st.lists(st.integers(0, 6), min_size=12, max_size=40),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.05, 1.0]),
    st.integers(0, 2**31),
)
@settings(max_examples=30)
def test_rows_of_ones_own_item_are_never_retrieved_in_training(
    numbers: list[int], neighbours: int, tau: float, seed: int
) -> None:
    """A training input becomes what it becomes with a memory that never had the rows of its
    item."""
    rows = unit(np.random.default_rng(seed).normal(size=(len(numbers), 12)))
    items = [f"item {number}" for number in numbers]
    changes = {"neighbours": neighbours, "tau": tau}
    got = retrieving(rows, items, **changes).transform(
        rows, modality="text", training=True, items=items
    )
    for item in set(items):
        own = np.array([other == item for other in items])
        if own.all():
            assert_close(got, rows)
            continue
        others = retrieving(rows[~own], [other for other in items if other != item], **changes)
        assert_close(got[own], others.transform(rows[own], modality="text"), 2e-6)


def test_a_limited_memory_is_drawn_from_all_rows_with_their_items() -> None:
    """Rows of a train split are sorted by their source, so its first rows would be of one
    source."""
    drawn, again, whole = (retrieving(Y, P.items, limit=n) for n in (30, 30, 500))
    numbers = [int(np.abs(kept(whole) - row).sum(axis=1).argmin()) for row in kept(drawn)]
    for same in (kept(again), kept(whole)[numbers]):
        np.testing.assert_array_equal(same, kept(drawn))
    assert numbers == sorted(set(numbers)) and numbers[:3] == [1, 4, 5] and numbers[-1] >= 90
    items = drawn.steps[1].state["items"]
    assert items.dtype == np.int64
    np.testing.assert_array_equal(items, stable_hashes([P.items[row] for row in numbers]))


def test_a_memory_keeps_the_rows_as_they_reached_its_step() -> None:
    """Collapse is fitted on the same rows afterwards, and centres them in place."""
    for step in (MemoryProjection(role="inference"), Retrieval(role="inference")):
        later = (Normalize(), Collapse(), Normalize(), Retrieval())
        assert_close(kept(between(step, *later).fit(ROWS)), Y, 4e-4)


def test_training_needs_items_on_both_sides() -> None:
    known = retrieving(Y, P.items)
    unknown = between(Retrieval()).fit({"text": Y})
    for pipeline, items, words in (
        (known, None, "items="),
        (known, P.items[:3], "120 training inputs"),
        (unknown, P.items, r"items=\{'text': \[\.\.\.\]\}"),
    ):
        with pytest.raises(TransformError, match=words):
            pipeline.transform(Y, modality="text", training=True, items=items)
    np.testing.assert_array_equal(unknown.transform(Y), known.transform(Y))


def test_retrieval_agrees_with_numpy() -> None:
    items = ["one"] * 115 + ["two"] * 5  # fewer than neighbours are left to some inputs
    for changes in ({}, {"tau": 0.0}, {"neighbours": 500, "weight": 0.3}):
        for own in (items, ["one"] * 120):  # and none to these
            pipeline = between(Retrieval(**changes)).fit(  # type: ignore[arg-type]
                {"text": Y}, items={"text": own}
            )
            module = TransformModule(pipeline, "text").train()
            expected = pipeline.transform(Y, modality="text", training=True, items=items)
            assert_close(module(torch.from_numpy(Y), items=items).numpy(), expected)
            with pytest.raises(TransformError, match="items="):
                module(torch.from_numpy(Y))
        # once, for both roles
        assert [name for name in module.state_dict() if "memory" in name] == ["memory_1"]


def test_noise_without_keys_only_in_training() -> None:
    module = TransformModule(preset("c3").fit(MOMENTS), "text")
    x = torch.from_numpy(Y)
    assert module.training  # as every module at its start
    torch.manual_seed(0)
    first, second = module(x), module(x)
    assert not torch.allclose(first, second, atol=1e-2)
    torch.manual_seed(0)
    assert torch.equal(first, module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_keys_an_epoch_and_items_are_ignored_in_evaluation_mode() -> None:
    for name in ("c3", "c3-retrieval"):
        module = fitted_module(name, "text")
        x = torch.from_numpy(Y)
        assert torch.equal(module(x, P.keys[:3], 7, P.items[:2]), module(x))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("name", ["c3", "c3-retrieval"])
def test_a_compiled_module_draws_the_noise_of_numpy(name: str, backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("there is no compiler")
    torch.compiler.reset()
    pipeline = preset(name).fit(MOMENTS, ROWS, items={"text": P.items})
    module = TransformModule(pipeline, "text", seed=5)
    compiled = torch.compile(module, backend=backend)
    for epoch in range(4):
        own = np.random.default_rng(epoch).permutation(len(Y))[:40]
        keys = [P.keys[row] for row in own]
        items = [P.items[row] for row in own]
        got = compiled(torch.from_numpy(Y[own]), keys, epoch, items)
        expected = pipeline.transform(
            Y[own], modality="text", training=True, keys=keys, items=items, seed=5, epoch=epoch
        )
        assert_close(got.numpy(), expected, 2e-6)
    torch.compiler.reset()
    whole = torch.compile(module.eval(), backend=backend, fullgraph=True)
    expected = pipeline.transform(Y, modality="text")
    assert_close(whole(torch.from_numpy(Y), P.keys, 3, P.items).numpy(), expected)


def test_steps_compute_in_float32() -> None:
    module = fitted_module("ridge")
    x = torch.from_numpy(X).float()
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(x), expected)
    module.bfloat16()
    assert {buffer.dtype for buffer in module.buffers()} == {torch.float32}
    assert torch.equal(module(x), expected)
    assert {buffer.device.type for buffer in module.to("meta").buffers()} == {"meta"}


def test_torch_exports_no_training_mode() -> None:
    module = fitted_module("c3").train()
    with pytest.raises(TransformError, match=r"training mode[\s\S]*eval\(\)"):
        torch.export.export(module, (torch.from_numpy(X),), strict=False)


def test_state_dict_holds_the_fit_and_gradients_flow() -> None:
    module = TransformModule(preset("ridge").fit(MOMENTS, ROWS), "image")
    assert module.state_dict()["matrix_1"].shape == (24, 24)
    x = torch.from_numpy(X).float().requires_grad_()
    module(x).square().sum().backward()
    # outputs have unit norm whatever x is, so their squared norm has no gradient
    assert x.grad is not None and x.grad.abs().max() < 1e-5


def fitted_module(name: str, modality: str = "image") -> TransformModule:
    pipeline = preset(name).fit(MOMENTS, ROWS, items={"text": P.items})
    return TransformModule(pipeline, modality).eval()


# With every operation that inference inputs go through
EXPORTED = ["c2-collapse", "fair", "procrustes", "decap", "c3-retrieval"]


@pytest.mark.parametrize("name", EXPORTED)
def test_torch_exports_the_module_for_any_number_of_rows(name: str) -> None:
    module = fitted_module(name)
    x = torch.from_numpy(X).float()
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(module, (x[:5],), dynamic_shapes={"x": {0: rows}})
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.filterwarnings("ignore")  # of the exporters
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_computes_what_the_module_does(name: str, dynamo: bool, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    reference = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    module = fitted_module(name)
    x = torch.from_numpy(X).float()
    file = tmp_path / "module.onnx"
    axes: dict[str, Any] = {"dynamic_axes": {"x": {0: "rows"}}}
    if dynamo:
        axes = {"dynamic_shapes": {"x": {0: torch.export.Dim("rows", min=2)}}}
    torch.onnx.export(module, (x[:5],), file, input_names=["x"], dynamo=dynamo, **axes)
    graph = reference.ReferenceEvaluator(onnx.load(file))
    assert_close(graph.run(None, {"x": x.numpy()})[0], module(x).numpy())


def test_module_refusals() -> None:
    pipeline = preset("c3").fit({"text": MOMENTS["text"]})
    module = TransformModule(pipeline).train()
    assert module.modality == "text"
    for refused, words in (
        (lambda: TransformModule(preset("c3")), "not fitted"),
        (lambda: TransformModule(pipeline, "image"), "'image'"),
        (lambda: TransformModule(preset("c3").fit(MOMENTS)), "modality='image'"),
        (lambda: module(torch.zeros(2, 3)), "24 .* 3"),
        (lambda: module(torch.zeros(1, 2, 24)), r"shape \(1, 2, 24\), not \(n, d\)"),
        (lambda: module(torch.zeros(24)), r"shape \(24,\), not \(n, d\)"),
    ):
        with pytest.raises(TransformError, match=words):
            refused()


MODEL = {"name": "ViT-B-16/öpenai", "weights_sha256": "ab12"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    pipeline = preset("c3").fit(MOMENTS, provenance={"model": MODEL, "split": "train"})
    return pipeline.save(tmp_path / "p")


def test_a_saved_pipeline_says_where_it_comes_from(saved: Path, tmp_path: Path) -> None:
    text = (saved / "transform.json").read_text("utf-8")
    record = json.loads(text)
    assert text == json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    assert record["provenance"] == {
        "model": MODEL,
        "split": "train",
        "n": {"image": 120, "text": 120},
    }
    assert record["dim"] == 24
    loaded = Pipeline.load(saved / "transform.json")
    mean = loaded.steps[1].state["centre/text"]
    assert mean.dtype == np.float64
    assert_close(mean, Y.mean(axis=0), 2**-25)
    loaded.save(tmp_path / "again")
    for name in ("transform.json", "transform.safetensors"):
        assert (saved / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    recorded(Path(__file__).parent / "golden" / "card.json", asdict(loaded.card()))
    with pytest.raises(TransformError, match="not fitted"):
        preset("c3").save(tmp_path / "unfitted")
    assert not (tmp_path / "unfitted").exists()


def test_a_pipeline_with_a_field_of_a_later_version_is_read(saved: Path) -> None:
    path = saved / "transform.json"
    record = json.loads(path.read_text("utf-8")) | {"later": 1}
    del record["checksum"]
    content = json.dumps(record, sort_keys=True)
    record["checksum"] = sha256(content.encode()).hexdigest()
    path.write_text(json.dumps(record), "utf-8")
    assert Pipeline.load(saved).fitted


def test_damage_is_found(saved: Path) -> None:
    files = [
        (path := saved / f"transform.{suffix}", path.read_bytes())
        for suffix in ("json", "safetensors")
    ]
    (_, text), (_, arrays) = files
    damaged = [text.replace(b'"training"', b'"both"'), text[:-40], b'{"format": "other"}', None]
    for (path, whole), contents in zip(
        files, (damaged, [arrays[:-1] + b"x", arrays[:-8], None]), strict=True
    ):
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
    with pytest.raises(MissingExtraError, match=r"pip install \"pyyaml"):
        Pipeline.from_config(tmp_path / "p.yaml")


def test_settings_at_their_limits_are_accepted() -> None:
    steps = [
        Whiten(shrinkage=1),
        MemoryProjection(tau=0, neighbours=1, limit=1),
        Retrieval(neighbours=1),
    ]
    for step in (*steps, AdaptiveNoise(mix=0), AdaptiveNoise(mix=1), GaussianNoise(0)):
        pipeline = between(step)
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


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_a_recipe_of_every_format_is_read(version: int) -> None:
    """``C3_RECORD=1`` writes the recipe of a format that has none, and never one that is there."""
    folder = Path(__file__).parent / "golden" / f"format-{version}"
    names = P.items[:40]
    if os.environ.get("C3_RECORD") and not folder.exists():
        arrays = {"image": X[:40], "text": Y[:40]}
        preset("c3-retrieval", sigma=0.1).fit(arrays, items={"text": names}).save(folder)
    pipeline = Pipeline.load(folder)
    inference = pipeline.transform(X[:2], modality="image")
    training = pipeline.transform(
        Y[:2], modality="text", training=True, keys=names[:2], items=names[:2]
    )
    rows = {"inference": inference.tolist(), "training": training.tolist()}
    recorded(folder / "rows.json", rows)


def test_a_later_format_is_refused_before_anything_else_is_read(saved: Path) -> None:
    (saved / "transform.json").write_text(json.dumps({"format": FORMAT + 1, "steps": 3}), "utf-8")
    words = rf"transform.json has format {FORMAT + 1}.*up to {FORMAT}\.\nUpdate c3tools"
    with pytest.raises(TransformError, match=words):
        Pipeline.load(saved)
