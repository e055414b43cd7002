"""`import_embeddings`: its pairs, compared with a join that is written out here; the files it
reads; rows left out."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from c3tools import Rows, Store, verify_store
from c3tools.corpus.splits import splits_by_hash
from c3tools.errors import StoreError, UnusedOptionError
from c3tools.inputs import import_embeddings as importing
from c3tools.inputs.import_embeddings import ImportReport, import_embeddings, read_rows
from c3tools.store import write_rows
from tests.conftest import Counted, contents, unit_rows, write_jsonl
from tests.stores import make_vectors

Ids = Sequence[Any]
Columns = Mapping[str, Ids]
Pairs = Counter[tuple[int, int]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory, with five images in five.npy and their texts in texts.npy."""
    monkeypatch.chdir(tmp_path)
    images, texts = make_vectors(5)
    np.save("five.npy", images * 2)
    np.save("texts.npy", texts[::2])


def loaded(modality: str, store: str = "c3-store") -> Rows:
    return Store.open(store).load(modality)


def vectors(n: int) -> np.ndarray:
    """Return n rows (n, 2) from which `row_of` reads their numbers again, whatever their norms."""
    return np.stack([np.ones(n), np.arange(n) + 1.0], axis=1).astype(np.float32)


def row_of(embeddings: np.ndarray) -> list[int]:
    return [round(float(value)) - 1 for value in embeddings[:, 1] / embeddings[:, 0]]


def joined(images: Ids, texts: Ids) -> Pairs:
    """Return the pairs of rows whose ids are written in the same way."""
    return Counter(
        (i, j)
        for i, image in enumerate(images)
        for j, text in enumerate(texts)
        if str(image) == str(text)
    )


def stored(first: str = "image", second: str = "text") -> Pairs:
    return Counter(
        zip(*map(row_of, Store.open("c3-store").pairs(first, second).arrays()), strict=True)
    )


def write(path: str | Path, rows: np.ndarray, columns: Columns) -> Path:
    """Write vectors and their columns, of JSON lines and pickles their ids, in the format that the
    file's name says."""
    path = Path(path)
    as_array: Any = {".npz": np.array, ".pt": torch.tensor, ".safetensors": torch.tensor}.get(
        path.suffix, list
    )
    arrays = {name: as_array(values) for name, values in columns.items()}
    match path.suffix:
        case ".csv":
            names = *columns, *(f"e{i}" for i in range(rows.shape[1]))
            lines = [names, *zip(*columns.values(), *rows.T.tolist(), strict=True)]
            path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
        case ".parquet":
            pq.write_table(
                pa.table({**columns, "embedding": pa.array(list(rows), pa.list_(pa.float32()))}),
                path,
            )
        case ".npz":
            np.savez(path, embedding=rows, **arrays)
        case ".safetensors":
            save_file({"embedding": torch.from_numpy(rows), **arrays}, path)
        case ".pt":
            torch.save({"embedding": torch.from_numpy(rows), **arrays}, path)
        case ".npy":
            np.save(path, rows)
            write_jsonl(path.with_suffix(".jsonl"), *pa.table(arrays).to_pylist())
        case ".jsonl":
            write_jsonl(path, *({"id": i, "embedding": row.tolist()} for i, row in enumerate(rows)))
        case ".pkl":
            captions = [{"caption": "a", "image_id": i} for i in range(len(rows))]
            content = {"clip_embedding": torch.from_numpy(rows), "captions": captions}
            path.write_bytes(pickle.dumps(content))
    return path


def bring(suffix: Any = ".parquet", **modalities: Any) -> ImportReport:
    """Import rows with these columns; those of .npy files stand in tables of their own."""
    options: dict[str, Any] = {"other": {}}
    for name, columns in modalities.items():
        path = write(f"{name}{suffix}", vectors(len(next(iter(columns.values())))), columns)
        (options["other"] if name == "audio" else options)[name] = path
        if suffix == ".npy":
            options["meta" if name == "image" else "text_meta"] = path.with_suffix(".jsonl")
    return import_embeddings(dtype="float32", **options)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npz", ".safetensors", ".pt", ".npy"])
def test_many_texts_to_one_image(suffix: str) -> None:
    column = "image_key" if len(suffix) == 4 else "image_id"
    named = [int(i) for i in np.random.default_rng(1).integers(100, 110, 40)]
    texts = {"id": range(100, 140), column: named}  # ids of texts, by chance alike
    assert bring(suffix, image={"id": range(109, 99, -1)}, text=texts).pairs == 40
    assert stored() == joined(range(109, 99, -1), named)
    text = loaded("text")
    assert [text.keys, text.column("image_key")] == [
        [*map(str, range(100, 140))],
        [*map(str, named)],
    ]


