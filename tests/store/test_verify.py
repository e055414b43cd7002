"""Every kind of damage is found, named, and mended by doing the least again."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.errors import C3Error, OutputError, StoreError
from c3tools.identity import ModelIdentity
from c3tools.io.files import json_text, sha256_of
from c3tools.io.locations import read_all, remove, upload
from c3tools.io.lock import locked
from c3tools.moments import Moments, save_moments
from c3tools.store import Rows, Shard, Store, StoreInfo, finish_store, write_shard
from c3tools.store.metadata import inspect_marker, write_marker
from c3tools.store.shards import MARKER, MOMENTS, ROWS, part_path
from c3tools.store.store_checks import check_description
from c3tools.store.verify import Verification, repair_store, verify_store
from tests.conftest import build_store, store_files, unit_rows
from tests.crashes.recorder import NEVER, Recorder, recording
from tests.embedding.test_embed import files
from tests.servers import Faults, web_server
from tests.stores import corruptions, one_byte_changed, whole_store

Put = Callable[[Path], Path]


def found(result: Verification) -> list[tuple[str, str]]:
    return [(finding.check, finding.where) for finding in result.findings]


def put_file(file: Path, folder: Path, place: Path) -> None:
    """Bring one file of a store on disk to where the store was put; nothing is to be done if it is on disk."""
    if place != folder:
        upload(file, place / file.relative_to(folder).as_posix())


def reseal(store: Path, modality: str, part: int) -> None:
    """Make the marker agree with files that a test has changed: what is left is what other checks find."""
    marker_path = store / modality / f"_part-{part:05d}.json"
    marker = json.loads(marker_path.read_text())
    marker["sha256"] = {name: sha256_of(marker_path.parent / name) for name in marker["sha256"]}
    write_marker(marker_path, marker)
    finish_store(store)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_whole_store_has_no_findings(tmp_path: Path, put: Put, dtype: str) -> None:
    whole_store(tmp_path / "s", dtype=dtype)
    before = {file: file.read_bytes() for file in store_files(tmp_path / "s")}
    result = verify_store(put(tmp_path / "s"))
    assert result.findings == []
    assert result.whole
    assert result.rows == {"image": 30, "text": 60}
    assert result.shards == result.read == {"image": 3, "text": 3}
    assert {file: file.read_bytes() for file in store_files(tmp_path / "s")} == before


def test_a_store_behind_a_web_server(tmp_path: Path) -> None:
    pytest.importorskip("upath", reason="the extra url is not installed")
    whole_store(tmp_path / "s")
    (tmp_path / "unlisted").mkdir()
    shutil.copyfile(tmp_path / "s" / "store.json", tmp_path / "unlisted" / "store.json")
    with web_server(tmp_path, Faults()) as base:
        assert verify_store(f"{base}/s").rows == {"image": 30, "text": 60}
        with pytest.raises(StoreError, match="Many web servers do not list files"):
            verify_store(f"{base}/unlisted")


@pytest.mark.parametrize(("put", "count"), [("disk", 60), ("s3", 6)], indirect=["put"])
def test_every_one_of_60_single_byte_corruptions_is_detected(tmp_path: Path, put: Put, count: int) -> None:
    path = whole_store(tmp_path / "s", images=20).path
    kinds = {file.name.split(".", 1)[-1] if "part" in file.name else file.name for file in store_files(path)}
    assert kinds == {
        "store.json",
        "manifest.json",
        "failures.parquet",
        "borrowed-moments.safetensors",
        "parquet",
        "json",
        "moments.safetensors",
    }
    missed = []
    place = put(path)
    for file, position, flip in corruptions(path, count, seed=8):
        with one_byte_changed(file, position, flip):
            put_file(file, path, place)
            try:
                detected = not verify_store(place).whole
            except StoreError:
                detected = True
        put_file(file, path, place)
        if not detected:
            missed.append((file, position, flip))
    assert missed == []
    assert verify_store(place).whole


@pytest.mark.parametrize("name", ["store.json", "image/_part-00001.json"])
def test_every_byte_of_the_json_files_is_guarded(tmp_path: Path, name: str) -> None:
    path = whole_store(tmp_path / "s", images=4, part_rows=2).path

    def is_intact() -> bool:
        # what `verify_store` looks at in these files
        if name == "store.json":
            return check_description(path) == []
        return inspect_marker(path / name)[1] is None

    assert is_intact()
    for position in range((path / name).stat().st_size):
        with one_byte_changed(path / name, position, 0x20 if position % 2 else 1), contextlib.suppress(StoreError):
            assert not is_intact(), position


def test_a_missing_file_is_named_with_what_to_run(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s").path
    (path / "image" / "part-00001.parquet").unlink()
    (path / "text" / "_part-00002.moments.safetensors").unlink()
    result = verify_store(put(path))
    assert found(result)[:2] == [
        ("files", "image/part-00001.parquet"),
        ("files", "text/_part-00002.moments.safetensors"),
    ]
    assert "c3 embed" in result.findings[0].remedy
    # texts of the images that are gone are told too
    assert ("pairing", "text/part-00001.parquet") in found(result)


def test_nan_zero_and_unnormalised_rows_are_named_by_key(tmp_path: Path, put: Put) -> None:
    rows = unit_rows(4, 4)
    rows[1, 2], rows[2], rows[3] = np.nan, 0, rows[3] * 1.01
    build_store(tmp_path / "s", Rows.of("image", list("abcd"), rows), dtype="float32")
    result = verify_store(put(tmp_path / "s"))
    assert [finding.check for finding in result.findings] == ["values", "norms"]
    assert result.findings[0].what.startswith("2 rows (key 'b', …)")
    assert result.findings[1].what.startswith("1 row (key 'd') whose norm is not 1 (off by up to 0.01")


def test_rounding_to_float16_is_no_defect_of_the_norm(tmp_path: Path) -> None:
    build_store(tmp_path / "s", Rows.of("image", [str(i) for i in range(50)], unit_rows(50, 1024)))
    assert verify_store(tmp_path / "s").findings == []


def test_moments_that_are_not_those_of_the_rows(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s").path
    before = (path / "image" / "_part-00000.moments.safetensors").read_bytes()
    groups = {"train": Moments.from_rows(unit_rows(8, 12, 5)), "val": Moments.from_rows(unit_rows(2, 12, 6))}
    save_moments(path / "image" / "_part-00000.moments.safetensors", groups, {"modality": "image"})
    reseal(path, "image", 0)
    place = put(path)
    result = verify_store(place)
    assert found(result) == [("moments", "image/_part-00000.moments.safetensors")]
    assert "the mean of train is off by" in result.findings[0].what
    repair_store(result)
    assert result.whole
    assert read_all(place / "image" / "_part-00000.moments.safetensors") == before
    assert verify_store(place).findings == []


def test_splits_of_the_rows_and_of_the_moments_must_agree(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    rows = Store.open(path).load("image").embeddings[:10]
    groups = {"train": Moments.from_rows(rows)}
    save_moments(path / "image" / "_part-00000.moments.safetensors", groups, {"modality": "image"})
    reseal(path, "image", 0)
    assert "10 train rows instead of 8" in verify_store(path).findings[0].what


def test_duplicates_across_shards_are_found_and_the_later_shard_is_redone(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s").path
    for suffix in (ROWS, MOMENTS, MARKER):
        shutil.copyfile(part_path(path, "text", 0, suffix), part_path(path, "text", 3, suffix))
    marker = json.loads((path / "text" / "_part-00003.json").read_text())
    marker["sha256"] = {name.replace("00000", "00003"): digest for name, digest in marker["sha256"].items()}
    write_marker(path / "text" / "_part-00003.json", marker)
    place = put(path)
    result = verify_store(place)
    assert found(result) == [("keys", "text/part-00003.parquet"), ("unfinished", "text")]
    assert result.findings[0].what == "it repeats the key 'img000#0' of shard 0 and 19 more"
    repair_store(result)
    assert not result.whole
    assert verify_store(place).findings == []


def test_a_removed_shard_needs_no_moments(tmp_path: Path) -> None:
    rows = Rows.of("image", ["a", "b", "a"], unit_rows(3, 4))
    path = build_store(tmp_path / "s", rows, part_rows=2).path
    (path / "image" / "_part-00001.moments.safetensors").write_bytes(b"x")
    result = verify_store(path, repair=True)
    assert {(finding.check, finding.part) for finding in result.defects} == {("keys", 1), ("checksum", 1)}
    assert result.repaired == ["image shard 1 was removed and has to be made again"]
    assert result.open == 1
    assert [finding.check for finding in verify_store(path).defects] == ["files"]


def test_texts_without_their_image(tmp_path: Path, put: Put) -> None:
    images = Rows.of("image", ["a", "b"], unit_rows(2, 4))
    texts = Rows.of("text", ["a#0", "c#0", "d"], unit_rows(3, 4), image_key=["a", "c", None])
    build_store(tmp_path / "s", images, texts)
    result = verify_store(put(tmp_path / "s"))
    assert found(result) == [("pairing", "text/part-00000.parquet")]
    assert "1 row belongs" in result.findings[0].what
    assert "'c'" in result.findings[0].what


def test_a_wrong_count_and_another_stores_shard(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s").path
    marker = json.loads((path / "image" / "_part-00000.json").read_text())
    write_marker(path / "image" / "_part-00000.json", {**marker, "rows": 11})
    other = StoreInfo(ModelIdentity(name="other", weights_sha256="1" * 64), 12)
    rows = Store.open(path).load("image")
    columns = {"key": rows.keys[20:], "path": rows.column("path")[20:], "split": rows.column("split")[20:]}
    write_shard(path, other, Shard("image", 2, rows.embeddings[20:], columns))
    result = verify_store(put(path))
    assert [(f.check, f.what) for f in result.findings if f.modality == "image"] == [
        ("count", "it has 10 rows, but the done marker says 11"),
        ("schema", "its metadata describe another store"),
    ]


def test_store_json_is_written_anew_from_the_shards(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s", images=10).path
    before = (path / "store.json").read_bytes()
    place = put(path)
    for content in (b"{", b"", before.replace(b'"dim": 12', b'"dim": 13')):
        (path / "store.json").write_bytes(content)
        put_file(path / "store.json", path, place)
        result = verify_store(place)
        assert [finding.check for finding in result.findings] == ["description"]
        repair_store(result)
        assert result.whole
        assert read_all(place / "store.json") == before
    remove(place / "store.json")
    repair_store(verify_store(place))
    assert verify_store(place).findings == []


@pytest.mark.parametrize("footer", [False, True])
def test_store_json_stays_if_no_shard_can_say_what_it_should_be(tmp_path: Path, footer: bool) -> None:
    rows = Rows.of("text", list("abcd"), unit_rows(4, 4), caption=list("abcd"))
    path = build_store(tmp_path / "s", rows).path
    shard = path / "text" / "part-00000.parquet"
    content = shard.read_bytes()
    if footer:  # it can be read, but the checksum is wrong; and store.json was changed
        shard.write_bytes(content[:4] + bytes([content[4] ^ 1]) + content[5:])
        (path / "store.json").write_text((path / "store.json").read_text().replace("test-model", "other-model"))
    else:
        shard.write_bytes(content[:-9])
    before = (path / "store.json").read_bytes()
    result = verify_store(path, repair=True)
    assert ("description" in {finding.check for finding in result.findings}) == footer
    assert (path / "store.json").read_bytes() == before
    assert not result.whole
    kept = "store.json was not rewritten, because no intact shard has a copy of it"
    assert (kept in result.repaired) == footer
    assert "text shard 0 was removed and has to be made again" in result.repaired


def test_a_store_from_before_checksums_is_read_and_whole(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    for marker_path in path.glob("*/_part-*.json"):
        marker = json.loads(marker_path.read_text())
        del marker["checksum"], marker["timings"]["checksum"]
        marker_path.write_text(json_text(marker))
    import pyarrow.parquet as pq

    table = pq.read_table(path / "failures.parquet").replace_schema_metadata(None)
    pq.write_table(table, path / "failures.parquet")
    (path / "manifest.json").unlink()
    result = verify_store(path)
    assert found(result) == [("manifest", "manifest.json")]
    assert Store.open(path).count("image") == 30
    repair_store(result)
    assert result.whole
    assert verify_store(path).findings == []


def test_what_an_unfinished_run_left_is_no_damage(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s").path
    (path / "manifest.json").unlink()
    (path / "image" / "_part-00002.json").unlink()
    (path / "failures.parquet").unlink()
    place = put(path)
    result = verify_store(place)
    assert {finding.check for finding in result.findings if finding.warning} == {"unfinished"}
    assert {finding.check for finding in result.defects} == {"pairing", "manifest"}
    remove(place / "text" / "_part-00002.json")
    assert {finding.check for finding in verify_store(place).defects} == {"manifest"}


def test_a_sample_reads_few_shards_but_checks_all_others_cheaply(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s", images=12, part_rows=2).path
    result = verify_store(put(path), sample=0.3)
    assert result.read == {"image": 2, "text": 2}
    assert result.shards == {"image": 6, "text": 6}
    assert result.rows == {"image": 12, "text": 24}
    assert result.findings == []
    (path / "image" / "_part-00004.moments.safetensors").write_bytes(b"x")
    assert found(verify_store(put(path), sample=0.1)) == [("checksum", "image/_part-00004.moments.safetensors")]
    with pytest.raises(StoreError, match="fraction"):
        verify_store(path, sample=1.5)


def test_repair_keeps_off_a_store_that_is_being_written(tmp_path: Path, put: Put) -> None:
    path = whole_store(tmp_path / "s").path
    (path / "image" / "_part-00000.json").write_text("{}")
    place = put(path)
    result = verify_store(place)
    with locked(place), pytest.raises(OutputError, match="Another run is writing"):
        repair_store(result)


@pytest.mark.parametrize("name", ["image/part-00001.parquet", "image/_part-00000.json", "text/part-00003.parquet"])
def test_repaired_and_embedded_again_the_bytes_are_the_same(
    encoder: Encoder, photos: Path, tmp_path: Path, name: str
) -> None:
    (photos / "broken.jpg").write_text("no image")
    options: dict[str, Any] = {"shard_size": 3, "workers": 0, "batch_size": 2}
    embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **options)
    before = files(tmp_path / "s")
    assert verify_store(tmp_path / "s").findings == []
    shard = name[-13:].partition(".")[0][-5:]
    untouched = {file: file.stat().st_mtime_ns for file in store_files(tmp_path / "s") if shard not in file.name}
    content = (tmp_path / "s" / name).read_bytes()
    (tmp_path / "s" / name).write_bytes(content[:40] + b"\0" + content[41:])
    result = verify_store(tmp_path / "s")
    repair_store(result)
    assert not result.whole
    assert {finding.check for finding in verify_store(tmp_path / "s").defects} - {"pairing"} == {"files"}
    summary = embed_corpus(read_corpus([photos]), tmp_path / "s", encoder, **options)
    assert 0 < sum(m.embedded for m in summary.modalities.values()) <= 3
    assert files(tmp_path / "s") == before
    assert verify_store(tmp_path / "s").findings == []
    for file, modified in untouched.items():
        if "part-" in file.name:
            assert file.stat().st_mtime_ns == modified, file


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.EIO])
def test_repair_drops_nothing_that_cannot_be_read_at_the_moment(tmp_path: Path, number: int) -> None:
    path = whole_store(tmp_path / "s", images=4, part_rows=2).path
    before = {file: file.read_bytes() for file in store_files(path)}
    with recording(Recorder(path, fail_at=NEVER)) as counter:
        verify_store(path, repair=True)
    for position in range(len(counter.operations)):
        with recording(Recorder(path, position, number)), contextlib.suppress(C3Error, OSError):
            verify_store(path, repair=True)
        assert {file: file.read_bytes() for file in store_files(path)} == before, counter.operations[position]
