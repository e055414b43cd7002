from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import Result

from c3tools import devices
from c3tools.assets.paths import C3_MINI_MOMENTS
from c3tools.captioning import Captioner, GenerationConfig, TrainingConfig, caption_images, fit_captioner
from c3tools.captioning.caption import images_by_key
from c3tools.captioning.caption_files import _Table
from c3tools.captioning.captioner import BUNDLED
from c3tools.encoders import Encoder
from c3tools.errors import DecoderError
from c3tools.moments import load_moments
from c3tools.store import Rows, Store
from c3tools.transforms import preset
from tests.conftest import C3, build_store, copy_photos, unit_rows

WORDS = {"a", "red", "blue", "bus", "dog", "cup"}


@pytest.fixture(scope="module")
def captioner(encoder: Encoder) -> Captioner:
    """A decoder for the bundled model that has learned next to nothing."""
    captions = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("bus", "dog", "cup")] * 4
    embeddings = encoder.encode_texts(captions)
    rows = Rows.of("text", [str(i) for i in range(len(captions))], embeddings, caption=captions)
    moments, _ = load_moments(C3_MINI_MOMENTS)
    return fit_captioner(
        rows,
        rows,
        preset("c3", sigma=0.01).fit(moments),
        size="tiny",
        training=TrainingConfig(epochs=20, batch_size=12, learning_rate=3e-3),
        compute=devices.pick("cpu", "fp32"),
        record={"model": encoder.identity},
    )


def test_a_folder_is_captioned(c3: C3, captioner: Captioner, encoder: Encoder, photos: Path, tmp_path: Path) -> None:
    captioner.save(tmp_path / "c3-decoder")
    result = c3("caption", photos, "--json", "captions.json", "--precision", "fp32")
    assert result.exit_code == 0, result.stderr
    rows = json.loads((tmp_path / "captions.json").read_text())
    paths = sorted(photos.glob("*.jpg"))
    assert [row["key"] for row in rows] == [path.stem for path in paths]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert [row["caption"] for row in rows] == captioner.caption(paths, encoder=encoder)
    for row in rows:
        assert row["key"] in result.stdout
        assert set(row["caption"].split()) <= WORDS


def test_paths_and_pictures_are_captioned_by_the_recorded_encoder(
    captioner: Captioner, encoder: Encoder, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, recorded: dict[str, object], **__: object) -> Encoder:
        assert recorded == encoder.identity
        return encoder

    monkeypatch.setattr("c3tools.captioning.captioner.resolve_encoder", resolve)
    paths = sorted(photos.glob("*.jpg"))
    from_paths = captioner.caption(paths)
    assert all(set(caption.split()) <= WORDS for caption in from_paths)
    assert captioner.caption([Image.open(path) for path in paths]) == from_paths
    result = caption_images([photos], decoder=captioner)
    assert list(result.captions.values()) == from_paths
    assert result.to_dict()["captions"][0] == {"key": paths[0].stem, "caption": from_paths[0]}
    for images, embeddings in ((None, None), (paths, np.ones((1, 8), np.float32))):
        with pytest.raises(DecoderError, match="either images or embeddings"):
            captioner.caption(images, embeddings=embeddings)


def test_one_file_prints_json_alone(c3: C3, captioner: Captioner, photos: Path, tmp_path: Path) -> None:
    captioner.save(tmp_path / "c3-decoder")
    path = min(photos.glob("*.jpg"))
    result = c3("caption", path, "--json", "--beams", "3")
    assert result.exit_code == 0, result.stderr
    assert [row["key"] for row in json.loads(result.stdout)] == [path.stem]