def test_several_texts_have_the_id_of_their_image() -> None:
    report = bring(
        ".csv", image={"id": "abc", "split": ["val", "test", "train"]}, text={"id": "babxb"}
    )
    text = loaded("text")
    assert text.keys == "b#0 a#0 b#1 x#0 b#2".split()
    own = text.column("split")
    assert [text.column("image_key"), own] == [
        ["b", "a", "b", None, "b"],
        ["test", "val", "test", own[3], "test"],
    ]
    assert "4 of 5 text rows and 2 of 3 image rows are paired" in report.notes[0]


def test_a_csv_file_without_names_is_a_matrix() -> None:
    rows = unit_rows(3, 4)
    np.savetxt("i.csv", rows, delimiter=",")
    assert import_embeddings(image="i.csv", dtype="float32").pairs == 0
    np.testing.assert_allclose(loaded("image").embeddings, rows, rtol=1e-6)


def test_vectors_as_texts_of_pandas_are_read_whatever_their_column_is_called() -> None:
    header = ",id,ViT-B-32,caption"
    Path("p.csv").write_text(f'{header}\n0,a,"[0.6, 0.8]",[1] a cat\n1,b,"[0,1]",a dog\n')
    import_embeddings(image="p.csv", dtype="float32")
    np.testing.assert_allclose(loaded("image").embeddings, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)
    Path("q.csv").write_text('id,e0,e1,bbox\na,0.6,0.8,"[1, 2]"\n')  # numbered columns come first
    import_embeddings(store="q", image="q.csv", dtype="float32")
    np.testing.assert_allclose(loaded("image", "q").embeddings, [[0.6, 0.8]], rtol=1e-6)


def test_a_matrix_with_a_text_in_it_is_refused() -> None:
    Path("i.csv").write_text("0.5,1.0\n0.25,none\n")
    with pytest.raises(StoreError, match=r"i.csv.*none"):
        import_embeddings(image="i.csv")


def test_row_order_only_where_one_side_has_no_ids() -> None:
    np.save("i.npy", vectors(4))
    text, named = (
        write(f"{name}.csv", vectors(4), {name: [3, 2, 1, 0]}) for name in ("id", "image_id")
    )
    report = import_embeddings(image="i.npy", text=text, dtype="float32")
    assert "The image rows have no ids: row i was paired with row i (4 pairs)" in report.notes[0]
    assert stored() == joined(range(4), range(4))
    assert (
        "The text rows have no ids"
        in import_embeddings(store="b", image=text, text="i.npy").notes[0]
    )
    assert loaded("text", "b").column("image_key") == ["3", "2", "1", "0"]
    with pytest.raises(StoreError, match=r"Without ids, .* 'image_id'"):
        import_embeddings(store="s", image="i.npy", text=named)


@pytest.mark.parametrize("with_ids", [False, True])
def test_a_list_names_the_image_of_each_text(with_ids: bool) -> None:
    np.save("i.npy", vectors(3))
    np.save("t.npy", vectors(5))
    write_jsonl(Path("meta.jsonl"), *({"id": f"{name}.jpg"} for name in "abc"))
    meta = "meta.jsonl" if with_ids else None
    named = ["c", "a", "c", "", "b"] if with_ids else ["2", "0", "2", "", "1"]
    Path("ids.txt").write_text("\n".join(named) + "\n")
    bring_all = partial(import_embeddings, image="i.npy", meta=meta, text="t.npy", dtype="float32")
    report = bring_all(ids="ids.txt")
    assert stored() == Counter([(2, 0), (0, 1), (2, 2), (1, 4)]) and report.pairs == 4
    assert "4 of 5 text rows and 3 of 3 image rows are paired" in report.notes[0]
    Path("ids.txt").write_text("0\n1")
    with pytest.raises(StoreError, match=r"(?s)5 text rows.*2 lines.*a line per text"):
        bring_all(store="s", ids="ids.txt")
    with pytest.raises(UnusedOptionError, match="--ids has no effect without --image and --text"):
        import_embeddings(text="t.npy", ids="ids.txt")
    with pytest.raises(UnusedOptionError, match="text_meta has no effect with ids"):
        bring_all(ids="ids.txt", text_meta="meta.jsonl")


def test_unequal_numbers_without_ids_are_imported_one_after_the_other() -> None:
    np.save("three.npy", unit_rows(3, np.load("five.npy").shape[1]))
    with pytest.raises(StoreError, match=r"(?s)3 text .* 5 image .*--ids FILE.*without pairs"):
        import_embeddings(image="five.npy", text="three.npy")
    import_embeddings(image="five.npy")
    assert import_embeddings(text="three.npy").pairs == 0
    assert (len(loaded("image")), len(loaded("text"))) == (5, 3)


