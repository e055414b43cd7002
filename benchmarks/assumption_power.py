"""Measure how often the gap report's answers are right, on synthetic stores that follow or violate
its assumptions.

    python benchmarks/assumption_power.py                 # the table of docs/results/geometry.md
    python benchmarks/assumption_power.py --draws 100     # more precise
    python benchmarks/assumption_power.py --shapes        # stores that are hard to judge
    python benchmarks/assumption_power.py --clusters      # the answers on clusters of both kinds

The model is `e_x - e_y = c + eps` (Zhang et al., ICLR 2024): content in a third of the dimensions,
a constant gap c orthogonal to it, and isotropic Gaussian noise on the texts. Rows are scaled to
unit length. With several captions per image, half of the noise belongs to the image and half to the
caption. Each of ten variants violates one assumption. For each answer, a store is drawn, written
and read.

Takes about ten minutes on 2 cores with the default of 20 draws. If all assumptions hold, at least
95 of 100 answers to each question should be "yes"; if one is violated, the answer to its question
should be "no".
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from measuring import print_table

from c3tools.geometry.assumptions import answer_questions
from c3tools.geometry.collect import Sample, collect
from c3tools.geometry.measures import residuals
from c3tools.geometry.mixed_clusters import measure_mixed_clusters
from c3tools.geometry.report import gap_report
from c3tools.geometry.verdict import judge_clusters
from c3tools.identity import ModelIdentity
from c3tools.moments import unit_rows
from c3tools.seeds import generator
from c3tools.store import Store, StoreInfo, create_store, part_name, shard_table, write_rows
from c3tools.transforms.calibration import Calibration

Floats = npt.NDArray[np.float64]
Drawn = tuple[Floats, Floats]  # images (n, d), texts (n k, d)

DIM, CONTENT = 96, 32
# length of the gap; root mean square lengths of content and noise
GAP, CONTENT_SIZE, NOISE = 0.8, 0.6, 0.4
SIZES = (100, 500, 2_000)


class Model:
    """A draw of the paper's model, before anything is broken.

    Attributes:
        rng: of the draw.
        owner: int64 (n k,), the image of each text.
        content: (n, d), varying in the first ``CONTENT`` dimensions, more in the first of them.
        noise: (n k, d), of the texts, isotropic, Gaussian.
        image_noise: (n, d), none in the model.
        gap: (n, d), the same row for each item, in the last dimension.
        base: (d,), what all rows of both modalities share, orthogonal to all that varies.
    """

    def __init__(self, items: int, captions: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.owner = np.repeat(np.arange(items), captions)
        sizes = np.zeros(DIM)
        sizes[:CONTENT] = 1 / np.sqrt(1 + np.arange(CONTENT) / 8)
        self.sizes = sizes * CONTENT_SIZE / np.linalg.norm(sizes)
        self.content = rng.standard_normal((items, DIM)) * self.sizes
        self.noise = self.draw_noise(rng.standard_normal)
        self.image_noise = np.zeros((items, DIM))
        self.gap = np.zeros((items, DIM))
        self.gap[:, -1] = GAP
        self.base = np.eye(DIM)[-2]

    def draw_noise(self, draw: Callable[[tuple[int, int]], Floats]) -> Floats:
        """Return noise of one size in every dimension (n k, d): per image, plus per caption if
        there are several.
        """
        items = int(self.owner[-1]) + 1
        one, other = draw((items, DIM)), draw((len(self.owner), DIM))
        both = (
            one[self.owner] if items == len(self.owner) else (one[self.owner] + other) / np.sqrt(2)
        )
        return np.asarray(both * NOISE / np.sqrt(DIM))

    def rows(self) -> Drawn:
        """Return images and texts of unit length."""
        image = self.base + self.content + self.gap / 2 + self.image_noise
        text = (self.base + self.content - self.gap / 2)[self.owner] + self.noise
        return unit_rows(image), unit_rows(text)


def two_gaps(model: Model, half: npt.NDArray[np.bool_]) -> None:
    """Turn the gap of half of the items by 90 degrees, out of the content."""
    model.gap[half] = 0
    model.gap[half, -3] = GAP


def halves_in_order(model: Model) -> None:
    """Give the second half of the store another gap."""
    two_gaps(model, np.arange(len(model.gap)) >= len(model.gap) // 2)


def halves_shuffled(model: Model) -> None:
    """Give a random half of the items another gap."""
    two_gaps(model, model.rng.permutation(len(model.gap)) % 2 == 0)


def gap_by_topic(model: Model) -> None:
    """Make four topics, far apart in content, each with a gap of its own."""
    topic = model.rng.integers(4, size=len(model.gap))
    model.content[np.arange(len(topic)), topic] += CONTENT_SIZE
    model.gap[:] = 0
    model.gap[np.arange(len(topic)), DIM - 6 + topic] = GAP


def gap_anywhere(model: Model) -> None:
    """Draw the direction of the gap at random."""
    model.gap[:] = GAP * unit_rows(model.rng.standard_normal((1, DIM)))


def gap_in_span(model: Model) -> None:
    """Draw the direction of the gap at random inside the span of the content."""
    inside = np.r_[np.ones(CONTENT), np.zeros(DIM - CONTENT)]
    model.gap[:] = GAP * unit_rows(model.rng.standard_normal((1, DIM)) * inside)


def gap_along_main_axis(model: Model) -> None:
    """Lay the gap along the direction in which content varies most."""
    model.gap[:] = GAP * np.eye(DIM)[0]


def laplace_in_some(model: Model) -> None:
    """Give the noise of 45% of the dimensions Laplace's distribution, of the same variance."""
    some = model.rng.permutation(DIM) < 0.45 * DIM
    laplace = model.draw_noise(lambda shape: model.rng.laplace(size=shape) / np.sqrt(2))
    model.noise[:, some] = laplace[:, some]
    # the image's part and the caption's would add up to something more Gaussian
    if len(model.owner) > len(model.gap):
        several = (
            model.rng.laplace(size=(len(model.gap), DIM))[model.owner] * NOISE / np.sqrt(2 * DIM)
        )
        model.noise[:, some] = several[:, some]


