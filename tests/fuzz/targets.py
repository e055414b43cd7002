"""The readers and what they read: one `Target` for each kind of file. Another format joins by another entry."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from c3tools.corpus import ImageReader, read_corpus
from c3tools.corpus.captions import read_captions
from c3tools.errors import StoreError
from c3tools.io.files import SEAL_PLACE, sha256_of
from c3tools.moments import Moments, load_moments, save_moments
from c3tools.store import Store
from c3tools.store.importers import read_clip_retrieval, read_pickle, read_table, read_vectors
from c3tools.store.metadata import write_marker
from c3tools.store.verify import verify_store
from c3tools.transforms import Pipeline, preset
from tests.conftest import unit_rows
from tests.corpus.packing import Photo, webdataset, write_hf_parquet, write_tar
from tests.stores import whole_store

from .mutations import Mutation, mutate_bytes, mutate_json, mutate_lines
from .records import record_targets
from .target import Target, every, file

DIM = 12


def _table() -> pa.Table:
    columns = {"file_name": ["a.png", "b.png", None], "text": ["a dog", "ein Hund", "いぬ"], "split": ["train"] * 3}
    return pa.table(columns)


def _parquet(table: pa.Table, **options: Any) -> bytes:
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


_COCO = {
    "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
    "annotations": [{"image_id": 1, "id": 7, "caption": "a dog"}, {"image_id": 2, "id": 8, "caption": "two cats"}],
}
_KARPATHY = {"images": [{"filename": "a.png", "split": "train", "sentences": [{"raw": "a dog"}, {"raw": "a cat"}]}]}
_LINES = b'{"image": "a.png", "captions": ["a dog", "it runs"], "split": "train"}\n{"image": "b.png", "captions": []}\n'
_CSV = 'file_name,text,split\na.png,"a ""big"" dog, it runs",train\nb.png,いぬ,val\n'.encode()
_TSV = _CSV.replace(b",", b"\t")
_YAML = (
    b"name: mine\nsteps:\n- step: normalize\n- {step: collapse, modalities: [text, image]}\n- step: gaussian-noise\n"
    b"  sigma: 0.1\n- normalize\n"
)


def _captions(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        every([lambda: list(read_captions(folder / name)), lambda: read_corpus([folder / name])])

    return read


def _caption_target(name: str, content: bytes, *mutations: Mutation, share: int = 30) -> Target:
    return Target(f"captions {name}", file(name, content), {name: mutations}, _captions(name), share=share)


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "png")
    return stream.getvalue()


def _photos() -> list[Photo]:
    return [Photo(f"{name}.png", _png(), [f"a {name}", "いぬ"], "train") for name in ("dog", "cat")]


def _images_in(name: str, **options: Any) -> Callable[[Path], None]:
    """Index a tar, table or list, and read what it says its images are, as the worker processes do."""

    def read(folder: Path) -> None:
        corpus = read_corpus([folder / name], **options)
        with ImageReader() as reader:
            for item in corpus.images:
                with suppress(Exception):  # the loader makes a failure of whatever an image raises
                    reader.read(item)

    return read


def _tar(folder: Path) -> None:
    write_tar(folder / "x.tar", webdataset(_photos()))


def _arrow(folder: Path) -> None:
    table = pa.table(
        {"image": pa.array([_png()] * 3), "text": pa.array(["a dog", "いぬ", "a dog"]).dictionary_encode()}
    )
    with pa.ipc.new_stream(
        str(folder / "x.arrow"), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
    ) as file:
        file.write_table(table)


def _agree_tar(folder: Path) -> None:
    """Make the checksum of every header that still looks like one that of its bytes."""
    content = bytearray((folder / "x.tar").read_bytes())
    for start in range(0, len(content) - 511, 512):
        if content[start + 257 : start + 262] == b"ustar":
            content[start + 148 : start + 156] = b" " * 8
            content[start + 148 : start + 156] = b"%06o\0 " % sum(content[start : start + 512])
    (folder / "x.tar").write_bytes(content)


def _listed_images(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(_png())
    (folder / "x.csv").write_text(
        "image,text,split\na.png,a dog,train\n../b.png,a cat,\nb.png,いぬ,\nhttp://localhost/c.png,,val\n",
        encoding="utf-8",
    )


def _folder_corpus(folder: Path) -> None:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(_png())
    (folder / "captions.jsonl").write_bytes(_LINES)


def _recipe(folder: Path) -> None:
    images, texts = unit_rows(40, DIM, 1), unit_rows(40, DIM, 2)
    moments = {"image": Moments.from_rows(images), "text": Moments.from_rows(texts)}
    preset("c3", sigma=0.1).fit(moments).save(folder)


def _read_recipe(folder: Path) -> None:
    pipeline = Pipeline.load(folder)
    _apply(pipeline)


def _apply(pipeline: Pipeline) -> None:
    rows = unit_rows(3, DIM, 3)
    for modality in ("image", "text"):
        pipeline.transform(rows, modality=modality)


def _agree_recipe(folder: Path) -> None:
    from c3tools.transforms.recipe import checksum

    path = folder / "transform.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["tensors"] = {**record["tensors"], "sha256": sha256_of(folder / "transform.safetensors")}
    record["checksum"] = checksum(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def _read_store(folder: Path) -> None:
    path = folder / "s"
    store = Store.open(path)
    reads: list[Callable[[], object]] = [store.failures, store.recorded_failures, store.external_moments]
    for modality in store.modalities:
        reads += [partial(store.count, modality), partial(store.moments, modality)]
        reads += [partial(store.load, modality, "train")]
    every(reads)


def _verify(folder: Path) -> None:
    result = verify_store(folder / "s")
    if result.findings:
        raise StoreError("; ".join(f"{finding.where}: {finding.what}" for finding in result.findings))


def _agree_store(folder: Path) -> None:
    for marker_path in (folder / "s").glob("*/_part-*.json"):
        marker = json.loads(marker_path.read_text(encoding="utf-8"))
        marker["sha256"] = {name: sha256_of(marker_path.parent / name) for name in marker["sha256"]}
        write_marker(marker_path, marker)


def _store_target(name: str, read: Callable[[Path], object], share: int) -> Target:
    binary = (mutate_bytes,)
    text = (mutate_bytes, mutate_json, mutate_json)
    vary = {
        "s/store.json": text,
        "s/manifest.json": text,
        "s/image/_part-00000.json": text,
        "s/image/part-00000.parquet": binary,
        "s/text/part-00000.parquet": binary,
        "s/text/_part-00000.moments.safetensors": binary,
        "s/failures.parquet": binary,
        "s/borrowed-moments.safetensors": binary,
    }
    return Target(name, lambda folder: whole_store(folder / "s", images=6), vary, read, _agree_store, share=share)


def _arrays(folder: Path) -> None:
    import torch
    from safetensors.numpy import save_file

    rows, keys = unit_rows(5, DIM), np.array(list("abcde"))
    np.save(folder / "x.npy", rows)
    np.savez(folder / "x.npz", embedding=rows, keys=keys)
    np.savez_compressed(folder / "y.npz", embedding=rows.astype(np.float16))
    save_file({"embedding": rows, "other": rows[0]}, folder / "x.safetensors")
    torch.save({"embedding": torch.from_numpy(rows)}, folder / "x.pt")
    header = ",".join(["id", *(f"e{i}" for i in range(DIM))])
    lines = [",".join([key, *(f"{value:.4f}" for value in row)]) for key, row in zip(keys, rows, strict=True)]
    (folder / "x.csv").write_text("\n".join([header, *lines]) + "\n")
    (folder / "y.csv").write_text('id,embedding\na,"[1.0, 2.0]"\nb,"[3.0, 4.0]"\n')
    (folder / "x.tsv").write_text("\n".join([header, *lines]).replace(",", "\t") + "\n")
    (folder / "x.jsonl").write_text(
        "".join(json.dumps({"id": str(key), "v": row.tolist()}) + "\n" for key, row in zip(keys, rows, strict=True))
    )
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), DIM)
    pq.write_table(pa.table({"key": pa.array(keys.tolist()), "embedding": vectors}), folder / "x.parquet")
    value = {"images": {1: {"embed": rows[0], "img_path": "a"}}, "captions": {2: {"embed": rows[1], "img_id": 1}}}
    value["captions"][2]["caption"] = "a dog"
    (folder / "x.pkl").write_bytes(pickle.dumps(value))
    clip = {"clip_embedding": rows, "captions": [{"caption": "a", "image_id": 1, "clip_embedding": 0}]}
    (folder / "y.pkl").write_bytes(pickle.dumps(clip))
    (folder / "meta.jsonl").write_bytes(b'{"id": 1, "caption": "a"}\n{"id": 2, "caption": null, "x": [1]}\n')


def _read_arrays(name: str) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        if name.endswith(".pkl"):
            read_pickle(folder / name)
        elif name == "meta.jsonl":
            read_table(folder / name)
        else:
            np.array(read_vectors(folder / name).vectors[:])

    return read


def _array_target(name: str, *mutations: Mutation, share: int) -> Target:
    return Target(f"import {name}", _arrays, {name: mutations}, _read_arrays(name), share=share)


def _clip_retrieval(folder: Path) -> None:
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir()
    np.save(folder / "img_emb" / "img_emb_0.npy", unit_rows(3, DIM))
    np.save(folder / "text_emb" / "text_emb_0.npy", unit_rows(3, DIM))
    pq.write_table(_table(), folder / "metadata" / "metadata_0.parquet")


def _moments(folder: Path) -> None:
    groups = {"image": Moments.from_rows(unit_rows(9, DIM)), "text": Moments.from_rows(unit_rows(9, DIM, 1))}
    save_moments(folder / "m.safetensors", groups, {"model": {"name": "x"}, "seal": SEAL_PLACE})


def targets() -> tuple[Target, ...]:
    """All of them."""
    both = (mutate_bytes, mutate_json)
    return (
        _caption_target("coco.json", json.dumps(_COCO).encode(), *both),
        _caption_target("karpathy.json", json.dumps(_KARPATHY).encode(), *both),
        _caption_target("captions.jsonl", _LINES, mutate_bytes, mutate_lines, share=60),
        _caption_target("metadata.csv", _CSV, mutate_bytes, share=60),
        _caption_target("t.tsv", _TSV, mutate_bytes),
        _caption_target("t.txt", "a dog\nein Hund\r\nいぬ\n".encode(), mutate_bytes),
        _caption_target("t.parquet", _parquet(_table()), mutate_bytes, share=60),
        _caption_target("u.parquet", _parquet(_table(), compression="zstd", use_dictionary=False), mutate_bytes),
        Target(
            "corpus folder",
            _folder_corpus,
            {"captions.jsonl": (mutate_bytes, mutate_lines), "a.png": (mutate_bytes,)},
            lambda folder: read_corpus([folder]),
            share=20,
        ),
        Target(
            "recipe",
            _recipe,
            {"transform.json": both, "transform.safetensors": (mutate_bytes,)},
            _read_recipe,
            _agree_recipe,
            share=200,
        ),
        Target(
            "pipeline.json",
            file("p.json", json.dumps(preset("c3", sigma=0.1).config()).encode()),
            {"p.json": both},
            lambda folder: Pipeline.from_config(folder / "p.json"),
            share=40,
        ),
        Target(
            "pipeline.yaml",
            file("p.yaml", _YAML),
            {"p.yaml": (mutate_bytes,)},
            lambda folder: Pipeline.from_config(folder / "p.yaml"),
            share=30,
        ),
        Target(
            "tar",
            _tar,
            {"x.tar": (mutate_bytes,)},
            _images_in("x.tar"),
            share=15,
        ),
        Target("tar, checksums mended", _tar, {"x.tar": (mutate_bytes,)}, _images_in("x.tar"), _agree_tar, share=30),
        Target(
            "table of images",
            lambda folder: write_hf_parquet(folder / "x.parquet", _photos()),
            {"x.parquet": (mutate_bytes,)},
            _images_in("x.parquet"),
            share=40,
        ),
        Target("table of images, Arrow", _arrow, {"x.arrow": (mutate_bytes,)}, _images_in("x.arrow"), share=40),
        Target(
            "list of images",
            _listed_images,
            {"x.csv": (mutate_bytes,)},
            _images_in("x.csv", image_column="image"),
            share=20,
        ),
        _store_target("store, read", _read_store, share=15),
        _store_target("store, c3 verify", _verify, share=4),
        Target(
            "moments",
            _moments,
            {"m.safetensors": (mutate_bytes,)},
            lambda f: load_moments(f / "m.safetensors"),
            share=50,
        ),
        _array_target("x.npy", mutate_bytes, share=30),
        _array_target("x.npz", mutate_bytes, share=30),
        _array_target("y.npz", mutate_bytes, share=10),
        _array_target("x.safetensors", mutate_bytes, share=50),
        _array_target("x.pt", mutate_bytes, share=20),
        _array_target("x.csv", mutate_bytes, share=20),
        _array_target("y.csv", mutate_bytes, share=20),
        _array_target("x.tsv", mutate_bytes, share=10),
        _array_target("x.jsonl", mutate_bytes, mutate_lines, share=20),
        _array_target("x.parquet", mutate_bytes, share=30),
        _array_target("x.pkl", mutate_bytes, share=80),
        _array_target("y.pkl", mutate_bytes, share=40),
        _array_target("meta.jsonl", mutate_bytes, mutate_lines, share=50),
        Target(
            "clip-retrieval folder",
            _clip_retrieval,
            {"metadata/metadata_0.parquet": (mutate_bytes,), "img_emb/img_emb_0.npy": (mutate_bytes,)},
            read_clip_retrieval,
            share=20,
        ),
        *record_targets(),
    )
