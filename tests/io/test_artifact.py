from __future__ import annotations

import itertools
import json
import os
import random
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import save_file

from c3tools.errors import DecoderError, OutputError
from c3tools.io.artifact import (
    ArtifactType,
    digest_of,
    holds_result,
    reading,
    replacing,
    reserve_output,
    writing,
)
from c3tools.reporter import SILENT, Reporter
from tests.conftest import Messages
from tests.crashes import kill_at
from tests.stores import one_byte_changed

THING = ArtifactType("thing", "thing.json", DecoderError, "c3 make", "--thing")
SETTINGS: dict[str, Any] = {"seed": 0, "set": ("a=1",), "epochs": None}


@dataclass(frozen=True)
class Settings:
    seed: int = 0
    epochs: int | None = None


@dataclass(frozen=True)
class LaterSettings(Settings):
    """Settings of a later version, which has another option."""

    warmup: float = 0.1


@dataclass(frozen=True)
class Config:
    layers: int
    width: int = 8


@dataclass(frozen=True)
class LaterConfig(Config):
    """The configuration of a later version, which has another field."""

    dropout: float = 0.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def fill(folder: Path, text: str = "old") -> None:
    folder.mkdir(exist_ok=True)
    for name in "ab":
        (folder / name).write_text(text)


def whole(folder: Path) -> str | None:
    texts = {file.read_text() for file in folder.glob("[ab]")}
    return texts.pop() if len(texts) == 1 else None


def make(
    folder: Path,
    digest: str = "x",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
    settings: Any = None,
    **changes: Any,
) -> None:
    """Write a result as a verb does, unless it is there."""
    settings = settings or SETTINGS | changes
    with reserve_output(folder, THING, settings, overwrite=overwrite, reporter=reporter) as target:
        if target.finished(digest, lambda place: reading(place, THING).__enter__()) is None:
            record = {"seed": target.settings["seed"], "made_from": target.made_from(digest)}

            def save(place: Path) -> None:
                with writing(place, THING, {"record": record}) as new:
                    (new / "weights.safetensors").write_text(digest)

            target.write(save)


def test_a_result_is_read_as_it_was_written_and_damage_is_named(folder: Path) -> None:
    with pytest.raises(DecoderError, match=f"{folder}.*thing.json"), reading(folder, THING):
        pass
    make(folder)
    (folder / "figure.png").write_text("may go")
    with reading(folder, THING) as (found, content):
        assert (found, content["format_version"], content["record"]["seed"]) == (folder, 1, 0)
    weights, record = folder / "weights.safetensors", folder / "thing.json"
    for file, damage, named in (
        (weights, "cut", weights),
        (weights, None, weights),
        (record, "[]", folder),
        (record, '{"format_version": 2, "files": {}}', folder),
    ):
        file.write_text(damage) if damage else file.unlink()
        with pytest.raises(DecoderError, match=str(named)), reading(folder, THING):
            pass


def test_a_changed_byte_of_a_record_is_found(folder: Path) -> None:
    make(folder)
    path = folder / "thing.json"
    draw = random.Random(0)
    with reading(folder, THING) as (_, written):
        pass
    for position in range(path.stat().st_size):
        with one_byte_changed(path, position, 1 << draw.randrange(8)):
            with suppress(DecoderError), reading(folder, THING) as (_, content):
                same = [content[name] == written[name] for name in ("record", "files")]
                assert all(same), position
            with suppress(OutputError, DecoderError):
                make(folder)


def test_a_record_without_a_checksum_is_read_as_it_is(folder: Path) -> None:
    make(folder)
    path = folder / "thing.json"
    record = json.loads(path.read_text())
    del record["checksum"]
    path.write_text(json.dumps(record))
    with reading(folder, THING) as (_, content):
        assert content == record
    make(folder)  # there is nothing to do


def test_only_results_of_the_kind_are_in_question(folder: Path) -> None:
    def held(place: Path = folder) -> bool:
        return holds_result(place, "thing", ("thing.json",))

    assert not held()
    folder.mkdir()
    (folder / ".hidden").touch()
    assert not held()
    (folder / "notes.txt").touch()
    for place in (folder, folder / "notes.txt"):
        with pytest.raises(OutputError, match=r"notes\.txt"):
            held(place)
    (folder / "thing.json").touch()
    assert held()


def test_the_same_result_is_done_and_another_is_replaced_only_if_asked(folder: Path) -> None:
    told, record, weights = Messages(), folder / "thing.json", folder / "weights.safetensors"
    make(folder)
    before = record.stat().st_mtime_ns
    make(folder, reporter=told)
    assert record.stat().st_mtime_ns == before and str(folder) in told.texts[0]
    for changes, named in (
        ({"seed": 1, "set": ()}, "seed 0, not 1; set .*a=1"),
        ({"digest": "y"}, "data"),
    ):
        with pytest.raises(OutputError, match=f"(?s){named}.*out.previous"):
            make(folder, **changes)
    make(folder, overwrite=True, digest="y", reporter=told)
    previous = folder.with_name("out.previous")
    assert (previous / "weights.safetensors").read_text() == "x" and str(previous) in told.texts[1]
    weights.write_text("damaged")
    with pytest.raises(DecoderError, match="weights"):
        make(folder, digest="y")
    make(folder, digest="y", overwrite=True)
    assert weights.read_text() == "y"
    record.write_text("{}")
    with pytest.raises(OutputError, match="c3 make"):
        make(folder, digest="y")


