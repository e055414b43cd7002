"""Keys of files in a store: a file keeps its key, and another file never takes it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from c3tools.corpus.reading import read_corpus
from c3tools.embedding import shard_work
from c3tools.embedding.embed import embed_corpus
from c3tools.embedding.shard_work import EmbedOptions
from c3tools.embedding.summary import EmbedSummary
from c3tools.errors import CorpusError
from c3tools.store import Store, write_rows
from tests.conftest import Messages, contents, write_jsonl
from tests.corpus.packing import photos_of, webdataset, write_hf_parquet, write_tar
from tests.stores import colour_corpus, embed_colours

# (3, 3) images of one colour; these two have the same number of bytes
SAME_SIZE = "lime", "gold"
Keys = list[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that relative paths start from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def camera(path: str | Path, *colours: str, texts: int = 0) -> Path:
    """A folder of the images 1.png, 2.png, … in these colours."""
    Path(path).mkdir(parents=True)
    named = {str(n): colour for n, colour in enumerate(colours, start=1)}
    return colour_corpus(Path(path), named, texts)


def keys(store: str = "s", modality: str = "image") -> dict[str, Any]:
    """The path of each image in the store by its key, or the image of each text."""
    table = Store.open(store).load(modality).table
    value = "image_key" if modality == "text" else "path"
    return {row["key"]: row[value] for row in table.to_pylist()}


@dataclass(frozen=True)
class Images:
    """How many images were embedded and already there, and the keys of those that moved or have
    gone.
    """

    embedded: int = 0
    already: int = 0
    moved: Keys = field(default_factory=list)
    gone: Keys = field(default_factory=list)


def embed(*paths: str, store: str = "s", **options: Any) -> Images:
    """Embed paths, and return what became of their images."""
    summary = embed_colours([Path(path) for path in paths], Path(store), **options)
    images = summary.modalities["image"]
    return Images(images.embedded, images.already, images.moved, images.gone)


def without_encoder(path: str, store: str = "s", **options: Any) -> EmbedSummary:
    """Embed a folder where nothing is left to encode."""

    def refuse() -> NoReturn:
        raise AssertionError("the encoder is loaded")

    return embed_corpus(read_corpus(path), store, refuse, EmbedOptions(workers=0, **options))


def test_a_second_folder_with_the_same_file_names_is_embedded(folder: Path) -> None:
    camera("cam1", "red", "lime")
    camera("cam2", "blue", "gold")
    assert embed("cam1") == Images(embedded=2)
    assert embed("cam2") == Images(embedded=2)
    assert keys() == {
        "1": "cam1/1.png",
        "2": "cam1/2.png",
        "cam2/1": "cam2/1.png",
        "cam2/2": "cam2/2.png",
    }
    assert embed("cam2") == Images(already=2)
    assert embed("cam1", "cam2") == Images(already=4)


def test_it_is_said_that_keys_begin_with_the_name_of_the_folder(folder: Path) -> None:
    camera("cam1", "red")
    camera("cam2", "blue")
    messages = Messages()
    for name in ("cam1", "cam2", "cam2"):
        embed_colours(Path(name), Path("s"), reporter=messages)
    assert messages.texts == [
        f"{folder}/cam2: 1 new key begins with cam2/, because the store has 1 from "
        f"{folder}/cam1/1.png."
    ]


def test_all_new_keys_of_the_folder_begin_with_its_name(folder: Path) -> None:
    camera("cam1", "red")
    camera("cam2", "blue", "gold", "navy")
    embed("cam1")
    embed("cam2")
    assert [*keys()] == ["1", "cam2/1", "cam2/2", "cam2/3"]


def test_a_folder_that_grows_later_keeps_to_its_name(folder: Path) -> None:
    camera("cam1", "red")
    camera("cam2", "blue")
    embed("cam1")
    embed("cam2")
    Image.new("RGB", (3, 3), "tan").save("cam2/2.png")
    assert embed("cam2") == Images(embedded=1, already=1)
    assert "cam2/2" in keys()


def test_one_of_two_folders_that_were_embedded_together(folder: Path) -> None:
    camera("cam1", "red")
    camera("cam2", "blue")
    embed("cam1", "cam2")
    whole = contents(folder / "s")
    assert embed("cam1") == Images(already=1)
    assert contents(folder / "s") == whole


def test_if_the_name_is_taken_too_the_folder_above_is_to_be_given(folder: Path) -> None:
    for path, colour in (("x/cam", "red"), ("y/cam", "blue"), ("z/cam", "gold")):
        camera(path, colour)
    embed("x/cam")
    embed("y/cam")
    whole = contents(folder / "s")
    with pytest.raises(
        CorpusError, match="has the keys 1 and cam/1 from files other than"
    ) as error:
        embed("z/cam")
    assert str(error.value.remedy).endswith(f"c3 embed {folder}/z")
    assert contents(folder / "s") == whole
    assert embed("z") == Images(embedded=1)
    assert keys() == {"1": "x/cam/1.png", "cam/1": "y/cam/1.png", "z/cam/1": "z/cam/1.png"}
    assert embed("z/cam") == Images(already=1)


def test_two_folders_at_once_where_the_name_of_one_is_taken(folder: Path) -> None:
    for path, colour in (("a/cam", "red"), ("b/cam", "blue"), ("b/other", "gold")):
        camera(path, colour)
    embed("a/cam", "b/other")
    assert embed("b/cam", "b/other") == Images(embedded=1, already=1)
    assert [*keys()] == ["cam/1", "other/1", "b/cam/1"]


def test_single_files_are_named_after_their_folder(folder: Path) -> None:
    camera("cam1", "red")
    camera("cam2", "blue")
    embed("cam1/1.png")
    assert embed("cam2/1.png") == Images(embedded=1)
    assert keys() == {"1": "cam1/1.png", "cam2/1": "cam2/1.png"}


@pytest.mark.parametrize("other", ["photos", "other/photos"])
def test_a_relative_path_from_two_working_directories_is_of_two_photos(
    folder: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    for place, colour in (("x", "red"), ("y", "blue")):
        camera(folder / place / other, colour)
        monkeypatch.chdir(folder / place)
        assert embed(other, store=str(folder / "s")) == Images(embedded=1)
    assert keys(str(folder / "s")) == {"1": f"{other}/1.png", "photos/1": f"{other}/1.png"}


@pytest.mark.parametrize(
    ("start", "path"),
    [("x/photos", "."), ("x", "photos"), ("x/photos", "1.png"), (".", "x/photos")],
)
def test_one_photo_from_two_working_directories_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: str, path: str
) -> None:
    camera("x/photos", "red")
    embed("x")
    monkeypatch.chdir(start)
    assert embed(path, store=str(folder / "s")) == Images(already=1)


@pytest.mark.parametrize("start", ["x", "y"])
def test_without_a_record_of_folders_relative_paths_start_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    camera("x/photos", "red")
    camera("y/photos", "red")
    monkeypatch.chdir("x")
    embed("photos", store="../s")
    (folder / "s/inputs.parquet").unlink()
    monkeypatch.chdir(f"../{start}")
    assert embed("photos", store="../s") == Images(already=1)


@pytest.mark.parametrize("shards", [1, 2, 3, 4])
def test_a_killed_run_gives_the_same_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    camera("cam1", "red", "lime", texts=1)
    camera("cam2", "lime", "gold", "blue", "navy", texts=1)
    for store in ("s", "whole"):
        embed("cam1", store=store)
    embed("cam2", store="whole", shard_size=1)
    write = write_rows
    count = 0

    def interrupt(*arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > shards:
            raise KeyboardInterrupt
        write(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shard_work, "write_rows", interrupt)
        embed("cam2", shard_size=1)
    assert embed("cam2", shard_size=1).already == min(shards, 4)
    assert contents(folder / "s") == contents(folder / "whole")


def test_captions_and_splits_are_joined_before_keys_are_extended(folder: Path) -> None:
    camera("cam1", "red", texts=1)
    camera("cam2", "blue")
    write_jsonl(
        Path("cam2/captions.jsonl"), {"image": "1.png", "captions": ["x", "y"], "split": "test"}
    )
    embed("cam1")
    embed("cam2")
    assert keys(modality="text") == {"1#0": "1", "cam2/1#0": "cam2/1", "cam2/1#1": "cam2/1"}
    assert Store.open("s").load("image").column("corpus_split") == [None, "test"]
    assert Store.open("s").load("text").column("corpus_split") == [None, "test", "test"]


def test_a_new_file_of_the_same_stem_leaves_the_key_of_the_first(folder: Path) -> None:
    camera("p", "red", texts=1)
    embed("p")
    Image.new("RGB", (3, 3), "blue").save("p/1.jpg")
    assert embed("p") == Images(embedded=1, already=1)
    assert keys() == {"1": "p/1.png", "1.jpg": "p/1.jpg"}
    assert "1#0" in keys(modality="text")


def test_the_key_of_a_file_that_failed_is_its_own(folder: Path) -> None:
    for name in ("cam1", "cam2"):
        colour_corpus(folder / name, {"broken": None, "whole": "red"})
    for name, failed, failed_before in (("cam1", 1, 0), ("cam2", 1, 0), ("cam2", 0, 1)):
        images = embed_colours(Path(name), Path("s")).modalities["image"]
        assert images.failed == failed
        assert images.failed_before == failed_before
    failures = {f.key: f.path for f in Store.open("s").recorded_failures()}
    assert failures == {"broken": "cam1/broken.png", "cam2/broken": "cam2/broken.png"}


def test_another_photo_at_the_place_of_one_that_failed_is_tried(folder: Path) -> None:
    colour_corpus(folder / "a", {"1": None})
    embed_colours(Path("a"), Path("s"))
    shutil.rmtree("a")
    camera("b", "red")
    assert embed("b") == Images(embedded=1)


@pytest.mark.parametrize("pack", ["folder", "tar", "table"])
def test_a_moved_source_is_said_and_its_paths_are_written_on_request(
    folder: Path, pack: str
) -> None:
    photos = camera("a", "red", "lime", "gold", texts=2)
    (photos / "4.png").write_bytes(b"broken")
    old, new = "a", "b"
    if pack == "tar":
        old, new = "a.tar", "b.tar"
        write_tar(Path(old), webdataset(photos_of(photos)))
    elif pack == "table":
        old, new = "a.parquet", "b.parquet"
        write_hf_parquet(Path(old), photos_of(photos))
    embed(old)
    before = contents(folder / "s")
    Path(old).rename(new)
    summary = without_encoder(new)
    assert summary.modalities["image"].moved == ["1", "2", "3"]
    assert "--update records the new paths" in " ".join(summary.notes())
    assert contents(folder / "s") == before
    assert "new paths recorded" in " ".join(without_encoder(new, update=True).notes())
    embed(new, store="fresh")
    assert contents(folder / "s") == contents(folder / "fresh")
    assert embed(new).moved == []


def test_a_row_of_a_table_that_takes_the_place_of_another_is_new(folder: Path) -> None:
    photos = photos_of(camera("a", "red", "lime", "gold"))
    table = pa.table({"image": [p.content for p in photos], "key": [p.key for p in photos]})
    pq.write_table(table.slice(0, 2), "x.parquet")
    embed("x.parquet")
    pq.write_table(table.slice(1), "x.parquet")
    assert embed("x.parquet", update=True) == Images(embedded=1, already=1, moved=["2"], gone=["1"])
    assert keys() == {"1": "x.parquet#0", "2": "x.parquet#0", "3": "x.parquet#1"}


def test_new_paths_and_changed_rows_of_one_shard(folder: Path) -> None:
    camera("a", "red", "lime")
    embed("a")
    camera("b", "red")
    Path("a/1.png").unlink()
    Image.new("RGB", (3, 3), "gold").save("a/2.png")
    summary = embed_colours([Path("b"), Path("a/2.png")], Path("s"), update=True)
    images = summary.modalities["image"]
    assert images.embedded == 0
    assert images.updated == 1
    assert images.moved == ["1"]
    assert keys() == {"1": "b/1.png", "2": "a/2.png"}


@pytest.mark.parametrize("options", [{}, {"update": True}, {"update": True, "prune": True}])
def test_another_photo_with_the_key_of_one_that_has_gone_replaces_nothing(
    folder: Path, options: dict[str, Any]
) -> None:
    first, second = SAME_SIZE
    camera("a", first)
    camera("b", second)
    assert Path("a/1.png").stat().st_size == Path("b/1.png").stat().st_size
    embed("a")
    digest = Store.open("s").input_digests()["1"]
    shutil.rmtree("a")
    assert embed("b", **options) == Images(embedded=1)
    assert keys() == {"1": "a/1.png", "b/1": "b/1.png"}
    assert Store.open("s").input_digests()["1"] == digest


def test_folders_that_were_embedded_one_by_one_and_moved_together_keep_their_keys(
    folder: Path,
) -> None:
    for path, colour in (("cam1", "red"), ("cam2", "blue")):
        camera(path, colour)
        embed(path)
    before = keys()
    (folder / "disk").mkdir()
    for name in ("cam1", "cam2", "s"):
        Path(name).rename(f"disk/{name}")
    images = embed("disk/cam1", "disk/cam2", store="disk/s", update=True)
    assert images == Images(already=2, moved=["1", "cam2/1"])
    assert keys("disk/s") == {key: f"disk/{path}" for key, path in before.items()}


def test_a_folder_that_moved_keeps_its_keys_beside_a_new_one(folder: Path) -> None:
    camera("a", "red")
    embed("a")
    Path("a").rename("moved")
    camera("new", "blue")
    assert embed("moved", "new") == Images(embedded=1, already=1, moved=["1"])
    assert [*keys()] == ["1", "new/1"]


def test_a_file_that_was_renamed_is_removed_and_added(folder: Path) -> None:
    camera("a", "red")
    embed("a")
    Path("a/1.png").rename("a/2.png")
    assert embed("a", prune=True) == Images(embedded=1, gone=["1"])
    assert keys() == {"2": "a/2.png"}


def test_rows_without_a_path_are_known_by_their_key(folder: Path) -> None:
    camera("a", "red")
    embed("a")
    table = pq.read_table("s/image/part-00000.parquet")
    no_path = pa.nulls(len(table), pa.string())
    table = table.set_column(table.column_names.index("path"), "path", no_path)
    pq.write_table(table, "s/image/part-00000.parquet")
    for name in ("manifest.json", "moments.safetensors"):
        Path("s", name).unlink()
    assert embed("a") == Images(already=1)


@pytest.mark.parametrize("is_absolute", [False, True])
def test_files_beside_a_copy_of_the_store_are_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, is_absolute: bool
) -> None:
    camera("one/photos/cam", "red", *SAME_SIZE, "navy")
    monkeypatch.chdir("one")
    embed(str(Path("photos").absolute()) if is_absolute else "photos")

    # another checkout: of another time, a photo changed, one is gone, one is new
    shutil.copytree(folder / "one", folder / "two", copy_function=shutil.copyfile)
    monkeypatch.chdir(folder / "two")
    Image.new("RGB", (3, 3), "gold").save("photos/cam/2.png")
    Path("photos/cam/4.png").unlink()
    Image.new("RGB", (3, 3), "tan").save("photos/cam/5.png")
    passed = str(Path("photos").absolute()) if is_absolute else "photos"
    images = embed(passed)
    assert (images.embedded, images.already, images.gone) == (1, 3, ["cam/4"])
    summary = embed_colours(Path(passed), Path("s"), update=True, prune=True)
    assert summary.modalities["image"].changed == ["cam/2"]
    path = str(folder / "two/photos/cam") if is_absolute else "photos/cam"
    assert keys() == {f"cam/{number}": f"{path}/{number}.png" for number in "1235"}
    assert embed(passed, update=True, prune=True) == Images(already=4)


def test_a_store_that_was_copied_alone_keeps_the_rows_of_its_former_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera("one/photos", "red", "lime")
    camera("two/photos", "navy", "gold")  # other photos of the same names
    embed("one/photos", store="one/s")
    shutil.copytree("one/s", "two/s")
    assert embed("two/photos", store="two/s", prune=True).embedded == 2
    assert keys("two/s") == {
        "1": "one/photos/1.png",
        "2": "one/photos/2.png",
        "photos/1": "two/photos/1.png",
        "photos/2": "two/photos/2.png",
    }
    assert embed("one/photos", store="two/s", prune=True) == Images(already=2)
    assert embed("two/photos", store="two/s", prune=True) == Images(already=2)


def test_two_folders_of_the_same_names_stay_two_in_another_checkout(folder: Path) -> None:
    camera("one/photos", "red")
    camera("two/photos", "navy")
    embed("one/photos", store="one/s")
    embed("two/photos", store="one/s")
    Path("one/s").rename("two/s")
    assert embed("one/photos", store="two/s", prune=True) == Images(already=1)
    assert embed("two/photos", store="two/s", prune=True) == Images(already=1)
