"""An export follows its store: what is new or changed is made with the fit that is there."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from c3tools import Calibration, Store, export_store, leave_out, split_store, verify_store
from c3tools.errors import C3Error, IncompleteStoreError, OutputError, StoreError
from c3tools.export import FORMATS
from c3tools.io.files import sha256_of
from c3tools.store.means import load_means, save_means
from c3tools.store.rewriting import REWRITING_LIST
from tests.conftest import Messages, contents, slice_of, write_jsonl
from tests.crashes import kill_at, operations
from tests.stores import embed_colours

FIT = ("store.json", "transform.json", "transform.safetensors", "calibration.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a corpus of 48 photos with a caption each, and its store in shards of 8."""
    write_photos(tmp_path / "c", {f"photo{i:02d}": f"#{i * 5:02x}80ff" for i in range(48)})
    embed(tmp_path)
    return tmp_path


def write_photos(corpus: Path, colours: Mapping[str, str]) -> None:
    """Write photos beside those that are there, and the captions of all."""
    corpus.mkdir(exist_ok=True)
    for name, colour in colours.items():
        Image.new("RGB", (3, 3), colour).save(corpus / f"{name}.png")
    names = sorted(path.stem for path in corpus.glob("*.png"))
    captions = [{"image": f"{name}.png", "captions": [name]} for name in names]
    write_jsonl(corpus / "captions.jsonl", *captions)


def embed(folder: Path, corpus: str = "c", store: str = "s", **options: Any) -> None:
    embed_colours(folder / corpus, folder / store, shard_size=8, **options)


def change(folder: Path) -> None:
    """Add ten photos, edit one, and remove one that is in another shard."""
    (folder / "c" / "photo20.png").unlink()
    write_photos(folder / "c", {f"zoo{i}": f"#00{i * 20:02x}ff" for i in range(10)})
    Image.new("RGB", (3, 4), "pink").save(folder / "c" / "photo03.png")
    embed(folder, update=True, prune=True)


def export(folder: Path, output: str = "e", **options: Any) -> Any:
    return export_store(folder / "s", output=folder / output, workers=1, **options)


def fresh_with_the_fit_of(folder: Path, **options: Any) -> dict[str, bytes]:
    """The files of a new export that begins with the fit of another one."""
    (folder / "fresh").mkdir()
    for name in FIT:
        shutil.copyfile(folder / "e" / name, folder / "fresh" / name)
    export(folder, "fresh", **options)
    return contents(folder / "fresh")


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_what_changed_is_made_with_the_fit_that_is_there(folder: Path, format: str) -> None:
    export(folder, format=format)
    before = contents(folder / "e")
    times = {name: (folder / "e" / name).stat().st_mtime_ns for name in before}
    change(folder)
    messages = Messages()
    report = export(folder, format=format, reporter=messages)
    after = contents(folder / "e")

    # 2 of 6 image shards changed, 1 of the text shards, and 2 of each are new
    assert (report.parts, report.kept) == (7, 9)
    assert after == fresh_with_the_fit_of(folder, format=format)
    assert {name: after[name] for name in FIT} == {name: before[name] for name in FIT}
    unchanged = [name for name in before if "part-" in name and before[name] == after.get(name)]
    assert len(unchanged) >= 8
    assert all((folder / "e" / name).stat().st_mtime_ns == times[name] for name in unchanged)
    assert messages.texts == [
        "The pipeline was fitted on 96 rows, 72 of them in unchanged shards; the store has 114 "
        "rows now. --refit fits it again."
    ]
    assert report.fit == {"fitted": 96, "unchanged": 72, "now": 114}
    assert verify_store(folder / "e").whole


def test_an_export_that_follows_keeps_the_calibration_of_its_fit(folder: Path) -> None:
    export(folder, preset="gr-clip")
    path = folder / "e" / "calibration.safetensors"
    fitted = path.read_bytes()
    change(folder)
    export(folder, preset="gr-clip")
    assert path.read_bytes() == fitted
    path.unlink()  # then it is made from the rows that are there
    export(folder, preset="gr-clip")
    assert path.read_bytes() != fitted and Calibration.load(folder / "e").moments
    export(folder, preset="gr-clip", refit=True)
    export(folder, "fresh", preset="gr-clip")
    assert contents(folder / "e") == contents(folder / "fresh")


def test_a_new_fit_gives_what_a_new_export_gives(folder: Path) -> None:
    export(folder)
    change(folder)
    assert export(folder, refit=True).parts == 16
    export(folder, "fresh")
    assert contents(folder / "e") == contents(folder / "fresh")


