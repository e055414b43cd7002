"""Commands on the smallest of inputs, for crashes and faults at each of their operations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from PIL import Image

import c3tools
from c3tools.captioning.caption_files import CaptionWriter
from c3tools.connect import connect_heads, connect_towers, read_features
from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.encoders.backends.cache import ModelCache
from c3tools.errors import StoreError
from c3tools.export import export_store
from c3tools.index import build_index
from c3tools.store.merge import merge_stores
from c3tools.store.split import split_store
from c3tools.store.verify import verify_store
from tests.captioning.conftest import make_captions_store
from tests.conftest import copy_photos, unit_rows
from tests.connect.photos import save_photos, save_tiny_clip
from tests.crashes.harness import Scenario
from tests.imaging.conftest import MICRO_SIZE
from tests.imaging.worlds import photo_store
from tests.stores import whole_store

NAMES = (
    "embed",
    "embed --update --prune",
    "import",
    "export",
    "export --overwrite",
    "index",
    "merge",
    "split",
    "means --load",
    "verify --repair",
    "train-decoder",
    "train-decoder --overwrite",
    "train-generator",
    "connect heads",
    "connect",
    "caption",
    "converted models",
)
SMALL = ["width=16", "layers=1", "heads=1", "vocab_size=64"]
Result = Callable[[Path], Mapping[str, bytes]]


def files(*names: str) -> Result:
    """Return what reads the files below these folders, without what depends on time."""

    def read(folder: Path) -> dict[str, bytes]:
        found = {}
        for path in sorted(path for name in names for path in (folder / name).rglob("*")):
            if path.is_file() and path.name != ".lock":
                name = str(path.relative_to(folder))
                found[name] = timeless(name, path.read_bytes())
        return found

    return read


def timeless(name: str, content: bytes) -> bytes:
    """Return the content of a file, of JSON without what depends on time."""
    try:
        return json.dumps(_without_times(json.loads(content)), sort_keys=True).encode()
    except ValueError:  # it is no JSON, or was cut
        return content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_times(item) for key, item in value.items() if key not in ("timings", "seconds", "created")
        }
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def all_scenarios(encoder: Encoder) -> dict[str, Scenario]:
    """Return the commands by name."""

    def photos(folder: Path) -> None:
        copy_photos(folder / "photos", 2)

    def embed(folder: Path) -> None:
        embed_corpus(read_corpus([folder / "photos"]), folder / "store", encoder, shard_size=4, workers=0)

    def changed_photos(folder: Path) -> None:
        copy_photos(folder / "photos", 3)
        embed(folder)
        _, second, last = sorted((folder / "photos").glob("*.jpg"))
        last.unlink()  # whose texts are a part of a shard, then all of the last one
        Image.new("RGB", (20, 30), "red").save(second)
        shutil.copyfile(second, second.with_name("new.jpg"))

    def update(folder: Path) -> None:
        corpus = read_corpus([folder / "photos"])
        embed_corpus(corpus, folder / "store", encoder, shard_size=4, workers=0, update=True, prune=True)

    def store(folder: Path) -> None:
        whole_store(folder / "store", images=9, part_rows=4)

    def two_stores(folder: Path) -> None:
        whole_store(folder / "store", images=9, part_rows=4)
        copy_photos(folder / "photos", 2)
        embed_corpus(read_corpus([folder / "photos"]), folder / "first", encoder, shard_size=4, workers=0)
        copy_photos(folder / "more", 3)
        for path in (folder / "more").glob("*.jpg"):
            path.rename(path.with_name(f"other-{path.name}"))
        (folder / "more" / "captions.jsonl").unlink()
        embed_corpus(read_corpus([folder / "more"]), folder / "second", encoder, shard_size=4, workers=0)

    def vectors(folder: Path) -> None:
        for seed, name in enumerate(("image", "text")):
            np.save(folder / f"{name}.npy", unit_rows(9, 8, seed))

    def means(folder: Path) -> None:
        store(folder)
        c3tools.save_means(folder / "store", folder / "means.safetensors")
        c3tools.unload_means(folder / "store")

    def damaged(folder: Path) -> None:
        store(folder)
        path = folder / "store" / "image" / "part-00001.parquet"
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    def texts(folder: Path) -> None:
        make_captions_store(folder / "store")

    def decoder(folder: Path, epochs: int = 2, overwrite: bool = False) -> None:
        c3tools.train_captioner(
            folder / "store",
            output=folder / "decoder",
            size="tiny",
            sigma=0.1,
            set=SMALL,
            epochs=epochs,
            precision="fp32",
            overwrite=overwrite,
        )

    def other_decoder(folder: Path) -> None:
        texts(folder)
        decoder(folder, epochs=1)

    def photos_with_rows(folder: Path) -> None:
        photo_store(folder / "store")

    def generator(folder: Path) -> None:
        with patch("c3tools.imaging.model.SIZES", {"tiny": MICRO_SIZE}):
            c3tools.train_generator(
                folder / "store", output=folder / "generator", sigma=0.1, precision="fp32", device="cpu"
            )

    def pairs(folder: Path) -> None:
        save_photos(folder / "photos", 3)
        save_tiny_clip(folder / "tiny")

    def towers(folder: Path) -> None:
        connect_towers(
            folder / "photos",
            folder / "model",
            mode="lit",
            model=f"local-dir:{folder / 'tiny'}",
            epochs=1,
            batch_size=16,
            precision="fp32",
        )

    def converted(folder: Path) -> None:
        def convert(target: Path) -> None:
            for name in ("image.onnx", "text.onnx"):
                (target / name).write_bytes(name.encode() * 100)

        cache = ModelCache(folder / "cache")
        cache.converted({"model": "a"}, convert)
        cache.note_choice({"machine": "b"}, {"backend": "onnx"})

    def heads(folder: Path) -> None:
        features = read_features(store=folder / "store")
        connect_heads(
            features, folder / "heads", dim=4, hidden=0, batch_size=40, epochs=2, logit_scale="20", precision="fp32"
        )

    def captions(folder: Path) -> None:
        paths = {name: folder / "photos" / f"{name}.jpg" for name in ("a", "b", "c")}
        rows, page = (folder / "c.json", folder / "c.csv"), folder / "c.html"
        with CaptionWriter(paths, "a test", json=rows[0], csv=rows[1], txt=True, xmp=True, html=page) as writer:
            for key in writer.pending:
                writer.write(key, f"a caption of {key}")
            writer.finish([])

    def empty(folder: Path) -> None:
        (folder / "photos").mkdir()

    def import_(folder: Path) -> None:
        c3tools.import_embeddings(image=folder / "image.npy", text=folder / "text.npy", store=folder / "store")

    def index(folder: Path) -> None:
        build_index(folder / "store", folder / "index")

    def merge(folder: Path) -> None:
        merge_stores(folder / "merged", [folder / "first", folder / "second"])

    def split(folder: Path) -> None:
        split_store(folder / "parted", folder / "store")

    def load_means(folder: Path) -> None:
        c3tools.load_means(folder / "store", folder / "means.safetensors")

    def repair(folder: Path) -> None:
        verify_store(folder / "store", repair=True)

    def export(folder: Path, preset: str = "c3") -> None:
        export_store(folder / "store", folder / "out", preset=preset, workers=1, overwrite=preset == "c1")

    def other_export(folder: Path) -> None:
        store(folder)
        export(folder)

    scenarios = [
        Scenario("embed", photos, embed, files("store")),
        Scenario("embed --update --prune", changed_photos, update, files("store")),
        Scenario("import", vectors, import_, files("store")),
        Scenario("export", store, export, files("out")),
        Scenario("export --overwrite", other_export, lambda folder: export(folder, "c1"), files("out")),
        Scenario("index", store, index, files("index")),
        Scenario("merge", two_stores, merge, files("merged"), (StoreError,)),
        Scenario("split", store, split, files("parted"), (StoreError,)),
        Scenario("means --load", means, load_means, files("store")),
        Scenario("verify --repair", damaged, repair, files("store")),
        Scenario("train-decoder", texts, decoder, files("decoder")),
        Scenario(
            "train-decoder --overwrite",
            other_decoder,
            lambda folder: decoder(folder, overwrite=True),
            files("decoder", "decoder.previous"),
        ),
        Scenario("train-generator", photos_with_rows, generator, files("generator")),
        Scenario("connect heads", texts, heads, files("heads")),
        Scenario("connect", pairs, towers, files("model")),
        Scenario("caption", empty, captions, files("photos", ".")),
        Scenario("converted models", empty, converted, files("cache"), durable=False),
    ]
    found = {scenario.name: scenario for scenario in scenarios}
    return {name: found[name] for name in NAMES}