@pytest.mark.parametrize(
    ("ids", "named", "pairs"),
    [
        ([7, 8, 9], ["9", "7", "7"], "01 02 20"),
        (["007", "008"], [8, 7], "01 10"),
        (["007", "7", "8"], ["7", "07", "8"], "10 22"),  # 07 could be either
        (["000139.jpg", "a.b.png"], ["139", "a.b"], "00 11"),
        (["\u00e9.jpg", "\u00fc.jpg"], ["u\u0308", "e\u0301"], "01 10"),  # in two Unicode forms
        (["v1.5", "v1.6"], ["v1.6", "v1.5"], "01 10"),
        (["a", "b"], ["b", ""], "10"),
        ([1.0, 2.0], [None, "2"], "11"),
        ({"id": [0, 1], "image_id": [1, 0], "file_name": ["x.jpg", "y.jpg"]}, [1.0, 0], "00 11"),
        ([1, 2], {"id": ["x", "y"]}, ""),  # ids without one in common pair nothing
        ([1, 2], {"caption_id": [1, 2]}, ""),
        ([1, 2], ["x", "y"], ""),
    ],
)
def test_pairs_by_ids(ids: Any, named: Any, pairs: str) -> None:
    image = ids if isinstance(ids, dict) else {"id": ids}
    report = bring(image=image, text=named if isinstance(named, dict) else {"image_id": named})
    assert [f"{i}{j}" for i, j in sorted(stored())] == pairs.split() and report.pairs == len(
        pairs.split()
    )
    said = report.notes[0]
    assert (said.startswith("No rows are paired") and "--image-key-column" in said) == (not pairs)


def test_csv_ids_stay_as_they_are_written() -> None:
    ids = ["007", "12345678901234567890", "12345678901234567891"]
    assert bring(".csv", image={"id": ids}, text={"id": ids[::-1]}).pairs == 3
    assert loaded("image").keys == ids


@pytest.mark.parametrize(
    ("table", "column", "keys", "splits"),
    [
        ("id,split\nc,test\nx,val\na,train\n", None, "a b c", ["train", None, "test"]),
        ("photo,split\na,test\nb,test\nc,test\n", "photo", "a b c", ["test"] * 3),
        ("photo,split\nc.jpg,x\na,y\nb,z\n", "photo", "a b c.jpg", ["y", "z", "x"]),
    ],
)
def test_vectors_with_ids_and_their_table(
    table: str, column: str | None, keys: str, splits: list[Any]
) -> None:
    source = write("i.csv", vectors(3), {"id": "abc"})
    Path("m.csv").write_text(table)
    said = import_embeddings(image=source, meta="m.csv", key_column=column).notes[0]
    image = loaded("image")
    assert [image.keys, image.column("corpus_split"), row_of(image.embeddings)] == [
        keys.split(),
        splits,
        [0, 1, 2],
    ]
    assert (said == "The table describes 2 of 3 image rows; 'b' is missing, for example.") == (
        None in splits
    )
    for others in ("xyz", "aab"):
        Path("m.csv").write_text("id\n" + "\n".join(others))
        with pytest.raises(StoreError, match=r"both have ids \('id'\), but the ids differ"):
            import_embeddings(store="s", image=source, meta="m.csv")


def test_other_modalities_are_joined_with_images_by_id() -> None:
    image = {"id": [0, 1, 2, 3], "split": ["train", "val", "test", "x"]}
    report = bring(image=image, audio={"id": [3, 9, 1, 0]})
    assert stored("image", "audio") == joined([0, 1, 2, 3], [3, 9, 1, 0])
    assert "3 of 4 audio rows and 3 of 4 image rows are paired" in report.notes[0]
    assert loaded("audio").column("corpus_split") == ["x", None, "val", "train"]


def test_order_pairs_nothing_that_has_ids() -> None:
    np.save("i.npy", vectors(3))
    text, audio = (write(f"{i}.csv", vectors(3), {"id": i}) for i in ("abc", "cab"))
    import_embeddings(image="i.npy", text=text, other={"audio": audio}, dtype="float32")
    assert stored("text", "audio") == stored("image", "audio") == joined("abc", "cab")


@pytest.mark.parametrize(
    ("text", "audio", "pairs"),  # the latter are sounds whose texts are there
    [({"image_id": "caba"}, {"id": "abc"}, 3), ({"caption": "wxyz"}, {"note": "wxyz"}, 4)],
)
def test_audio_and_its_captions(text: Columns, audio: Columns, pairs: int) -> None:
    assert bring(".csv", text=text, audio=audio).pairs == pairs
    assert stored("audio", "text") == joined(*audio.values(), *text.values())


@pytest.mark.parametrize(("added", "pairs"), [("text", 3), ("image", 3), ("audio", 2)])
def test_pairs_with_rows_of_an_earlier_import(added: str, pairs: int) -> None:
    items = {"image": "abc", "text": "aabx", "audio": "acy"}
    for names in (items.keys() - {added}, {added}):
        report = bring(".csv", **{name: {"image_key": items[name]} for name in names})
    assert report.pairs == pairs