def test_parts_of_shards_that_went_are_removed(folder: Path) -> None:
    export(folder)
    for number in range(8):
        (folder / "c" / f"photo{number:02d}.png").unlink()
    write_photos(folder / "c", {})
    embed(folder, update=True, prune=True)
    report = export(folder)
    assert (report.parts, report.kept) == (0, 10)
    assert Store.open(folder / "e").parts("image") == [1, 2, 3, 4, 5]
    assert verify_store(folder / "e").whole


def test_parts_of_modalities_that_are_not_asked_for_stay(folder: Path) -> None:
    export(folder)
    text = contents(folder / "e" / "text")
    change(folder)
    assert export(folder, modality=["image"]).rows.keys() == {"image"}
    assert contents(folder / "e" / "text") == text
    assert export(folder).parts == 3


def change_photo(folder: Path) -> None:
    Image.new("RGB", (3, 4), "pink").save(folder / "c" / "photo03.png")
    embed(folder, update=True)


def load_own_moments(folder: Path) -> None:
    save_means(Store.open(folder / "s"), folder / "moments")
    load_means(Store.open(folder / "s"), folder / "moments")


def texts_of(folder: Path, split: str) -> list[str]:
    return Store.open(folder / "s").load("text", split).keys


def edit(split: str) -> Callable[[Path], None]:
    """Return a function that edits the caption of a photo of a split."""

    def edit_caption(folder: Path) -> None:
        edited = texts_of(folder, split)[0].removesuffix("#0")
        names = sorted(path.stem for path in (folder / "c").glob("*.png"))
        captions = [
            {"image": f"{name}.png", "captions": ["edited" if name == edited else name]}
            for name in names
        ]
        write_jsonl(folder / "c" / "captions.jsonl", *captions)
        embed(folder, update=True)

    return edit_caption


def leave_caption_out(split: str) -> Callable[[Path], None]:
    """Return a function that leaves a caption of a split out."""

    def act(folder: Path) -> None:
        leave_out(folder / "s", keys=texts_of(folder, split)[:1])

    return act


def exchange_splits(folder: Path) -> None:
    """Make a train photo one of test, and a test photo one of train."""
    images = Store.open(folder / "s")
    (train, *_), (test, *_) = (images.load("image", name).keys for name in ("train", "test"))
    split_again(folder, {"key": train, "split": "test"}, {"key": test, "split": "train"})


def split_again(folder: Path, *rows: Mapping[str, str]) -> None:
    """Put a store of other splits in the place of the store."""
    table = write_jsonl(folder / "splits.jsonl", *rows)
    split_store(folder / "s", output=folder / "new", file=table)
    shutil.rmtree(folder / "s")
    (folder / "new").rename(folder / "s")


def test_rows_of_a_modality_that_a_pipeline_does_not_hold_may_change(folder: Path) -> None:
    export(folder, preset="decap")
    change_photo(folder)
    assert export(folder, preset="decap").parts == 1
    assert verify_store(folder / "e").whole


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_held_rows_are_those_of_unchanged_shards(folder: Path, format: str, split: str) -> None:
    export(folder, preset="decap", format=format)
    edit(split)(folder)
    with pytest.raises(OutputError, match="holds text rows of shards that were changed"):
        export(folder, preset="decap", format=format)


@pytest.mark.parametrize(
    ("first", "act", "second", "words"),
    [
        ({}, None, {"preset": "c2-collapse"}, "its pipeline changed.*--refit"),
        ({}, None, {"sigma": 0.1}, "its pipeline changed.*--refit"),
        ({"sigma": 0.1}, None, {"sigma": 0.2}, "its pipeline changed.*--refit"),
        ({}, None, {"dtype": "float32"}, "its dtype is float16, not float32.*--overwrite"),
        ({}, None, {"format": "npy"}, "its format is parquet, not npy.*--overwrite"),
        ({}, None, {"role": "training"}, "its role is auto, not training.*--overwrite"),
        ({"preset": "decap"}, edit("train"), {"preset": "decap"}, "holds text rows.*--refit"),
        (
            {"preset": "decap"},
            leave_caption_out("train"),
            {"preset": "decap"},
            "holds text rows.*--refit",
        ),
        ({}, exchange_splits, {}, "its store's split or merge changed.*--refit"),
        ({}, load_own_moments, {}, "its loaded moments changed.*--refit"),
    ],
)
def test_what_is_refused_without_a_new_fit(
    folder: Path,
    first: dict[str, Any],
    act: Callable[[Path], None] | None,
    second: dict[str, Any],
    words: str,
) -> None:
    export(folder, **first)
    before = contents(folder / "e")
    if act is not None:
        act(folder)
    with pytest.raises(OutputError, match=f"(?s){words}"):
        export(folder, **second)
    assert contents(folder / "e") == before
    export(folder, **second, refit=True, overwrite="--overwrite" in words)
    assert verify_store(folder / "e").whole


