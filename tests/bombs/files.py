"""How the hostile files are made, with the least work: most of their bytes are zeros that nobody writes."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

MIB = 2**20
GIB = 2**30
_TIFF_TAGS = (
    (256, 3, 1, 1),
    (257, 3, 1, 1),
    (258, 3, 1, 8),
    (259, 3, 1, 1),
    (262, 3, 1, 1),
    (273, 4, 1, 8),
    (279, 4, 1, 1),
)


def sparse(path: Path, size: int, start: bytes = b"") -> None:
    """Write a file that goes on with zeros, which take no room on the disk."""
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


def zeros(size: int) -> bytes:
    """Return so many zeros as zlib packs them, in blocks of 1 MiB that do not refer to each other."""
    blocks, ends = (zlib.compressobj(9, wbits=-15) for _ in range(2))
    block = blocks.compress(bytes(MIB)) + blocks.flush(zlib.Z_FULL_FLUSH)
    end = ends.compress(bytes(size % MIB)) + ends.flush()
    return b"\x78\xda" + block * (size // MIB) + end + struct.pack(">I", size % 65521 << 16 | 1)  # Adler-32


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, *, depth: int = 8, colour: int = 2, extra: bytes = b"", rows: int | None = None
) -> bytes:
    """Return a black PNG of this size.

    Args:
        depth, colour: as in its header.
        extra: chunks after the header.
        rows: that are there; all by default.
    """
    samples = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = 1 + (width * samples * depth + 7) // 8
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zeros(row * (height if rows is None else rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def texts(count: int, size: int) -> bytes:
    """Return chunks of a PNG: so many texts that unpack to so many bytes each."""
    return chunk(b"zTXt", b"a\0\0" + zeros(size)) * count


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return an image as a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def tiff(tags: Sequence[tuple[int, int, int, int]], content: bytes, following: int = 0) -> bytes:
    """Return a TIFF with these tags (number, type, count, value), whose content begins at byte 8."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(content)) + content + struct.pack("<H", len(tags)) + entries + bytes(4)


def tiff_of_one_strip(width: int, height: int) -> bytes:
    """Return a black TIFF in RGB, deflated in one piece."""
    content = zeros(width * height * 3)
    own = {256: width, 257: height, 258: 8, 259: 8, 262: 2, 273: 8, 277: 3, 278: height, 279: len(content)}
    return tiff([(tag, 4, 1, value) for tag, value in own.items()], content)


def tiff_with_shared_tags(count: int, size: int) -> bytes:
    """Return a TIFF of one pixel with so many more tags, which all have the same bytes as their value."""
    return tiff([*_TIFF_TAGS, *((40_000 + number, 7, size, 8) for number in range(count))], bytes(size))


def tiff_of_frames(count: int) -> bytes:
    """Return a TIFF with so many frames of one pixel."""
    entries = struct.pack("<H", len(_TIFF_TAGS)) + b"".join(struct.pack("<HHII", *tag) for tag in _TIFF_TAGS)
    step = len(entries) + 4
    frames = (entries + struct.pack("<I", 12 + step * (n + 1) if n < count - 1 else 0) for n in range(count))
    return b"II*\0" + struct.pack("<I", 12) + bytes(4) + b"".join(frames)


def gif_of_frames(count: int) -> bytes:
    """Return a GIF with so many frames of one pixel."""
    start, comma, frame = saved(Image.new("P", (1, 1)), "GIF").partition(b",")
    return start + (comma + frame[:-1]) * count + b";"


def tar_with_a_long_name(path: Path, size: int) -> None:
    """Write a tar whose first member has a name of this size."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, size
    sparse(path, size + 4096, member.tobuf(tarfile.GNU_FORMAT))


def images_table(captions: pa.Array[Any], image: bytes | None = None) -> pa.Table:
    """Return a table with captions, and an image of 8 × 8 pixels in each row, or other bytes."""
    cells = [png(8, 8) if image is None else image] * len(captions)
    return pa.table({"image": pa.array(cells, pa.binary()), "caption": captions})


def parquet(path: Path, table: pa.Table) -> None:
    """Write a table packed as well as possible."""
    pq.write_table(table, path, compression="brotli", use_dictionary=False)


def arrow(path: Path, table: pa.Table, compression: Literal["lz4", "zstd"] | None = None) -> None:
    """Write a table as an Arrow stream."""
    with pa.ipc.new_stream(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)


def one_text(size: int, rows: int) -> pa.Array[Any]:
    """Return one text of this size, kept once, in so many rows."""
    return pa.DictionaryArray.from_arrays(np.zeros(rows, np.int32), pa.array(["x" * size]))


def npy_header(shape: tuple[int, int]) -> bytes:
    """Return the start of a .npy file of float32."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def npz(path: Path, members: int, rows: int) -> None:
    """Write an archive of arrays of zeros (rows, 512)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(members):
            archive.writestr(f"a{number}.npy", npy_header((rows, 512)) + bytes(rows * 2048))


def safetensors(path: Path, rows: int) -> None:
    """Write a tensor of zeros (rows, 512), which takes no room on the disk."""
    tensor = {"dtype": "F32", "shape": (rows, 512), "data_offsets": (0, rows * 2048)}
    header = json.dumps({"embedding": tensor}).encode()
    sparse(path, 8 + len(header) + rows * 2048, struct.pack("<Q", len(header)) + header)


def repeated_tensor(path: Path, rows: int) -> None:
    """Write a tensor (rows, 512) of one number."""
    import torch

    torch.save({"embedding": torch.zeros(1).expand(rows, 512)}, path)


def long_caption(store: Path, size: int) -> None:
    """Give the first row of a store's texts a caption of this size."""
    path = min((store / "text").glob("*.parquet"))
    table = pq.read_table(path)
    captions = pa.array(["x" * size, *[""] * (len(table) - 1)])
    parquet(path, table.set_column(table.column_names.index("caption"), "caption", captions))


def broken_tiffs(folder: Path) -> int:
    """Write TIFFs with damage in their pixels or their tags; return how many."""
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (32, 32, 3), np.uint8))
    kinds = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    for kind in kinds:
        content = np.frombuffer(saved(image, "TIFF", compression=kind), np.uint8)
        for number in range(5):
            damaged = content.copy()
            damaged[random.integers(8, len(damaged), 20)] = random.integers(0, 255, 20)
            (folder / f"{kind}-{number}.tif").write_bytes(damaged.tobytes())
    return 5 * len(kinds)