def heavy_tails(model: Model) -> None:
    """Give the noise of each item a size of its own (Student's t, 3 degrees of freedom)."""
    model.noise *= 1 / np.sqrt(model.rng.chisquare(3, size=len(model.gap)))[model.owner, None]


def noise_in_half(model: Model) -> None:
    """Give half of the dimensions a fifth of the noise of the others."""
    weight = np.where(np.arange(DIM) % 2, 1.0, 1 / 5)
    model.noise *= weight / np.sqrt(np.mean(weight**2))


def decaying_noise(model: Model) -> None:
    """Let the variance of the noise decay like 1 / k, in random directions."""
    turn = np.linalg.qr(model.rng.standard_normal((DIM, DIM)))[0]
    weight = 1 / np.sqrt(1 + np.arange(DIM))
    model.noise = model.noise @ (turn * weight / np.sqrt(np.mean(weight**2))) @ turn.T


BREAKS: dict[str, list[Callable[[Model], None]]] = {
    "constant": [halves_in_order, halves_shuffled, gap_by_topic],
    "orthogonal": [gap_anywhere, gap_in_span, gap_along_main_axis],
    "gaussian": [laplace_in_some, heavy_tails],
    "isotropic": [noise_in_half, decaying_noise],
}


@dataclass(frozen=True)
class Shape:
    """A store that is hard to judge.

    Attributes:
        what: in words.
        sizes: numbers of items to draw.
        change: makes it of the model.
        copies: how often each pair is in the store.
    """

    what: str
    sizes: tuple[int, ...]
    change: Callable[[Model], None]
    copies: int = 1


def set_gap(length: float, noise: float) -> Callable[[Model], None]:
    """Return a change of the length of the gap and of the root mean square length of the noise."""

    def change(model: Model) -> None:
        model.gap *= length / GAP
        model.noise *= noise / NOISE

    return change


def no_gap(model: Model) -> None:
    """Leave no gap, and give both modalities the same noise."""
    model.gap[:] = 0
    model.image_noise = model.draw_noise(model.rng.standard_normal) / np.sqrt(2)
    model.noise /= np.sqrt(2)


def random_encoder(model: Model) -> None:
    """Let images and texts have nothing in common, and images few directions."""
    model.content *= np.arange(DIM) < 4
    model.noise = model.rng.standard_normal(model.noise.shape) * model.sizes
    model.noise -= model.content[model.owner]


def no_noise(model: Model) -> None:
    """Make each image equal to its text."""
    model.gap[:] = 0
    model.noise[:] = 0


def ten_gaps(model: Model) -> None:
    """Draw the gap of each item from ten, each 35 degrees from the others."""
    # ten vectors with a common part and a part of their own: cos 35 is the common share of a square
    common = np.cos(np.radians(35))
    number = model.rng.integers(10, size=len(model.gap))
    model.gap[:] = GAP * np.sqrt(common) * np.eye(DIM)[-1]
    model.gap[np.arange(len(number)), DIM - 13 + number] += GAP * np.sqrt(1 - common)


def flat_noise(model: Model) -> None:
    """Draw the noise from uniform distributions, whose variance decays like 1 / k."""
    model.noise = model.draw_noise(lambda shape: model.rng.uniform(-1, 1, size=shape) * np.sqrt(3))
    variance = 1 / (1 + np.arange(DIM))
    model.noise *= np.sqrt(variance / np.mean(variance)) * 2