@pytest.mark.parametrize(
    "suffix", [".npy", ".npz", ".pt", ".safetensors", ".parquet", ".csv", ".jsonl", ".pkl"]
)
def test_a_file_that_cannot_be_read_is_named(suffix: str) -> None:
    path = write(f"x{suffix}", vectors(40), {"id": range(40)})
    whole = path.read_bytes()
    cut = [whole[: len(whole) // 2]] * (suffix != ".csv")  # a table with fewer rows is a table
    for content in (*cut, b"\x89PNG\r\n\x1a\n" + bytes(range(256)), b""):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=rf"x\{suffix}"):
            import_embeddings(**{"source" if suffix == ".pkl" else "image": path})  # type: ignore[arg-type]
    assert not Path("c3-store").exists()


PHOTOS, TEXTS = make_vectors(3)
IMAGES = PHOTOS.repeat(2, axis=0)  # as ClipCap has them: a row for each caption
# as their scripts name things; in the second, ClipCap's of Conceptual Captions, there are no ids,
# and the numbers of rows start again
COCO = [
    {"image_id": 7 + i // 2, "id": 40 + i, "caption": f"text {i}", "clip_embedding": i}
    for i in range(6)
]
CONCEPTUAL = [
    {"image_id": f"{i // 2:08d}", "caption": f"text {i}.", "clip_embedding": i % 4}
    for i in range(6)
]


def in_halves(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows).half()


def dump(name: str, content: Any, protocol: int = 4) -> Path:
    Path(name).write_bytes(pickle.dumps(content, protocol))
    return Path(name)


def c3_pickle() -> dict[str, Any]:
    images = {i: {"img_path": f"{i}.jpg", "embed": in_halves(PHOTOS[i : i + 1])} for i in range(3)}
    captions = {
        100 + j: {"caption": f"text {j}", "img_id": j // 2, "embed": in_halves(TEXTS[j : j + 1])}
        for j in range(6)
    }
    return {"images": images, "captions": captions}


@pytest.mark.parametrize("protocol", [3, 4])  # the default ones of Python 3.7 and 3.8 to 3.13
def test_a_pickle_of_c3(protocol: int) -> None:
    path = dump("oscar_split_ViT-B_32_train.pkl", c3_pickle(), protocol)
    report = import_embeddings(path)
    assert (report.rows, report.pairs) == ({"image": 3, "text": 6}, 6)
    text = loaded("text")
    assert text.keys == [str(key) for key in range(100, 106)]
    assert text.column("split") == ["train"] * 6
    assert text.column("image_key") == ["0", "0", "1", "1", "2", "2"]
    assert text.column("caption")[5] == "text 5"
    assert loaded("image").column("path") == ["0.jpg", "1.jpg", "2.jpg"]
    np.testing.assert_allclose(text.embeddings, TEXTS, atol=1e-3)


def test_a_pickle_of_tensors_on_a_gpu_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    content = c3_pickle()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        path = dump("train.pkl", content)
    assert import_embeddings(path, "c3-store").rows == {"image": 3, "text": 6}


@pytest.mark.parametrize("captions", [COCO, CONCEPTUAL])
def test_a_pickle_of_clipcap_has_images_alone(captions: list[dict[str, Any]]) -> None:
    path = dump("cc.pkl", {"clip_embedding": in_halves(IMAGES), "captions": captions})
    report = import_embeddings(path)
    assert (report.rows, len(report.notes)) == ({"image": 3}, 1)
    assert "captions in the file have no vectors" in report.notes[0]
    image = loaded("image")
    assert image.keys == [str(caption["image_id"]) for caption in captions[::2]]
    np.testing.assert_allclose(image.embeddings, PHOTOS, atol=1e-3)


@pytest.mark.parametrize("images", [IMAGES, np.zeros(0, np.float32)])
def test_a_pickle_of_capdec(images: np.ndarray) -> None:
    content = {
        "clip_embedding": in_halves(images),
        "captions": COCO,
        "clip_embedding_text_dave": in_halves(TEXTS),
    }
    report = import_embeddings(dump("cd.pkl", content))
    assert report.rows == ({"image": 3} if len(images) else {}) | {"text": 6}
    assert report.pairs == len(images)
    text = loaded("text")
    assert text.keys == [str(caption["id"]) for caption in COCO]
    assert text.column("image_key") == [str(caption["image_id"]) for caption in COCO]
    np.testing.assert_allclose(text.embeddings, TEXTS, atol=1e-3)


def test_a_pickle_of_capdec_without_texts() -> None:
    content = {
        "clip_embedding": in_halves(IMAGES),
        "captions": COCO,
        "clip_embedding_text_dave": 0,
    }
    assert import_embeddings(dump("cd.pkl", content)).rows == {"image": 3}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "is not a pickle"),
        ({"clip_embedding": torch.zeros(0), "captions": COCO}, "is not a pickle"),
        ({"clip_embedding": in_halves(IMAGES), "captions": COCO[1:]}, "5 captions, but 6 vectors"),
        # a row of any length takes 2 bytes
        (
            {"clip_embedding": torch.zeros(1, 1).half().expand(6, 10**9), "captions": COCO},
            "unpacks to 6,000,000,000 bytes",
        ),
    ],
)
def test_pickles_that_are_refused(content: Any, said: str) -> None:
    with pytest.raises(StoreError, match=rf"other\.pkl.*{said}"):
        import_embeddings(dump("other.pkl", content))


