"""The hostile inputs, each with the command that is given it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from c3tools import Store
from tests.bombs import files
from tests.bombs.files import GIB, MIB, sparse
from tests.conftest import copy_photos, unit_rows
from tests.stores import whole_store

MOST_MEMORY = GIB
_C3 = [sys.executable, "-P", "-c", "from c3tools.cli import main; main()"]
# a process of its own, since the peak of a child begins with the memory of the process that starts it
_MEASURE = """
import json, os, resource, subprocess, sys
with open("said", "wb") as said:
    child = subprocess.Popen(sys.argv[1:], stdout=said, stderr=said)
resource.prlimit(child.pid, resource.RLIMIT_DATA, (1 << 32, 1 << 32))
resource.prlimit(child.pid, resource.RLIMIT_CPU, (60, 60))
_, status, usage = os.wait4(child.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime]))
"""
_SIDE = 13_300  # of an image of 177 million pixels, just below what Pillow takes
_EMBEDDING = ("--workers", "1", "--backend", "torch", "--precision", "fp32")  # choosing one takes 1.1 GiB


@dataclass(frozen=True)
class Bomb:
    """A hostile input of one command.

    Attributes:
        name: for the table.
        make: writes its files into an empty folder.
        command: what `c3` is given, in that folder.
    """

    name: str
    make: Callable[[Path], object]
    command: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """What became of a command that was given a bomb.

    Attributes:
        code: its exit code, negative for a signal.
        said: its error, or what it listed.
        size: bytes that the files take on the disk.
        peak: bytes of memory of the largest of its processes.
        seconds: of processor time of all its processes; other work on the machine does not count.
    """

    code: int
    said: str
    size: int
    peak: int
    seconds: float

    @property
    def handled(self) -> bool:
        """Whether it ended in an error of c3tools' own, listed the input, or used it."""
        return self.code == 0 or (self.code == 1 and self.said.startswith("Error:"))


