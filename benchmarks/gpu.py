"""Measure on one GPU what c3tools does there; each command prints one table.

    python benchmarks/gpu.py forward       # a model on inputs that are on the card; the roofline
    python benchmarks/gpu.py pipeline      # the same from memory of the host, batch after batch
    python benchmarks/gpu.py decode        # JPEGs a second, by the number of processes
    python benchmarks/gpu.py embed         # c3 embed on 100,000 JPEGs in a tar
    python benchmarks/gpu.py texts         # a million captions: tokens, text tower, c3 embed
    python benchmarks/gpu.py determinism   # bytes of two runs, and cosines with the CPU
    python benchmarks/gpu.py decoder       # training and captions, and the same ones as on the CPU
    python benchmarks/gpu.py generator     # training steps and sampled images
    python benchmarks/gpu.py faiss         # training of cells, exact neighbours, search in a split
    python benchmarks/gpu.py memory        # peaks, and halving where there is too little

A command takes at most eight minutes on an H100; none has been run on one yet. ``--small`` runs it
on little data, so that its values mean nothing: with ``--device cpu``, or with ``--device shadow``,
the GPU on paper of tests/fake_cuda.py. The share of the peak (MFU) is the model's operations (by
open_clip's model profile) over the card's dense peak (by its data sheet). clip-retrieval reports
2,500 JPEGs a second from tars, for ViT-B/32 in fp16 on an A100.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import print_table

import c3tools
from c3tools.arrays import Matrix
from c3tools.assets.paths import PHOTOS
from c3tools.corpus.items import ImageItem
from c3tools.corpus.reading import read_corpus
from c3tools.curation.near_copies import _NeighbourSearch
from c3tools.embedding.embed import embed_corpus
from c3tools.embedding.shard_work import EmbedOptions
from c3tools.encoders import Encoder, load_encoder
from c3tools.executors import cores
from c3tools.index import build_index
from c3tools.photos.decoding import decoded_batches
from c3tools.reporter import SILENT

Cells = list[tuple[Any, ...]]
# GFLOP of an image and of a text of 77 tokens
MODELS = {"ViT-B-32": (8.82, 5.96), "ViT-L-14": (162.03, 13.30), "ViT-H-14": (334.59, 47.09)}
# TFLOP/s in bf16 and fp16, and in fp32 without TF32
PEAKS = {"H100": (989, 67), "H200": (989, 67), "A100": (312, 19.5), "L40": (362, 91)}
ROWS = [json.loads(line) for line in (PHOTOS / "captions.jsonl").open(encoding="utf-8")]
CAPTIONS = [caption for row in ROWS for caption in row["captions"]]
JPEGS = [PHOTOS / "images" / row["image"] for row in ROWS]


@dataclass(frozen=True)
class Setting:
    """The device, the size and the folder of a measurement."""

    device: str
    small: bool
    folder: Path

    def size(self, full: int, small: int) -> int:
        """Return a number of inputs."""
        return small if self.small else full

    def encoder(self, model: str = "ViT-B-32", precision: Any = "auto") -> Encoder:
        """Load a model with random weights; a small one where little is measured."""
        options: dict[str, Any] = {"device": self.device, "backend": "torch"}
        if self.small:
            return load_encoder("c3-mini", precision="fp32", **options)
        return load_encoder(model, random_init=0, precision=precision, **options)

    def seconds(self, work: Callable[[], Any]) -> float:
        """Return how long the second run of some work takes, to the end of the card's part."""
        for _ in range(2):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the card."""
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)

    def peak(self, precision: str) -> float | None:
        """Return the card's TFLOP/s."""
        name = torch.cuda.get_device_name(self.device) if self.device != "cpu" else ""
        for card, (half, full) in PEAKS.items():
            if card in name:
                return full if precision == "fp32" else half
        return None


