"""Measure what a person waits for, beside plain scripts: CPU seconds with one thread, and peak
memory.

    python benchmarks/waits.py
    python benchmarks/waits.py --rows 20000 --rounds 1 --only "1,000 queries" "opening an index"

The first lines use the bundled photos: searches with c3-mini, and with a ViT-B/32 with random
weights as a checkpoint on this machine, and the caption of one photo. The others use `--rows`
images and as many texts of 512 dimensions. Ours and the plain script run in turn, each in a process
of its own, after one run that nothing counts; the least of `--rounds` is printed. CPU seconds are
those of the whole process, but of 1,000 queries those of the search alone, and of opening an index
those without imports. The report and the search for copies are compared with scripts that do half
of it: moments, spectra and recall of a sample, and the nearest images by FAISS.

It takes an hour on one core with 2 x 250,000 rows, and 4 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from index_scale import write_vectors
from measuring import MODEL, print_table, processor_seconds

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "c3tools" / "assets" / "coco-cc"
PHOTO = PHOTOS / "images" / "000000000285.jpg"
C3 = ["-P", "-c", "from c3tools.cli import main; main()"]
CHECKPOINT = """
import json, sys
from pathlib import Path
import open_clip
import torch
from safetensors.torch import save_file
folder, architecture = Path(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
model = open_clip.create_model(architecture)
config = {
    "model_cfg": open_clip.get_model_config(architecture),
    "preprocess_cfg": model.visual.preprocess_cfg,
}
(folder / "open_clip_config.json").write_text(json.dumps(config))
weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
save_file(weights, folder / "open_clip_model.safetensors")
"""
ENCODE = """
import sys
import faiss, open_clip, torch
model, _, _ = open_clip.create_model_and_transforms(sys.argv[1])
model.eval()
with torch.inference_mode():
    query = model.encode_text(open_clip.get_tokenizer(sys.argv[1])(["a dog"]), normalize=True)
print(faiss.read_index(sys.argv[2]).search(query.numpy(), 10))
"""
OUR_QUERIES = """
import sys, time
import numpy as np
import c3tools
index = c3tools.Index.open(sys.argv[1])
queries = np.load(sys.argv[2], mmap_mode="r")[:1000].astype(np.float32)
index.rank(queries[:1], "text", 10)
start = time.process_time()
index.rank(queries, "text", 10)
print(time.process_time() - start)
"""
PLAIN_QUERIES = """
import sys, time
import faiss
import numpy as np
indexes = [faiss.read_index(f"{name}.faiss") for name in ("image", "text")]
queries = np.load(sys.argv[1], mmap_mode="r")[:1000].astype(np.float32)
start = time.process_time()
for index in indexes:
    index.search(queries, 10)
print(time.process_time() - start)
"""
OUR_OPENING = """
import sys, time
import numpy as np
import c3tools
c3tools.Index
query = np.load(sys.argv[2], mmap_mode="r")[:1].astype(np.float32)
import c3tools.index.codes
c3tools.index.codes.load_faiss()
start = time.process_time()
c3tools.Index.open(sys.argv[1]).rank(query, "text", 10)
print(time.process_time() - start)
"""
PLAIN_OPENING = """
import json, sys, time
import faiss
import numpy as np
query = np.load(sys.argv[1], mmap_mode="r")[:1].astype(np.float32)
start = time.process_time()
indexes = [faiss.read_index(f"{name}.faiss") for name in ("image", "text")]
keys = json.load(open("keys.json"))
print([[keys[row] for row in index.search(query, 10)[1][0]] for index in indexes])
print(time.process_time() - start)
"""
# the inverted lists of our index, as FAISS keeps them
WRITE_PLAIN = """
import json, sys
import faiss
import c3tools
index = c3tools.Index.open(sys.argv[1])
for name, rows in index.indexes.items():
    nprobe = index.record.get("nprobe")
    if nprobe:
        faiss.extract_index_ivf(rows).nprobe = nprobe
    faiss.write_index(rows, f"{sys.argv[2]}{name}.faiss")
json.dump(index.rows.column("key").to_pylist(), open(f"{sys.argv[2]}keys.json", "w"))
"""
UNIT = """
import sys
import numpy as np
def unit(path):
    rows = np.load(path).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
image, text = unit("image.npy"), unit("text.npy")
"""
PLAIN_REPORT = f"""{UNIT}
print(np.linalg.norm(image.mean(axis=0) - text.mean(axis=0)))
print(np.einsum("nd,nd->n", image, text).mean())
for rows in (image, text):
    spectrum = np.linalg.eigvalsh(np.cov(rows.T))
    print(spectrum.sum() ** 2 / (spectrum**2).sum())
sample = np.random.default_rng(0).choice(len(image), min(5000, len(image)), replace=False)
cosines = image[sample] @ text[sample].T
print((cosines.argmax(axis=1) == np.arange(len(sample))).mean())
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
plt.hist(cosines.diagonal(), bins=50)
plt.savefig("report.png")
"""
PLAIN_PAIRS = f"""{UNIT}
cosine = np.einsum("nd,nd->n", image, text)
scores = []
for queries, rows in ((image, text), (text, image)):
    mean, covariance = rows.mean(axis=0), np.cov(rows.T)
    deviation = np.sqrt(np.einsum("nd,nd->n", queries @ covariance.astype(np.float32), queries))
    scores.append((cosine - queries @ mean) / deviation)
print(np.argsort(np.mean(scores, axis=0))[:20])
import pyarrow as pa, pyarrow.parquet as pq
pq.write_table(pa.table({{"cosine": cosine, "z": np.mean(scores, axis=0)}}), "pairs.parquet")
"""
PLAIN_COPIES = f"""{UNIT}
import faiss
cells = int(4 * np.sqrt(len(image)))
index = faiss.index_factory(image.shape[1], f"IVF{{cells}},Flat", faiss.METRIC_INNER_PRODUCT)
index.train(image[np.random.default_rng(0).permutation(len(image))[: 64 * cells]])
index.add(image)
index.nprobe = 16
cosines, nearest = index.search(image, 10)
print((cosines > 0.95).sum())
"""


@dataclass(frozen=True)
class Wait:
    """Something that a person waits for.

    Attributes:
        name: in the table.
        ours: the words after ``python``.
        plain: those of the plain script; None if there is none.
        prints_seconds: whether both print the CPU seconds that count, as their last line.
    """

    name: str
    ours: Sequence[object]
    plain: Sequence[object] | None = None
    prints_seconds: bool = False


def waits_of_queries(work: Path) -> list[Wait]:
    """Return searches of a text, and the caption of a photo."""
    waits = []
    for name, model in (("c3-mini", PHOTOS.parent / "c3-mini"), ("ViT-B/32", work / MODEL)):
        plain = ["-c", ENCODE, f"local-dir:{model}", work / f"{model.name}-image.faiss"]
        for library, backend in (("OpenVINO", "openvino"), ("torch", "torch")):
            search = ["search", "a dog", "--index", work / f"{model.name}-index"]
            label = f"c3 search of a text, {name}, {library}"
            waits.append(Wait(label, [*C3, *search, "--backend", backend], plain))
    for backend in ("openvino", "torch"):
        label = f"c3 caption of a photo, {'OpenVINO' if backend == 'openvino' else 'torch'}"
        waits.append(Wait(label, [*C3, "caption", PHOTO, "--backend", backend]))
    return waits


def waits_of_rows(work: Path) -> list[Wait]:
    """Return what is done with the synthetic rows."""
    index, queries = work / "index", work / "text.npy"
    store = ["--store", work / "store"]
    return [
        Wait(
            "1,000 queries",
            ["-c", OUR_QUERIES, index, queries],
            ["-c", PLAIN_QUERIES, queries],
            prints_seconds=True,
        ),
        Wait(
            "opening an index, and one query",
            ["-c", OUR_OPENING, index, queries],
            ["-c", PLAIN_OPENING, queries],
            prints_seconds=True,
        ),
        Wait("c3 gap-report", [*C3, "gap-report", *store], ["-c", PLAIN_REPORT]),
        Wait("c3 pairs", [*C3, "pairs", *store], ["-c", PLAIN_PAIRS]),
        Wait(
            "c3 duplicates",
            [*C3, "duplicates", *store, "--modality", "image"],
            ["-c", PLAIN_COPIES],
        ),
    ]


def run(
    words: Sequence[object], work: Path, *, prints_seconds: bool = False
) -> tuple[float, float]:
    """Run Python in the folder with one thread, and return its CPU seconds and peak memory, MB."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("C3_")}
    environment["PYTHONPATH"] = str(ROOT)
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    environment |= dict.fromkeys(threads, "1")
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, *map(str, words)]
    seconds, megabytes = processor_seconds(command, work, environment)
    if prints_seconds:
        seconds = float((work / "output.txt").read_text().split()[-1])
    return seconds, megabytes


