from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c3tools.errors import GeneratorError, OutputError, StoreError, TransformError
from c3tools.imaging import Generator, train_generator
from c3tools.io import spill
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from c3tools.transforms.sigma import NEIGHBOURS, PUBLISHED_SIGMA, pair_cosine, photo_spread, sigma_by_rule
from tests.conftest import C3, build_store, make_store, unit_rows

from .test_training import Told
from .worlds import FP32, TOY, image_rows, photo_store, text_rows, write_photos

Train = Callable[..., Generator]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return photo_store(tmp_path / "c3-store")


@pytest.fixture
def train(store: Store, tmp_path: Path) -> Train:
    def run(**changes: object) -> Generator:
        options: dict[str, object] = {
            "store": store,
            "output": tmp_path / "c3-generator",
            "sigma": 0.05,
            "set": ("validations=2",),
            "steps": 4,
            "device": "cpu",
            "precision": "fp32",
        }
        return train_generator(**(options | changes))  # type: ignore[arg-type]

    return run


def test_a_generator_is_written_with_all_that_it_needs(train: Train, store: Store, tmp_path: Path) -> None:
    told = Told()
    made = train(reporter=told)
    folder = tmp_path / "c3-generator"
    names = {"generator.json", "weights.safetensors", "transform.json", "transform.safetensors"}
    assert {path.name for path in folder.iterdir()} == names | {"samples.png", "curves.png"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c3-generator", "c3-store", "photos"]
    record = made.record
    assert (record["preset"], record["sigma"], record["size"], record["photos"]) == (
        "c3",
        0.05,
        "tiny",
        {"train": 24, "val": 8},
    )
    assert record["model"] == TOY
    assert any("samples" in text for text in told.messages)
    loaded = Generator.load(folder, FP32)
    assert loaded.record == record
    texts = store.load("text", "test")
    images = [generator.generate(embeddings=texts.embeddings, sampling_steps=2) for generator in (made, loaded)]
    assert [np.asarray(image).tolist() for image in images[0]] == [np.asarray(image).tolist() for image in images[1]]


def test_photos_in_a_file_train_the_same_generator(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / next(path.name for path in (tmp_path / "photos").iterdir())).write_bytes(b"no photo")
    kept = train(output=tmp_path / "in-memory")
    monkeypatch.setattr(spill, "MEMORY_LIMIT", -1)
    made = train(output=tmp_path / "in-a-file")
    assert made.record["identity"] == kept.record["identity"]
    for name in ("weights.safetensors", "transform.safetensors", "samples.png"):
        assert (tmp_path / "in-a-file" / name).read_bytes() == (tmp_path / "in-memory" / name).read_bytes()


def test_the_method_looks_at_no_text(train: Train, store: Store, tmp_path: Path) -> None:
    """Other captions give the same generator: the mean of the texts is all that is kept of them, for asking."""
    other = text_rows(40)
    odd = Rows.of(
        "text", other.keys, other.embeddings, caption=["?"] * 40, image_key=other.items, split=other.column("split")
    )
    changed = build_store(tmp_path / "other", store.load("image"), odd, model=TOY, dtype="float32")
    one, two = train(), train(store=changed, output=tmp_path / "two")
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("c3-generator", "two")]
    assert weights[0] == weights[1]
    assert one.record["best_val_loss"] == two.record["best_val_loss"]


def test_the_same_call_does_nothing_and_another_is_refused(train: Train, tmp_path: Path) -> None:
    train()
    told = Told()
    before = (tmp_path / "c3-generator" / "weights.safetensors").stat().st_mtime_ns
    train(reporter=told)
    assert "nothing to do" in told.messages[-1]
    assert (tmp_path / "c3-generator" / "weights.safetensors").stat().st_mtime_ns == before
    with pytest.raises(OutputError, match=r"already contains a finished generator: c3, sigma 0.05[\s\S]*--overwrite"):
        train(seed=1)
    train(seed=1, overwrite=True)
    assert Generator.load(tmp_path / "c3-generator").record["seed"] == 1
    assert Generator.load(tmp_path / "c3-generator.previous").record["seed"] == 0


def test_without_a_val_split_photos_are_held_out(tmp_path: Path, train: Train) -> None:
    rows = image_rows(write_photos(tmp_path / "photos", 30))
    plain = Rows.of("image", rows.keys, rows.embeddings, path=rows.column("path"), split=["train"] * 30)
    told = Told()
    record = train(store=build_store(tmp_path / "plain", plain, model=TOY), train_fraction=0.5, reporter=told).record
    assert record["photos"] == {"train": 14, "val": 3}
    assert record["notes"][:2] == ["There is no val split, so 3 photos are held out.", "Using 14 photos, 50% of all."]
    assert record["notes"][2].startswith("There are no text rows in the split 'train', so c3 is fitted on image rows")
    assert set(record["notes"]) <= set(told.messages)


