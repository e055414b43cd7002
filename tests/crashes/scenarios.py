"""Commands on the smallest of inputs, for crashes and faults at each of their operations."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import c3tools
from c3tools.captioning.caption_files import CaptionWriter
from c3tools.connect import connect_heads, read_features
from c3tools.corpus import read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import Encoder
from c3tools.errors import StoreError
from c3tools.export import export_store
from c3tools.index import build_index
from c3tools.store.merge import merge_stores
from c3tools.store.split import split_store
from c3tools.store.verify import verify_store
from tests.captioning.conftest import make_captions_store
from tests.conftest import copy_photos
from tests.crashes.harness import Scenario
from tests.stores import whole_store

NAMES = (
    "embed",
    "import",
    "export",
    "index",
    "merge",
    "split",
    "means --load",
    "verify --repair",
    "train-decoder",
    "connect heads",
    "caption",
)
SMALL = ["width=16", "layers=1", "heads=1", "vocab_size=64"]
Result = Callable[[Path], Mapping[str, bytes]]


def files(*names: str, without: tuple[str, ...] = ()) -> Result:
    """Return what reads the files below these folders, without what depends on time."""

    def read(folder: Path) -> dict[str, bytes]:
        found = {}
        for name in names:
            for path in sorted((folder / name).rglob("*")):
                if path.is_file() and path.name != ".lock" and not any(part in str(path) for part in without):
                    found[str(path.relative_to(folder))] = _timeless(path)
        return found

    return read


def _timeless(path: Path) -> bytes:
    if path.suffix != ".json":
        return path.read_bytes()
    content = json.loads(path.read_text(encoding="utf-8"))
    return json.dumps(_without_times(content), sort_keys=True).encode()


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
        rng = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("image", "text"):
            rows = rng.normal(size=(9, 8)).astype(np.float32)
            np.save(folder / f"{name}.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))

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

    def decoder(folder: Path) -> None:
        c3tools.train_captioner(
            folder / "store", output=folder / "decoder", size="tiny", sigma=0.1, set=SMALL, epochs=2, precision="fp32"
        )

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

    scenarios = [
        Scenario(
            "caption",
            lambda folder: (folder / "photos").mkdir(parents=True),
            captions,
            files("photos", "."),
        ),
        Scenario("train-decoder", texts, decoder, files("decoder")),
        Scenario("connect heads", texts, heads, files("heads")),
        Scenario("embed", photos, embed, files("store")),
        Scenario(
            "export",
            store,
            lambda folder: _quiet(export_store(folder / "store", folder / "out", preset="c3", workers=1)),
            files("out"),
        ),
        Scenario(
            "import",
            vectors,
            lambda folder: _quiet(
                c3tools.import_embeddings(image=folder / "image.npy", text=folder / "text.npy", store=folder / "store")
            ),
            files("store"),
        ),
        Scenario(
            "index", store, lambda folder: _quiet(build_index(folder / "store", folder / "index")), files("index")
        ),
        Scenario(
            "merge",
            two_stores,
            lambda folder: _quiet(merge_stores(folder / "merged", [folder / "first", folder / "second"])),
            files("merged"),
            (StoreError,),
        ),
        Scenario(
            "split",
            store,
            lambda folder: _quiet(split_store(folder / "parted", folder / "store")),
            files("parted"),
            (StoreError,),
        ),
        Scenario(
            "means --load",
            means,
            lambda folder: _quiet(c3tools.load_means(folder / "store", folder / "means.safetensors")),
            files("store"),
        ),
        Scenario(
            "verify --repair",
            damaged,
            lambda folder: _quiet(verify_store(folder / "store", repair=True)),
            files("store"),
        ),
    ]
    found = {scenario.name: scenario for scenario in scenarios}
    return {name: found[name] for name in NAMES}


def _quiet(_: object) -> None:
    return None