def gap_along_means(model: Model) -> None:
    """Lay the gap along the means of both modalities: content + 8 e0 and content - 8 e0."""
    model.base = np.zeros(DIM)
    model.gap[:, -1] = 16


SHAPES = [
    Shape("a gap of half the squared distance of a pair", (12, 24), set_gap(0.3, 0.3)),
    Shape("a gap of 16% of the squared distance of a pair", (60,), set_gap(0.15, 0.344)),
    Shape("no gap", (6, 12, 24, 60, 200), no_gap),
    Shape("no gap, ten copies of each pair", (6, 12, 24), no_gap, copies=10),
    Shape("the model, ten copies of each pair", (12, 24, 60), set_gap(GAP, NOISE), copies=10),
    Shape("a random encoder", (12, 60, 200), random_encoder),
    Shape("the model", (3, 4, 6, 8, 12, 24), set_gap(GAP, NOISE)),
    Shape("images equal to their texts", (12, 60), no_noise),
    Shape("ten gaps 35 degrees apart, mixed at random", (200, 1_000), ten_gaps),
    Shape("flat noise of a decaying variance", (200, 1_000), flat_noise),
    Shape("a gap along both means", (60, 200, 1_000), gap_along_means),
]


def random_pairs(model: Model) -> None:
    """Give each text the content of another image."""
    others = model.rng.permutation(model.content)
    model.noise += (others - model.content)[model.owner]


def weak_alignment(model: Model) -> None:
    """Let images and texts share a fifth of the variance of their content."""
    other = model.rng.standard_normal(model.content.shape) * model.sizes
    model.noise += (np.sqrt(0.2) * model.content + np.sqrt(0.8) * other - model.content)[
        model.owner
    ]


def one_text_for_twenty(model: Model, *, related: bool = True) -> None:
    """Give twenty images of one topic the same text, of their topic or of another."""
    topic = np.arange(len(model.content)) // 20
    topics = model.rng.standard_normal((topic[-1] + 1, DIM)) * model.sizes
    texts = topics if related else model.rng.permutation(topics)
    model.content = topics[topic] + model.content / 2
    model.noise = texts[topic] - model.content


def unrelated_text_for_twenty(model: Model) -> None:
    """Give twenty images of one topic the same text, of another topic."""
    one_text_for_twenty(model, related=False)


OF_CLUSTERS = [
    Shape("the model", (49, 50, 100, 500, 2_000), set_gap(GAP, NOISE)),
    Shape("twice the noise", (50, 100, 500, 2_000), set_gap(GAP, 2 * NOISE)),
    Shape("a random encoder", (50, 100, 500, 2_000), random_encoder),
    Shape("random pairs", (50, 100, 500, 2_000), random_pairs),
    Shape("weak alignment", (50, 100, 500, 2_000), weak_alignment),
    Shape("one text for twenty images", (100, 500, 2_000), one_text_for_twenty),
    Shape("an unrelated text for twenty like images", (100, 500, 2_000), unrelated_text_for_twenty),
    Shape("two domains, each with a gap of its own", (100, 500, 2_000), halves_shuffled),
]
QUESTIONS = ("gap", *BREAKS, "unusual")
FEW_ROWS = "embed more rows"
"""What the report says is unusual of any store that is small."""


def write_store(path: Path, image: Floats, text: Floats, owner: npt.NDArray[np.int64]) -> Store:
    """Write a store of these pairs, and open it."""
    keys = [f"i{number}" for number in range(len(image))]
    info = StoreInfo(ModelIdentity(name="drawn"), image.shape[1], dtype="float32")
    create_store(path, info)
    columns = {
        "key": [f"t{number}" for number in range(len(text))],
        "image_key": [keys[item] for item in owner],
    }
    for modality, vectors, own in (("image", image, {"key": keys}), ("text", text, columns)):
        table = shard_table(info, modality, vectors, own)
        write_rows(path / part_name(modality, 0), info, modality, table)
    return Store.open(path)


def report_answers(shape: Shape, items: int, draws: int) -> list[dict[str, str]]:
    """Return the answers of the whole report on so many draws of a shape."""
    found = []
    for draw in range(draws):
        model = Model(items, 1, generator(draw, "assumption power", shape.what, items))
        shape.change(model)
        image, text = (np.repeat(rows, shape.copies, axis=0) for rows in model.rows())
        with tempfile.TemporaryDirectory() as folder:
            store = write_store(Path(folder) / "store", image, text, np.arange(len(image)))
            report = gap_report(store, presets=("raw",))
        judged = {**report.assumptions, **report.verdict}
        words: dict[str, str] = {question: judged[question].answer for question in QUESTIONS}
        remarks = judged["unusual"].because.split(". ")
        if all(FEW_ROWS in remark for remark in remarks):
            words["unusual"] = "no"
        found.append(words)
    return found