def lay_out(work: Path, rows: int) -> None:
    """Write the stores and indexes, and what the plain scripts read; what is there stays."""
    (work / MODEL).mkdir(exist_ok=True)
    if not (work / MODEL / "open_clip_model.safetensors").exists():
        run(["-c", CHECKPOINT, work / MODEL, MODEL], work)
    for model in (PHOTOS.parent / "c3-mini", work / MODEL):
        store, index = work / f"{model.name}-store", work / f"{model.name}-index"
        name = "c3-mini" if model.name == "c3-mini" else f"local-dir:{model}"
        if not (work / f"{model.name}-keys.json").exists():
            run([*C3, "embed", PHOTOS, "--store", store, "--model", name], work)
            run([*C3, "index", "--store", store, "-o", index], work)
            run(["-c", WRITE_PLAIN, index, work / f"{model.name}-"], work)
    if not (work / "keys.json").exists():
        write_vectors(work, rows)
        with (work / "meta.jsonl").open("w") as file:
            for row in range(rows):
                split = ("train", "train", "train", "val", "test")[row % 5]
                item = {"id": f"i{row:07d}", "caption": f"thing {row}", "split": split}
                file.write(json.dumps(item) + "\n")
        vectors = ["--image", work / "image.npy", "--text", work / "text.npy"]
        vectors += ["--meta", work / "meta.jsonl", "--model", "synthetic"]
        run([*C3, "import", "--store", work / "store", *vectors], work)
        run([*C3, "index", "--store", work / "store", "-o", work / "index"], work)
        run(["-c", WRITE_PLAIN, work / "index", f"{work}/"], work)


