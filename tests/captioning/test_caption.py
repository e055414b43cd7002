"""Captions of photos by the bundled model, whose encoder and decoder are the oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from c3tools import Captioner, caption_images
from c3tools.captioning.caption import _image_batches
from c3tools.encoders import Encoder
from c3tools.errors import CorpusError, DecoderError
from c3tools.reporter import Progress
from tests.conftest import Messages, copy_photos

from .conftest import trained_captioner


def test_photos_of_two_folders_are_captioned_a_few_at_a_time(
    tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("c3tools.captioning.caption._PHOTOS", 3)
    monkeypatch.setattr(Encoder, "batch_size", lambda *_: 2)
    done: Any = []
    monkeypatch.setattr(Progress, "advance", lambda self, count=1, note=None: done.append(count))
    for name in ("a", "b"):
        copy_photos(tmp_path / name, 3)
    photos, told = sorted(Path().glob("*/*.jpg")), Messages()
    (tmp_path / "b" / "broken.jpg").write_bytes(b"no")
    options: Any = {"encoder": encoder, "json": "c.json", "beams": 1, "reporter": told}
    found = caption_images(["a", "b"], **options)
    assert list(found.captions) == [str(photo.with_suffix("")) for photo in photos]
    expected = Captioner.load("c3-mini").caption(photos, encoder=encoder, beams=1)
    assert list(found.captions.values()) == expected
    assert (found.kept, found.files, [one.path for one in found.failures]) == (
        0,
        "c.json",
        ["b/broken.jpg"],
    )
    assert done == [4, 3]
    assert caption_images(["a", "b"], **options).kept == 6
    assert told.texts[0] == "Using the bundled decoder of c3-mini."
    assert told.texts[-1] == "6 of 7 captions already existed."
    one, other = photos[0], photos[3]  # of one name
    assert list(caption_images([one, other], encoder=encoder).captions) == [one.stem, str(other)]
    with pytest.raises(DecoderError, match=r"toy-model .*c3-mini"):
        caption_images(["a"], decoder=trained_captioner(), encoder=encoder)


def test_files_of_other_kinds_are_named(tmp_path: Path, encoder: Encoder) -> None:
    for name in ("a.CR2", "b.pdf", "c.tar", "d.wav"):
        (tmp_path / name).touch()
    with pytest.raises(CorpusError, match=r"no images in .* 1 file skipped \(.cr2\). RAW photos"):
        caption_images(tmp_path, decoder="c3-mini", encoder=encoder)
    copy_photos(tmp_path / "photos", 1)
    told = Messages()
    caption_images(tmp_path, decoder="c3-mini", encoder=encoder, beams=1, reporter=told)
    skipped = [text.partition(": ")[2] for text in told.texts if "skipped" in text]
    suffixes = (".cr2", ".pdf", ".tar", ".wav")
    assert [text[:22] for text in skipped] == [f"1 file skipped ({one})." for one in suffixes]


def test_one_photo_is_captioned_as_a_list_of_one(photos: Path, encoder: Encoder) -> None:
    photo = sorted(photos.glob("*.jpg"))[0]
    options: Any = {"encoder": encoder, "beams": 1}
    captions = Captioner.load("c3-mini").caption([photo], **options)
    assert Captioner.load("c3-mini").caption(str(photo), **options) == captions
    for path in (photo, str(photo)):
        assert list(caption_images(path, **options).captions.values()) == captions


def test_photos_whose_captions_are_steered_come_one_by_one(photos: Path, encoder: Encoder) -> None:
    paths = {path.stem: path for path in sorted(photos.glob("*.jpg"))}
    batches = list(_image_batches(paths, list(paths), encoder, size=1))
    assert [batch.keys for batch in batches] == [[key] for key in paths]


def test_empty_captions_are_counted(
    photos: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a decoder that puts the end of the text first."""
    count = len(list(photos.glob("*.jpg")))
    monkeypatch.setattr(Captioner, "write", lambda *_: ["", *["a dog"] * (count - 1)])
    told = Messages()
    options: Any = {"decoder": "c3-mini", "encoder": encoder, "reporter": told}
    caption_images(photos, **options)
    assert told.texts[-1].startswith(f"1 of {count} captions are empty. ")
    assert told.texts[-1].endswith("train it longer (--epochs).")
    monkeypatch.setattr(Captioner, "write", lambda *_: ["a dog"] * count)
    told.texts.clear()
    caption_images(photos, **options)
    assert not any("empty" in text for text in told.texts)