def in_words(rate: float) -> str:
    """Return items per second, below 10 with two digits."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def pixels_of(encoder: Encoder, count: int) -> Any:
    """Return pixels of the bundled photos, over and over."""
    some = np.stack([encoder.pixels(photo) for photo in JPEGS[:8]])
    return some[np.arange(count) % len(some)]


def forward(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Run image towers on pixels that are on the card."""
    cells: Cells = []
    for model, (gflop, _) in list(MODELS.items())[: setting.size(3, 1)]:
        for precision in ("bf16", "fp16", "fp32")[: setting.size(3, 1)]:
            encoder = setting.encoder(model, precision)
            backend: Any = encoder.backend
            peak = setting.peak(precision)
            for batch in (64, 256, 512, 1024, 2048)[: setting.size(5, 1)]:
                count = setting.size(batch, 2)
                pixels = torch.from_numpy(pixels_of(encoder, count)).to(setting.device)
                rounds = setting.size(max(4, 4096 // batch), 1)

                def work(
                    backend: Any = backend, pixels: Any = pixels, rounds: int = rounds
                ) -> None:
                    for _ in range(rounds):
                        backend._features("image", pixels)

                rate = rounds * count / setting.seconds(work)
                roofline = f"{1000 * peak / gflop:,.0f}" if peak else ""
                mfu = f"{rate * gflop / 1000 / peak:.0%}" if peak else ""
                names = (encoder.identity.name, encoder.compute.precision)
                cells.append((*names, count, in_words(rate), roofline, mfu))
    return ("model", "precision", "batch", "images/s", "roofline", "MFU"), cells


def pipeline(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Run image batches from memory of the host, with several ahead and with none."""
    encoder = setting.encoder()
    size = setting.size(encoder.batch_size("image"), 2)
    rounds = setting.size(80, 3)
    cells: Cells = []
    for memory in ("pageable", "pinned"):
        for ahead in (0, 1, 2, 3):
            pixels = pixels_of(encoder, size)
            if memory == "pinned":
                pinned = encoder.compute.empty_pixels(pixels.shape)
                pinned[:] = pixels
                pixels = pinned
            encoder.backend.ahead = ahead
            batches = [(number, pixels) for number in range(rounds)]

            def work(batches: Any = batches) -> None:
                list(encoder.encode_batches("image", batches))

            seconds = setting.seconds(work)
            cells.append((memory, ahead, in_words(rounds * size / seconds)))
    return ("memory of the host", "batches ahead", "images/s"), cells


def decode(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Decode bundled photos by 1, 2, 4, … processes."""
    encoder = setting.encoder()
    count = setting.size(4000, 8)
    photos = islice(cycle(JPEGS), count)
    items = [ImageItem(str(n), str(photo), None, None) for n, photo in enumerate(photos)]
    cells: Cells = []
    workers = 1
    while workers <= cores():
        start = time.perf_counter()
        for _ in decoded_batches(
            [(0, items)],
            encoder.preprocess,
            batch_size=encoder.batch_size("image"),
            workers=workers,
            compute=encoder.compute,
        ):
            pass
        cells.append((workers, in_words(count / (time.perf_counter() - start))))
        workers *= 2
    return ("processes", "images/s"), cells


def embedded(setting: Setting, inputs: Path, name: str) -> tuple[Any, ...]:
    """Embed a corpus, and return a row: inputs, rate, and seconds of each stage."""
    summary = embed_corpus(
        read_corpus(inputs), setting.folder / name, setting.encoder(), EmbedOptions()
    )
    (modality,) = (one for one in summary.modalities.values() if one.embedded)
    seconds = [f"{value:,.1f}" for value in modality.seconds.values()]
    return (inputs.name, f"{modality.embedded:,}", in_words(modality.rate), *seconds)


STAGES = ("inputs", "number", "a second", "waiting s", "encoding s", "writing s")


def embed(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Embed a tar of JPEGs: the bundled ones, each with other bytes at its end."""
    path = setting.folder / "photos.tar"
    contents = [photo.read_bytes() for photo in JPEGS]
    with tarfile.open(path, "w") as tar:
        for number in range(setting.size(100_000, 8)):
            content = contents[number % len(contents)] + str(number).encode()
            entry = tarfile.TarInfo(f"{number:06d}.jpg")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return STAGES, [embedded(setting, path, "store")]


def texts(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Tokenise captions, run the text tower on tokens, and embed a file of captions."""
    encoder = setting.encoder()
    count = setting.size(1_000_000, 20)
    captions = [f"{CAPTIONS[n % len(CAPTIONS)]} {n}" for n in range(count)]
    start = time.perf_counter()
    tokens = encoder.tokenise(captions[: setting.size(100_000, 20)])
    tokens_rate = len(tokens) / (time.perf_counter() - start)
    batches = list(encoder.token_batches(tokens, None))
    seconds = setting.seconds(lambda: list(encoder.encode_batches("text", batches)))
    path = setting.folder / "captions.jsonl"
    path.write_text("".join(json.dumps({"caption": text}) + "\n" for text in captions))
    cells: Cells = [
        ("tokenised", f"{len(tokens):,}", in_words(tokens_rate), "", "", ""),
        ("tokens embedded", f"{len(tokens):,}", in_words(len(tokens) / seconds), "", "", ""),
        embedded(setting, path, "texts"),
    ]
    return STAGES, cells


def determinism(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Compare two runs on the card, and each precision with the CPU in fp32."""
    count = setting.size(len(JPEGS), 4)
    photos = JPEGS[:count]
    captions = CAPTIONS[:count]

    def rows(encoder: Encoder) -> tuple[Matrix, Matrix]:
        return encoder.encode_images(photos), encoder.encode_texts(captions)

    on_cpu = Setting("cpu", setting.small, setting.folder).encoder(precision="fp32")
    expected = rows(on_cpu)
    cells: Cells = []
    for precision in ("fp32", "bf16", "fp16")[: setting.size(3, 1)]:
        first = rows(setting.encoder(precision=precision))
        second = rows(setting.encoder(precision=precision))
        for name, a, b, exact in zip(("photos", "captions"), first, second, expected, strict=True):
            cosine = float((a * exact).sum(axis=1).min())
            is_same = "same" if a.tobytes() == b.tobytes() else "differ"
            cells.append((name, precision, is_same, f"{cosine:.6f}"))
    return ("inputs", "precision", "bytes of two runs", "least cosine with the CPU"), cells


def small_store(setting: Setting) -> c3tools.Store:
    """Embed some bundled photos with their captions."""
    folder = setting.folder / "corpus"
    folder.mkdir()
    photos = JPEGS[: setting.size(len(JPEGS), 12)]
    for photo in photos:
        (folder / photo.name).write_bytes(photo.read_bytes())
    lines = [json.dumps(row) for row in ROWS[: len(photos)]]
    (folder / "captions.jsonl").write_text("\n".join(lines))
    encoder = load_encoder("c3-mini", device=setting.device, backend="torch", precision="fp32")
    embed_corpus(read_corpus(folder), setting.folder / "c3-store", encoder, EmbedOptions())
    return c3tools.Store.open(setting.folder / "c3-store")


def decoder(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Train a decoder, and write captions with it and with the same one on the CPU."""
    store = small_store(setting)
    cells: Cells = []
    for size in ("tiny", "small")[: setting.size(2, 1)]:
        output = setting.folder / size
        epochs = setting.size(100, 1)
        options: dict[str, Any] = {"size": size, "epochs": epochs, "train_split": "all"}
        start = time.perf_counter()
        captioner = c3tools.train_captioner(
            store, output=output, sigma=0.1, device=setting.device, **options
        )
        trained = time.perf_counter() - start
        rows = np.tile(store.load("image").embeddings.astype(np.float32), (setting.size(50, 1), 1))
        seconds = setting.seconds(partial(captioner.caption, embeddings=rows))
        on_cpu = c3tools.Captioner.load(output, "cpu")
        some = rows[:50]
        ours = captioner.caption(embeddings=some)
        same = np.mean([a == b for a, b in zip(ours, on_cpu.caption(embeddings=some), strict=True)])
        rate = in_words(len(rows) / seconds)
        cells.append((size, f"{trained:,.1f}", rate, f"{same:.0%}"))
    return ("size", "training s", "captions/s, 5 beams", "those of the CPU"), cells


def generator(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Train a generator for some steps, and sample."""
    store = small_store(setting)
    cells: Cells = []
    sizes: list[Any] = ["tiny", "small", "base"]
    for size in sizes[: setting.size(3, 1)]:
        steps = setting.size(200, 1)
        start = time.perf_counter()
        trained = c3tools.train_generator(
            store,
            output=setting.folder / f"generator-{size}",
            size=size,
            steps=steps,
            sigma=0.1,
            train_split="all",
            device=setting.device,
        )
        rate = steps / (time.perf_counter() - start)
        rows = store.load("image").embeddings[: setting.size(64, 1)].astype(np.float32)
        start = time.perf_counter()
        trained.generate(embeddings=rows, modality="image", sampling_steps=setting.size(25, 1))
        images = len(rows) / (time.perf_counter() - start)
        cells.append((size, in_words(rate), in_words(images)))
    return ("size", "steps/s, with start and end", "images/s"), cells


def faiss(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Build an index of random vectors, search it, and find all nearest neighbours.

    Which device is used is FAISS's matter: faiss-gpu uses all GPUs.
    """
    count = setting.size(1_000_000, 3_000)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(count, setting.size(512, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    np.save(setting.folder / "image.npy", vectors)
    c3tools.import_embeddings(image=setting.folder / "image.npy", store=setting.folder / "store")
    cells: Cells = []
    for factory in (
        f"IVF{setting.size(16384, 16)},SQfp16",
        f"OPQ8_16,IVF{setting.size(4096, 16)},PQ8",
    ):
        start = time.perf_counter()
        index = build_index(
            setting.folder / "store",
            output=setting.folder / factory.partition(",")[0],
            preset="c1",
            factory=factory,
        )
        cells.append((f"build {factory}", f"{time.perf_counter() - start:,.1f}"))
        for name, split in (("10 nearest", None), ("in a split", "val")):
            start = time.perf_counter()
            index.rank(vectors[:1000], "image", split=split)
            cells.append((f"{name} of 1,000, {factory}", f"{time.perf_counter() - start:,.2f}"))
    numbers = np.arange(count)
    start = time.perf_counter()
    _NeighbourSearch(vectors, numbers, SILENT).pairs(numbers)
    cells.append(
        (f"nearest rows of {count:,}, as c3 duplicates", f"{time.perf_counter() - start:,.1f}")
    )
    return ("work", "seconds"), cells


def memory(setting: Setting) -> tuple[tuple[str, ...], Cells]:
    """Show the peak of memory by batch, and embeddings where only a part of the card is free."""
    if setting.device == "cpu":
        return ("batch", "peak MiB", "cosine"), []
    cells: Cells = []
    encoder = setting.encoder()
    pixels = pixels_of(encoder, setting.size(1024, 8))
    expected = encoder.backend.submit("image", pixels)()
    for share in (1.0, 0.02):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(share, setting.device)
        torch.cuda.reset_peak_memory_stats(setting.device)
        rows = encoder.backend.submit("image", pixels)()
        peak = torch.cuda.max_memory_allocated(setting.device) / 2**20
        cosine = float((rows * expected).sum(axis=1).min())
        cells.append((f"{share:.0%}", len(pixels), f"{peak:,.0f}", f"{cosine:.6f}"))
    return ("of the card", "batch", "peak MiB", "least cosine with the first"), cells


COMMANDS = (
    forward, pipeline, decode, embed, texts, determinism, decoder, generator, faiss, memory
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [command.__name__ for command in COMMANDS]
    parser.add_argument("command", choices=names, nargs="+")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, cpu or shadow")
    parser.add_argument("--small", action="store_true", help="on little data, to see that it runs")
    arguments = parser.parse_args()
    device = arguments.device
    card: Any = nullcontext()
    if device == "shadow":
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from tests.fake_cuda import FakeCuda

        card = FakeCuda()
        device = "cuda"
    elif device != "cpu" and not torch.cuda.is_available():
        raise SystemExit(
            "torch sees no CUDA GPU here; --small --device cpu (or shadow) runs the same code."
        )
    for name in arguments.command:
        command = COMMANDS[names.index(name)]
        with card, tempfile.TemporaryDirectory() as folder:
            if device != "cpu":
                print(f"{name} on {torch.cuda.get_device_name(device)}, torch {torch.__version__}")
            columns, cells = command(Setting(device, arguments.small, Path(folder)))
            print_table(columns, [tuple(map(str, row)) for row in cells])


if __name__ == "__main__":
    main()