def test_the_export_of_another_store_is_not_brought_up_to_date(folder: Path) -> None:
    export(folder)
    write_photos(folder / "c2", {f"other{i:02d}": f"#{i * 5:02x}0000" for i in range(48)})
    embed(folder, "c2", "other")
    with pytest.raises(OutputError, match=r"all shards of the store changed[\s\S]*--refit"):
        export_store(folder / "other", output=folder / "e")
    export_store(folder / "other", output=folder / "e", overwrite=True)
    assert Store.open(folder / "e").load("image").keys[0] == "other00"


def test_an_exchanged_part_is_found_and_made_again(folder: Path) -> None:
    export(folder)
    whole = contents(folder / "e")
    first, second = (folder / "e" / "text" / f"part-0000{number}.parquet" for number in (0, 1))
    first.rename(folder / "moved")
    second.rename(first)
    (folder / "moved").rename(second)
    assert [(f.check, f.file) for f in verify_store(folder / "e").findings] == [
        ("checksum", "text/part-00000.parquet"),
        ("checksum", "text/part-00001.parquet"),
    ]
    assert export(folder).parts == 2
    assert contents(folder / "e") == whole


@pytest.mark.parametrize("format", FORMATS)
def test_damage_of_any_part_is_found_and_repaired(folder: Path, format: str) -> None:
    export(folder, format=format)
    whole = contents(folder / "e")
    for name in [name for name in whole if "00001" in name]:
        file = folder / "e" / name
        file.write_bytes(whole[name][:-9] + bytes(9))
        assert [(f.check, f.file) for f in verify_store(folder / "e").findings] == [
            ("checksum", name)
        ]
        assert not verify_store(folder / "e", repair=True).whole
        assert not file.exists()
        export(folder, format=format)
        assert contents(folder / "e") == whole


@pytest.mark.parametrize("format", FORMATS)
def test_damage_is_made_again_or_refused_without_a_verification(folder: Path, format: str) -> None:
    export(folder, format=format)
    whole = contents(folder / "e")
    for name in [*(name for name in whole if "00001" in name), "store.json"]:
        # One bit, so that the header and the size are as they were
        content = bytearray(whole[name])
        content[len(content) // 2] ^= 1
        (folder / "e" / name).write_bytes(content)
        if name == "store.json":
            with pytest.raises(StoreError, match=r"(?s)store.json is not the file.*--repair"):
                export(folder, format=format)
        else:
            assert export(folder, format=format).parts == 1
            assert contents(folder / "e") == whole


@pytest.mark.parametrize("format", FORMATS)
def test_a_killed_update_is_continued_to_the_same_bytes(folder: Path, format: str) -> None:
    export(folder, format=format)
    change(folder)
    shutil.copytree(folder / "e", folder / "before")
    done = operations(folder / "e", lambda: export(folder, format=format))
    expected = contents(folder / "e")
    moves = [n for n, step in enumerate(done) if step.startswith("os.rename .rewriting/")]
    points = [moves[0], *random.Random(0).sample(range(len(done)), 4), moves[1] + 1]
    for number in slice_of(points):
        shutil.rmtree(folder / "e")
        shutil.copytree(folder / "before", folder / "e")
        assert kill_at(folder / "e", number, lambda: export(folder, format=format))
        if (folder / "e" / REWRITING_LIST).exists() and format == "parquet":
            with pytest.raises(IncompleteStoreError):
                Store.open(folder / "e")
        export(folder, format=format)
        assert contents(folder / "e") == expected


@pytest.mark.parametrize("format", ["npy", "hf"])
def test_exports_that_are_no_stores_are_refused_by_other_commands(
    folder: Path, format: str
) -> None:
    export(folder, format=format)
    with pytest.raises(C3Error, match=f"export to {format}, but only exports to Parquet"):
        Store.open(folder / "e")


def test_a_part_is_hashed_once_where_it_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def hash_file(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("c3tools.store.manifest.sha256_of", hash_file)
    export(folder)
    assert verify_store(folder / "e").whole
    assert not [name for name in hashed if name.startswith("part-")]