@pytest.mark.parametrize("suffix", [".npz", ".pt"])
def test_an_archive_does_not_unpack_to_more_than_its_size_allows(suffix: str) -> None:
    path = Path(f"bomb{suffix}")
    zeros = np.zeros((40_000, 500), np.float32)
    if suffix == ".npz":
        np.savez_compressed(path, embedding=zeros)
    else:
        torch.save({"embedding": torch.zeros(1, 1).expand(40_000, 500)}, path)
    with pytest.raises(
        StoreError, match=rf"{path} cannot be read \(.* unpacks to 80,000,\d+ bytes"
    ):
        import_embeddings(image=path)


def test_rows_that_cannot_be_kept_are_listed() -> None:
    images, texts = make_vectors(8)
    images[2, 5], images[4], texts[5], texts[6], texts[7] = (
        np.nan,
        0,
        0,
        texts[6] * 1.002,
        texts[7] * 1.0005,
    )
    for row, largest in ((1, 65_504), (3, 65_536)):
        images[row] *= largest / np.abs(images[row]).max()
    np.save("i.npy", images)
    np.save("t.npy", texts[:8])
    report = import_embeddings(image="i.npy", text="t.npy", normalise=False)
    assert (report.rows, report.pairs) == ({"image": 5, "text": 7}, 4)
    assert report.notes == [
        "The text rows and the image rows have no ids: row i was paired with row i (8 pairs).",
        *(
            f"1 of 8 {name} rows did not have norm 1; they were kept as they are."
            for name in ("image", "text")
        ),
    ]
    store = Store.open("c3-store")
    assert not store.info.normalised and np.abs(store.load("image").embeddings).max() == 65_504
    assert [(failure.key, failure.message) for failure in store.shard_failures("image", 0)] == [
        ("00000002", "the vector contains NaN or infinity"),
        ("00000003", "a component is too large for float16; use --dtype float32"),
        ("00000004", "the vector is zero"),
    ]
    assert store.recorded_failures() == sorted(report.failures, key=lambda failure: failure.key)
    import_embeddings(image="i.npy", store="scaled")  # where the length does not matter
    assert len(loaded("image", "scaled")) == 6
    assert verify_store("c3-store").whole


def test_an_interrupted_import_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "SHARD_ROWS", 2)
    import_embeddings(image="five.npy", text="texts.npy", store="whole")
    interrupted = Mock(wraps=write_rows, side_effect=[*[DEFAULT] * 4, KeyboardInterrupt])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as interrupt:
        patch.setattr(importing, "write_rows", interrupted)
        import_embeddings(image="five.npy", text="texts.npy")
    assert "are kept" in interrupt.value.__notes__[0]
    with pytest.raises(StoreError, match="other settings"):
        import_embeddings(text="texts.npy")
    for lost in (None, "image/part-00001.parquet"):
        Path("c3-store", lost).unlink() if lost else None
        import_embeddings(image="five.npy", text="texts.npy")
        assert contents(Path("c3-store")) == contents(Path("whole"))
    np.save("five.npy", make_vectors(5, 9)[0])
    with pytest.raises(StoreError, match="already has image and text rows"):
        import_embeddings(image="five.npy", text="texts.npy")


def test_the_array_with_a_usual_name_is_read() -> None:
    images = make_vectors(5)[0]
    np.savez("both.npz", a=images * 2, emb=images, features=images * 3)
    np.testing.assert_array_equal(read_rows("both.npz", "image")[0].embeddings, images)


def test_arrays_are_chosen_by_name_and_others_of_as_many_texts_are_their_ids() -> None:
    images, texts = make_vectors(5)
    ids = [f"k{i}" for i in range(5)]
    np.savez("both.npz", a=images, b=texts[::2], emb=images, ids=np.array(ids), n=np.arange(5.0))
    import_embeddings(image="both.npz", text="both.npz", image_array="a", text_array="b")
    assert loaded("image").keys == ids
    np.testing.assert_allclose(loaded("text").embeddings, texts[::2], atol=1e-3)


@pytest.mark.parametrize("array", [np.ones((3, 0)), np.ones((2, 3, 4)), np.ones((3, 2), bool)])
def test_an_array_that_is_no_matrix_of_numbers_is_refused(array: np.ndarray) -> None:
    np.save("x.npy", array)
    problem = f"x.npy contains {array.dtype} values of shape {array.shape}"
    with pytest.raises(StoreError, match=re.escape(problem)):
        read_rows("x.npy", "image")


