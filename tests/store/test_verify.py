"""`c3 verify` finds every kind of damage and loss, and repairs by doing the least again."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pyarrow as pa
import pytest

from c3tools import ModelIdentity, verify_store
from c3tools.errors import C3Error, OutputError, StoreError
from c3tools.io.files import json_text
from c3tools.io.lock import locked
from c3tools.moments import Moments, save_moments
from c3tools.store import Rows, Store, StoreInfo, StoreWriter, create_store, sums
from c3tools.store.dataset import with_column
from c3tools.store.manifest import EXACT, EXTERNAL_FILE, record_files
from c3tools.store.shards import write_rows
from tests.conftest import (
    Counted,
    Messages,
    add_shard,
    build_store,
    contents,
    store_files,
    unit_rows,
)
from tests.golden import recorded
from tests.stores import DIM, colour_corpus, embed_colours, one_byte_changed, whole_store


def find_corruptions(path: Path, count: int, draw: random.Random) -> None:
    """Change single bytes, of every file as often as of any other; each is found."""
    files = store_files(path)
    for number in range(count):
        file, flip = files[number % len(files)], draw.randrange(1, 256)
        position = draw.randrange(file.stat().st_size)
        with one_byte_changed(file, position, flip):
            try:
                whole = verify_store(path).whole
            except StoreError:  # store.json of a newer version
                whole = file.name != "store.json"
        assert not whole, f"{file.relative_to(path)} at {position} ^ {flip}"


def find_losses(path: Path, count: int, draw: random.Random) -> None:
    """Remove every file, then random sets of files; each loss is found, and readers are refused."""
    files = store_files(path)
    samples = (draw.sample(files, draw.randrange(2, len(files))) for _ in range(count))
    for lost in [*([file] for file in files), *samples]:
        kept = {file: file.read_bytes() for file in lost}
        for file in lost:
            file.unlink()
        with contextlib.suppress(C3Error):  # nothing says any more what the store is
            assert not verify_store(path).whole, lost
            if path / "manifest.json" not in lost:
                with pytest.raises(StoreError):
                    Store.open(path)
        for file, content in kept.items():
            file.write_bytes(content)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_damage_and_loss_are_found(tmp_path: Path, dtype: str) -> None:
    path = whole_store(tmp_path / "s", dtype=dtype).path
    find_corruptions(path, 30, random.Random(5))
    find_losses(path, 12, random.Random(3))
    report = {
        "store": str(path),
        "shards": {"image": 3, "text": 3},
        "rows": {"image": 30, "text": 60},
    }
    assert verify_store(path).to_dict() == {
        **report,
        "findings": [],
        "repaired": [],
        "open": 0,
        "whole": True,
    }


def _rows(path: Path, part: int, keys: list[str], embeddings: Any, **changes: Any) -> None:
    info = replace(Store.open(path).info, **changes)
    add_shard(path, info, "image", part, embeddings, {"key": keys, "split": ["train"] * len(keys)})
    (path / "manifest.json").unlink()
    StoreWriter(path).finish()


def _rows_of_no_length(path: Path) -> None:
    with patch.object(sums, "add_moments"):  # refuses what is not finite
        _rows(path, 3, ["zero", "nan", "good"], NEW * [[0], [np.nan], [1]])


def _rewrite_moments(path: Path, change: Callable[[dict[str, Moments]], object]) -> None:
    groups = {
        f"{m}/{s}": found
        for m in ("image", "text")
        for s, found in Store.open(path).moments_by_split(m).items()
    }
    change(groups)
    save_moments(path / "moments.safetensors", groups, EXACT)
    record_files(path, ["moments.safetensors"])


def _shifted(groups: dict[str, Moments]) -> None:
    moments = groups["image/train"]
    groups["image/train"] = Moments.of(moments.n, moments.mean + 1e-6, moments.scatter)


def _rewrite(path: Path) -> None:
    (path / ".rewriting").mkdir()
    (path / ".rewriting" / "list.json").write_text("[]")


NEW = unit_rows(1, DIM, 9)


def _longer(path: Path, by: float, dtype: str) -> None:
    shutil.rmtree(path)
    whole_store(path, dtype=dtype)
    _rows(path, 3, ["one", "longer"], unit_rows(2, DIM, 9) * np.array([[1], [by]]))


def _of_export(path: Path, part: int, *, in_header: bool) -> None:
    info = Store.open(path).info
    table = Store.open(path).read_shard("image", 0)[0]
    if in_header:
        info = replace(info, extra={"exported": {"transform": {"name": "c3"}}})
    else:
        keys = pa.array([f"new{row}" for row in range(len(table))])
        table = with_column(table, "key", keys)
        table = table.append_column("role", pa.array(["inference"] * len(table)))
    write_rows(path / f"image/part-{part:05d}.parquet", info, "image", table)
    (path / "manifest.json").unlink()
    StoreWriter(path).finish()


DAMAGE: dict[str, Any] = {  # a function, or the name of a file that is lost
    "rows of no length": _rows_of_no_length,
    "rows that are not normalised": lambda p: _rows(p, 3, ["k"], NEW, normalised=False),
    "a key that is there": lambda p: _rows(p, 3, ["img004"], NEW),
    "no key": lambda p: _rows(p, 3, [""], NEW),
    "another image": lambda p: _rows(p, 0, ["other"], NEW),
    "rows of an export": lambda p: _of_export(p, 3, in_header=False),
    "rows of another pipeline": lambda p: _of_export(p, 0, in_header=True),
    "norms in float16": lambda p: _longer(p, 1.002, "float16"),
    "norms in float32": lambda p: _longer(p, 1.0002, "float32"),
    "shifted moments": lambda p: _rewrite_moments(p, _shifted),
    "moments of fewer splits": lambda p: _rewrite_moments(p, lambda groups: groups.pop("text/val")),
    "another manifest": lambda p: (p / "manifest.json").write_text("{}"),
    "another shard": lambda p: shutil.copyfile(
        p / "image/part-00002.parquet", p / "image/part-00000.parquet"
    ),
    "a new shard": lambda p: add_shard(p, Store.open(p).info, "image", 7, NEW, {"key": ["n"]}),
    "other failures": lambda p: (p / "failures.parquet").write_text("x"),
    "half a rewrite": _rewrite,
    "lost manifest": "manifest.json",
    "lost description": "store.json",
    "lost shard": "text/part-00001.parquet",
    "lost moments of another corpus": EXTERNAL_FILE,
}


def test_a_defect_is_named_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = {}
    for name, damage in DAMAGE.items():
        path = whole_store(Path(name)).path
        damage(path) if callable(damage) else (path / damage).unlink()
        result = verify_store(name)
        assert not result.whole
        # the reason of a library is its own
        found[name] = [
            {**asdict(finding), "problem": finding.problem.partition(" (Parquet")[0]}
            for finding in result.findings
        ]
    recorded(Path(__file__).parent / "golden" / "defects.json", found)


@pytest.mark.parametrize(
    "name",
    [
        "store.json",
        "manifest.json",
        "moments.safetensors",
        "failures.parquet",
        "image/part-00001.parquet",
    ],
)
@pytest.mark.parametrize("kind", ["changed", "missing"])
def test_repaired_and_embedded_again_the_bytes_are_the_same(
    tmp_path: Path, name: str, kind: str
) -> None:
    folder = colour_corpus(
        tmp_path / "c", {"a": "red", "b": None, "c": "blue", "d": "lime", "e": "tan"}
    )
    path = tmp_path / "s"
    embed_colours(folder, path)
    before, file = contents(path), path / name
    file.unlink() if kind == "missing" else file.write_bytes(file.read_bytes()[:-20] + b"x")
    assert not verify_store(path).whole
    result = verify_store(path, repair=True)
    if "part" in name:
        # Only embedding makes a shard again; until then readers are refused
        removed = [f"{name} was removed and must be recreated"]
        assert not result.whole
        assert result.repaired == (removed if kind == "changed" else [])
        with pytest.raises(StoreError):
            Store.open(path)
    else:
        assert result.whole
        assert result.repaired == [f"{name} was written again"]
    embed_colours(folder, path)
    assert contents(path) == before


@pytest.mark.parametrize("manifest", ["its own", "none"])
@pytest.mark.parametrize("other", ["dimension", "pipeline"])
def test_a_description_of_another_store_costs_no_shard(
    tmp_path: Path, manifest: str, other: str
) -> None:
    path = whole_store(tmp_path / "s").path
    before = contents(path)
    if manifest == "none":
        (path / "manifest.json").unlink()
    info = Store.open(path, incomplete=True).info
    foreign = {
        "dimension": replace(info, dim=DIM + 1),
        "pipeline": replace(info, extra={"exported": {"transform": {"name": "c3"}}}),
    }[other]
    (path / "store.json").write_text(json_text(foreign.to_dict()))
    findings = verify_store(path).findings
    assert {finding.file for finding in findings} <= {"store.json", "manifest.json"}
    assert any("describes another store" in finding.problem for finding in findings)
    result = verify_store(path, repair=True)
    assert result.whole
    assert "store.json was written again" in result.repaired
    after = contents(path)
    if manifest == "none":
        lost = {"manifest.json", EXTERNAL_FILE}
        before, after = (
            {n: c for n, c in files.items() if n not in lost} for files in (before, after)
        )
    assert after == before


def test_a_manifest_of_another_store_costs_no_shard(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    other = whole_store(tmp_path / "o", part_rows=8).path
    before = contents(path)
    own = (path / "manifest.json").read_bytes()
    shutil.copyfile(other / "manifest.json", path / "manifest.json")
    with pytest.raises(StoreError, match="may be of another store"):
        verify_store(path, repair=True)
    (path / "manifest.json").write_bytes(own)
    assert contents(path) == before


def test_lost_rows_are_forgotten_only_when_asked(tmp_path: Path) -> None:
    rows = Rows.of("image", [f"k{i}" for i in range(6)], unit_rows(6, 4))
    path = build_store(tmp_path / "s", rows, part_rows=2).path
    (path / "image" / "part-00001.parquet").unlink()
    assert verify_store(path, repair=True).open == 1
    said = Messages()
    StoreWriter(path, reporter=said)
    assert "1 file is missing, for example image/part-00001.parquet" in said.texts[0]
    result = verify_store(path, forget=True)
    assert result.whole and result.repaired == [
        "image/part-00001.parquet was given up; its 2 rows are lost"
    ]
    assert Store.open(path).moments("image").n == 4


def test_texts_alone_failures_alone_and_nothing(tmp_path: Path) -> None:
    build_store(
        tmp_path / "t", Rows.of("text", ["a#0"], unit_rows(1, 4), image_key=["a"], caption=["c"])
    )
    embed_colours(colour_corpus(tmp_path / "c", {"a": None}, texts=0), tmp_path / "f")
    create_store(tmp_path / "n", StoreInfo(ModelIdentity(name="m"), 4))
    StoreWriter(tmp_path / "n").finish()
    assert [verify_store(tmp_path / name).findings for name in "tfn"] == [[], [], []]


SOUND = Rows.of("audio", ["dog", "owl"], unit_rows(2, 4))
PAIRED_SOUND = Rows.of("audio", ["s1", "s2"], unit_rows(2, 4), pair_key=["dog", "owl"])
CAPTION = Rows.of("text", ["dog#0"], unit_rows(1, 4), image_key=["dog"], caption=["a dog barks"])


@pytest.mark.parametrize("sounds", [SOUND, PAIRED_SOUND], ids=["own items", "named items"])
def test_a_store_of_sounds_and_captions_is_intact(tmp_path: Path, sounds: Rows) -> None:
    sides = [sounds, CAPTION] if sounds is SOUND else [sounds.select(np.array([0])), CAPTION]
    path = build_store(tmp_path / "s", *sides).path
    assert verify_store(path).findings == []


def test_a_sound_that_names_an_item_which_is_not_there_is_a_defect(tmp_path: Path) -> None:
    path = build_store(tmp_path / "s", PAIRED_SOUND, CAPTION).path
    (finding,) = verify_store(path).findings
    assert (finding.check, finding.file) == ("pairing", "audio/part-00000.parquet")
    assert finding.problem.startswith("1 row belongs to items") and "'owl'" in finding.problem


def test_what_cannot_be_read_at_the_moment_is_not_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = whole_store(tmp_path / "s").path
    before = contents(path)
    for number in (errno.EMFILE, errno.EACCES, errno.EIO):
        with monkeypatch.context() as patch, pytest.raises(C3Error, match="cannot be read"):
            patch.setattr("pyarrow.parquet.ParquetFile", Mock(side_effect=OSError(number, "no")))
            verify_store(path, repair=True)
        assert contents(path) == before


def test_a_store_that_another_run_is_writing_is_not_called_damaged(tmp_path: Path) -> None:
    path = whole_store(tmp_path / "s").path
    with locked(path):
        assert verify_store(path).whole
        (path / "manifest.json").unlink()
        with pytest.raises(OutputError, match=r"Another run is writing to .*since"):
            verify_store(path)
    assert verify_store(path).open == 1


def test_the_progress_reaches_the_number_of_shards(tmp_path: Path) -> None:
    store = whole_store(tmp_path / "s")
    reporter = Counted()
    verify_store(store.path, reporter=reporter)
    assert reporter.counts == {"Checking shards": 6}