def verdicts(image: Floats, text: Floats, owner: npt.NDArray[np.int64]) -> dict[str, str]:
    """Write a store, read it, and return the answer to each of the four questions."""
    with tempfile.TemporaryDirectory() as folder:
        collected = collect(
            write_store(Path(folder) / "store", image, text, owner), "image", "text"
        )
        working = collected.working
        noise = residuals(working.first[working.item_index] - working.second, working.item_index)
        found = answer_questions(collected, noise, has_gap=True)
        return {question: str(answer.answer) for question, answer in found.items()}


def answers(
    change: Callable[[Model], None] | None, items: int, captions: int, draws: int
) -> list[dict[str, str]]:
    """Return the verdicts on so many draws of the model, or of one of its breaks."""
    found = []
    for draw in range(draws):
        model = Model(items, captions, generator(draw, "assumption power", items, captions))
        if change is not None:
            change(model)
        found.append(verdicts(*model.rows(), model.owner))
    return found


def main() -> None:
    """Print how often each answer is given: yes / partly / no."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=20, help="stores per cell")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of images")
    parser.add_argument(
        "--shapes", action="store_true", help="print the table of stores that are hard to judge"
    )
    parser.add_argument(
        "--clusters", action="store_true", help="print the answers on clusters of both modalities"
    )
    arguments = parser.parse_args()
    if arguments.clusters:
        print_clusters(arguments.draws)
    elif arguments.shapes:
        print_shapes(arguments.draws)
    else:
        print_breaks(arguments.draws, arguments.sizes)


def print_clusters(draws: int) -> None:
    """Print counts of the answers on clusters of both modalities, with medians of what decides."""
    rows = []
    for shape in OF_CLUSTERS:
        for items in shape.sizes:
            found = []
            lows = []
            shares = []
            for draw in range(draws):
                model = Model(items, 1, generator(draw, "clusters", shape.what, items))
                shape.change(model)
                image, text = model.rows()
                raw = {"image": image.astype(np.float32), "text": text.astype(np.float32)}
                pipeline = Calibration.fit(raw).pipeline
                first, second = (pipeline.transform(raw[name], modality=name) for name in raw)
                sample = Sample(first, second, np.arange(items), complete=True)
                mixed = measure_mixed_clusters(sample, ("image", "text"), seed=draw)
                answer = judge_clusters(mixed, ["image", "text"])
                found.append({"clusters": str(answer.answer)})
                if mixed is not None:
                    lows.append((mixed.kappa["cross"].interval or (0, 1))[0])
                    shares.append(mixed.one_kind["cross"])
            medians = [f"{np.median(values):.2f}" if values else "" for values in (lows, shares)]
            name = f"{shape.what}, {items:,} items"
            rows.append([name, _counts(found, "clusters"), *medians])
    print_table(["store", "yes / partly / no / unknown", "lower end of κ", "U"], rows)


def print_shapes(draws: int) -> None:
    """Print counts of the answers of the report on each of `SHAPES`.

    Nothing counts as unusual that only says that there are few rows.
    """
    rows = []
    for shape in SHAPES:
        for items in shape.sizes:
            found = report_answers(shape, items, draws)
            counts = (_counts(found, question) for question in QUESTIONS)
            rows.append([f"{shape.what}, {items:,} items", *counts])
    print_table(["yes / partly / no / unknown", *QUESTIONS], rows)


def print_breaks(draws: int, sizes: Sequence[int]) -> None:
    """Print the share of each answer, in percent, for the model and for each of its breaks."""
    cases = [(items, captions) for captions in (1, 5) for items in sizes]
    rows = []
    drawn = [answers(None, items, captions, draws) for items, captions in cases]
    for question in BREAKS:
        rows.append([f"{question}: the model", *(_shares(found, question) for found in drawn)])
    for question, changes in BREAKS.items():
        for change in changes:
            found = [answers(change, items, captions, draws) for items, captions in cases]
            what = (change.__doc__ or "").rstrip(".")
            rows.append(
                [
                    f"{question}: {what[0].lower()}{what[1:]}",
                    *(_shares(each, question) for each in found),
                ]
            )
    heads = [f"{items:,} × {captions}" for items, captions in cases]
    print_table(["question: store", *heads], rows)


def _counts(found: list[dict[str, str]], question: str) -> str:
    words = [each[question] for each in found]
    return " / ".join(str(words.count(word)) for word in ("yes", "partly", "no", "unknown"))


def _shares(found: list[dict[str, str]], question: str) -> str:
    counts = [sum(each[question] == answer for each in found) for answer in ("yes", "partly", "no")]
    return " / ".join(f"{100 * count / len(found):.0f}" for count in counts)


if __name__ == "__main__":
    main()