def test_one_vector_is_one_row() -> None:
    np.save("x.npy", np.arange(3))
    assert read_rows("x.npy", "image")[0].embeddings.tolist() == [[0, 1, 2]]


def test_tensors_in_bfloat16_are_read_with_lists_of_texts_as_ids() -> None:
    features = torch.from_numpy(make_vectors(5)[0]).bfloat16()
    torch.save({"features": features, "ids": [*"abcde"], "note": ["x"]}, "l.pt")
    assert read_rows("l.pt", "image")[0].keys == [*"abcde"]


def test_tables_with_semicolons_and_lines_in_cells() -> None:
    Path("m.csv").write_text("image_id;split\n" + "".join(f"{i};test\n" for i in range(5)))
    rows = "".join(f'{4 - i};"one;\n{i}"\n' for i in range(5))
    Path("t.csv").write_text("IMAGE_ID;Caption\n" + rows)
    import_embeddings(image="five.npy", text="texts.npy", meta="m.csv", text_meta="t.csv")
    text = loaded("text")
    assert text.column("image_key") == [*"43210"]
    assert text.captions[:2] == ["one;\n0", "one;\n1"]


def test_vectors_of_different_lengths_are_refused() -> None:
    rows = [[1.0, 2, 3], [4, 5, 6, 7, 8]]
    pq.write_table(pa.table({"id": [1, 2], "embedding": rows}), "v.parquet")
    with pytest.raises(StoreError, match="3, 5"):
        read_rows("v.parquet", "image")


def test_a_table_that_names_nothing_but_val_is_split_by_hash() -> None:
    source = write("i.csv", vectors(3), {"id": "abc"})
    Path("m.csv").write_text("id,split\na,val2017\nb,val\nc,val\n")
    notes = import_embeddings(image=source, meta="m.csv").notes
    assert any(note.startswith("All rows belong to val, so a hash") for note in notes)
    assert loaded("image").column("split") == splits_by_hash(["a", "b", "c"])
    assert loaded("image").column("corpus_split") == ["val2017", "val", "val"]


@pytest.mark.parametrize(
    ("name", "content", "column", "problem"),
    [
        ("w.jsonl", '{"id": 1, "text": ["a dog"]}\n', None, "'id', 'text'"),
        (
            "half.jsonl",
            '{"id": "a", "embedding": [1, 0]}\n{"id": "\\ud83d", "embedding": [0, 1]}\n',
            None,
            "half.jsonl.*utf-8",
        ),
        ("list.jsonl", '{"id": 1}\n[1]\n', None, "line 2 is not a JSON object"),
        ("spaces.csv", 'id,vector \n1,"0.5 1 2"\n', "vector", "JSON list"),
        ("spaces.csv", 'id,vector \n1,"0.5 1 2"\n', "vectors", "'vector'"),
    ],
)
def test_a_table_without_vectors_is_refused(
    name: str, content: str, column: str | None, problem: str
) -> None:
    Path(name).write_text(content)
    with pytest.raises(StoreError, match=f"(?s){problem}"):
        read_rows(name, "image", column)


@pytest.mark.parametrize(
    "last", ["[1, 2]", "null", '["a", "b", "c"]', f"[1, 2, 1{'0' * 400}]", "[[1], 2, 3]", "[]"]
)
def test_a_row_that_is_no_vector_of_the_same_length_is_refused(last: str) -> None:
    Path("x.jsonl").write_text(
        f'{{"id": 1, "vector": [1, 0, 0.5]}}\n{{"id": 2, "vector": {last}}}\n'
    )
    with pytest.raises(StoreError, match=r"x\.jsonl"):
        read_rows("x.jsonl", "image")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("excel.csv", "id,e0,e1\na,1,2\n".encode("utf-16"), "iconv .* excel.csv > new.csv"),
        ("rows.jsonl", '{"vector": [1, 2]}'.encode("utf-16"), "is in UTF-16"),
        ("list.jsonl", b'[\n{"vector": [1, 2]}]', r"Rename it to list.json\."),
        ("pandas.csv", b"id,vector\na,[ 0.1 -0.2]\nb,[1. 2.]\n", r"numpy prints .*\.tolist\(\)"),
        ("pandas.csv", b"id,clip\na,[ 0.1 -0.2]\nb,[1. 2.]\n", r"numpy prints .*\.tolist\(\)"),
        ("x.csv", b'id,v\na,"[np.float64(0.1), np.float64(1)]"\n', r"'v'.*numpy prints"),
    ],
)
def test_texts_in_another_form_are_refused_with_what_converts_them(
    name: str, content: bytes, said: str
) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(StoreError, match=f"(?s){said}"):
        read_rows(name, "image")