def run(bomb: Bomb, folder: Path) -> Outcome:
    """Make the files of a bomb in an empty folder, and run its command on them, with a limit of memory and of time."""
    bomb.make(folder)
    size = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
    measured = subprocess.run(
        [sys.executable, "-S", "-c", _MEASURE, *_C3, *bomb.command],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    code, peak, seconds = json.loads(measured.stdout)
    lines = (folder / "said").read_text(encoding="utf-8").splitlines()
    if code == 0:
        failures = Store.open(folder / "c3-store").recorded_failures()
        line = next((f"{failure.error}: {failure.message}" for failure in failures), "used")
    else:
        line = next((line for line in lines if line.startswith("Error:")), " ".join(lines[-1:]))
    return Outcome(code, line.replace(f"{folder}/", ""), size, peak, seconds)


def bombs() -> tuple[Bomb, ...]:
    """Return all of them."""
    return (*_vectors(), *_descriptions(), *_stores(), *_captions(), *_tables(), *_images())


def _images() -> Iterator[Bomb]:
    def image(name: str, file: str, content: Callable[[], bytes]) -> Bomb:
        return _beside_a_photo(name, file, lambda path: path.write_bytes(content()))

    yield image("PNG that declares 65,535 x 65,535 pixels", "x.png", lambda: files.png(65_535, 65_535, rows=1))
    yield image("PNG, RGB, 177 megapixels", "x.png", lambda: files.png(_SIDE, _SIDE))
    yield image("PNG, RGBA, 177 megapixels", "x.png", lambda: files.png(_SIDE, _SIDE, colour=6))
    yield image("PNG, 16 bits, 177 megapixels", "x.png", lambda: files.png(_SIDE, _SIDE, depth=16, colour=0))
    yield image("PNG, 1 bit, 177 megapixels", "x.png", lambda: files.png(_SIDE, _SIDE, depth=1, colour=0))
    yield image("PNG with a text of 1 GiB", "x.png", lambda: files.png(8, 8, extra=files.texts(1, GIB)))
    yield image("PNG with 1,000 texts of 1 MiB", "x.png", lambda: files.png(8, 8, extra=files.texts(1000, MIB - 1)))
    yield image("TIFF of one strip, 177 megapixels", "x.tif", lambda: files.tiff_of_one_strip(_SIDE, _SIDE))
    yield image("TIFF, 1,000 tags share 4 MiB", "x.tif", lambda: files.tiff_with_shared_tags(1000, 4 * MIB))
    yield image("TIFF with 1,000,000 frames", "x.tif", lambda: files.tiff_of_frames(1_000_000))
    yield image("GIF with 1,000,000 frames", "x.gif", lambda: files.gif_of_frames(1_000_000))
    yield image("WebP, 177 megapixels", "x.webp", lambda: _black("WEBP", lossless=True, quality=0, method=0))
    yield image("JPEG, progressive, 177 megapixels", "x.jpg", lambda: _black("JPEG", progressive=True, subsampling=0))
    yield _beside_a_photo("image file of 2 GiB, sparse", "x.jpg", lambda path: sparse(path, 2 * GIB - 1))


def _captions() -> Iterator[Bomb]:
    def given(name: str, file: str, write: Callable[[Path], object]) -> Bomb:
        return _beside_a_photo(name, file, write, "--captions", f"photos/{file}")

    lists = b'{"images":[],"annotations":[' + b"[]," * 30_000_000 + b'{"caption":""}]}'
    yield given("captions.jsonl, 4 GiB in one line, sparse", "c.jsonl", lambda path: sparse(path, 4 * GIB, b'{"'))
    yield given("captions.jsonl, 10,000,000 brackets deep", "c.jsonl", lambda path: path.write_bytes(b"[" * 10**7))
    yield given("captions.txt, 4 GiB in one line, sparse", "c.txt", lambda path: sparse(path, 4 * GIB, b"x"))
    yield given(
        "captions.csv, 4 GiB in one line, sparse", "c.csv", lambda path: sparse(path, 4 * GIB, b"image,text\na,")
    )
    yield given("COCO .json of 64 GiB, sparse", "c.json", lambda path: sparse(path, 64 * GIB, b'{"images":['))
    yield given("COCO .json, 30,000,000 empty lists", "c.json", lambda path: path.write_bytes(lists))


def _tables() -> Iterator[Bomb]:
    def table(name: str, file: str, write: Callable[[Path], object]) -> Bomb:
        return Bomb(name, lambda folder: write(folder / file), ("embed", file, *_EMBEDDING))

    def long() -> pa.Table:
        return files.images_table(pa.array(["x" * (GIB // 2)]))

    yield table("Parquet, a text of 512 MiB", "t.parquet", lambda path: files.parquet(path, long().select(["caption"])))
    yield table("Parquet of images, a caption of 512 MiB", "t.parquet", lambda path: files.parquet(path, long()))
    yield table(
        "Parquet of images, one of 512 MiB",
        "t.parquet",
        lambda path: files.parquet(path, files.images_table(pa.array(["a"]), bytes(GIB // 2))),
    )
    yield table(
        "Parquet of images, 100,000 rows have one text of 1 MiB",
        "t.parquet",
        lambda path: pa.parquet.write_table(files.images_table(files.one_text(MIB, 100_000)), path, compression="zstd"),
    )
    yield table(
        "Arrow of images, a caption of 512 MiB, packed", "t.arrow", lambda path: files.arrow(path, long(), "zstd")
    )
    yield table(
        "Arrow of images, 100,000 rows have one text of 1 MiB",
        "t.arrow",
        lambda path: files.arrow(path, files.images_table(files.one_text(MIB, 100_000))),
    )
    yield table("tar, a name of 4 GiB, sparse", "t.tar", lambda path: files.tar_with_a_long_name(path, 4 * GIB))


def _vectors() -> Iterator[Bomb]:
    def vectors(name: str, file: str, write: Callable[[Path], object]) -> Bomb:
        return Bomb(name, lambda folder: write(folder / file), ("import", "--image", file))

    def columns(path: Path) -> None:
        for mark in ("e", ""):
            path.open("a").write(",".join(f"{mark}{number}" for number in range(1_000_000)) + "\n")

    def long_id(path: Path) -> None:
        files.parquet(path, pa.table({"id": ["x" * (GIB // 2)], "embedding": pa.array([[1.0, 2.0]])}))

    yield vectors("npz that unpacks to 1 GiB", "i.npz", lambda path: files.npz(path, 4, GIB // 8192))
    yield vectors("npy that declares 2 PiB", "i.npy", lambda path: path.write_bytes(files.npy_header((2**40, 512))))
    yield vectors(
        "npy of 64 GiB, sparse", "i.npy", lambda path: sparse(path, 64 * GIB + 128, files.npy_header((2**25, 512)))
    )
    yield vectors(
        "safetensors, a header of 32 GiB, sparse",
        "i.safetensors",
        lambda path: sparse(path, 64 * GIB, bytes(4) + b"\x08" + bytes(3) + b'{"'),
    )
    yield vectors("safetensors of 64 GiB, sparse", "i.safetensors", lambda path: files.safetensors(path, 2**25))
    yield vectors(".pt, one number as 2 TiB", "i.pt", lambda path: files.repeated_tensor(path, 2**30))
    yield vectors("Parquet of vectors, an id of 512 MiB", "i.parquet", long_id)
    yield vectors(
        "csv of vectors, 4 GiB in one line, sparse", "i.csv", lambda path: sparse(path, 4 * GIB, b"id,e0\n1,2,")
    )
    yield vectors("csv with 1,000,000 columns", "i.csv", columns)


def _descriptions() -> Iterator[Bomb]:
    def table(name: str, write: Callable[[Path], object]) -> Bomb:
        def make(folder: Path) -> None:
            np.save(folder / "i.npy", unit_rows(50, 16))
            write(folder / "m.jsonl")

        return Bomb(name, make, ("import", "--image", "i.npy", "--meta", "m.jsonl"))

    own = "".join(f'{{"{number}":1}}\n' for number in range(30_000))
    yield table("meta.jsonl, 4 GiB in one line, sparse", lambda path: sparse(path, 4 * GIB, b'{"'))
    yield table("meta.jsonl, a column of its own for each of 30,000 rows", lambda path: path.write_text(own))


def _stores() -> Iterator[Bomb]:
    def store(name: str, change: Callable[[Path], object], *command: str) -> Bomb:
        return Bomb(name, lambda folder: change(whole_store(folder / "c3-store").path), command)

    yield store("store.json of 64 GiB, sparse", lambda path: sparse(path / "store.json", 64 * GIB, b'{"'), "gap-report")
    yield store("store with a caption of 512 MiB", lambda path: files.long_caption(path, GIB // 2), "export")


def _beside_a_photo(name: str, file: str, write: Callable[[Path], object], *options: str) -> Bomb:
    def make(folder: Path) -> None:
        copy_photos(folder / "photos", 1)
        write(folder / "photos" / file)

    return Bomb(name, make, ("embed", "photos", *options, *_EMBEDDING))


def _black(kind: str, **options: object) -> bytes:
    return files.saved(Image.new("RGB", (_SIDE, _SIDE)), kind, **options)