def least(wait: Wait, work: Path, rounds: int) -> list[str]:
    """Return a row of the table: the least seconds and the peak of both."""
    sides = [words for words in (wait.ours, wait.plain) if words is not None]
    runs: list[list[tuple[float, float]]] = [[] for _ in sides]
    for _ in range(1 + rounds):
        for words, of_side in zip(sides, runs, strict=True):
            of_side.append(run(words, work, prints_seconds=wait.prints_seconds))
    cells = [wait.name]
    for of_side in runs:
        seconds, megabytes = zip(*of_side[1:], strict=True)
        cells += [f"{min(seconds):.2f}", f"{min(megabytes):,.0f}"]
    return [*cells, *[""] * (5 - len(cells))]


def main() -> None:
    """Lay out the inputs, and print a line for each wait."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=250_000, help="of each modality")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="what the names begin with")
    parser.add_argument("--work", type=Path, help="a folder to keep; by default a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = (options.work or Path(folder)).absolute()
        work.mkdir(exist_ok=True)
        lay_out(work, options.rows)
        waits = [*waits_of_queries(work), *waits_of_rows(work)]
        chosen = [wait for wait in waits if wait.name.startswith(tuple(options.only))]
        headings = ["CPU s", "peak, MB", "plain, CPU s", "plain, peak, MB"]
        print_table(["", *headings], [least(wait, work, options.rounds) for wait in chosen])


if __name__ == "__main__":
    main()
