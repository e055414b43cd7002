from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from c3tools import devices
from c3tools.captioning import Captioner, GenerationConfig, TrainingConfig, caption_images, fit_captioner
from c3tools.captioning.captioner import images_by_key
from c3tools.encoders import Encoder
from c3tools.errors import DecoderError
from c3tools.moments import Moments
from c3tools.store import Rows
from c3tools.transforms import preset
from tests.conftest import C3


@pytest.fixture(scope="module")
def captioner(encoder: Encoder) -> Captioner:
    """A decoder for the bundled model that has learned next to nothing."""
    captions = [f"a {colour} {thing}" for colour in ("red", "blue") for thing in ("bus", "dog", "cup")] * 4
    embeddings = encoder.encode_texts(captions)
    rows = Rows.of("text", [str(i) for i in range(len(captions))], embeddings, caption=captions)
    moments = {"text": Moments.from_rows(embeddings), "image": Moments.from_rows(-embeddings)}
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
    assert [row["caption"] for row in rows] == captioner.caption(paths, encoder=encoder)
    for row in rows:
        assert row["key"] in result.stdout
        assert row["caption"].startswith("a ")


def test_paths_and_pictures_are_captioned_by_the_recorded_encoder(
    captioner: Captioner, encoder: Encoder, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, recorded: dict[str, object], **__: object) -> Encoder:
        assert recorded == encoder.identity
        return encoder

    monkeypatch.setattr("c3tools.captioning.captioner.resolve_encoder", resolve)
    paths = sorted(photos.glob("*.jpg"))
    from_paths = captioner.caption(paths)
    assert all(caption.startswith("a ") for caption in from_paths)
    assert captioner.caption([Image.open(path) for path in paths]) == from_paths
    result = caption_images([photos], decoder=captioner)
    assert list(result.captions.values()) == from_paths
    assert result.to_dict()["captions"][0] == {"key": paths[0].stem, "caption": from_paths[0]}
    for images, embeddings in ((None, None), (paths, np.ones((1, 8), np.float32))):
        with pytest.raises(DecoderError, match="from images or from embeddings"):
            captioner.caption(images, embeddings=embeddings)


def test_one_file_prints_json_alone(c3: C3, captioner: Captioner, photos: Path, tmp_path: Path) -> None:
    captioner.save(tmp_path / "c3-decoder")
    path = min(photos.glob("*.jpg"))
    result = c3("caption", path, "--json", "--beams", "3")
    assert result.exit_code == 0, result.stderr
    assert [row["key"] for row in json.loads(result.stdout)] == [path.stem]


def test_magic_asks_the_encoder_at_every_word(
    c3: C3, captioner: Captioner, encoder: Encoder, photos: Path, tmp_path: Path
) -> None:
    captioner.save(tmp_path / "c3-decoder")
    path = min(photos.glob("*.jpg"))
    result = c3("caption", path, "--magic", "--precision", "fp32", "--json")
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
        ("nowhere", "There is nothing at nowhere"),
        ("empty", "No images in empty"),
        ("notes.txt", "notes.txt is not an image file by its name"),
    ):
        result = c3("caption", path)
        assert result.exit_code == 1
        assert message in " ".join(result.stderr.split())


def test_keys_are_unique_over_several_folders(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png", "b/y.jpg", "b/y.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    found = images_by_key([tmp_path / "a", tmp_path / "b", tmp_path / "a" / "x.png"])
    assert list(found) == ["a/x", "b/x", "b/y.jpg", "b/y.png", "x"]
    assert np.unique([str(path) for path in found.values()]).size == 4
