"""Measure how well wrong pairs and copies are found that were planted among real ones.

    c3 embed FLICKR8K --store STORE
    python benchmarks/curation.py pairs STORE CLIP_EMBEDDINGS
    python benchmarks/curation.py shares
    python benchmarks/curation.py copies FLICKR8K/images
    python benchmarks/curation.py flat FOLDER...

``pairs`` exchanges a share of the captions: at random, or with a caption of one of the ten nearest
images. It prints which share of the worst pairs, as many as were exchanged, are exchanged ones, the
area under the ROC curve, and the expected share of unrelated pairs: means over seeds; how often the
interval has the share to one point, and how often the share is a bound ("at most"). Pairs are
ordered by z, by the cosine and by the rank.

``shares`` needs no store: images and texts are a shared direction and noise of their own in 64
dimensions. An encoder that tells pairs worse has more noise. It prints how often the interval has
the planted share to one point, and how often the share is a bound.

``copies`` changes 1,000 photos in a known way each, embeds them together with the originals, and
prints which share is found as a copy, and as a copy or the same scene.

``flat`` embeds folders of pictures without captions, such as emoji, flags or products on plain
ground. It prints for each how many of train are marked to be left out, and how many are in groups
that are listed, if outlines alone decide and if colours decide too.

Takes 5, 10 and 30 minutes on 2 cores, and a minute a folder of 500 pictures.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from measuring import print_table
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from c3tools import Calibration, Pairs, Rows, Store, embed
from c3tools.arrays import Array, Indices, Mask
from c3tools.curation import agreement
from c3tools.curation.duplicates import find_duplicates
from c3tools.curation.wrong_pairs import UnrelatedShare, score_pairs, unrelated_shares
from c3tools.moments import unit_rows
from c3tools.reporter import SILENT
from c3tools.seeds import generator
from c3tools.terminal import TerminalReporter

SHARES = (0.0, 0.02, 0.05, 0.1)
WEAK_DIM = 24  # of embeddings that tell pairs badly
TOLERANCE = 0.01  # of an interval, when coverage is counted
SIZES = (100, 300, 1_000)
# by name, the noise, and its spread over items on a logarithmic scale
ENCODERS = {
    "good": (0.6, 0.0),
    "good, uneven": (0.6, 0.4),
    "fair": (1.4, 0.0),
    "weak": (1.75, 0.0),
    "very weak": (2.15, 0.0),
}
COUNTS = ("covers", "at most", "no share")
NEAR = 10
PHOTOS = 1_000
TRAIN_IMAGES = 1_000


def sets_of_pairs(store: Store, folder: Path) -> Iterator[tuple[str, Pairs, Calibration]]:
    """Yield the name of a set, its pairs, and the calibration of its rows."""
    calibration = Calibration.fit(store)
    yield "Flickr8k test, c3-mini", store.pairs(split="test"), calibration
    train = store.pairs(split="train")
    sample = train.first.select(train.first.hash_order("pairs to measure")[:TRAIN_IMAGES])
    yield "Flickr8k train, c3-mini", Pairs.match(sample, train.second), calibration
    for name, title, dim in (
        ("coco_val2017_vitb16_500", "COCO, ViT-B/16", None),
        ("flickr8k_vitb32_combined", "Flickr8k, ViT-B/32", None),
        ("coco_val2017_vitb16_500", f"COCO, ViT-B/16, {WEAK_DIM} random directions", WEAK_DIM),
    ):
        image = unit_rows(np.load(folder / name / "image.npy"))
        text = unit_rows(np.load(folder / name / "text.npy"))
        if dim is not None:
            directions = generator(0, "random directions").normal(size=(image.shape[1], dim))
            image = unit_rows(image @ directions)
            text = unit_rows(text @ directions)
        lines = (folder / name / "meta.jsonl").read_text().splitlines()
        meta = [json.loads(line) for line in lines]
        owner_of = {
            row: number
            for number, line in enumerate(meta)
            for row in line.get("text_rows", [number])
        }
        owners = [owner_of.get(row) for row in range(len(text))]
        images = Rows.of("image", [str(number) for number in range(len(image))], image)
        texts = Rows.of(
            "text",
            [f"text{number}" for number in range(len(text))],
            text,
            image_key=[None if owner is None else str(owner) for owner in owners],
        )
        yield title, Pairs.match(images, texts), Calibration.fit({"image": image, "text": text})


def with_exchanged(pairs: Pairs, share: float, seed: int, *, near: bool) -> tuple[Pairs, Mask]:
    """Return pairs of which a share have the caption of another image, and which ones."""
    items = pairs.item_index[pairs.rows]
    rng = generator(seed, "exchanged captions", share, near)
    chosen = rng.choice(len(items), round(share * len(items)), replace=False)
    exchanged = items.copy()
    if near:
        exchanged[chosen] = [near_item(pairs, item, rng) for item in items[chosen]]
    else:
        offsets = rng.integers(1, len(pairs.first), len(chosen))
        exchanged[chosen] = (items[chosen] + offsets) % len(pairs.first)
    item_index = pairs.item_index.copy()
    item_index[pairs.rows] = exchanged
    return replace(pairs, item_index=item_index), exchanged != items


def near_item(pairs: Pairs, item: int, rng: np.random.Generator) -> int:
    """Return one of the images nearest to an image."""
    cosines = pairs.first.embeddings @ pairs.first.embeddings[item]
    cosines[item] = -np.inf
    return int(rng.choice(np.argsort(-cosines)[:NEAR]))


def precision(scores: Array, wrong: Mask) -> float:
    """Return the share of wrong pairs among as many with the lowest scores as there are."""
    return float(wrong[np.argsort(scores, kind="stable")[: wrong.sum()]].mean())


def area_under_curve(scores: Array, wrong: Mask) -> float:
    """Return the probability that a wrong pair scores lower than a right one."""
    order = np.argsort(np.argsort(scores, kind="stable"), kind="stable") + 1
    count = int(wrong.sum())
    lower = order[~wrong].sum() - (~wrong).sum() * ((~wrong).sum() + 1) / 2
    return float(lower / (count * (~wrong).sum()))


def measure_pairs(store: Store, folder: Path, seeds: int) -> None:
    """Print how well exchanged captions are found in each set."""
    for title, pairs, calibration in sets_of_pairs(store, folder):
        rows = []
        for share in SHARES:
            for near in (False, True) if share else (False,):
                measured = [
                    measure_once(pairs, calibration, share, seed, near=near)
                    for seed in range(seeds)
                ]
                means = np.mean([values for values, _ in measured], axis=0)
                estimates = [estimate for _, estimate in measured]
                shares = [estimate.share for estimate in estimates if estimate.share is not None]
                found = [f"{value:.3f}" for value in means] if share else ["–"] * 6
                kind = "near" if near else "random"
                estimated = f"{np.mean(shares):.1%}" if shares else "–"
                rows.append([f"{share:.0%}", kind, *found, estimated, *counts(estimates, share)])
        print(f"\n{title}: {len(pairs):,} pairs\n")
        methods = ("z", "cosine", "rank")
        columns = [f"{name} {measure}" for name in methods for measure in ("precision", "area")]
        print_table(["exchanged", "with", *columns, "estimated", *COUNTS], rows)


def counts(estimates: list[UnrelatedShare], share: float) -> list[str]:
    """Return the fraction of estimates whose interval has a share to one point, that of bounds, and
    that of refusals, which have no interval.
    """
    covers = 0
    for estimate in estimates:
        if estimate.interval is not None:
            low, high = estimate.interval
            covers += low - TOLERANCE <= share <= high + TOLERANCE
    bounds = sum(estimate.at_most for estimate in estimates)
    refusals = sum(estimate.share is None for estimate in estimates)
    return [f"{count / len(estimates):.2f}" for count in (covers, bounds, refusals)]


def measure_once(
    pairs: Pairs, calibration: Calibration, share: float, seed: int, *, near: bool
) -> tuple[list[float], UnrelatedShare]:
    """Return precision and area of z, cosine and rank, and the estimate of the share."""
    changed, wrong = with_exchanged(pairs, share, seed, near=near)
    scored = score_pairs(changed, calibration, seed, SILENT)
    items: Indices = changed.item_index[changed.rows]
    estimate = unrelated_shares(scored, np.full(len(items), "all", dtype=object), items)[0]
    values: list[float] = []
    for scores in (scored.z, scored.cosine, -scored.rank + scored.cosine / 2):
        values += [precision(scores, wrong), area_under_curve(scores, wrong)] if share else [0, 0]
    return values, estimate


def measure_shares(draws: int) -> None:
    """Print how often intervals have the planted share, by encoder and number of pairs."""
    rows = []
    for name, (noise, spread) in ENCODERS.items():
        for size in SIZES:
            cells = []
            for share in SHARES:
                estimates = []
                for draw in range(draws):
                    pairs, calibration = simulated_pairs(noise, spread, size, draw)
                    estimates.append(measure_once(pairs, calibration, share, draw, near=False)[1])
                cells += counts(estimates, share)
            rows.append([name, f"{size:,}", *cells])
    columns = [f"{share:.0%} {count}" for share in SHARES for count in COUNTS]
    print_table(["encoder", "pairs", *columns], rows)


def simulated_pairs(noise: float, spread: float, size: int, draw: int) -> tuple[Pairs, Calibration]:
    """Return as many pairs of an encoder that adds noise to what image and text share."""
    rng = generator(draw, "simulated pairs", noise, spread, size)
    shared = rng.normal(size=(size, 64))
    of_item = noise * np.exp(spread * rng.normal(size=(size, 1)))
    image = unit_rows(shared + of_item * rng.normal(size=shared.shape) + 1)
    text = unit_rows(shared + of_item * rng.normal(size=shared.shape) - 1)
    keys = [str(number) for number in range(size)]
    pairs = Pairs.match(Rows.of("image", keys, image), Rows.of("text", keys, text, image_key=keys))
    return pairs, Calibration.fit({"image": image, "text": text})


def cropped(share: float) -> Callable[[Image.Image, random.Random], Image.Image]:
    """Return a function that cuts off a share of width and height, at a random place."""

    def crop(image: Image.Image, rng: random.Random) -> Image.Image:
        width = round(image.width * (1 - share))
        height = round(image.height * (1 - share))
        left = rng.randint(0, image.width - width)
        top = rng.randint(0, image.height - height)
        return image.crop((left, top, left + width, top + height))

    return crop


def with_caption_bar(image: Image.Image, _: random.Random) -> Image.Image:
    """Add a white bar with words below a photo."""
    taller = Image.new("RGB", (image.width, round(1.15 * image.height)), "white")
    taller.paste(image)
    ImageDraw.Draw(taller).text((5, image.height + 4), "a caption of the photo", fill="black")
    return taller


def compressed(image: Image.Image, _: random.Random) -> Image.Image:
    """Save a photo as a JPEG of quality 30, and read it again."""
    content = io.BytesIO()
    image.save(content, "jpeg", quality=30)
    return Image.open(content).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "quality 30": compressed,
    "half": lambda image, _: image.resize((image.width // 2, image.height // 2)),
    "double": lambda image, _: image.resize((image.width * 2, image.height * 2)),
    "cropped 5%": cropped(0.05),
    "cropped 10%": cropped(0.1),
    "cropped 20%": cropped(0.2),
    "cropped 30%": cropped(0.3),
    "mirrored": lambda image, _: ImageOps.mirror(image),
    "border": lambda image, _: ImageOps.expand(image, image.width // 14, "black"),
    "caption bar": with_caption_bar,
    "grey": lambda image, _: image.convert("L").convert("RGB"),
    "brighter": lambda image, _: ImageEnhance.Brightness(image).enhance(1.4),
    "turned by 90°": lambda image, _: image.transpose(Image.Transpose.ROTATE_90),
}


def measure_copies(images: Path, seed: int) -> None:
    """Print which share of planted copies is found, by what was done to them."""
    rng = random.Random(seed)
    files = rng.sample(sorted(images.iterdir()), PHOTOS)
    kinds = list(CHANGES)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "photos")
        folder.mkdir()
        for number, file in enumerate(files):
            image = Image.open(file).convert("RGB")
            kind = kinds[number % len(kinds)]
            image.save(folder / f"{number}.jpg", quality=92)
            CHANGES[kind](image, rng).save(folder / f"{number}-copy.jpg", quality=92)
        store = embed(folder, Path(name, "store"), reporter=TerminalReporter())
        found = find_duplicates(store, reporter=TerminalReporter())
    tiers: dict[int, str] = {}
    false = Counter[str]()
    for group in found.groups:
        for copy in group.copies:
            if copy.key.partition("-")[0] == group.kept.partition("-")[0]:
                tiers[int(copy.key.partition("-")[0])] = group.tier
            else:
                false[group.tier] += 1
    rows = []
    for place, kind in enumerate(kinds):
        numbers = range(place, PHOTOS, len(kinds))
        copies = sum(tiers.get(number) in ("exact", "copy") for number in numbers)
        listed = sum(number in tiers for number in numbers)
        rows.append(
            (kind, len(numbers), f"{copies / len(numbers):.3f}", f"{listed / len(numbers):.3f}")
        )
    print_table(["change", "photos", "copy", "copy or same scene"], rows)
    print(f"\n{found.compared:,} pairs compared; of other photos: {dict(false) or 'none'}")


def measure_flat(folders: list[Path]) -> None:
    """Print how many pictures of each folder are marked and listed, by outlines and by colours."""
    plain_edge = agreement._PLAIN_EDGE
    rows = []
    for folder in folders:
        with tempfile.TemporaryDirectory() as name:
            store = embed(folder, Path(name, "store"), reporter=TerminalReporter())
            cells = []
            for share in (math.inf, plain_edge):  # no picture is on plain ground, or those that are
                agreement._PLAIN_EDGE = share
                duplicates = find_duplicates(store, workers=0, reporter=TerminalReporter())
                pictures = sum(1 + len(group.copies) for group in duplicates.groups)
                cells += [duplicates.left_out, pictures]
            rows.append((folder.name, store.count("image"), *cells))
    columns = ["marked by outlines", "listed", "marked with colours", "listed"]
    print_table(["folder", "pictures", *columns], rows)


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    pairs = parts.add_parser("pairs")
    pairs.add_argument("store", type=Path)
    pairs.add_argument("clip_embeddings", type=Path)
    pairs.add_argument("--seeds", type=int, default=5)
    shares = parts.add_parser("shares")
    shares.add_argument("--draws", type=int, default=200)
    copies = parts.add_parser("copies")
    copies.add_argument("images", type=Path)
    copies.add_argument("--seed", type=int, default=0)
    flat = parts.add_parser("flat")
    flat.add_argument("folders", type=Path, nargs="+")
    arguments = parser.parse_args()
    if arguments.part == "pairs":
        measure_pairs(Store.open(arguments.store), arguments.clip_embeddings, arguments.seeds)
    elif arguments.part == "shares":
        measure_shares(arguments.draws)
    elif arguments.part == "flat":
        measure_flat(arguments.folders)
    else:
        measure_copies(arguments.images, arguments.seed)


if __name__ == "__main__":
    main()
