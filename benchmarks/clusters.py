"""Compare ways to cluster images and texts together, and measure how long c3 clusters takes.

    python benchmarks/clusters.py --store STORE --folder FOLDER    # tables of a store, of a folder
    python benchmarks/clusters.py --few --store STORE              # few items, beside 3,000 others
    python benchmarks/clusters.py --scale 1000000                  # CPU and memory, beside FAISS

A FOLDER contains image.npy, text.npy and meta.jsonl with the `text_rows` of each image. Without
them, rows are paired one by one, and the table of categories needs `caption`, the embedded one, and
`all_captions`: 500 pairs of COCO val2017 by OpenAI's CLIP ViT-B/16. Tables: pairs in one cluster
beyond chance (κ) and what a cluster says of the modality (U) at k = sqrt(n), of pairs that had no
part in making the clusters, means of three starts, with controls; the same for k from 5 to 100;
agreement of clusters with categories of words in the other captions of a photo (AMI).

The tables take about a minute on 2 cores, 1 M × 2 rows about five. On COCO, κ should be near .0,
.3 and .72 for k-means, k-means after Collapse and cross-centroids, and 0 for both controls.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measuring import C3, PEAK, print_table, run

from c3tools.clustering.cross_centroids import (
    cross_centroids,
    deciding_centroids,
    nearest_centroids,
    spherical_kmeans,
    train_centroids,
)
from c3tools.geometry.collect import Sample, collect
from c3tools.geometry.mixed_clusters import (
    CLUSTERINGS,
    MixedClusters,
    kappa_of_pairs,
    measure_mixed_clusters,
)
from c3tools.geometry.verdict import judge_clusters
from c3tools.identity import ModelIdentity
from c3tools.moments import unit_rows
from c3tools.seeds import generator
from c3tools.store import (
    Store,
    StoreInfo,
    StoreWriter,
    create_store,
    part_name,
    shard_table,
    write_rows,
)
from c3tools.transforms.calibration import Calibration

Rows = npt.NDArray[np.float32]
STARTS = 3
COUNTS = (5, 10, 20, 40, 70, 100)
RANDOM_PAIRS = 20  # draws
FEW = ((60, 8), (100, 10), (100, 40), (400, 20), (400, 100), (1_000, 32), (1_000, 100))
OTHERS = 3_000  # items
DIM, CLUSTERS, SHARD = 512, 1_000, 50_000
# a photo is of the category whose words most of its other captions have, if it is one
CATEGORIES = {
    "bathroom": "bathroom toilet sink shower bathtub",
    "kitchen": "kitchen stove oven refrigerator microwave",
    "living room": "couch sofa living television tv",
    "bedroom": "bed bedroom",
    "desk": "laptop computer desk keyboard monitor",
    "food": "food plate pizza sandwich meal vegetables fruit bananas",
    "cake": "cake dessert donuts donut candles",
    "street": "street traffic intersection sidewalk",
    "bus": "bus buses",
    "train": "train trains tracks locomotive",
    "plane": "plane airplane jet airport",
    "boat": "boat boats ship harbor",
    "motorcycle": "motorcycle motorcycles",
    "bicycle": "bicycle bicycles bike",
    "skateboard": "skateboard skateboarder skateboarding",
    "snow": "snow ski skis skiing snowboard skier",
    "surf": "surf surfboard surfing surfer wave",
    "tennis": "tennis racket",
    "baseball": "baseball bat batter",
    "kite": "kite kites frisbee",
    "cat": "cat cats kitten",
    "dog": "dog dogs puppy",
    "horse": "horse horses cow cows sheep",
    "zoo": "elephant elephants giraffe giraffes zebra zebras bear bears",
    "bird": "bird birds",
    "clock": "clock tower",
    "phone": "phone cell cellphone",
}


def read_folder(folder: Path) -> Sample:
    """Return the pairs of a folder: row by row, or by `text_rows` in meta.jsonl."""
    image, text = (np.load(folder / f"{name}.npy") for name in ("image", "text"))
    lines = (folder / "meta.jsonl").read_text(encoding="utf-8").splitlines()
    text_rows = [json.loads(line).get("text_rows") for line in lines]
    if text_rows[0] is None:
        return Sample(image, text, np.arange(len(image)), complete=True)
    with_texts = [number for number, rows in enumerate(text_rows) if rows]
    item_index = np.repeat(np.arange(len(with_texts)), [len(text_rows[n]) for n in with_texts])
    of_images = np.concatenate([text_rows[number] for number in with_texts])
    return Sample(image[with_texts], text[of_images], item_index, complete=True)


def print_mixtures(samples: dict[str, Sample]) -> None:
    """Print κ and U at k = sqrt(n) of each set, of random pairs, and of a random encoder."""
    rows = []
    for name, sample in samples.items():
        shuffled = generator(0, name).permutation(len(sample.first))
        rng = generator(0, name, "random encoder")
        drawn = [
            rng.standard_normal(part.shape).astype(np.float32) + offset
            for part, offset in ((sample.first, 1), (sample.second, -1))
        ]
        for title, each in (
            (name, sample),
            (f"{name}, random pairs", pairs_of(sample, shuffled[sample.item_index])),
            (f"{name}, random rows", Sample(drawn[0], drawn[1], sample.item_index, complete=True)),
        ):
            mixed = [measure(each, seed=seed) for seed in range(STARTS)]
            known = [one for one in mixed if one is not None]
            if not known:
                continue
            low, high = known[0].kappa["cross"].interval or (0.0, 1.0)
            answer = judge_clusters(known[0], ["image", "text"]).answer
            cells = cells_of(known)
            rows.append([title, str(known[0].clusters), *cells, f"{low:.2f} to {high:.2f}", answer])
    print_table(["κ (U)", "k", *CLUSTERINGS, "95% of cross", "verdict"], rows)


def measure(
    sample: Sample, count: int | None = None, *, compares: bool = True, seed: int
) -> MixedClusters | None:
    """Return κ and U of these rows, collapsed with their own means; also of k-means if asked to."""
    first, second = collapsed(sample)
    rows = Sample(first, second, sample.item_index, complete=True)
    raw = None
    if compares:
        unit = rows_of(sample)
        raw = Sample(unit["image"], unit["text"], sample.item_index, complete=True)
    return measure_mixed_clusters(rows, ("image", "text"), count, raw=raw, seed=seed)


def cells_of(mixed: list[MixedClusters]) -> list[str]:
    """Return the mean κ and U of each way, over starts."""
    return [
        f"{np.mean([one.kappa[way].value for one in mixed]):.2f} "
        f"({np.mean([one.one_kind[way] for one in mixed]):.2f})"
        for way in CLUSTERINGS
    ]


def pairs_of(sample: Sample, item_index: npt.NDArray[np.int64]) -> Sample:
    """Return the rows of a sample with other pairs."""
    return Sample(sample.first, sample.second, item_index, complete=True)


def print_random_pairs(name: str, sample: Sample) -> None:
    """Print the answers on many draws of random pairs."""
    answers = Counter[str]()
    for draw in range(RANDOM_PAIRS):
        shuffled = generator(draw, "random pairs").permutation(len(sample.first))
        exchanged = pairs_of(sample, shuffled[sample.item_index])
        mixed = measure(exchanged, compares=False, seed=draw)
        answers[judge_clusters(mixed, ["image", "text"]).answer] += 1
    print(f"{name}, {RANDOM_PAIRS} draws of random pairs: {dict(answers)}\n")


def print_counts(name: str, sample: Sample) -> None:
    """Print κ and U, and clusters and rows of one kind, for several numbers of clusters."""
    first, second = collapsed(sample)
    rows = []
    for count in COUNTS:
        mixed = [measure(sample, count, seed=seed) for seed in range(STARTS)]
        known = [one for one in mixed if one is not None]
        if not known:
            continue
        of_first, of_second = cross_centroids(first, second, count, generator(0, "clusters"))
        labels = (nearest_centroids(first, of_second), nearest_centroids(second, of_first))
        in_table = kappa_of_pairs(labels[0][sample.item_index], labels[1]).mean()
        sizes = np.stack([np.bincount(each, minlength=count) for each in labels])
        one_kind = sizes.min(axis=0) == 0
        share = sizes[:, one_kind].sum() / sizes.sum()
        cells = [f"{in_table:.2f}", str(one_kind.sum()), f"{100 * share:.1f}"]
        rows.append([str(count), *cells_of(known), *cells])
    heads = ["k", *CLUSTERINGS, "κ in the table", "clusters of one kind", "their rows, %"]
    print(f"{name}, κ (U)\n")
    print_table(heads, rows)


def collapsed(sample: Sample) -> tuple[Rows, Rows]:
    """Return the unit rows after Collapse, fitted on themselves."""
    rows = rows_of(sample)
    pipeline = Calibration.fit(rows).pipeline
    first, second = (
        unit_rows(pipeline.transform(each, modality=name)) for name, each in rows.items()
    )
    return first, second


def print_few(name: str, sample: Sample) -> None:
    """Print κ of clusters of few items: in the table, by five folds, and of 3,000 other items."""
    rows = []
    for items, count in FEW:
        kappas = []
        for draw in range(5):
            drawn = np.random.default_rng(draw).permutation(len(sample.first))
            seen, _ = sample.part(np.sort(drawn[:items]))
            others, _ = sample.part(np.sort(drawn[items : items + OTHERS]))
            pipeline = Calibration.fit(rows_of(seen)).pipeline
            own = collapsed(seen)
            pair = {"image": own[0], "text": own[1]}
            centroids = train_centroids(pair, count, generator(draw, "clusters"))
            values = []
            for part in (seen, others):
                labels = {
                    modality: nearest_centroids(
                        unit_rows(pipeline.transform(each, modality=modality)),
                        deciding_centroids(centroids, modality),
                    )
                    for modality, each in rows_of(part).items()
                }
                of_pairs = kappa_of_pairs(labels["image"][part.item_index], labels["text"])
                values.append(of_pairs.mean())
            mixed = measure(seen, count, compares=False, seed=draw)
            if mixed is not None:
                kappas.append([values[0], mixed.kappa["cross"].value, values[1]])
        means = [f"{value:.2f}" for value in np.mean(kappas, axis=0)]
        rows.append([f"{items:,}", str(count), *means])
    print_table([f"items of {name}", "k", "in the table", "five folds", f"{OTHERS:,} others"], rows)


def rows_of(sample: Sample) -> dict[str, Rows]:
    """Return the unit rows of a sample, by modality."""
    return {
        "image": unit_rows(sample.first.astype(np.float32)),
        "text": unit_rows(sample.second.astype(np.float32)),
    }


def print_categories(folder: Path, sample: Sample) -> None:
    """Print the agreement of clusters with categories of words in the other captions."""
    from sklearn.metrics import adjusted_mutual_info_score as ami

    category = np.full(len(sample.first), -1)
    lines = (folder / "meta.jsonl").read_text(encoding="utf-8").splitlines()
    for row, line in enumerate(lines):
        item = json.loads(line)
        others = [caption for caption in item["all_captions"] if caption != item["caption"]]
        votes = []
        for words in CATEGORIES.values():
            known = {*words.split()}
            hits = (known & {*re.findall(r"\w+", caption.lower())} for caption in others)
            votes.append(sum(bool(hit) for hit in hits))
        best = np.flatnonzero(np.array(votes) == max(votes))
        if max(votes) >= 2 and len(best) == 1:
            category[row] = best[0]
    has_one = category >= 0
    first, second = collapsed(sample)
    count = round(len(first) ** 0.5)
    scores: dict[str, list[list[float]]] = {}
    for seed in range(10):
        rng = [generator(seed, "starts") for _ in range(4)]
        both = spherical_kmeans(np.concatenate([first, second]), count, rng[0])
        of_first, of_second = cross_centroids(first, second, count, rng[1])
        labels = {
            "k-means after Collapse": (
                nearest_centroids(first, both),
                nearest_centroids(second, both),
            ),
            "cross-centroids": (
                nearest_centroids(first, of_second),
                nearest_centroids(second, of_first),
            ),
            "each kind by itself": (
                nearest_centroids(first, spherical_kmeans(first, count, rng[2])),
                nearest_centroids(second, spherical_kmeans(second, count, rng[3])) + count,
            ),
        }
        for name, (images, texts) in labels.items():
            pooled = ami(np.tile(category[has_one], 2), np.r_[images[has_one], texts[has_one]])
            scores.setdefault(name, []).append(
                [
                    ami(category[has_one], images[has_one]),
                    ami(category[has_one], texts[has_one]),
                    pooled,
                ]
            )
    rows = [
        [name, *(f"{value:.2f}" for value in np.mean(each, axis=0))]
        for name, each in scores.items()
    ]
    print_table([f"AMI, {has_one.sum()} items, k = {count}", "images", "texts", "pooled"], rows)


def write_large_store(folder: Path, count: int) -> Store:
    """Write a store of so many images and texts of 5,000 topics, in two cones."""
    info = StoreInfo(ModelIdentity(name="drawn"), DIM, dtype="float16")
    create_store(folder, info)
    rng = generator(0, "large store")
    topics = rng.standard_normal((5_000, DIM)).astype(np.float32)
    for modality, place in (("image", 0), ("text", 1)):
        for part, start in enumerate(range(0, count, SHARD)):
            size = min(SHARD, count - start)
            topic = np.arange(start, start + size) % len(topics)
            rows = topics[topic] + rng.standard_normal((size, DIM)).astype(np.float32)
            rows[:, place] += 30
            keys = [f"i{number}" for number in range(start, start + size)]
            columns: dict[str, list[str]] = {"key": keys}
            if modality == "text":
                columns = {
                    "key": [f"t{number}" for number in range(start, start + size)],
                    "image_key": keys,
                    "caption": [f"a photo of topic {number}" for number in topic],
                }
            table = shard_table(info, modality, unit_rows(rows), columns)
            write_rows(folder / part_name(modality, part), info, modality, table)
    StoreWriter(folder).finish()
    return Store.open(folder)


FAISS = """
import sys, faiss, numpy as np
from c3tools.clusters.source import Source
from c3tools.store import Store
store, count = Store.open(sys.argv[1]), int(sys.argv[2])
source = Source.open(store, ["image", "text"], "all", None)
kmeans = faiss.Kmeans(store.info.dim, count, niter=20, spherical=True, max_points_per_centroid=128)
rows_of_each = store.count("image")
chosen = np.random.default_rng(0).random(2 * rows_of_each) < 64 * count / rows_of_each
sample, first = [], 0
for name in ("image", "text"):
    for rows in source.batches(name):
        sample.append(source.transform(rows[chosen[first : first + len(rows)]], name))
        first += len(rows)
