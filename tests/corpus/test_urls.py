from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from c3tools.corpus import image_reader
from c3tools.corpus.image_reader import ImageReader
from c3tools.corpus.reading import read_corpus
from c3tools.errors import CorpusError
from c3tools.io import locations
from c3tools.io.locations import expand, location, retrying
from tests.conftest import put_store
from tests.corpus import packing
from tests.corpus.packing import assert_refused, contents, photos_of, write_list
from tests.servers import Faults, web_server

pytest.importorskip("upath", reason="the extra url is not installed")


@pytest.fixture
def packed(photos: Path, tmp_path: Path) -> Path:
    """Tars, a table, a list and texts of the same four photos."""
    folder = tmp_path / "packed"
    chosen = photos_of(photos)
    packing.write_tar(folder / "x-0.tar", packing.webdataset(chosen[:2]))
    packing.write_tar(folder / "x-1.tar", packing.webdataset(chosen[2:]))
    packing.write_hf_parquet(folder / "x.parquet", chosen, rows_per_group=2)
    for photo in chosen:
        (folder / photo.name).write_bytes(photo.content)
    write_list(folder / "list.csv", [{"image": photo.name, "text": photo.key} for photo in chosen])
    return folder


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locations, "BLOCK", 10_000)


def check(photos: Path, base: str) -> None:
    """Every form below ``base`` gives the photos."""
    folder = read_corpus(photos)
    expected = contents(folder)
    for form in ("x-{0..1}.tar", "x.parquet"):
        corpus = read_corpus(f"{base}/{form}")
        assert (contents(corpus), [*corpus.texts], corpus.skipped) == (
            expected,
            [*folder.texts],
            [],
        )
        assert corpus.images[0].path.startswith(f"{base}/x")
    listed = read_corpus(f"{base}/list.csv", image_column="image")
    assert contents(listed) == expected
    with (
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(OSError, match="are too many for an image"),
    ):
        patch.setattr(image_reader, "LARGEST_IMAGE_FILE", 9)
        contents(listed)
    assert [text.caption for text in read_corpus(f"{base}/list.csv").texts] == list(expected)
    given = read_corpus(f"{base}/x-0.tar", captions=f"{base}/list.csv")
    assert [text.caption for text in given.texts] == list(expected)[:2]


@pytest.mark.parametrize(("ranges", "every"), [(True, 0), (True, 3), (False, 3)])
def test_http_with_and_without_ranges_and_errors(
    photos: Path, packed: Path, ranges: bool, every: int
) -> None:
    faults = Faults(every)
    with web_server(packed, faults, ranges=ranges) as base:
        check(photos, base)
    assert faults.failed == (faults.requests // every if every else 0)
    assert not every or faults.failed > 5


def test_s3_with_every_seventh_request_failing(photos: Path, packed: Path, s3: Faults) -> None:
    put_store(packed, "s3://bucket/x")
    s3.every = 7
    check(photos, "s3://bucket/x")
    for place in ("s3://bucket/x/x-[01].tar", "s3://bucket/x"):
        assert contents(read_corpus(place)) == contents(read_corpus(photos))
    assert s3.failed > 5
    assert_refused(r"s3://bucket/x/gone\.tar does not exist", "s3://bucket/x/gone.tar")
    assert_refused("Nothing matches s3://", "s3://bucket/x/z*.tar")


def test_images_by_url_only_when_asked_for(
    photos: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = photos_of(photos)
    with web_server(packed, Faults(4)) as base:
        urls = [*(f"{base}/{photo.name}" for photo in chosen), f"{base}/gone.jpg"]
        rows = [
            {"url": url, "key": key, "caption": "t"} for url, key in zip(urls, "abcde", strict=True)
        ]
        path = write_list(packed / "urls.parquet", rows)
        assert_refused(
            "nothing to embed.*5 reasons.*--download downloads it", path, image_column="url"
        )
        corpus = read_corpus(path, image_column="url", download=True)
        with ImageReader() as reader:
            assert [reader.read(item) for item in corpus.images[:4]] == [
                photo.content for photo in chosen
            ]
            with pytest.raises(FileNotFoundError, match="answers 404"):
                reader.read(corpus.images[4])
        assert_refused(r"(?s)read only from lists.*urls\.csv --download", urls[0])
        monkeypatch.setattr(image_reader, "LARGEST_IMAGE_FILE", 9)
        with pytest.raises(OSError, match="are too many for an image"):
            image_reader.download(urls[0])
    with pytest.raises(ConnectionError, match="in 3 attempts"):
        image_reader.download(f"{base}/{chosen[0].name}")  # the server has gone
    for url in ("file:///etc/passwd", "ftp://x/y.jpg"):
        (packed / "u.csv").write_text(f"url,text\n{url},t\n")
        with pytest.raises(ValueError, match="only downloaded from"):
            contents(read_corpus(packed / "u.csv", image_column="url", download=True))


def test_a_server_that_sends_a_byte_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_reader, "_SLOWEST_DOWNLOAD", 0.5)
    with web_server(tmp_path, Faults()) as base, pytest.raises(ValueError, match="did not finish"):
        image_reader.download(f"{base}/drip")


def test_retrying_pauses_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(locations, "FIRST_PAUSE", 0.2)
    # other threads sleep as they do
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=pauses.append))

    def broken() -> None:
        raise RuntimeError("down")

    with pytest.raises(ConnectionError, match=r"there could not be reached in 6 attempts \(down\)"):
        retrying(broken, "there")
    assert [1 <= pause / (0.2 * 2**number) <= 2 for number, pause in enumerate(pauses)] == [
        True
    ] * 5


def test_braces() -> None:
    expected = {
        "{000..002}": "000 001 002",
        "x{a,b}{1..2}": "xa1 xa2 xb1 xb2",
        "{a,{0..1}}b": "ab 0b 1b",
    }
    for pattern, names in {**expected, "{a": "{a", "{a}{}": "{a}{}"}.items():
        assert expand(pattern) == [*map(Path, names.split())]


def test_malformed_urls_and_braces_without_end_are_refused() -> None:
    for url in ("http://[*a]/x.tar", "s3://bucket]/x.tar"):
        with pytest.raises(CorpusError, match="is not a URL"):
            location(url)
    for pattern in ("{0..99999999999}", "{0..999}{0..999}{0..999}", "{0..999}" * 50):
        with pytest.raises(CorpusError, match="100,000"):
            expand(pattern)