def test_sigma_is_taken_from_the_photos_alone(tmp_path: Path) -> None:
    rows = unit_rows(NEIGHBOURS + 50, 64)
    few = make_store(tmp_path / "few", rows[:20], rows[:20])
    assert sigma_by_rule("auto", few, noised="image")[0] == PUBLISHED_SIGMA
    assert "fewer than 500" in sigma_by_rule("auto", few, noised="image")[1]
    many = make_store(tmp_path / "many", rows, rows[:20], part_rows=200)
    again = make_store(tmp_path / "again", rows, -rows[:20], part_rows=1000)
    assert sigma_by_rule("auto", many, noised="image") == sigma_by_rule("auto", again, noised="image")
    sigma = sigma_by_rule("auto", many, noised="image")[0]
    # half of it puts a noised photo at the cosine of its nearest other photo
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    noised = centred + sigma / 2 * np.random.default_rng(1).normal(size=centred.shape)
    found = np.mean(np.sum(units * noised, axis=1) / np.linalg.norm(noised, axis=1))
    cosines = units @ units.T
    np.fill_diagonal(cosines, -1)
    assert found == pytest.approx(cosines.max(axis=1).mean(), abs=0.02)


def test_sigma_of_pairs_is_that_of_noise_on_photos(train: Train, store: Store) -> None:
    told = Told()
    made = train(sigma="pairs", reporter=told)
    texts = store.load("text")
    kept = np.array(texts.splits) != "test"
    images, rows = (store.load(modality).embeddings[kept] for modality in ("image", "text"))
    means = [store.moments(modality, "train").mean for modality in ("image", "text")]
    rule = pair_cosine(images, rows, np.arange(32), means, noised="image")
    assert made.record["sigma"] == pytest.approx(rule.sigma)
    assert rule.sigma != pytest.approx(pair_cosine(images, rows, np.arange(32), means).sigma, rel=1e-6)
    why = f"Sigma {rule.sigma:.4g}: the cosine of 32 images outside the test split with their 32 captions"
    assert f"{why}. Choose another with --sigma." in told.messages
    assert made.pipeline.provenance["sigma"] == why


def test_photos_in_a_fixed_order_give_the_spread() -> None:
    points = np.zeros((NEIGHBOURS, 4))
    points[:, 0], points[::2, 1], points[1::2, 1] = 1, 0.5, -0.5
    rule = photo_spread(points / np.linalg.norm(points, axis=1, keepdims=True), np.zeros(4))
    assert rule.sigma == pytest.approx(0, abs=1e-6)  # each photo has a double
    assert photo_spread(points[:10], np.zeros(4)).sigma is None


def test_a_pipeline_is_used_as_it_is_or_fitted_on_the_store(train: Train, store: Store, tmp_path: Path) -> None:
    own = preset("lafite", train_on="image", infer_on="text")
    made = train(pipeline=own, sigma=None)
    assert (made.record["preset"], made.record["sigma"], made.pipeline.fitted) == ("lafite", 0.0, True)
    with pytest.raises(GeneratorError, match="its own steps and sigma"):
        train(pipeline=own, sigma=0.1, output=tmp_path / "b")
    foreign = preset("c1").fit({}, provenance={"model": {"name": "other"}})
    with pytest.raises(TransformError, match="of the model other"):
        train(pipeline=foreign, sigma=None, output=tmp_path / "b")


def test_a_store_of_texts_is_an_error(train: Train, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no modality 'image'"):
        train(store=build_store(tmp_path / "texts", text_rows(10), model=TOY))


def test_the_command_trains_continues_and_prints(c3: C3, tmp_path: Path) -> None:
    photo_store(tmp_path / "c3-store")
    quick = ("--steps", "4", "--precision", "fp32", "--sigma", "0.05")
    result = c3("train-generator", *quick, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    assert "(kept)" in result.stdout
    assert "Next: c3 generate" in result.stderr
    record = json.loads((tmp_path / "run.json").read_text())
    assert record == Generator.load(tmp_path / "c3-generator").to_dict()
    with Image.open(tmp_path / "c3-generator" / "samples.png") as sheet:
        assert min(sheet.size) > 96
    assert "nothing to do" in c3("train-generator", *quick).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sigma", "much"), "sigma must be a number of at least 0, 'auto' or 'pairs', not 'much'"),
        (("--train-fraction", "0"), "must be above 0"),
        (("--size", "huge"), "no generator size 'huge'"),
        (("--preset", "c4"), "no preset 'c4'"),
        (
            ("--train-split", "restval"),
            "no images in the split 'restval'. Its splits are train (24), val (8), test (8)",
        ),
        (("--store", "nowhere"), "no store at nowhere"),
        (("--set", "pixels=10"), "must be a multiple of"),
    ],
)
def test_wrong_input_is_one_clear_error(c3: C3, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    photo_store(tmp_path / "c3-store")
    result = c3("train-generator", "--steps", "2", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "c3-generator").exists()
