"""Measure everything that can run on a GPU, in one table: embedding, training, sampling and the gap
report.

    python benchmarks/gpu.py                        # the first CUDA GPU; about 10 minutes, most of
    them on the CPU python benchmarks/gpu.py --device cpu --small   # the same code on a CPU with
    little data: the values mean nothing

Each row has the name of the card. Rates of images and texts are those of the model on ready inputs,
at the batch size of `c3 embed`, as the median of three rounds. The other rows are whole commands on
the bundled photos. The last rows compare with the CPU in fp32: the smallest cosine over photos and
captions, which should be at least 0.9999 in fp32 and 0.99 in bf16, and the share of photos with the
same caption, which should be near 100 %. None of this has been run on a GPU yet. Without a CUDA
GPU, and without ``--device cpu``, the script prints a message and ends.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from measuring import print_table, timed

import c3tools
from c3tools.assets.paths import PHOTOS
from c3tools.devices import pick
from c3tools.encoders import Encoder, load_encoder

MODELS = (("c3-mini", None), ("ViT-B-32", 0))  # with the seed of random weights
ROUNDS = 3


class Table:
    """The rows of one device.

    Args:
        card: the device's name.
    """

    def __init__(self, card: str) -> None:
        self.card = card
        self.rows: list[tuple[str, str, str, str]] = []

    def add(self, what: str, value: float, unit: str) -> None:
        """Add a row."""
        shown = f"{value:,.1f}" if abs(value) >= 10 else f"{value:.5f}"
        self.rows.append((self.card, what, shown, unit))

    @contextmanager
    def seconds(self, what: str) -> Iterator[None]:
        """Add the time of a block."""
        start = time.perf_counter()
        yield
        self.add(what, time.perf_counter() - start, "s")


def card_of(device: str) -> str:
    """Return the name of a device's card or processor."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def bundled_rows() -> list[dict[str, Any]]:
    """Return a row for each bundled photo: image, captions, split."""
    return [
        json.loads(line)
        for line in (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def captions_of(count: int) -> list[str]:
    """Return captions of the bundled photos."""
    return [caption for row in bundled_rows() for caption in row["captions"]][:count]


def rate(
    encoder: Encoder, modality: Literal["image", "text"], inputs: np.ndarray, batches: int
) -> float:
    """Return inputs per second of a tower, on one batch that is run again and again."""

    def work() -> int:
        for _ in range(batches):
            encoder.backend.submit(modality, inputs)()
        return batches * len(inputs)

    work()  # warms up
    return statistics.median(timed(work) for _ in range(ROUNDS))


def measure_encoders(table: Table, device: str, photos: list[Path], small: bool) -> None:
    """Add rates of both towers in every precision of the device, and their cosines with the CPU in
    fp32.
    """
    captions = captions_of(20 if small else 395)
    for name, seed in MODELS[:1] if small else MODELS:
        exact = load_encoder(
            name, random_init=seed, device="cpu", backend="torch", precision="fp32"
        )
        expected = exact.encode_images(photos), exact.encode_texts(captions)
        fastest: Any = "bf16" if device == "cpu" else pick(device).precision
        for precision in dict.fromkeys(("fp32", fastest)):
            encoder = load_encoder(
                name, random_init=seed, device=device, backend="torch", precision=precision
            )
            images, texts = (
                (1, 8) if small else (encoder.batch_size("image"), encoder.batch_size("text"))
            )
            some = np.stack([encoder.pixels(photo) for photo in photos])
            pixels = some[np.arange(images) % len(some)]
            words = encoder.tokenise(captions)[np.arange(texts) % len(captions)]
            tokens = max((batch for _, batch in encoder.token_batches(words, texts)), key=len)
            batches = 1 if small else 8
            table.add(
                f"embed images, {name}, {precision}",
                rate(encoder, "image", pixels, batches),
                "images/s",
            )
            table.add(
                f"embed texts, {name}, {precision}",
                rate(encoder, "text", tokens, batches),
                "texts/s",
            )
            got = encoder.encode_images(photos), encoder.encode_texts(captions)
            for kind, a, b in zip(("photos", "captions"), got, expected, strict=True):
                table.add(
                    f"agreement of {kind}, {name}, {precision}",
                    float((a * b).sum(axis=1).min()),
                    "cosine, min",
                )


def measure_commands(
    table: Table, device: str, folder: Path, photos: list[Path], small: bool
) -> None:
    """Add the time of the commands on the bundled photos, and the share of captions that are those
    of the CPU.
    """
    corpus = folder / "photos"
    corpus.mkdir()
    lines = {row["image"]: f"{json.dumps(row)}\n" for row in bundled_rows()}
    for photo in photos:
        (corpus / photo.name).write_bytes(photo.read_bytes())
    (corpus / "captions.jsonl").write_text(
        "".join(lines[photo.name] for photo in photos), encoding="utf-8"
    )
    with table.seconds("c3 embed"):
        store = c3tools.embed(
            corpus, folder / "store", device=device, backend="torch", precision="fp32"
        )
    with table.seconds("c3 gap-report (by numpy, on the CPU)"):
        c3tools.gap_report(store)
    features = c3tools.read_features(store=store)
    with table.seconds("c3 connect heads"):
        c3tools.connect_heads(
            features,
            output=folder / "heads",
            epochs=1 if small else 20,
            batch_size=8,
            device=device,
        )
    training: dict[str, Any] = {"sigma": 0.1, "train_split": "all", "device": device}
    with table.seconds("c3 train-decoder, size tiny"):
        captioner = c3tools.train_captioner(
            store, output=folder / "decoder", size="tiny", epochs=1 if small else 20, **training
        )
    steps = 2 if small else 500
    with table.seconds(f"c3 train-generator, size tiny, {steps} steps"):
        generator = c3tools.train_generator(
            store,
            output=folder / "generator",
            size="tiny",
            steps=steps,
            sigma=0.1,
            train_split="all",
            device=device,
        )
    embeddings = store.load("image").embeddings.astype(np.float32)
    n, sampling = (2, 2) if small else (len(embeddings), 25)
    start = time.perf_counter()
    generator.generate(embeddings=embeddings[:n], modality="image", sampling_steps=sampling)
    table.add(f"sample, {sampling} steps", n / (time.perf_counter() - start), "images/s")
    on_cpu = c3tools.Captioner.load(folder / "decoder", "cpu")
    mine, theirs = (one.caption(embeddings=embeddings) for one in (captioner, on_cpu))
    same = np.mean([a == b for a, b in zip(mine, theirs, strict=True)])
    table.add("agreement of captions with the CPU", 100 * float(same), "% the same")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="on little data, to see that it runs")
    arguments = parser.parse_args()
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit(
            "This machine has no CUDA GPU that torch sees; --device cpu --small runs the same code."
        )
    table = Table(card_of(arguments.device))
    rows = sorted(bundled_rows(), key=lambda row: (row["split"] == "test", row["image"]))
    photos = [PHOTOS / "images" / row["image"] for row in rows][: 12 if arguments.small else None]
    measure_encoders(
        table, arguments.device, photos[: 3 if arguments.small else None], arguments.small
    )
    with tempfile.TemporaryDirectory() as folder:
        measure_commands(table, arguments.device, Path(folder), photos, arguments.small)
    print_table(("device", "what", "value", "unit"), table.rows)


if __name__ == "__main__":
    main()
