from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from c3tools.cli import app
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from c3tools import Store, import_embeddings
from c3tools.store import Shard, StoreInfo, write_shard
from tests.stores import make_vectors, unit

REAL = Path(__file__).parents[2] / ".." / "shared" / "data" / "clip_embeddings"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["import", *arguments])


def ok(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return " ".join(result.stderr.split())


def refused(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_in(path: Path, array: np.ndarray) -> None:
    match path.suffix:
        case ".npy":
            np.save(path, array)
        case ".npz":
            np.savez(path, embedding=array)
        case ".pt":
            torch.save(torch.from_numpy(array), path)
        case ".safetensors":
            save_file({"embedding": np.ascontiguousarray(array)}, path)
        case ".csv":
            header = ",".join(f"e{i}" for i in range(array.shape[1]))
            np.savetxt(path, array, delimiter=",", header=header, comments="", fmt="%.9g")
        case ".jsonl":
            write_jsonl(path, [{"captions": ["a"], "embedding": row.tolist()} for row in array])
        case ".parquet":
            lists = pa.array(list(array), type=pa.list_(pa.float32()))
            pq.write_table(pa.table({"id": pa.array(range(len(array))), "embedding": lists}), path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors", ".csv", ".jsonl", ".parquet"])
def test_every_file_format(here: Path, suffix: str) -> None:
    images, texts = make_vectors(20)
    save_in(here / f"i{suffix}", images * 2)
    save_in(here / f"t{suffix}", texts[::2])
    said = ok("--image", f"i{suffix}", "--text", f"t{suffix}", "--dtype", "float32")
    assert "20 of 20 image rows did not have norm 1" in said
    store = Store.open("c3-store")
    np.testing.assert_allclose(store.load("image").embeddings, images, atol=1e-6)
    np.testing.assert_allclose(store.load("text").embeddings, texts[::2], atol=1e-6)
    assert store.info.normalised
    assert store.load("text").column("image_key") == store.load("image").keys


@pytest.mark.parametrize("kind", ["pt", "npz", "safetensors", "rows of pt", "labels"])
def test_ids_beside_or_instead_of_names_of_arrays(here: Path, kind: str) -> None:
    images, texts = make_vectors(6)
    keys = [f"photo{row}" for row in range(6)]
    file = f"i.{kind.rsplit(maxsplit=1)[-1]}" if kind != "labels" else "i.pt"
    match kind:
        case "pt":
            torch.save(dict(zip(keys, torch.from_numpy(images), strict=True)), file)
        case "npz":
            np.savez(file, **dict(zip(keys, images, strict=True)))
        case "safetensors":
            save_file(dict(zip(keys, images, strict=True)), file)
        case "rows of pt":
            torch.save(dict(zip(keys, torch.from_numpy(images)[:, None], strict=True)), file)
        case "labels":
            torch.save({"features": torch.from_numpy(images), "ids": keys, "note": ["x"]}, file)
    np.savez("t.npz", embedding=texts[::2][::-1], image_key=np.array(keys[::-1]))
    said = ok("--image", file, "--text", "t.npz")
    assert "6 of 6 texts and 6 of 6 images are paired" in said
    image, text = Store.open("c3-store").load("image"), Store.open("c3-store").load("text")
    assert sorted(image.keys) == keys
    row = list(image.keys).index("photo2")
    np.testing.assert_allclose(image.embeddings[row], images[2], atol=1e-3)
    np.testing.assert_allclose(text.embeddings[text.column("image_key").index("photo2")], texts[4], atol=1e-3)


@pytest.mark.parametrize("last", ["[1, 2]", "null", '["a", "b", "c"]', f"[1, 2, 1{'0' * 400}]", "[[1], 2, 3]", "[]"])
def test_lines_whose_vectors_differ(here: Path, last: str) -> None:
    (here / "v.jsonl").write_text(f'{{"id": 1, "vector": [1, 0, 0.5]}}\n{{"id": 2, "vector": {last}}}\n')
    assert "column 'vector' of v.jsonl does not hold vectors of one length" in refused("--image", "v.jsonl")
    assert "no column has lists of numbers. Its columns are id, text" in refused("--image", words(here))


@pytest.mark.parametrize("kind", [pa.list_(pa.float32()), pa.large_list(pa.float64())])
def test_lists_of_unequal_length_whose_numbers_would_fill_rows(here: Path, kind: pa.DataType) -> None:
    lists = pa.array([[1, 2, 3], [4, 5, 6, 7, 8]], kind)
    pq.write_table(pa.table({"id": [1, 2], "embedding": lists}), "v.parquet")
    said = refused("--image", "v.parquet")
    assert "column 'embedding' of v.parquet does not hold vectors of one length (their lengths are 3 to 5)" in said


def words(here: Path) -> str:
    write_jsonl(here / "w.jsonl", [{"id": 1, "text": ["a dog"]}])
    return "w.jsonl"


def test_pairing_by_order_is_said(here: Path) -> None:
    images, texts = make_vectors(6)
    np.save("i.npy", images)
    np.save("t.npy", texts[::2])
    said = ok("--image", "i.npy", "--text", "t.npy")
    assert "The texts and the images have no ids: row i was paired with row i (6 pairs)" in said
    assert "Imported 6 image, 6 text rows into c3-store (6 pairs)" in said
    assert Store.open("c3-store").load("text").keys[1] == "00000001#0"


def test_ids_and_pairing_by_column(here: Path) -> None:
    images, texts = make_vectors(5)
    order = np.random.default_rng(0).permutation(10).tolist()
    np.save("i.npy", images)
    np.save("t.npy", texts[order])
    write_jsonl(here / "i.jsonl", [{"image_id": 100 + i, "file_name": f"{i}.jpg", "split": "val"} for i in range(5)])
    rows = [{"caption_id": f"c{i}", "image_id": 100 + i // 2, "caption": f"text {i}"} for i in order]
    write_jsonl(here / "t.jsonl", [{**row, "image_id": 999} if row["caption_id"] == "c3" else row for row in rows])
    said = ok("--image", "i.npy", "--text", "t.npy", "--meta", "i.jsonl", "--text-meta", "t.jsonl")
    assert "paired with images by their column 'image_id'" in said
    assert "9 of 10 texts and 5 of 5 images are paired" in said
    assert "Some images that texts name are missing, for example '999'" in said
    assert "(9 pairs)" in said
    text = Store.open("c3-store").load("text")
    row = text.keys.index("c7")
    assert (text.column("image_key")[row], text.column("caption")[row]) == ("103", "text 7")
    np.testing.assert_allclose(text.embeddings[row], texts[7], atol=1e-3)
    image = Store.open("c3-store").load("image")
    assert (image.keys[2], image.column("path")[2], image.column("split")[2]) == ("102", "2.jpg", "val")


def test_pairing_by_text_rows(here: Path) -> None:
    images, texts = make_vectors(3)
    np.save("i.npy", images)
    np.save("t.npy", texts)
    rows = [
        {"image": f"a/{i}.jpg", "captions": [f"{i}a", f"{i}b"], "text_rows": [5 - 2 * i, 4 - 2 * i]} for i in range(3)
    ]
    write_jsonl(here / "m.jsonl", rows)
    assert "text_rows" in ok("--image", "i.npy", "--text", "t.npy", "--meta", "m.jsonl")
    text = Store.open("c3-store").load("text")
    assert text.column("image_key") == ["a/2", "a/2", "a/1", "a/1", "a/0", "a/0"]
    assert text.column("caption") == ["2b", "2a", "1b", "1a", "0b", "0a"]


@pytest.mark.parametrize(
    ("image", "text"), [("filename", "raw"), ("image_name", "comment"), ("IMAGE", "TEXT"), ("img_id", "description")]
)
def test_usual_names_of_columns_in_any_case(here: Path, image: str, text: str) -> None:
    images, texts = make_vectors(3)
    np.save("i.npy", images)
    np.save("t.npy", texts[::2])
    write_jsonl(here / "m.jsonl", [{image: f"{i}.jpg"} for i in range(3)])
    write_jsonl(here / "t.jsonl", [{text: f"text {i}", image: f"{i}.jpg"} for i in range(3)])
    assert "3 of 3 texts" in ok("--image", "i.npy", "--text", "t.npy", "--meta", "m.jsonl", "--text-meta", "t.jsonl")
    assert Store.open("c3-store").load("text").captions == ["text 0", "text 1", "text 2"]


def test_a_table_with_semicolons(here: Path) -> None:
    images, texts = make_vectors(2)
    np.save("i.npy", images)
    np.save("t.npy", texts[:2])
    (here / "m.csv").write_text("image_id;split\n7;train\n8;test\n", encoding="utf-8")
    (here / "t.csv").write_text('image_id;caption\n8;"one; two"\n7;three, four\n', encoding="utf-8")
    ok("--image", "i.npy", "--text", "t.npy", "--meta", "m.csv", "--text-meta", "t.csv")
    text = Store.open("c3-store").load("text")
    assert (text.column("image_key"), text.captions) == (["8", "7"], ["one; two", "three, four"])


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ([4, 6], "names the text row 6, but there are only 6 texts"),
        ([-1, 4], "names the text row -1"),
        ([4, 1], "names the text row 1, but a row before it does too"),
    ],
)
def test_text_rows_that_cannot_be_paired(here: Path, last: list[int], message: str) -> None:
    images, texts = make_vectors(3)
    np.save("i.npy", images)
    np.save("t.npy", texts)
    write_jsonl(here / "m.jsonl", [{"image": f"{i}.jpg", "text_rows": r} for i, r in enumerate(([0, 1], [2, 3], last))])
    said = refused("--image", "i.npy", "--text", "t.npy", "--meta", "m.jsonl")
    assert f"Row 2 of the table {message}" in said
    assert not (here / "c3-store").exists()


def write_clip_retrieval(folder: Path, images: np.ndarray, texts: np.ndarray, caption: str = "caption") -> None:
    for number, rows in enumerate(np.split(np.arange(len(images)), [2, 13])):  # files 0, 1, 2
        for kind, array in (("img", images), ("text", texts)):
            (folder / f"{kind}_emb").mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{kind}_emb" / f"{kind}_emb_{number}.npy", array[rows].astype(np.float16))
        (folder / "metadata").mkdir(exist_ok=True)
        table = pa.table({"image_path": [f"x/{i}.jpg" for i in rows], "caption": [f"{caption} {i}" for i in rows]})
        pq.write_table(table, folder / "metadata" / f"metadata_{number}.parquet")


def test_clip_retrieval_folder(here: Path) -> None:
    images, texts = make_vectors(23)
    write_clip_retrieval(here / "cr", images, texts[::2])
    assert "Imported 23 image, 23 text rows" in ok("cr")
    store = Store.open("c3-store")
    np.testing.assert_allclose(store.load("image").embeddings, images, atol=2e-3)
    text = store.load("text")
    assert (text.column("caption")[14], text.column("image_key")[14]) == ("caption 14", "x/14")
    (here / "cr" / "img_emb" / "img_emb_2.npy").unlink()
    assert "have different numbers of rows: 13 and 23" in refused("cr", "--store", "other")


@pytest.mark.parametrize("changed", ["image", "text", "captions"])
def test_changed_clip_retrieval_folder_is_another_one(here: Path, changed: str) -> None:
    images, texts = make_vectors(23)
    write_clip_retrieval(here / "cr", images, texts[::2])
    ok("cr", "--store", "cr/store")
    ok("cr", "--store", "cr/store")  # the store in the folder is no part of it
    sides = (images[::-1] if changed == "image" else images, texts[1::2] if changed == "text" else texts[::2])
    write_clip_retrieval(here / "cr", *sides, "another" if changed == "captions" else "caption")
    assert "cr/store already has image and text rows" in refused("cr", "--store", "cr/store")


def c3_pickle(images: np.ndarray, texts: np.ndarray) -> dict[str, Any]:
    return {
        "images": {i: {"img_path": f"{i}.jpg", "embed": torch.from_numpy(row[None])} for i, row in enumerate(images)},
        "captions": {
            1000 + j: {"caption": f"text {j}", "img_id": j // 2, "embed": torch.from_numpy(row[None])}
            for j, row in enumerate(texts)
        },
    }


def test_released_pickle(here: Path) -> None:
    images, texts = make_vectors(4)
    (here / "oscar_split_ViT-B_32_train.pkl").write_bytes(pickle.dumps(c3_pickle(images * 5, texts * 7)))
    assert "Imported 4 image, 8 text rows into c3-store (8 pairs)" in ok("oscar_split_ViT-B_32_train.pkl")
    text = Store.open("c3-store").load("text")
    assert (text.keys[5], text.column("image_key")[5], text.column("split")[5]) == ("1005", "2", "train")
    np.testing.assert_allclose(text.embeddings, texts, atol=1e-3)


def test_clipcap_pickle(here: Path) -> None:
    _, texts = make_vectors(3)
    captions = [{"caption": f"t{i}", "image_id": f"{i}", "clip_embedding": 5 - i} for i in range(6)]
    (here / "coco.pkl").write_bytes(pickle.dumps({"clip_embedding": texts, "captions": captions}))
    ok("coco.pkl")
    np.testing.assert_allclose(Store.open("c3-store").load("text").embeddings, texts[::-1], atol=1e-3)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch owned",))


@pytest.mark.parametrize("suffix", [".pkl", ".pt", ".npy", ".npz"])
def test_code_in_a_file_is_never_run(here: Path, suffix: str) -> None:
    payload = {"images": {}, "captions": {0: {"embed": Evil()}}}
    path = here / f"evil{suffix}"
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(payload))
        message = refused(str(path))
        assert "posix.system" in message or "nt.system" in message
    else:
        if suffix == ".pt":
            torch.save(payload, path)
        else:
            save = np.save if suffix == ".npy" else np.savez
            save(path, np.array([Evil()], dtype=object), allow_pickle=True)
        message = refused("--image", path.name)
    assert "refused" in message or "not read" in message
    assert not (here / "owned").exists()
    assert not (here / "c3-store").exists()


def test_bad_rows_are_left_out_and_listed(here: Path) -> None:
    images, _ = make_vectors(8)
    images[2, 5] = np.nan
    images[4] = 0
    np.save("i.npy", images)
    said = ok("--image", "i.npy")
    assert "2 rows were left out" in said and "NaN" in said
    store = Store.open("c3-store")
    assert len(store.load("image")) == 6
    assert [failure.key for failure in store.failures()] == ["00000002", "00000004"]
    assert pq.read_table(here / "c3-store" / "failures.parquet").num_rows == 2


def test_pairs_are_counted_without_the_rows_left_out(here: Path) -> None:
    images, texts = make_vectors(8)
    images[2, 5] = np.nan
    texts[4] = 0
    np.save("i.npy", images)
    np.save("t.npy", texts[:8])
    assert "Imported 7 image, 7 text rows into c3-store (6 pairs)" in ok("--image", "i.npy", "--text", "t.npy")


def test_norms_can_be_kept(here: Path) -> None:
    images, _ = make_vectors(5)
    np.save("i.npy", images * 3)
    assert "kept as they are" in ok("--image", "i.npy", "--keep-norms", "--dtype", "float32")
    store = Store.open("c3-store")
    assert not store.info.normalised
    np.testing.assert_allclose(store.load("image").embeddings, images * 3, atol=1e-6)


def test_norms_too_large_for_float16(here: Path) -> None:
    images, _ = make_vectors(5)
    images[1] *= 65_504 / np.abs(images[1]).max()
    images[3] *= 65_536 / np.abs(images[3]).max()
    np.save("i.npy", images)
    for _ in range(2):
        said = ok("--image", "i.npy", "--keep-norms")
        assert "1 row was left out" in said and "too large for float16; use --dtype float32" in said
    store = Store.open("c3-store")
    assert [failure.key for failure in store.failures()] == ["00000003"]
    assert np.abs(store.load("image").embeddings).max() == 65_504
    ok("--image", "i.npy", "--keep-norms", "--dtype", "float32", "--store", "kept")
    ok("--image", "i.npy", "--store", "scaled")
    assert [len(Store.open(store).load("image")) for store in ("kept", "scaled")] == [5, 5]


def test_other_modalities(here: Path) -> None:
    images, texts = make_vectors(5)
    np.save("i.npy", images)
    np.save("a.npy", unit(texts[::2] + images))
    said = ok("--image", "i.npy", "--other", "audio=a.npy", "--model", "ImageBind")
    assert "row i was paired with row i (5 pairs)" in said
    assert "(5 pairs)." in said
    store = Store.open("c3-store")
    assert store.modalities == ["image", "audio"]
    assert store.load("audio").column("pair_key") == store.load("image").keys
    assert store.info.model["name"] == "ImageBind"
    assert "NAME=FILE" in refused("--other", "audio")


def test_same_import_again_and_another_one(here: Path) -> None:
    images, _ = make_vectors(5)
    np.save("i.npy", images)
    ok("--image", "i.npy")
    before = {p.name: p.read_bytes() for p in (here / "c3-store" / "image").iterdir()}
    (here / "c3-store" / "image" / "_part-00000.json").unlink()  # as if it had been interrupted
    ok("--image", "i.npy")
    assert {p.name: p.read_bytes() for p in (here / "c3-store" / "image").iterdir()} == before
    np.save("i.npy", images[::-1])
    assert "already has image rows" in refused("--image", "i.npy")


def test_an_interrupted_import_says_what_is_kept(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = make_vectors(5)
    np.save("i.npy", images * 2)
    np.save("t.npy", texts[:5])

    def interrupted(path: Path, info: StoreInfo, shard: Shard) -> None:
        if shard.modality == "text":
            raise KeyboardInterrupt
        write_shard(path, info, shard)

    monkeypatch.setattr("c3tools.store.import_embeddings.write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt) as interrupt:
        import_embeddings(image="i.npy", text="t.npy")
    assert interrupt.value.__notes__ == ["Finished shards are kept; run the same command again to write the others."]


def test_an_interrupted_second_import_is_continued(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("c3tools.store.import_embeddings.SHARD_ROWS", 4)
    images, texts = make_vectors(5)
    for name, rows in (("i", images), ("t", texts), ("other", texts[::-1])):
        np.save(f"{name}.npy", rows)
    ok("--image", "i.npy")
    ok("--text", "t.npy")
    before = {p.name: p.read_bytes() for p in (here / "c3-store" / "text").iterdir()}
    (here / "c3-store" / "text" / "_part-00001.json").unlink()
    assert "already has text rows" in refused("--text", "other.npy")
    ok("--text", "t.npy")
    assert {p.name: p.read_bytes() for p in (here / "c3-store" / "text").iterdir()} == before
    ok("--image", "i.npy")
    assert "already has image rows" in refused("--image", "other.npy")


def test_several_arrays_in_one_file(here: Path) -> None:
    images, texts = make_vectors(5)
    np.savez("both.npz", a=images, b=texts[::2], ids=np.array([f"k{i}" for i in range(5)]))
    assert "2 arrays of vectors (a, b)" in refused("--image", "both.npz")
    ok("--image", "both.npz", "--text", "both.npz", "--image-array", "a", "--text-array", "b")
    store = Store.open("c3-store")
    assert store.load("image").keys == ["k0", "k1", "k2", "k3", "k4"]
    np.testing.assert_allclose(store.load("text").embeddings, texts[::2], atol=1e-3)
    assert "no array 'c'" in refused("--image", "both.npz", "--image-array", "c", "--store", "s")


class TestBadInput:
    @pytest.fixture(autouse=True)
    def files(self, here: Path) -> None:
        images, texts = make_vectors(6)
        np.save("i.npy", images)
        np.save("t.npy", texts)

    def test_nothing_to_import(self) -> None:
        assert "Nothing to import" in refused()

    def test_missing_and_unknown_files(self, here: Path) -> None:
        assert "The file none.npy does not exist" in refused("--image", "none.npy")
        (here / "x.h5").write_bytes(b"")
        assert ".safetensors" in refused("--image", "x.h5")
        assert "It is not clear which modality" in refused("i.npy")
        assert "gone does not exist" in refused("gone")
        (here / "empty").mkdir()
        assert "neither img_emb/ nor text_emb/" in refused("empty")

    def test_numbers_of_rows(self) -> None:
        message = refused("--image", "i.npy", "--text", "t.npy")
        assert "6 images and 12 texts" in message and "--text-meta" in message

    def test_table_of_another_length(self, here: Path) -> None:
        write_jsonl(here / "m.jsonl", [{"id": 1}])
        assert "6 images, but 1 row in their table" in refused("--image", "i.npy", "--meta", "m.jsonl")

    def test_repeated_keys(self, here: Path) -> None:
        write_jsonl(here / "m.jsonl", [{"id": 1}] * 6)
        assert "'1' occurs 6 times" in refused("--image", "i.npy", "--meta", "m.jsonl")

    @pytest.mark.parametrize("column", ["caption", "key", "image_key", "split"])
    def test_half_a_character(self, here: Path, column: str) -> None:
        rows = [{"key": f"t{i}", "image_key": f"{i}", "caption": "a dog", "split": "val"} for i in range(12)]
        rows[7][column] = "dog \ud83d"
        write_jsonl(here / "t.jsonl", rows)
        message = refused("--text", "t.npy", "--text-meta", "t.jsonl")
        assert f"The {column} of text row 7 is not UTF-8: 'dog \\ud83d'." in message
        assert not (here / "c3-store").exists()

    def test_wrong_column(self, here: Path) -> None:
        write_jsonl(here / "m.jsonl", [{"id": i} for i in range(6)])
        message = refused("--image", "i.npy", "--meta", "m.jsonl", "--key-column", "name")
        assert "no column 'name'. The columns are id" in message

    def test_dimensions_that_differ(self) -> None:
        np.save("t.npy", np.eye(6, 8))
        assert "image has 16 and text has 8" in refused("--image", "i.npy", "--text", "t.npy")

    @pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".safetensors", ".parquet", ".pkl"])
    def test_truncated_files(self, here: Path, suffix: str) -> None:
        path = here / f"cut{suffix}"
        if suffix == ".pkl":
            path.write_bytes(pickle.dumps(c3_pickle(*make_vectors(4))))
        else:
            save_in(path, make_vectors(40)[0])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        message = refused(path.name) if suffix == ".pkl" else refused("--image", path.name)
        assert path.name in message
        assert not (here / "c3-store").exists()

    def test_wrong_shape(self) -> None:
        np.save("flat.npy", np.zeros(5))
        assert "shape (5,)" in refused("--image", "flat.npy")

    def test_broken_table(self, here: Path) -> None:
        (here / "m.jsonl").write_text("{")
        assert "JSON Lines" in refused("--image", "i.npy", "--meta", "m.jsonl")


@pytest.mark.skipif(not REAL.exists(), reason="the shared CLIP embeddings are not on this machine")
def test_real_clip_pairs(here: Path) -> None:
    folder = (REAL / "coco_val2017_vitb16_500").resolve()
    said = ok(
        "--image", str(folder / "image.npy"), "--text", str(folder / "text.npy"), "--meta", str(folder / "meta.jsonl")
    )
    assert "500 pairs" in said
    store = Store.open("c3-store")
    gap = store.moments("image").mean - store.moments("text").mean
    assert np.linalg.norm(gap) == pytest.approx(0.851, abs=0.001)
    assert store.load("text").column("caption")[0].startswith("A motorcycle")
