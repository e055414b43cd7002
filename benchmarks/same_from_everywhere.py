"""Check that the same photos give the same embeddings from a folder, WebDataset tars and Hugging Face Parquet.

    python benchmarks/same_from_everywhere.py flickr8k --split test --count 1000

Packs the photos of a folder with a captions.jsonl into 4 tars and 4 tables in a temporary folder, embeds all three with
the bundled model, and compares them key by key. Takes 3.5 minutes of processor time for 1,000 photos. It should print
the same keys, and differences of exactly 0 for images and for captions.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measuring import print_table

from c3tools.corpus import Corpus, read_corpus
from c3tools.embedding import embed_corpus
from c3tools.encoders import load_encoder
from c3tools.store import Store

PARTS = 4


def main() -> None:
    """Pack, embed, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--count", type=int, default=1000)
    arguments = parser.parse_args()
    whole = read_corpus([arguments.folder])
    images = [item for item in whole.images if item.split == arguments.split][: arguments.count]
    captions: dict[str, list[str]] = {item.key: [] for item in images}
    for text in whole.texts:
        if text.image_key in captions:
            captions[text.image_key].append(text.caption)
    texts = [text for text in whole.texts if text.image_key in captions]
    records = [
        {"key": i.key, "name": Path(i.path).name, "content": Path(i.path).read_bytes(), "captions": captions[i.key]}
        for i in images
    ]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        size = -(-len(records) // PARTS)
        parts = [records[start : start + size] for start in range(0, len(records), size)]
        for number, part in enumerate(parts):
            write_tar(work / "tars" / f"{number:05d}.tar", part)
            write_table(work / "tables" / f"{arguments.split}-{number:05d}-of-{len(parts):05d}.parquet", part)
        corpora = {
            "folder": Corpus(images=images, texts=texts),
            "WebDataset tars": read_corpus([f"{work}/tars/{{00000..{len(parts) - 1:05d}}}.tar"]),
            "HF Parquet": read_corpus([work / "tables"]),
        }
        encoder = load_encoder(precision="fp32")
        for label, corpus in corpora.items():
            embed_corpus(corpus, work / label, encoder, dtype="float32")
            for modality in ("image", "text"):
                rows.append((label, modality, *compare(work / "folder", work / label, modality)))
    print(f"{len(images):,} photos and {len(texts):,} captions of {arguments.folder.name}, {encoder.identity['name']}")
    print_table(("input", "modality", "rows", "keys as in the folder", "rows that differ", "largest"), rows)


def write_tar(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a WebDataset tar: image, captions one a line."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for record in records:
            text = "\n".join(record["captions"]).encode()
            for name, content in ((record["name"], record["content"]), (f"{record['key']}.txt", text)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_table(path: Path, records: list[dict[str, Any]]) -> None:
    """Write a table as Hugging Face datasets writes it."""
    path.parent.mkdir(exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": record["content"], "path": record["name"]} for record in records]
    features = {"info": {"features": {"image": {"_type": "Image"}}}}
    table = pa.table({"image": pa.array(cells, type=kind), "captions": [record["captions"] for record in records]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), path, row_group_size=100)


def compare(expected: Path, found: Path, modality: str) -> tuple[str, str, str, str]:
    """Rows, whether the keys are the same, rows that differ, and the largest difference of a value."""
    one, other = Store.open(expected).load(modality), Store.open(found).load(modality)
    same = set(one.keys) == set(other.keys) and len(one) == len(other)
    place = {key: row for row, key in enumerate(other.keys)}
    both = [(row, place[key]) for row, key in enumerate(one.keys) if key in place]
    differences = np.abs(one.embeddings[[a for a, _ in both]] - other.embeddings[[b for _, b in both]]).max(axis=1)
    return f"{len(other):,}", "yes" if same else "no", f"{(differences > 0).sum():,}", f"{differences.max():.1e}"


if __name__ == "__main__":
    main()
