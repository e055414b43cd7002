"""Small files that would fill the memory; most of their bytes are zeros that nobody writes."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MIB, GIB = 2**20, 2**30
SIDE = 13_300  # of an image of 177 million pixels, just below what Pillow takes


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    """Write a file that goes on with zeros, which take no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def zeros(size: int) -> bytes:
    """Return so many zeros as zlib packs them, in blocks of 1 MiB that do not refer to each
    other."""
    blocks, ends = (zlib.compressobj(9, wbits=-15) for _ in range(2))
    block = blocks.compress(bytes(MIB)) + blocks.flush(zlib.Z_FULL_FLUSH)
    end = ends.compress(bytes(size % MIB)) + ends.flush()
    # Adler-32
    return b"\x78\xda" + block * (size // MIB) + end + struct.pack(">I", size % 65521 << 16 | 1)


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    colour: int = 2,
    extra: bytes = b"",
    rows: int | None = None,
) -> bytes:
    """Return a black PNG of this size: depth and colour as in its header, chunks after it, rows
    that are there."""
    row = 1 + (width * {0: 1, 2: 3, 4: 2, 6: 4}[colour] * depth + 7) // 8
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = _chunk(b"IDAT", zeros(row * (height if rows is None else rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def slow_jpeg() -> bytes:
    """A photo of 3 MB that takes many minutes to decode: its last scan is said 50,000 times over.

    libjpeg does not come back to Python between the scans of a block of 64 kB, so that a signal or
    a thread would wait.
    """
    content = saved(Image.new("L", (3000, 3000), 128), "JPEG", progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + scan * 50_000 + content[-2:]


def tiff_of_one_strip(width: int, height: int) -> bytes:
    """Return a black TIFF in RGB, deflated in one piece."""
    content = zeros(width * height * 3)
    own = {
        256: width,
        257: height,
        258: 8,
        259: 8,
        262: 2,
        273: 8,
        277: 3,
        278: height,
        279: len(content),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in own.items())
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(content))
        + content
        + struct.pack("<H", len(own))
        + entries
        + bytes(4)
    )


def gif_of_frames(count: int) -> bytes:
    """Return a GIF with so many frames of one pixel."""
    start, comma, frame = saved(Image.new("P", (1, 1)), "GIF").partition(b",")
    return start + (comma + frame[:-1]) * count + b";"


def tar_with_a_long_name(path: Path, size: int) -> None:
    """Write a tar whose first member has a name of this size."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, size
    sparse(path, size + 4096, member.tobuf(tarfile.GNU_FORMAT))


def parquet(path: Path, captions: pa.Array[Any], image: bytes) -> None:
    """Write a table of images and captions."""
    table = pa.table({"image": pa.array([image] * len(captions), pa.binary()), "caption": captions})
    pq.write_table(
        table, path, compression="brotli", use_dictionary=pa.types.is_dictionary(captions.type)
    )


def npy_header(shape: tuple[int, int]) -> bytes:
    """Return the start of a .npy file of float32."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def image_bombs() -> dict[str, bytes]:
    """Return images that take far more memory or time than their size says, by file name."""
    black = Image.new("RGB", (SIDE, SIDE))
    return {
        "declares.png": png(65_535, 65_535, rows=1),
        "rgba.png": png(SIDE, SIDE, colour=6),
        "deep.png": png(SIDE, SIDE, depth=16, colour=0),
        "text.png": png(8, 8, extra=_chunk(b"zTXt", b"a\0\0" + zeros(GIB))),
        "texts.png": png(8, 8, extra=_chunk(b"zTXt", b"a\0\0" + zeros(MIB - 1)) * 1000),
        "strip.tif": tiff_of_one_strip(SIDE, SIDE),
        "frames.gif": gif_of_frames(1_000_000),
        "progressive.jpg": saved(black, "JPEG", progressive=True, subsampling=0),
    }


def write_bombs(folder: Path) -> Iterator[tuple[list[str], str]]:
    """Write one bomb after another into an empty folder; yield the arguments of `c3` and the name
    of the file."""
    for name, content in image_bombs().items():
        (folder / name).write_bytes(content)
        yield ["embed", name], name
    lists = b'{"images":[],"annotations":[' + b"[]," * 30_000_000 + b'{"caption":""}]}'
    for verb, name, size, start in (
        ("embed", "line.jsonl", 4 * GIB, b'{"'),
        ("embed", "line.txt", 4 * GIB, b"x"),
        ("embed", "line.csv", 4 * GIB, b"image,text\na,"),
        ("embed", "deep.jsonl", 10**7, b"[" * 10**7),
        ("embed", "coco.json", 64 * GIB, b'{"images":['),
        ("embed", "dense.json", len(lists), lists),
        ("import --image", "declares.npy", 128, npy_header((2**40, 512))),
        ("import --image", "sparse.npy", 64 * GIB + 128, npy_header((2**25, 512))),
        ("import --image", "header.safetensors", 64 * GIB, bytes(4) + b"\x08" + bytes(3) + b'{"'),
        ("import --image", "line.csv", 4 * GIB, b"id,e0\n1,2,"),
    ):
        sparse(folder / name, size, start)
        yield [*verb.split(), name], name
    tar_with_a_long_name(folder / "name.tar", 4 * GIB)
    yield ["embed", "name.tar"], "name.tar"
    repeated = pa.DictionaryArray.from_arrays(np.zeros(100_000, np.int32), pa.array(["x" * MIB]))
    for name, captions, image in (
        ("caption.parquet", pa.array(["x" * (GIB // 2)]), png(8, 8)),
        ("image.parquet", pa.array(["a"]), bytes(GIB // 2)),
        ("repeated.parquet", repeated, png(8, 8)),
    ):
        parquet(folder / name, captions, image)
        yield ["embed", name], name
