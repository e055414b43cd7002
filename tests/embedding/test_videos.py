"""Videos: frames at a rate, and their mean as one embedding."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from c3tools import Store, embed
from c3tools.corpus.image_reader import read_frames
from c3tools.corpus.reading import read_corpus
from c3tools.encoders import Encoder
from c3tools.errors import MissingExtraError, StoreError
from c3tools.store.verify import verify_store
from tests.conftest import C3, Counted, as_json, copy_photos, write_jsonl

av = pytest.importorskip("av", reason="the extra video is not installed")

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]
RATE = 8


def write_video(
    path: Path, colours: Sequence[tuple[int, int, int]] = COLOURS, size: tuple[int, int] = (64, 48)
) -> Path:
    """Write a video of one second in each colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(len(colours) * RATE):
            frame = av.VideoFrame.from_image(Image.new("RGB", size, colours[number // RATE]))
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_come_at_the_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4")
    frames = list(read_frames(path, 1))
    assert [round(at, 3) for at, _ in frames] == [0, 1, 2, 3]
    for (_, image), colour in zip(frames, COLOURS, strict=True):
        assert image.size == (64, 48)
        assert np.abs(np.asarray(image).mean(axis=(0, 1)) - colour).max() <= 20
    assert [round(at, 3) for at, _ in read_frames(path, 2)] == [half / 2 for half in range(8)]
    assert len(list(read_frames(path, 1000))) == 4 * RATE  # no more than there are
    assert (
        [at for at, _ in read_frames(path, 0.001)] == [at for at, _ in read_frames(path, 0)] == [0]
    )
    with pytest.raises(TimeoutError, match="--image-timeout allows more"):
        list(read_frames(path, 1, time_limit=1e-9))


def test_frames_are_turned_and_counted_where_they_have_no_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = SimpleNamespace(time=None, rotation=90, to_image=lambda: Image.new("RGB", (64, 48)))
    streams = SimpleNamespace(video=[SimpleNamespace(average_rate=None)])
    opened = SimpleNamespace(streams=streams, decode=lambda _: [frame] * 3)
    monkeypatch.setattr(av, "open", lambda _: nullcontext(opened))
    assert [(at, image.size) for at, image in read_frames("x.mp4", 1)] == [
        (at, (48, 64)) for at in range(3)
    ]


def test_the_embedding_is_the_mean_of_those_of_the_frames(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock that is a second later whenever it is read
    clock = SimpleNamespace(perf_counter=count().__next__)
    monkeypatch.setattr("c3tools.embedding.shard_work.time", clock)
    path = write_video(tmp_path / "videos/b.mp4")
    write_video(tmp_path / "videos/a.mkv", COLOURS[:1], (32, 80))
    options: dict[str, Any] = {
        "dtype": "float32",
        "fps": 2,
        "batch_size": 3,
        "reporter": (told := Counted()),
    }
    store = embed(tmp_path / "videos", tmp_path / "s", encoder=encoder, **options)
    rows, seconds = store.load("video"), store.summary.modalities["video"].seconds
    assert told.counts["Videos"] == 2 and min(seconds.values()) > 0
    assert seconds["waiting"] == 4  # for 3, 3 and 2 frames of one video, and 2 of the other
    mean = encoder.encode_images([image for _, image in read_frames(path, 2)]).mean(axis=0)
    np.testing.assert_allclose(rows.embeddings[1], mean / np.linalg.norm(mean), atol=1e-5)
    found = [rows.column(name) for name in ("key", "width", "height", "frames", "duration")]
    assert found == [["a", "b"], [32, 64], [80, 48], [2, 8], [0.5, 3.5]]
    assert verify_store(store.path).findings == []


def test_a_store_keeps_the_frames_per_second_that_it_was_begun_with(
    encoder: Encoder, tmp_path: Path
) -> None:
    first = write_video(tmp_path / "a.mp4")
    second = write_video(tmp_path / "b.mp4")
    embed(first, tmp_path / "s", encoder=encoder, fps=2)
    store = embed(second, tmp_path / "s", encoder=encoder)
    assert store.load("video").column("frames") == [8, 8]
    with pytest.raises(StoreError, match=r"--fps is 4, but the store .* was made with 2"):
        embed(second, tmp_path / "s", encoder=encoder, fps=4)


def test_videos_have_captions_like_images(encoder: Encoder, tmp_path: Path) -> None:
    photos = copy_photos(tmp_path / "mixed", 2)
    names = ["red", "green", "blue"]
    for name, colour in zip(names, COLOURS, strict=False):
        write_video(photos / f"clips/{name}.mp4", [colour])
    rows = [{"image": f"clips/{name}.mp4", "captions": [f"a {name} wall", name]} for name in names]
    write_jsonl(photos / "clips/captions.jsonl", *rows)
    store, again = (embed(photos, tmp_path / "store", encoder=encoder, workers=0) for _ in range(2))
    assert [store.count(name) for name in ("image", "video", "text")] == [2, 3, 16]
    store.summary.images_without_caption = ["clips/red", "clips/blue"]
    assert store.summary.notes()[0] == "2 inputs without a caption: clips/red, clips/blue"
    pairs = store.pairs("video", "text")
    assert {pairs.second.captions[row] for row in pairs.rows} == {
        *names,
        *(f"a {name} wall" for name in names),
    }
    assert again.summary.modalities["video"].already == 3


def test_bad_files_are_listed_as_bad_images_are(c3: C3, tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    whole = write_video(folder / "whole.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "empty.webm").touch()
    (folder / "text.mov").write_text("no video")
    result = c3("embed", "videos", "--backend", "torch", "--json", "-")
    video = as_json(result)["modalities"]["video"]
    assert (video["embedded"], video["failed"]) == (1, 3)
    assert "Found 0 images, 4 videos and 0 texts." in result.stderr
    failures = Store.open("c3-store").recorded_failures()
    assert {failure.key: failure.stage for failure in failures} == dict.fromkeys(
        ["cut", "empty", "text"], "decode"
    )


def test_a_missing_package_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "videos/a.mp4", COLOURS[:1])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'install "av>='):
        read_corpus(tmp_path / "videos")