def test_an_option_that_an_older_record_lacks_counts_as_its_default(folder: Path) -> None:
    messages = Messages()
    make(folder, settings=Settings())
    make(folder, settings=LaterSettings(), reporter=messages)
    assert "nothing to do" in messages.texts[-1]


def test_another_value_of_an_option_that_an_older_record_lacks_is_another_result(
    folder: Path,
) -> None:
    make(folder, settings=Settings())
    with pytest.raises(OutputError, match=r"warmup 0\.1, not 0\.2"):
        make(folder, settings=LaterSettings(warmup=0.2))


def test_a_result_inside_a_store_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "store.json").touch()
    with pytest.raises(OutputError, match=f"{folder} is inside the store {tmp_path}"):
        make(folder)


def test_a_training_does_not_replace_its_own_start_and_two_do_not_write_at_once(
    folder: Path, tmp_path: Path
) -> None:
    claim = partial(reserve_output, folder, THING, SETTINGS, overwrite=True)
    fill(folder)
    (folder / "thing.json").touch()
    (tmp_path / "link").symlink_to(folder)
    for start in (
        folder,
        tmp_path / "link",
        tmp_path / "x" / ".." / "out",
        tmp_path / "out.previous",
    ):
        with pytest.raises(OutputError, match=str(start)), claim(start=start):
            pass
    with claim(start=tmp_path / "other"), pytest.raises(OutputError, match=str(folder)), claim():
        pass


@pytest.mark.parametrize("options", [{}, {"keep": False}])
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_result_whole(
    folder: Path, options: dict[str, bool]
) -> None:
    previous = folder.with_name("out.previous")

    def replace() -> None:
        with replacing(folder, **options) as new:
            fill(new, "new")

    for number in itertools.count():
        fill(folder)
        fill(previous, "older")
        killed = kill_at(folder.parent, number, replace)
        assert {"old", "new"} & {*map(whole, folder.parent.iterdir())}
        if not killed:
            break
        with pytest.raises(KeyboardInterrupt), replacing(folder, **options):
            raise KeyboardInterrupt
        assert {"old", "new"} & {whole(folder), whole(previous)}
        replace()
        assert (whole(folder), {*folder.parent.iterdir()}) == ("new", {folder, previous})
    assert whole(previous) == ("older" if options else "old") and number > 8


def test_an_interrupt_between_the_renames_leaves_the_old_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder)
    stops = list[bool]()

    def rename(self: Path, target: Path) -> None:
        if stops.pop(0):
            raise KeyboardInterrupt
        self.replace(target)

    monkeypatch.setattr(Path, "rename", rename)
    for stops[:] in ([True], [False, True, False]):  # the last undoes the first
        with pytest.raises(KeyboardInterrupt), replacing(folder) as new:
            (new / "a").write_text("new")
        assert whole(folder) == "old" and [*folder.parent.iterdir()] == [folder]


def test_weights_that_cannot_be_written_are_an_error_of_the_system(folder: Path) -> None:
    with pytest.raises(OSError, match="No such file"), replacing(folder / "in" / "side") as new:
        save_file({"weights": np.zeros(3)}, new / "missing" / "weights.safetensors")


def test_a_digest_depends_on_settings_types_and_rows() -> None:
    rows = np.arange(20_000, dtype=np.float32).reshape(10_000, 2)
    texts, settings = ["a", "b"], {"b": (2,), "a": 1}
    others = [
        (THING, rows, texts),
        (rows.view(np.int32), texts),
        (rows.reshape(-1, 4), texts),
        (rows, ["ab"]),
    ]
    others += [
        (rows + (np.arange(20_000) == 2 * row + 1).reshape(rows.shape), texts)
        for row in (0, 8192, 9_999)
    ]
    assert len({digest_of(*parts) for parts in others}) == 7
    # what was made by an earlier version is not made again
    digest = "35df4d970286d0789a85c1dc966a5982c254574b3a1fc878c4858bdbb41ee809"
    for same in ((rows, texts, settings), (rows.copy(), pa.array(texts), {"a": 1, "b": [2]})):
        assert digest_of(*same) == digest


def test_a_field_that_is_added_changes_a_digest_only_if_it_is_set() -> None:
    assert digest_of(LaterConfig(2)) == digest_of(Config(2)) == digest_of({"layers": 2})
    assert digest_of(LaterConfig(2, dropout=0.1)) != digest_of(Config(2))
    assert digest_of(Config(2, width=4)) != digest_of(Config(2))


def test_files_of_a_result_have_the_rights_that_the_user_chose(folder: Path) -> None:
    before = os.umask(0o026)
    try:
        with replacing(folder) as new:
            save_file({"a": np.zeros(2)}, new / "weights.safetensors")
        assert (folder / "weights.safetensors").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(before)
