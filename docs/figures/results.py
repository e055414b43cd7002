"""Draw the figures of the results and of the presets from the tables of their pages.

    python docs/figures/results.py

It takes a few seconds, needs no data, and writes the SVG files beside the pages.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from c3tools.pages import new_figure, palette, save_figure, styled
from c3tools.paper.ablation.methods import ABLATION

RESULTS = Path(__file__).parents[1] / "results"
COLOURS = (palette.MUTED, palette.FIRST, palette.SECOND)
WIDTH = 5.2  # inches; on a phone, letters are as large as here


def table_of(page: str, heading: str) -> dict[str, list[str]]:
    """Return the cells of each row by its first cell, of the table of a page whose header begins
    with this heading.
    """
    text = (RESULTS / page).read_text("utf-8")
    lines = text[text.index(f"\n| {heading} |") + 1 :].partition("\n\n")[0].splitlines()
    rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {first: cells for first, *cells in rows}


def numbers(cell: str) -> list[float]:
    """Return the numbers of a cell."""
    return [float(number) for number in re.findall(r"[-+]?\d*\.?\d+", cell.replace("−", "-"))]


def grouped_bars(axes: Axes, groups: list[str], bars: dict[str, list[tuple[float, float]]]) -> None:
    """Draw bars side by side in each group: (height, half of the error bar) by label."""
    width = 0.8 / len(bars)
    for number, (label, values) in enumerate(bars.items()):
        places = np.arange(len(groups)) + (number - (len(bars) - 1) / 2) * width
        heights, errors = zip(*values, strict=True)
        axes.bar(
            places,
            heights,
            0.92 * width,
            yerr=errors,
            color=COLOURS[number],
            label=label,
            error_kw={"ecolor": palette.INK, "elinewidth": 0.9},
        )
    axes.set_xticks(range(len(groups)), groups)


@styled
def draw_captions() -> None:
    """Draw CIDEr by method."""
    table = table_of("captions.md", "method | CIDEr, 5 beams")
    names = [re.split("[ ,]", method)[0] for method in table]
    means = [numbers(cells[0])[0] for cells in table.values()]
    sides = [numbers(cells[1])[0] for cells in table.values()]
    figure, axes = new_figure(WIDTH, 3.6)
    colours = [palette.FIRST if name in ABLATION else palette.MUTED for name in names]
    axes.barh(
        names,
        means,
        0.7,
        color=colours,
        xerr=sides,
        error_kw={"ecolor": palette.INK, "elinewidth": 0.9},
    )
    axes.set(title="CIDEr on Flickr8k with 95% intervals, 5 beams", xlabel="%")
    save_figure(figure, RESULTS / "flickr8k-captions.svg")


@styled
def draw_mixed_search() -> None:
    """Draw NDCG@10 where half of the corpus are photos."""
    table = table_of("mixed-search.md", "method | c3-mini: text")
    groups = [
        f"{name}\n{kind}"
        for name in ("c3-mini", "ViT-B/16", "ViT-B/32")
        for kind in ("text", "photo")
    ]
    bars = {}
    for name in ("cosine", "Collapse", "calibrated"):
        bars[name] = [(values[0], values[1]) for values in map(numbers, table[name])]
    figure, axes = new_figure(WIDTH, 3.4)
    grouped_bars(axes, groups, bars)
    axes.set(title="NDCG@10 by encoder and kind of query, %", xlabel="half photos, half captions")
    axes.set_ylim(0, 112)
    axes.legend(loc="upper left", ncols=3)
    save_figure(figure, RESULTS / "mixed-search.svg")


@styled
def draw_codes() -> None:
    """Draw recall@10 of text queries by code, before and after own means are subtracted."""
    with (RESULTS / "codes.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["queries"], row["k"]) == ("text", "10")]
    figure, both = new_figure(WIDTH, 6.4, 2, 1)
    sets = {"Flickr8k test, c3-mini": "c3-mini, 256 dimensions"}
    sets["COCO, ViT-B/16"] = "CLIP ViT-B/16, 512 dimensions"
    for axes, (name, title) in zip(both, sets.items(), strict=True):
        recall = {
            (row["code"], row["subtracted"]): (int(row["bytes per row"]), float(row["recall"]))
            for row in rows
            if row["set"] == name
        }
        codes = ["sign", "RR, sign", "RaBitQ", "RR, RaBitQ", "RaBitQ4", "int8", "float32"]
        labels = []
        for place, code in enumerate(codes):
            size, before = recall[code, "raw"]
            after = recall[code, "own means"][1]
            axes.plot([place, place], [before, after], color=palette.RULE, lw=2, zorder=1)
            axes.plot(place, before, "o", color=palette.MUTED, markersize=6)
            axes.plot(place, after, "o", color=palette.SECOND, markersize=6)
            labels.append(f"{code.replace('RR, ', 'rotated' + chr(10))}\n{size} B")
        axes.set(title=title, ylabel="recall@10 of text queries, %", ylim=(0, 105))
        axes.set_xticks(range(len(codes)), labels)
    both[0].plot([], [], "o", color=palette.MUTED, markersize=5, label="raw")
    both[0].plot([], [], "o", color=palette.SECOND, markersize=5, label="own means subtracted")
    both[0].legend(loc="upper left")
    save_figure(figure, RESULTS / "codes.svg")


@styled
def draw_clusters() -> None:
    """Draw the share of pairs in one cluster beyond chance, by way of clustering."""
    table = table_of("clusters.md", "κ (U) | k")
    labels = {
        "COCO, 500 pairs": "COCO",
        "Flickr8k, 100 photos": "Flickr8k\nViT-B/32",
        "Flickr8k test": "Flickr8k\ntest",
        "Flickr8k val": "Flickr8k\nval",
        "the bundled photos": "bundled\nphotos",
        "the same, c3-mini with": "random\nweights",
        "COCO, pairs exchanged": "exchanged\npairs",
    }
    rows = [
        next(cells for name, cells in table.items() if name.startswith(start)) for start in labels
    ]
    bars = {
        way: [(100 * numbers(cells[column])[0], np.nan) for cells in rows]
        for column, way in ((1, "k-means"), (2, "after Collapse"), (3, "cross-centroids"))
    }
    figure, axes = new_figure(WIDTH, 3.2)
    grouped_bars(axes, list(labels.values()), bars)
    for place, cells in enumerate(rows):
        ends = [100 * end for end in numbers(cells[4])]
        axes.plot([place + 0.8 / 3] * 2, ends, color=palette.INK, lw=0.9)
    axes.set(title="New pairs in one cluster, beyond chance (κ, %)", ylim=(-6, 110))
    axes.legend(loc="upper center", ncols=3)
    save_figure(figure, RESULTS / "clusters.svg")


@styled
def draw_images() -> None:
    """Draw the Fréchet distance of generated images by method."""
    table = table_of("images.md", "method | FD, former c3-mini")
    bars = {
        judge: [
            (values[0], values[1]) for values in (numbers(row[column]) for row in table.values())
        ]
        for column, judge in ((0, "judged by the former c3-mini"), (3, "judged by c3-mini"))
    }
    figure, axes = new_figure(WIDTH, 3)
    grouped_bars(axes, list(table), bars)
    axes.set(title="Fréchet distance to real photos (lower is better)")
    axes.set_ylim(0, 0.35)
    axes.legend(loc="upper right")
    save_figure(figure, RESULTS / "images.svg")


@styled
def draw_presets() -> None:
    """Draw gap and recall of the presets on real CLIP pairs."""
    table = table_of("../reference/presets.md", "preset | gap")
    names = [re.sub("^((?:[^,]+,){2}) ", r"\1\n", name) for name in table]
    gap, chance, to_text, to_image = (
        np.array([numbers(cells[column])[0] for cells in table.values()]) for column in (0, 1, 3, 4)
    )
    figure, (left, right) = new_figure(9.4, 4.4, 1, 2, sharey=True)
    left.barh(names, gap, 0.7, color=palette.FIRST)
    left.plot(chance, names, "|", color=palette.INK, markersize=9, label="by chance")
    left.set(title="Distance of the two means")
    left.legend(loc="lower right")
    right.barh(names, (to_text + to_image) / 2, 0.7, color=palette.SECOND)
    right.set(title="Recall@1, mean of both directions (%)")
    left.invert_yaxis()
    left.tick_params(axis="y", labelsize=8)
    save_figure(figure, RESULTS.parent / "reference" / "presets.svg")


def main() -> None:
    """Draw all figures."""
    draw_presets()
    draw_images()
    draw_clusters()
    draw_captions()
    draw_codes()
    draw_mixed_search()


if __name__ == "__main__":
    main()
