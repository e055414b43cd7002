from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import ConnectedHeads, apply_heads, connect_heads, connect_towers, read_features
from c3tools.connect.contrastive import TrainingSettings
from c3tools.connect.heads import HeadShape, HeadsSettings
from c3tools.connect.training_pairs import PairedFeatures
from c3tools.errors import C3Error, ConnectError, OutputError
from c3tools.export import export_store
from c3tools.inputs.import_embeddings import import_embeddings
from c3tools.store import Pairs, Store
from tests.conftest import Messages, make_store
from tests.golden import assert_interface, recorded
from tests.stores import gap_store, one_byte_changed, unit

from .worlds import views, write_files

QUICK: dict[str, Any] = {
    "dim": 16,
    "hidden": 32,
    "batch_size": 40,
    "learning_rate": 3e-3,
    "epochs": 2,
}
QUICK |= {"precision": "fp32", "logit_scale": "20"}
Connect = Callable[..., ConnectedHeads]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> PairedFeatures:
    return read_features(**write_files(tmp_path_factory.mktemp("features")))


@pytest.fixture
def connect(features: PairedFeatures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Train two small heads into the folder ``heads`` of an empty one; what is given changes
    that."""
    monkeypatch.chdir(tmp_path)

    def run(output: str = "heads", of: PairedFeatures = features, **changes: Any) -> ConnectedHeads:
        return connect_heads(of, output=output, **QUICK | changes)

    return run


def test_a_head_standardises_by_its_training_rows_without_nan_and_unrelated_ones_are_reported(
    connect: Connect,
) -> None:
    files, said = write_files(), Messages()
    rows = np.random.default_rng(0).normal(5, 0.3, size=(120, 20)).astype(np.float16)
    rows[:, 3] = 7  # constant: its spread would divide by zero
    rows[84:] += 1000  # not in the train split
    rows[0, 5] = np.nan  # an image of the train split: its two captions go as well
    np.save(files["image"], rows)
    features = read_features(**files)
    heads = connect(of=features, epochs=1, reporter=said)
    head: Any = heads.heads[0]
    kept = rows[1:84].astype(np.float64)
    np.testing.assert_allclose(head.mean.numpy(), kept.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(
        np.delete(head.spread.numpy(), 3), np.delete(kept.std(axis=0), 3), rtol=1e-6
    )
    assert (head.spread[3], heads.record["pairs"]["train"]) == (1, 166)
    for named in ("1 of 120 image rows", "near chance"):
        assert any(named in text for text in said.texts)
    report = apply_heads("heads", features, output="connected")
    assert report.rows == {"image": 119, "text": 240}
    assert [failure.key for failure in Store.open("connected").recorded_failures()] == ["photo000"]


@pytest.mark.parametrize("hidden", [0, 16])
def test_embeddings_are_the_normalised_outputs(
    connect: Connect, features: PairedFeatures, hidden: int
) -> None:
    heads, rows = connect(hidden=hidden, epochs=1), features.first.embeddings[:9]
    weights = {
        name: tensor.numpy() for name, tensor in heads.heads.get_submodule("0").state_dict().items()
    }
    expected = (rows - weights["mean"]) / weights["spread"] @ weights[
        "layers.0.weight"
    ].T + weights["layers.0.bias"]
    if hidden:
        expected = np.maximum(expected, 0) @ weights["layers.3.weight"].T + weights["layers.3.bias"]
    np.testing.assert_allclose(heads.embed("image", rows), unit(expected), atol=1e-5)
    assert heads.embed("image", rows[:0]).shape == (0, 16)


def test_a_cone_is_a_gap_of_the_stated_size(connect: Connect) -> None:
    connect(
        of=read_features(**write_files(items=2000, per_item=1)),
        dim=256,
        hidden=512,
        epochs=1,
        cone=1.33,
    )
    start = json.loads(Path("heads/geometry.json").read_text())["points"][0]
    # E[1/norm] is a little above 1/sqrt(E[norm^2]), and two random directions are not quite
    # orthogonal
    assert (start["step"], start["gap"]) == (0, pytest.approx(1.13, rel=0.12))


@pytest.mark.parametrize("learning_rate", [1e6, 1e9], ids=["zero vectors", "no epoch finished"])
def test_a_training_that_diverges_in_its_first_epoch_is_refused(
    connect: Connect, learning_rate: float
) -> None:
    with pytest.raises(ConnectError) as refusal:
        connect(learning_rate=learning_rate)
    assert "--learning-rate" in str(refusal.value)
    assert not Path("heads").exists()


def test_a_training_is_that_on_record(connect: Connect) -> None:
    said = Messages()
    changes: dict[str, Any] = {
        "cone": 0.5,
        "logit_scale": "learned:20",
        "close_gap": 0.5,
        "seed": 3,
        "epochs": 4,
    }
    record = connect(reporter=said, **changes).record
    del record["made_from"], record["seconds"]
    record |= json.loads(Path("heads/geometry.json").read_text())
    recorded(Path(__file__).parent / "golden/heads.json", {**record, "said": said.texts}, rel=2e-3)
    assert_interface(connect_heads, connect_towers)


@dataclass(frozen=True, kw_only=True)
class LaterTraining(TrainingSettings):
    """The settings of a training in a later version, which has one more."""

    label_smoothing: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LaterShape(HeadShape):
    """The architecture of heads in a later version, which has one more setting."""

    residual: bool = False


@dataclass(frozen=True, kw_only=True)
class LaterHeads(HeadsSettings):
    """The options of `connect_heads` in a later version, which has three more."""

    label_smoothing: float = 0.0
    residual: bool = False
    mixup: bool = False


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add an option and settings, with defaults, as a later version might."""
    monkeypatch.setattr("c3tools.connect.heads.TrainingSettings", LaterTraining)
    monkeypatch.setattr("c3tools.connect.heads.HeadShape", LaterShape)
    monkeypatch.setattr("c3tools.connect.heads.HeadsSettings", LaterHeads)


def test_an_option_and_settings_that_are_added_disown_no_heads(
    connect: Connect, request: pytest.FixtureRequest
) -> None:
    messages = Messages()
    connect(epochs=1)
    request.getfixturevalue("later")
    connect(epochs=1, reporter=messages)
    assert "nothing to do" in messages.texts[-1]


def test_trained_heads_come_back_as_they_were_and_the_same_call_gives_the_same(
    connect: Connect, features: PairedFeatures
) -> None:
    first, again, said = connect(), connect("again"), Messages()
    loaded, rows = ConnectedHeads.load("heads"), features.second.embeddings[:3]
    assert loaded.sha256 == first.sha256 == again.sha256
    assert {**loaded.record, "seconds": 0} == {**again.record, "seconds": 0}
    np.testing.assert_array_equal(loaded.embed("text", rows), again.embed("text", rows))
    connect(reporter=said)
    assert "nothing to do" in said.texts[-1]
    with pytest.raises(OutputError, match=r"(?s)dim 16, not 8.*--overwrite"):
        connect(dim=8)
    assert connect(dim=8, overwrite=True).record["dim"] == 8


def test_heads_that_are_damaged_and_other_features_are_refused(connect: Connect) -> None:
    heads, files = connect(epochs=1), write_files()
    np.save(files["text"], np.ones((240, 13), np.float32))
    with pytest.raises(ConnectError, match="12 features of text, not 13"):
        apply_heads(heads, read_features(**files), output="connected")
    assert not Path("connected").exists()
    with pytest.raises(ConnectError, match=r"image and 12.*audio"):
        heads.embed("audio", np.zeros((2, 12)))
    folder = Path("heads").resolve()
    record = folder / "connect.json"
    with (
        one_byte_changed(folder / "heads.safetensors", -9, 1),
        pytest.raises(ConnectError, match=str(folder)),
    ):
        ConnectedHeads.load(folder)
    content = json.loads(record.read_text())
    for change in ({"modalities": 3}, {"hidden": 2**40}):
        record.write_text(json.dumps({**content, "record": {**content["record"], **change}}))
        with pytest.raises(ConnectError, match=str(folder)):
            ConnectedHeads.load(folder)


def test_rows_of_another_split_are_learned_from_by_its_name(connect: Connect) -> None:
    files = write_files()
    files["meta"].write_text(re.sub("train|val|test", "web", files["meta"].read_text()))
    features = read_features(**files)
    with pytest.raises(ConnectError, match=r"split 'train'. Splits with pairs: web[\s\S]*c3 split"):
        connect("train", features, epochs=1)
    assert connect("web", features, train_split="web", epochs=1).record["scores"] == {}


def test_of_all_splits_those_pairs_are_scored_that_were_not_learned_from(
    connect: Connect, features: PairedFeatures
) -> None:
    heads = connect("all", train_split="all", epochs=1)
    assert sum(heads.record["pairs"].values()) == 240
    _, held = features.inputs().train_and_val("all", ("image", "text"))
    rows = held.where("val").rows
    images = heads.embed("image", features.first.embeddings[rows[0]])
    texts = heads.embed("text", features.second.embeddings[rows[1]])
    cosine = heads.record["scores"]["val"]["paired_cosine"]
    assert cosine == pytest.approx((images * texts).sum(axis=1).mean(), abs=1e-5)


def test_heads_connect_two_stores_of_their_models_and_make_a_third(connect: Connect) -> None:
    first, second, index = views(120, 2, dims=(12, 12))
    for name, sign in (("one", 1), ("two", -1), ("other", 1)):
        options: dict[str, Any] = {"split": None, "model": {"name": name, "weights_sha256": name}}
        make_store(Path(name), sign * unit(first), unit(second), owners=index.tolist(), **options)
    one, other = (
        read_features(store=name, second_store="two", modalities=("image", "image"))
        for name in ("one", "other")
    )
    heads = connect(of=one, epochs=6)
    models, pairs, scores = (heads.record[name] for name in ("models", "pairs", "scores"))
    assert {name: model["name"] for name, model in models.items()} == {
        "image": "one",
        "image_2": "two",
    }
    assert sum(pairs.values()) < 120  # a store without splits is split by the keys
    assert scores["val"]["recall"]["image_to_image_2"]["recall@1"] > 0.5
    apply_heads("heads", one, output="joined")
    joined = Store.open("joined")
    assert len(Pairs.match(joined.load("image"), joined.load("image_2"))) == 120
    with pytest.raises(ConnectError, match=r"one.*other"):
        apply_heads(heads, other, output="refused")
    assert not Path("refused").exists()


def test_heads_of_an_export_are_not_applied_to_rows_of_the_encoder(
    connect: Connect, tmp_path: Path
) -> None:
    raw = gap_store(tmp_path / "raw")
    export_store(raw, output="export", preset="gr-clip")
    export_store(raw, output="noised", preset="c3")
    export_store(raw, output="inference", preset="c3", role="inference")
    heads = connect(of=read_features(store="export"), epochs=1)
    apply_heads(heads, read_features(store="export"), output="out")
    for other, named in ((raw.path, "as the encoder gives them"), ("inference", "steps of c3")):
        with pytest.raises(ConnectError, match=f"all steps of gr-clip.* {named}"):
            apply_heads(heads, read_features(store=other), output="refused")
    # Texts with noise are learned from, and not mapped
    on_noise = connect("on-noise", read_features(store="noised"), epochs=1)
    with pytest.raises(ConnectError, match="text rows of noised have noise"):
        apply_heads(on_noise, read_features(store="noised"), output="refused")
    apply_heads(on_noise, read_features(store="inference"), output="mapped")
    assert not Path("refused").exists()


def test_applying_heads_carries_the_columns_of_the_stores(connect: Connect) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 8))
    labels = list(range(40))
    columns: dict[str, Any] = {"key": [f"k{i}" for i in labels], "label": labels}
    import_embeddings(store="s", image=rows, text=-rows, meta=columns, keep_columns=["label"])
    features = read_features(store="s")
    connect(of=features, epochs=1)
    apply_heads("heads", features, output="connected")
    store = Store.open("connected")
    assert store.info.columns == {"label": "int64"}
    assert store.load("text").column("label") == labels


def test_stores_that_keep_a_column_with_other_types_are_not_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("one", 1), ("two", "1")):
        meta: dict[str, Any] = {"key": ["a"], "label": [value]}
        import_embeddings(store=name, image=np.ones((1, 4)), meta=meta, keep_columns=["label"])
    with pytest.raises(ConnectError, match=r"'label' as int64, the other as string"):
        read_features(store="one", second_store="two")


def test_wrong_settings_are_one_message(connect: Connect) -> None:
    said = {"dim": "dim must be at least 2", "batch_size": "batch of"}
    wrong = {
        "cone": -1,
        "hidden": -5,
        "dropout": 1.0,
        "epochs": 0,
        "patience": -1,
        "close_gap": -1.0,
    }
    for name, value in {**wrong, **dict.fromkeys(said, 1)}.items():
        with pytest.raises(C3Error, match=f"{said.get(name, name)}.*{value:g}"):
            connect(**{name: value})
    assert not Path("heads").exists()
