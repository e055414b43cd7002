"""The readers of what c3tools itself wrote, besides stores and recipes, and of captions that are scored."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import torch
from PIL import Image

from c3tools.captioning import CaptionDecoder, Captioner, CaptionTokenizer, DecoderConfig
from c3tools.captioning.caption_files import CaptionWriter
from c3tools.connect.heads import ConnectedHeads, Head, HeadShape
from c3tools.corpus import read_corpus
from c3tools.encoders.preprocessing import open_image
from c3tools.errors import C3Error
from c3tools.imaging.generation import GeneratedImage, GeneratedImages
from c3tools.index import Index, build_index
from c3tools.io.files import sha256_of
from c3tools.metrics.files import read_predictions, read_references
from c3tools.moments import Moments
from c3tools.store import Store
from c3tools.training.checkpoints import CheckpointDir
from c3tools.transforms import preset
from tests.conftest import unit_rows
from tests.stores import whole_store

from .mutations import Mutation, mutate_bytes, mutate_json, mutate_lines
from .target import Target, file

_BOTH = (mutate_bytes, mutate_json)
_LISTED = [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "いぬ"}]
_NAMED = {"a": ["a dog", "it runs"], "b": ["いぬ"]}
_COCO = {
    "images": [{"id": 1, "file_name": "a.png"}],
    "annotations": [{"image_id": 1, "id": 7, "caption": "a dog"}],
}
_ROWS = b'{"image": "a.png", "captions": ["a dog", "it runs"]}\n{"image": "b.png", "captions": ["a cat"]}\n'
_DIM = 12


def _scored(
    name: str, content: bytes, read: Callable[[Path], object], mutations: tuple[Mutation, ...] = _BOTH
) -> Target:
    return Target(
        f"scored {name}", file(name, content), {name: mutations}, lambda folder: read(folder / name), share=30
    )


def _written_captions(folder: Path) -> None:
    with _writer(folder) as writer:
        for key in writer.pending:
            writer.write(key, f"a caption of {key}, and more")


def _read_written_captions(folder: Path) -> None:
    with _writer(folder):
        pass


def _writer(folder: Path) -> CaptionWriter:
    photos = {name: folder / f"{name}.jpg" for name in ("a", "b", "c")}
    return CaptionWriter(photos, "a test", json=folder / "c.json", csv=folder / "c.csv")


def _index(folder: Path) -> None:
    whole_store(folder / "s", images=6)
    build_index(folder / "s", folder / "i")


def _heads(folder: Path) -> None:
    shape = HeadShape(dim=4, hidden=0)
    ConnectedHeads({name: Head(6, shape) for name in ("image", "text")}, shape, {"note": "a test"}).save(folder / "h")


def _decoder(folder: Path) -> None:
    tokenizer = CaptionTokenizer.train(["a dog runs", "a cat sits"] * 4, 300)
    config = DecoderConfig(_DIM, tokenizer.vocab_size, width=8, layers=1, heads=1, prefix_length=2, max_tokens=6)
    moments = {name: Moments.from_rows(unit_rows(20, _DIM, seed)) for seed, name in enumerate(("image", "text"))}
    torch.manual_seed(0)
    record = {"model": {"name": "a test"}}
    Captioner(CaptionDecoder(config).eval(), tokenizer, preset("c3", sigma=0.1).fit(moments), record).save(folder / "d")


def _agree_decoder(folder: Path) -> None:
    path = folder / "d" / "decoder.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["files"] = {name: sha256_of(path.parent / name) for name in content["files"]}
    path.write_text(json.dumps(content), encoding="utf-8")


def _caption(folder: Path) -> None:
    Captioner.load(folder / "d")


def _generated(folder: Path) -> None:
    images = [asdict(GeneratedImage("a.png", "a dog", "a"))]
    (folder / "images.json").write_text(json.dumps({"format_version": 1, "modality": "text", "images": images}))


def _saved_dataset(folder: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (2, 2)).save(stream, "png")
    table = pa.table({"image": pa.array([stream.getvalue()] * 2), "text": ["a dog", "a cat"]})
    with pa.ipc.new_stream(str(folder / "data.arrow"), table.schema) as writer:
        writer.write_table(table)
    state = {"_data_files": [{"filename": "data.arrow"}], "_indices_data_files": None}
    (folder / "state.json").write_text(json.dumps(state))


def _hub_dataset(folder: Path) -> None:
    whole_store(folder / "s", images=6).save_repository(folder / "d")


def _read_hub_dataset(folder: Path) -> None:
    shutil.rmtree(folder / "new", ignore_errors=True)
    try:
        Store.load_repository(folder / "d", output=folder / "new")
    finally:
        shutil.rmtree(folder / "new", ignore_errors=True)


def _optimizer() -> torch.optim.Optimizer:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    return optimizer


def _checkpoint(folder: Path) -> None:
    CheckpointDir(folder / "run").save(3, "mine", {"epoch": 1}, {"model": {"w": torch.ones(2)}}, _optimizer())


def _read_checkpoint(folder: Path) -> None:
    if CheckpointDir(folder / "run", overwrite=False).resume("mine", _optimizer()) is None:
        raise C3Error("there is no state that can be read")


def _image(suffix: str) -> Target:
    stream = io.BytesIO()
    Image.effect_noise((24, 16), 50).convert("RGB").save(stream, suffix)
    name = f"x.{suffix}"

    def read(folder: Path) -> None:
        try:
            open_image(folder / name)
        except Exception as error:  # the loader makes a failure of whatever an image raises
            raise C3Error(str(error)) from error

    return Target(f"image {name}", file(name, stream.getvalue()), {name: (mutate_bytes,)}, read, share=8)


def record_targets() -> tuple[Target, ...]:
    """All of them."""
    return (
        _scored("results.json", json.dumps(_LISTED).encode(), read_predictions),
        _scored("named.json", json.dumps(_NAMED).encode(), read_references),
        _scored("coco.json", json.dumps(_COCO).encode(), read_references),
        _scored("rows.jsonl", _ROWS, read_references, (mutate_bytes, mutate_lines)),
        Target(
            "captions written before",
            _written_captions,
            {"c.json": _BOTH, "c.csv": (mutate_bytes,)},
            _read_written_captions,
            share=20,
        ),
        Target(
            "index",
            _index,
            {"i/index.json": _BOTH, "i/rows.parquet": (mutate_bytes,)},
            lambda folder: Index.open(folder / "i"),
            share=4,
        ),
        Target(
            "heads",
            _heads,
            {"h/connect.json": _BOTH, "h/heads.safetensors": (mutate_bytes,)},
            lambda folder: ConnectedHeads.load(folder / "h"),
            share=15,
        ),
        Target(
            "decoder",
            _decoder,
            {"d/decoder.json": _BOTH, "d/tokenizer.json": _BOTH, "d/weights.safetensors": (mutate_bytes,)},
            _caption,
            _agree_decoder,
            share=10,
        ),
        Target("generated images", _generated, {"images.json": _BOTH}, GeneratedImages.load),
        Target("saved dataset", _saved_dataset, {"state.json": _BOTH}, lambda folder: read_corpus([folder])),
        Target(
            "data set of the hub",
            _hub_dataset,
            {"d/store.json": _BOTH, "d/moments/image.safetensors": (mutate_bytes,)},
            _read_hub_dataset,
            share=2,
        ),
        Target("checkpoint", _checkpoint, {"run/state-00000003.safetensors": (mutate_bytes,)}, _read_checkpoint),
        *(_image(suffix) for suffix in ("png", "jpeg", "gif", "webp", "tiff", "bmp")),
    )