def test_a_long_name_leaves_room_for_the_caption(
    c3: C3, captioner: Captioner, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner.save(tmp_path / "c3-decoder")
    path = min(photos.glob("*.jpg"))
    long = path.rename(photos / f"{'IMG_0123456789_' * 8}.jpg")
    monkeypatch.setattr("c3tools.cli._console.out.width", 60)
    result = c3("caption", long)
    assert result.exit_code == 0, result.stderr
    words = set(result.stdout.split())
    assert words & WORDS
    assert "".join(word for word in result.stdout.split() if "_" in word or "IMG" in word).startswith("IMG_0123456789")


def test_magic_asks_the_encoder_at_every_word(
    c3: C3, captioner: Captioner, encoder: Encoder, photos: Path, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "c3-decoder")
    path = min(photos.glob("*.jpg"))
    result = c3("caption", path, "--steer", "magic", "--precision", "fp32", "--json")
    assert result.exit_code == 0, result.stderr
    (row,) = json.loads(result.stdout)
    magic = GenerationConfig("magic")
    assert [row["caption"]] == captioner.caption([path], generation=magic, encoder=encoder)


def test_a_broken_image_is_named_and_the_others_are_captioned(
    c3: C3, captioner: Captioner, photos: Path, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "c3-decoder")
    (photos / "broken.jpg").write_bytes(b"no image")
    result = c3("caption", photos, "--json", "captions.json")
    assert result.exit_code == 1
    assert "broken.jpg" in result.stderr
    assert "1 of 5 files could not be read as images" in " ".join(result.stderr.split())
    assert len(json.loads((tmp_path / "captions.json").read_text())) == 4


def test_a_decoder_of_another_model_is_refused_with_both_named(
    c3: C3, captioner: Captioner, photos: Path, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "c3-decoder")
    path = tmp_path / "c3-decoder" / "decoder.json"
    content = json.loads(path.read_text())
    content["record"]["model"] = {"name": "ViT-B-32/openai", "weights_sha256": "3" * 64}
    path.write_text(json.dumps(content))
    result = c3("caption", photos, "--model", "c3-mini")
    assert result.exit_code == 1
    message = " ".join(result.stderr.split())
    assert "ViT-B-32/openai (333333333333)" in message
    assert "these embeddings of c3-mini" in message


def test_wrong_paths_are_said_before_anything_is_loaded(c3: C3, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("a dog")
    for path, message in (
        ("nowhere", "nowhere does not exist"),
        ("empty", "There are no images in empty"),
        ("notes.txt", "notes.txt does not have the name of an image file"),
    ):
        result = c3("caption", path)
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())


def test_keys_are_unique_over_several_folders(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png", "b/y.jpg", "b/y.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "a" / "gone.png").symlink_to("nowhere.png")
    found, failures = images_by_key([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "x.png"])
    assert failures == [(tmp_path / "a" / "gone.png", "a symbolic link whose target does not exist")]
    assert list(found) == ["a/x", "b/x", "b/y.jpg", "b/y.png", "x"]
    assert np.unique([str(path) for path in found.values()]).size == 4


def captions_of(result: Result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return [row["caption"] for row in json.loads(result.stdout)]


@pytest.fixture
def embedded(c3: C3, captioner: Captioner, photos: Path, tmp_path: Path) -> Store:
    """The photos in a store, beside the decoder."""
    captioner.save(tmp_path / "c3-decoder")
    assert c3("embed", photos, "--backend", "torch", "--precision", "fp32").exit_code == 0
    return Store.open(tmp_path / "c3-store")


def no_encoder(*_: object, **__: object) -> Encoder:
    raise AssertionError("an encoder is loaded")


def test_embeddings_get_the_captions_of_their_photos_without_an_encoder(
    c3: C3, embedded: Store, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = captions_of(c3("caption", photos, "--backend", "torch", "--precision", "fp32", "--json"))
    assert len(set(expected)) > 1
    rows = embedded.load("image")
    matrix = rows.embeddings
    np.save("one.npy", matrix[0])
    np.save("all.npy", matrix.astype(np.float64))
    np.savez("two.npz", photos=matrix, others=-matrix, id=np.array(rows.keys))
    save_file({"photos": matrix, "others": -matrix}, "two.safetensors")
    table = pa.table(
        {"photos": list(matrix), "others": list(-matrix), "file_name": [f"{key}.jpg" for key in rows.keys]}
    )
    pq.write_table(table, "two.parquet")
    monkeypatch.setattr("c3tools.captioning.caption.resolve_encoder", no_encoder)
    monkeypatch.setattr("c3tools.captioning.captioner.resolve_encoder", no_encoder)
    assert captions_of(c3("caption", "--embeddings", "c3-store", "--json")) == expected
    assert captions_of(c3("caption", "--embeddings", "one.npy", "--json")) == expected[:1]
    assert captions_of(c3("caption", "--embeddings", "all.npy", "--json")) == expected
    for name in ("two.npz", "two.safetensors", "two.parquet"):
        assert captions_of(c3("caption", "--embeddings", name, "--key", "photos", "--json")) == expected
    found = c3("caption", "--embeddings", "two.npz", "--key", "photos", "--json").stdout
    assert [row["key"] for row in json.loads(found)] == list(rows.keys)
    result = c3("caption", "--embeddings", "two.safetensors", "--key", "twice", "--json")
    assert "has no array 'twice'. Its arrays are others, photos" in result.stderr
    texts = c3("caption", "--embeddings", "c3-store", "--modality", "text", "--json")
    assert len(captions_of(texts)) == 20


def test_embeddings_of_another_space_are_refused_or_said(c3: C3, embedded: Store) -> None:
    matrix = embedded.load("image").embeddings

    def said(array: npt.NDArray[np.floating], *options: str) -> tuple[int, str]:
        np.save("given.npy", array)
        result = c3("caption", "--embeddings", "given.npy", *options)
        return result.exit_code, " ".join(result.stderr.split())

    nan, zero = matrix.copy(), matrix.copy()
    nan[2, 5], zero[1:3] = np.nan, 0
    strange = np.concatenate([matrix, unit_rows(2, 256)])
    code, message = said(nan)
    assert (code, "1 of 4 embeddings (2) contain NaN or infinity" in message) == (1, True)
    code, message = said(zero)
    assert (code, "2 of 4 embeddings (1, 2) are zero vectors" in message) == (1, True)
    code, message = said(matrix[:, :128])
    assert (code, "256 dimensions" in message, "these have 128" in message) == (1, True, True)
    code, message = said(unit_rows(4, 256))
    assert (code, "far from the mean of image embeddings of c3-mini" in message) == (1, True)
    assert "without a transform" in message
    code, message = said(embedded.load("text").embeddings)
    assert (code, "close to that of text embeddings" in message, "--modality text" in message) == (1, True, True)
    code, message = said(strange)
    assert (code, "2 of 6 embeddings (4, 5) are far from the mean" in message) == (0, True)
    code, message = said(3 * matrix)
    assert code == 0
    assert "4 of 4 embeddings (0, 1, 2, …) have norm 3, but those of c3-mini have norm 1" in message
    code, message = said(matrix[:0])
    assert (code, "given.npy has no row" in message) == (1, True)
    code, message = said(matrix, "--html", "page.html")
    assert (code, "need photos, but --embeddings has none" in message) == (1, True)
    code, message = said(matrix, "--model", "c3-mini")
    assert (code, "cannot be used with --embeddings" in message) == (1, True)
    assert "Both images and --embeddings were given" in c3("caption", ".", "--embeddings", "given.npy").stderr
    assert "There is nothing to caption" in c3("caption").stderr


def test_captions_of_other_vectors_in_the_same_file_are_refused(c3: C3, embedded: Store, tmp_path: Path) -> None:
    matrix = embedded.load("image").embeddings
    command = ["caption", "--embeddings", "given.npy", "--json", "a.json"]
    np.save("given.npy", matrix)
    captions = c3(*command)
    assert captions.exit_code == 0, captions.stderr
    again = c3(*command)
    assert "4 of 4 captions already existed" in again.stderr
    before = (tmp_path / "a.json").read_bytes()
    np.save("given.npy", matrix[::-1])
    other = c3(*command)
    assert other.exit_code == 1
    assert "contains captions by tiny decoder of c3-mini, greedy" in " ".join(other.stderr.split())
    assert (tmp_path / "a.json").read_bytes() == before
    assert c3(*command, "--overwrite").exit_code == 0
    rows, old = (json.loads(text) for text in ((tmp_path / "a.json").read_text(), before))
    assert [row["caption"] for row in rows] == [row["caption"] for row in reversed(old)]


def test_a_store_of_another_model_is_refused(c3: C3, captioner: Captioner, tmp_path: Path) -> None:
    captioner.save(tmp_path / "c3-decoder")
    build_store(tmp_path / "other", Rows.of("image", ["a"], unit_rows(1, 256)))
    result = c3("caption", "--embeddings", "other")
    assert result.exit_code == 1
    assert "these embeddings of test-model" in " ".join(result.stderr.split())


def test_files_are_written_and_a_second_run_only_adds(
    c3: C3, captioner: Captioner, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner.save(tmp_path / "c3-decoder")
    first = min(photos.glob("*.jpg"))
    (photos / "broken.jpg").write_bytes(b"no image")
    first.with_suffix(".txt").write_text("my own words\n")
    command = ["caption", photos, "--json", "a.json", "--csv", "a.csv", "--txt", "--xmp", "--html", "a.html"]
    result = c3(*command)
    assert result.exit_code == 1
    assert "Could not read" in result.stderr
    rows = json.loads((tmp_path / "a.json").read_text())
    assert len(rows) == 4
    assert "small" not in rows[0]["captioner"]
    assert rows[0]["captioner"].startswith("tiny decoder of c3-mini, greedy (")
    with (tmp_path / "a.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == rows
    for row in rows[1:]:
        assert Path(row["path"]).with_suffix(".txt").read_text() == row["caption"] + "\n"
        assert row["caption"] in Path(row["path"]).with_suffix(".xmp").read_text()
    assert first.with_suffix(".txt").read_text() == "my own words\n"
    page = (tmp_path / "a.html").read_text()
    assert page.count("data:image/jpeg") == 4
    assert "broken.jpg" in page
    (photos / "broken.jpg").unlink()
    monkeypatch.setattr("c3tools.captioning.caption.resolve_encoder", no_encoder)
    again = c3(*command)
    assert again.exit_code == 0, again.stderr
    assert "4 of 4 captions already existed" in again.stderr
    assert json.loads((tmp_path / "a.json").read_text()) == rows
    other = c3(*command, "--beams", "2")
    assert other.exit_code == 1
    assert "contains captions by tiny decoder of c3-mini, greedy" in " ".join(other.stderr.split())
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    replaced = c3(*command, "--beams", "2", "--overwrite")
    assert replaced.exit_code == 0, replaced.stderr
    assert "2 beams" in json.loads((tmp_path / "a.json").read_text())[0]["captioner"]
    assert first.with_suffix(".txt").read_text() != "my own words\n"


class Killed(BaseException):
    """Ends a run as a kill does: nothing that comes after is done."""


def test_a_run_killed_five_times_captions_every_photo_once(
    captioner: Captioner, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = copy_photos(tmp_path / "photos", 8)
    expected = caption_images([photos], decoder=captioner, encoder=encoder).captions
    append, made = _Table.append, []

    def killed_at_second(table: _Table, row: dict[str, str]) -> None:
        append(table, row)
        made.append(row["key"])
        if len(made) % 2 == 0:
            raise Killed  # before the file beside the photo is written

    target = tmp_path / "captions.csv"
    monkeypatch.setattr(_Table, "append", killed_at_second)
    kills = 0
    while kills < 9:
        try:
            caption_images([photos], decoder=captioner, encoder=encoder, csv=target, txt=True)
            break
        except Killed:
            kills += 1
            if kills % 2:
                target.write_bytes(target.read_bytes()[:-9])  # the last row is cut short
    assert kills == 5  # each leaves one or two more
    with target.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["key"]: row["caption"] for row in rows} == expected
    assert len(rows) == 8
    for key, caption in expected.items():
        assert (photos / f"{key}.txt").read_text() == caption + "\n"


def test_the_bundled_captioner_is_used_where_there_is_no_other(
    c3: C3, captioner: Captioner, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captioner.save(tmp_path / "bundled", dtype="float16")
    monkeypatch.setitem(BUNDLED, "c3-mini", tmp_path / "bundled")
    path = min(photos.glob("*.jpg"))
    for options in ([], ["--decoder", "c3-mini"]):
        result = c3("caption", path, *options)
        assert result.exit_code == 0, result.stderr
        assert ("the bundled decoder of c3-mini" in result.stderr) == (not options)
    assert Captioner.load("c3-mini").record == captioner.record
    (tmp_path / "c3-decoder").mkdir()
    result = c3("caption", path)
    assert "There is no trained decoder at c3-decoder" in result.stderr
    monkeypatch.setitem(BUNDLED, "c3-mini", tmp_path / "none")
    (tmp_path / "c3-decoder").rmdir()
    assert "There is no trained decoder at c3-decoder" in c3("caption", path).stderr