kmeans.train(np.concatenate(sample))
for name in ("image", "text"):
    for rows in source.batches(name):
        kmeans.index.search(source.transform(rows, name), 1)
"""


def print_scale(count: int) -> None:
    """Print CPU seconds and peak memory of c3 clusters, and of FAISS's k-means on the same rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = write_large_store(Path(folder) / "store", count)
        commands = {
            "c3 clusters": [
                *C3, "clusters", "--store", store.path, "-k", CLUSTERS, "-o", f"{folder}/clusters",
            ],
            "FAISS": [sys.executable, "-P", "-c", f"{PEAK}\n{FAISS}", store.path, CLUSTERS],
        }  # fmt: skip
        for name, command in commands.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = run(command)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            rows.append([name, f"{seconds:.0f}", f"{done.seconds:.0f}", f"{done.peak_mib:,.0f}"])
    print_table([f"{count:,} × 2 rows", "CPU seconds", "seconds", "peak MiB"], rows)


def main() -> None:
    """Print the tables of the sets that are given, or the times of a large store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", type=Path, action="append", default=[], help="a store")
    parser.add_argument("--split", help="the split of the stores to read")
    parser.add_argument("--folder", type=Path, action="append", default=[], help="paired arrays")
    parser.add_argument("--few", action="store_true", help="print κ of few items of 4,000 or more")
    parser.add_argument("--scale", type=int, help="images, and texts, of a large store")
    arguments = parser.parse_args()
    if arguments.scale:
        print_scale(arguments.scale)
    samples = {folder.name: read_folder(folder) for folder in arguments.folder}
    for path in arguments.store:
        read = collect(Store.open(path), "image", "text", split=arguments.split)
        samples[path.name] = read.sample
    if arguments.few:
        for name, sample in samples.items():
            print_few(name, sample)
        return
    if samples:
        print_mixtures(samples)
    for name, sample in samples.items():
        print_random_pairs(name, sample)
        print_counts(name, sample)
    for folder in arguments.folder:
        if "all_captions" in (folder / "meta.jsonl").read_text(encoding="utf-8"):
            print_categories(folder, samples[folder.name])


if __name__ == "__main__":
    main()