def test_arrays_are_imported_as_their_files_are() -> None:
    images, texts = make_vectors(5)
    texts = texts[::2]
    table = {
        "key": ["a", "b", "c", "d", "e"],
        "image_key": ["1", "2", "3", "4", "5"],
        "caption": ["A", "B", "C", "D", "E"],
    }
    write_jsonl(Path("t.jsonl"), *pa.table(table).to_pylist())
    write_jsonl(Path("i.jsonl"), *({"key": str(i), "split": "train"} for i in range(1, 6)))
    np.save("i.npy", images)
    np.save("t.npy", texts)
    files = import_embeddings(
        image="i.npy", text="t.npy", meta="i.jsonl", text_meta="t.jsonl", store="files"
    )

    meta: dict[str, Any] = {"key": np.arange(1, 6), "split": ["train"] * 5}
    arrays = import_embeddings(image=images, text=texts, meta=meta, text_meta=table, store="arrays")

    assert (arrays.rows, arrays.pairs, arrays.notes) == (files.rows, files.pairs, files.notes)
    for modality in ("image", "text"):
        imported = loaded(modality, "arrays")
        assert imported.table.equals(loaded(modality, "files").table)
        assert np.array_equal(imported.embeddings, loaded(modality, "files").embeddings)


def test_other_arrays_are_another_import() -> None:
    images, texts = make_vectors(5)
    texts = texts[::2].astype(np.float64)
    import_embeddings(image=images)
    again = import_embeddings(image=images)
    assert again.rows == {"image": 5}
    with pytest.raises(StoreError, match="already"):
        import_embeddings(image=images[::-1])
    import_embeddings(text=texts, other={"audio": images}, store="other")
    assert Store.open("other").modalities == ["text", "audio"]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"image": np.zeros(3)}, r"The array contains float64 values of shape \(3,\)"),
        ({"image": np.eye(3), "meta": {"key": ["a"], "split": ["x", "y"]}}, "do not form a table"),
        ({"image": np.eye(3), "meta": {"key": ["a", "b"]}}, "3"),
        ({"meta": {"key": ["a", "b"]}}, "Pass either"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(StoreError, match=problem):
        import_embeddings(**given)


@pytest.mark.parametrize("file", ["dataset_info.json", "dataset_dict.json"])
def test_a_folder_of_save_to_disk_is_refused(file: str) -> None:
    Path("saved").mkdir()
    Path("saved", file).write_text("{}")
    with pytest.raises(StoreError, match=r"saved was written by save_to_disk[\s\S]*to_parquet"):
        import_embeddings(image="saved")


def test_a_pickled_module_is_refused_in_one_plain_sentence() -> None:
    torch.save(torch.nn.Linear(2, 2), "module.pt")
    with pytest.raises(StoreError, match="objects that are not arrays") as refused:
        read_rows("module.pt", "image")
    assert refused.value.message.isprintable()


def test_rows_of_texts_that_images_list() -> None:
    np.save("ten.npy", make_vectors(5)[1])

    def brought(store: str, last: list[int]) -> None:
        places = [[9, 8], [7, 6], [5, 4], [3, 2], last]
        rows = (
            {"image": f"a/{i}.jpg", "captions": [f"{i}a", f"{i}b"], "text_rows": places[i]}
            for i in range(5)
        )
        import_embeddings(
            store=store, image="five.npy", text="ten.npy", meta=write_jsonl(Path("m.jsonl"), *rows)
        )

    brought("c3-store", [1, 0])
    texts = loaded("text")
    assert texts.column("image_key")[:4] == ["a/4", "a/4", "a/3", "a/3"]
    assert texts.captions[:4] == ["4b", "4a", "3b", "3a"]
    for last in ([0, 10], [-1, 4], [0, 9]):
        with pytest.raises(StoreError, match=r"text_rows .* 10 texts"):
            brought("s", last)


def test_the_progress_reaches_the_number_of_rows() -> None:
    reporter = Counted()
    import_embeddings(image="five.npy", text="texts.npy", reporter=reporter)
    assert reporter.counts == {"Importing": 10}


@pytest.mark.parametrize("suffix", [".parquet", ".npy"])
def test_columns_are_kept_with_their_types(suffix: str) -> None:
    columns: dict[str, Ids] = {
        "label": [1, 2, 3],
        "nsfw": [True, False, True],
        "share": [0.5, 1.0, 2.0],
    }
    path = write(f"image{suffix}", vectors(3), {"id": ["a", "b", "c"], **columns})
    meta = path.with_suffix(".jsonl") if suffix == ".npy" else None
    import_embeddings(image=path, meta=meta, keep_columns=["share", "label", "nsfw"])
    store = Store.open("c3-store")
    assert store.info.columns == {"label": "int64", "nsfw": "bool", "share": "double"}
    assert {name: loaded("image").column(name) for name in columns} == columns


def test_texts_keep_the_columns_of_their_image() -> None:
    image = write("image.parquet", vectors(2), {"id": ["a", "b"], "url": ["http://a", None]})
    text = write("text.parquet", vectors(3), {"image_key": ["b", "a", "a"]})
    import_embeddings(image=image, text=text, keep_columns=["url"])
    assert loaded("text").column("url") == [None, "http://a", "http://a"]


def test_a_later_import_keeps_the_same_columns() -> None:
    image = write("image.parquet", vectors(2), {"id": ["a", "b"], "label": [1, 2]})
    text = write("text.parquet", vectors(1), {"image_key": ["b"], "label": [2]})
    import_embeddings(image=image, keep_columns=["label"])
    with pytest.raises(StoreError, match=r"keeps the columns label, not \(none\)"):
        import_embeddings(text=text, keep_columns=[])
    import_embeddings(text=text)
    assert loaded("text").column("label") == [2]


def test_a_note_names_the_items_of_which_rows_differ() -> None:
    image = write("image.parquet", vectors(2), {"id": ["a", "b"], "label": [1, 2]})
    texts: dict[str, Ids] = {"image_key": ["a", "b", "c", "c"], "label": [1, 3, 5, 6]}
    text = write("text.parquet", vectors(4), texts)
    report = import_embeddings(image=image, text=text, keep_columns=["label"])
    assert loaded("text").column("label") == [1, 2, 5, 5]
    (note,) = [
        note for note in report.notes if "have different values in the columns to keep" in note
    ]
    assert note.startswith("The rows of 2 items, for example b, have different values")


def test_fields_of_images_in_a_coco_file_are_kept() -> None:
    np.save("a.npy", vectors(1))
    image = {"id": 7, "file_name": "a.jpg", "license": 4}
    write_jsonl(Path("coco.json"), {"images": [image], "annotations": []})
    import_embeddings(image="a.npy", meta="coco.json", keep_columns=["license"])
    assert loaded("image").column("license") == [4]


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("lists", r"'lists' of 00000000 contains .* \(list\), which cannot be kept"),
        ("nothing", "No row has a value in the column 'nothing'"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused(column: str, problem: str) -> None:
    path = write("text.parquet", vectors(2), {"caption": ["a", "b"], "lists": [["a"], ["b"]]})
    with pytest.raises(StoreError, match=problem):
        import_embeddings(text=path, keep_columns=[column])


def test_one_name_of_a_column_to_keep_may_be_a_text() -> None:
    import_embeddings(image=vectors(2), meta={"label": [1, 2]}, keep_columns="label")
    assert loaded("image").column("label") == [1, 2]


def test_columns_that_are_no_table_are_refused_with_the_remedy() -> None:
    meta: Any = pa.table({"key": ["a", "b"]})
    with pytest.raises(StoreError, match=r"do not form a table .*\n.*to_pydict\(\)"):
        import_embeddings(image=vectors(2), meta=meta)


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, 8, dtype=torch.bfloat16), torch.ones(2, 8, requires_grad=True)],
    ids=["bfloat16", "grad"],
)
def test_tensors_that_are_no_arrays_are_refused_with_the_remedy(tensor: Any) -> None:
    with pytest.raises(StoreError, match=r"tensor\.detach\(\)\.float\(\)"):
        import_embeddings(image=tensor)


def test_vectors_that_are_all_unusable_are_failures() -> None:
    report = import_embeddings(image=np.full((3, 8), np.nan))
    assert report.rows == {"image": 0}
    assert len(report.failures) == 3


def test_an_empty_key_is_refused() -> None:
    with pytest.raises(StoreError, match="must be unique, but one is empty"):
        import_embeddings(image=vectors(2), meta={"key": ["a", ""]})


def parts(folder: str, *numbers: str, dim: int = 2) -> None:
    Path("clip", folder).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        np.save(Path("clip", folder, f"{folder}_{number}.npy"), np.ones((2, dim)))


def test_parts_with_vectors_of_another_dimension_are_refused() -> None:
    parts("img_emb", "0")
    parts("img_emb", "1", dim=4)
    with pytest.raises(StoreError, match=r"img_emb_1\.npy has vectors of shape \(4,\)"):
        import_embeddings("clip")


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        (["00", "02"], "img_emb 00, 01, 02; clip/text_emb 00, 02"),
        # In lexical order 10 would come before 2
        (["0", "1", "2"], "img_emb 00, 01, 02; clip/text_emb 0, 1, 2"),
    ],
)
def test_folders_of_clip_retrieval_with_other_parts_are_refused(
    numbers: list[str], problem: str
) -> None:
    parts("img_emb", "00", "01", "02")
    parts("text_emb", *numbers)
    with pytest.raises(StoreError, match=problem):
        import_embeddings("clip")


def test_the_rows_that_are_written_are_summed_while_they_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.save("vectors.npy", unit_rows(300, 8))
    monkeypatch.setattr(importing, "SHARD_ROWS", 128)
    with monkeypatch.context() as patch:
        reads = Mock(side_effect=AssertionError("reads a shard again"))
        patch.setattr("c3tools.store.manifest.sum_shard", reads)
        report = import_embeddings(image="vectors.npy")
    assert verify_store(report.store).whole
