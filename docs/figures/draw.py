"""Draw the figures of the README and of the concept pages from the bundled photos, with c3-mini.

    python docs/figures/draw.py

It takes half a minute and writes the SVG files beside it.
"""

from __future__ import annotations

import base64
import io
import re
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter
from PIL import Image, ImageOps

import c3tools
from c3tools.assets.paths import C3_MINI_MOMENTS, PHOTOS
from c3tools.moments import load_moments
from c3tools.pages import close_up, new_figure, palette, save_figure, styled
from c3tools.store import Pairs, Store
from c3tools.transforms.sigma import SPREADS

HERE = Path(__file__).parent
QUERY = "a kitchen"
COLOURS = {"image": palette.FIRST, "text": palette.SECOND}
Rows = npt.NDArray[np.float32]


def first_pairs(pairs: Pairs) -> tuple[Rows, Rows]:
    """Return each photo and its first caption, row by row."""
    images, texts = pairs.first.embeddings, pairs.second.embeddings
    first = [int(np.flatnonzero(pairs.item_index == item)[0]) for item in range(len(images))]
    return images, texts[first]


def axes_of(images: Rows, texts: Rows) -> tuple[Rows, Rows]:
    """Return the direction of the gap, and the two in which rows vary most besides, (d, 2)."""
    gap = images.mean(0) - texts.mean(0)
    gap /= np.linalg.norm(gap)
    centred = np.concatenate([images - images.mean(0), texts - texts.mean(0)])
    centred -= np.outer(centred @ gap, gap)
    return gap, np.linalg.svd(centred, full_matrices=False)[2][:2].T


def scatter(
    axes: Axes, images: Rows, texts: Rows, view: Rows, title: str, *, lines: bool = True
) -> None:
    """Draw pairs of rows, joined by lines, in two dimensions."""
    first, second = images @ view, texts @ view
    if lines:
        joined = LineCollection(
            list(np.stack([first, second], axis=1)), colors=palette.RULE, linewidths=0.6, zorder=1
        )
        axes.add_collection(joined)
    for (x, y), name, label in ((first.T, "image", "photos"), (second.T, "text", "captions")):
        axes.scatter(x, y, s=11, color=COLOURS[name], label=label, zorder=2)
    axes.set(title=title, xlim=(-1, 1), ylim=(-0.75, 0.75))
    close_up(axes, ticks=False)


def transformed(store: Store, preset: str, **settings: Any) -> tuple[Rows, Rows]:
    """Return photos and first captions as a preset gives them to training."""
    images, texts = first_pairs(store.pairs("image", "text", split="all"))
    pipeline = c3tools.preset(preset, **settings).fit({"image": images, "text": texts})
    keys = [str(number) for number in range(len(texts))]
    noised = pipeline.transform(texts, modality="text", training=True, keys=keys)
    return pipeline.transform(images, modality="image"), noised


def first_hits(store: Store, query: str, k: int) -> dict[str, list[Image.Image | str]]:
    """Return the k best of a corpus in which each item is a photo or a caption, never both: by the
    cosine, and by the calibrated scores of `c3 search`.
    """
    pairs = store.pairs("image", "text", split="all")
    shown = np.random.default_rng(0).permutation(len(pairs.first.keys))
    photos, others = np.sort(shown[: len(shown) // 2]), np.sort(shown[len(shown) // 2 :])
    captions = [int(np.flatnonzero(pairs.item_index == item)[0]) for item in others]
    rows = {
        "image": pairs.first.embeddings[photos],
        "text": pairs.second.embeddings[captions],
    }
    contents: dict[str, list[Image.Image | str]] = {
        "image": [thumbnail(pairs.first.keys[photo]) for photo in photos],
        "text": [pairs.second.captions[caption] for caption in captions],
    }
    asked = c3tools.load_encoder("c3-mini").encode_queries([query])
    scores = np.concatenate([rows["image"], rows["text"]]) @ asked[0]
    everything = [*contents["image"], *contents["text"]]

    calibration = c3tools.Calibration.fit(store)
    collapsed_query = calibration.pipeline.transform(asked, modality="text")[0]
    found = {}
    for modality, embeddings in rows.items():
        cosines = calibration.pipeline.transform(embeddings, modality=modality) @ collapsed_query
        best = np.argsort(-cosines)[:k]
        found[modality] = best, cosines[best]
    merged = calibration.merge(collapsed_query, found, k=k)
    return {
        "By cosine": [everything[row] for row in np.argsort(-scores)[:k]],
        "By c3 search": [contents[modality][row] for row, modality, _ in merged],
    }


def thumbnail(key: str) -> Image.Image:
    """Return the middle square of a bundled photo."""
    photo = Image.open(PHOTOS / "images" / f"{key}.jpg")
    return ImageOps.fit(photo, (240, 240))


@styled
def draw_readme(hits: dict[str, list[Image.Image | str]], query: str) -> None:
    """Draw the first hits of one query, by the cosine and by `c3 search`."""
    columns = len(next(iter(hits.values())))
    figure, axes = new_figure(9.4, 4.9, len(hits), columns)
    for line, (way, found) in zip(axes, hits.items(), strict=True):
        for rank, (place, hit) in enumerate(zip(line, found, strict=True), start=1):
            place.set(xlim=(0, 1), ylim=(1, 0), xticks=[], yticks=[], aspect="equal")
            place.grid(visible=False)
            place.spines[:].set_visible(True)
            place.spines[:].set_color(palette.RULE)
            if isinstance(hit, str):
                wrapped = textwrap.fill(hit, 19)
                place.text(0.07, 0.5, wrapped, va="center", fontsize=9.5, color=palette.INK)
            else:
                place.imshow(hit, extent=(0, 1, 1, 0))
            kind = "caption" if isinstance(hit, str) else "photo"
            place.set_xlabel(f"{rank}  {kind}", loc="left", color=palette.MUTED)
        line[0].set_title(f"{way}: “{query}”", loc="left", fontsize=11)
    save_figure(figure, HERE / "readme.svg")
    with_jpeg(HERE / "readme.svg")


def with_jpeg(path: Path) -> None:
    """Store the photo in an SVG file as JPEG, a tenth of the size of the PNG that matplotlib
    writes.
    """

    def convert(match: re.Match[str]) -> str:
        photo = Image.open(io.BytesIO(base64.b64decode(match[1]))).convert("RGB")
        jpeg = io.BytesIO()
        photo.save(jpeg, "JPEG", quality=82)
        return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()

    path.write_text(
        re.sub(r"data:image/png;base64,([^\"]+)", convert, path.read_text("utf-8")),
        encoding="utf-8",
    )


@styled
def draw_gap(images: Rows, texts: Rows, view: Rows) -> None:
    """Draw the two regions, with the means and the gap between them."""
    figure, axes = new_figure(6.4, 3.4)
    scatter(axes, images, texts, view, f"{len(images)} photos and a caption of each")
    start, end = images.mean(0) @ view, texts.mean(0) @ view
    axes.annotate(
        "", xy=end, xytext=start, arrowprops={"arrowstyle": "<->", "color": palette.INK, "lw": 1.4}
    )
    length = float(np.linalg.norm(images.mean(0) - texts.mean(0)))
    axes.text(*((start + end) / 2 + [0, 0.05]), f"gap {length:.2f}", ha="center", fontsize=9)
    axes.legend(loc="lower center", ncols=2)
    save_figure(figure, HERE / "modality-gap.svg")


@styled
def draw_steps(store: Store, view: Rows) -> None:
    """Draw the space after each of the three steps."""
    figure, axes = new_figure(9.4, 2.9, 1, 3)
    scatter(axes[0], *transformed(store, "c1"), view, "1  Connect")
    scatter(axes[1], *transformed(store, "c2-collapse"), view, "2  Collapse")
    scatter(axes[2], *transformed(store, "c3", sigma=0.06), view, "3  Corrupt", lines=False)
    axes[0].legend(loc="lower center", ncols=2)
    axes[2].set_xlabel("captions with noise: what a decoder trains on")
    save_figure(figure, HERE / "three-cs.svg")


def draw_box(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, **style: Any
) -> None:
    """Draw a box with rounded corners around its text; the corner is the lower left one."""
    (x, y), (width, height) = corner, size
    look = {"lw": 0.9, "ec": palette.FIRST, "fc": "none", **style}
    boxstyle = "round,pad=0.2,rounding_size=0.8"
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=boxstyle, **look))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7.5)


def draw_frame(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], title: str
) -> None:
    """Draw a dashed frame with its title above it."""
    frame = FancyBboxPatch(corner, *size, boxstyle="round,pad=0.2")
    frame.set(linewidth=0.8, linestyle="--", edgecolor=palette.MUTED, facecolor="none")
    axes.add_patch(frame)
    place = corner[0] + size[0] / 2, corner[1] + size[1] + 0.3
    axes.text(*place, title, ha="center", va="bottom", fontsize=7.5, color=palette.MUTED)


def draw_arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Draw an arrow between two boxes."""
    look = {"arrowstyle": "->", "color": palette.MUTED, "lw": 1.2}
    axes.annotate("", xy=end, xytext=start, arrowprops=look)


@styled
def draw_store() -> None:
    """Draw what goes into a store and what is read from it."""
    figure, axes = new_figure(9.4, 2.5)
    axes.set(xlim=(0, 94), ylim=(0, 25))
    axes.axis("off")
    boxes = {
        "corpus\nphotos, captions": (1, 9, 14, 8),
        "encoder": (21, 9, 11, 8),
        "shards\nimage/part-00000.parquet": (39, 17, 24, 6),
        "moments.safetensors": (39, 9.5, 24, 6),
        "manifest.json": (39, 2, 24, 6),
        "gap report": (75, 19, 17, 4.5),
        "export, index": (75, 13.5, 17, 4.5),
        "decoder, generator": (75, 8, 17, 4.5),
        "verify, merge, split": (75, 2.5, 17, 4.5),
    }
    for text, (x, y, width, height) in boxes.items():
        draw_box(axes, (x, y), (width, height), text)
    draw_frame(axes, (36, 0.7), (30, 23.6), "c3-store/")
    for start, end in (((15.5, 13), (20.5, 13)), ((32.5, 13), (35.5, 13)), ((66.5, 13), (74, 13))):
        draw_arrow(axes, start, end)
    save_figure(figure, HERE / "stores.svg")


@styled
def draw_run() -> None:
    """Draw who calls whom in `c3 embed`, in order from top to bottom."""
    figure, axes = new_figure(9.4, 4.7)
    axes.set(xlim=(0, 96), ylim=(0, 48))
    axes.axis("off")
    width, height, pitch = 16.5, 4.4, 6.2
    command, call, step, work, batch = 0.5, 19.5, 40.5, 59.5, 78.5  # left ends of the columns
    steps = [
        ("create_store", "store/manifest.py", "writes store.json"),
        ("StoreWriter.adopt", "store/manifest.py", "keeps finished shards of an interrupted run"),
        ("with_stored_keys", "embedding/keys.py", "a file keeps the key of its row"),
        ("plan_corpus", "embedding/plan.py", "the inputs of each shard;\nnew, changed, gone"),
        ("Executor.run", "executors/", ""),
        ("StoreWriter.finish", "store/manifest.py", "moments, failures,\nlast manifest.json"),
        ("record_inputs", "embedding/inputs.py", "writes inputs.parquet"),
    ]
    rows = [1.3 + pitch * row for row in reversed(range(len(steps)))]
    upper, middle, shard = rows[1], rows[3], rows[4]
    boxes = [
        ("c3 embed photos/", "cli/stores.py", command, upper),
        ("c3tools.embed", "embedding/embed.py", command, middle),
        ("read_corpus", "corpus/reading.py", call, upper),
        ("embed_corpus", "embedding/embed.py", call, middle),
        *((name, place, step, y) for (name, place, _), y in zip(steps, rows, strict=True)),
        ("EmbedWork.run", "embedding/shard_work.py", work, shard),
        ("decoded_batches", "photos/decoding.py", batch, shard + pitch),
        ("Encoder.encode_batches", "encoders/encoder.py", batch, shard),
        ("write_rows", "store/shards.py", batch, shard - pitch),
    ]
    colours = {"embedding": palette.FIRST, "store": palette.SECOND}
    for name, place, x, y in boxes:
        edge = colours.get(place.partition("/")[0], palette.MUTED)
        draw_box(axes, (x, y), (width, height), f"{name}\n{place}", ec=edge)
    for (_, _, note), y in zip(steps, rows, strict=True):
        style = {"va": "center", "fontsize": 7, "color": palette.MUTED, "linespacing": 1.3}
        axes.text(work - 0.8, y + height / 2, note, **style)
    draw_frame(axes, (39, 0.4), (56.5, 44), "the store is locked")

    down = command + width / 2
    draw_arrow(axes, (down, upper - 0.4), (down, middle + height + 0.4))
    calls = [
        *((command, middle, call, y) for y in (upper, middle)),
        *((call, middle, step, y) for y in rows),
        (step, shard, work, shard),
        *((work, shard, batch, y) for y in (shard + pitch, shard, shard - pitch)),
    ]
    for caller, from_y, called, to_y in calls:
        start = caller + width + 0.3, from_y + height / 2
        draw_arrow(axes, start, (called - 0.3, to_y + height / 2))
    save_figure(figure, HERE / "run.svg")


@styled
def draw_moments() -> None:
    """Draw the standard error of a mean by the number of rows, from the moments of c3-mini's
    training data.
    """
    figure, axes = new_figure(6.4, 3.2)
    counts = np.geomspace(10, 30_000, 60)
    for modality, moments in load_moments(C3_MINI_MOMENTS)[0].items():
        trace = float(np.trace(moments.covariance))
        label = {"image": "photos", "text": "captions"}[modality]
        axes.plot(counts, np.sqrt(trace / counts), color=COLOURS[modality], label=label)
    axes.axhline(1.01, color=palette.MUTED, lw=0.9, ls="--")
    axes.text(
        30_000, 1.05, "the gap itself", ha="right", va="bottom", fontsize=8, color=palette.MUTED
    )
    axes.set(
        xscale="log", yscale="log", xlabel="independent rows", title="Standard error of the mean"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.legend()
    save_figure(figure, HERE / "moments.svg")


@styled
def draw_sigma(store: Store) -> None:
    """Draw the cosine of a noised caption with the clean one by sigma, and where the rules fall on
    it.
    """
    rules = c3tools.gap_report(store).to_dict()["sigma"]["candidates"]
    rows = store.load("text").embeddings
    centred = rows - rows.mean(0)
    noise = np.random.default_rng(0).standard_normal(centred.shape)

    def cosine(sigma: float) -> float:
        return float((unit(centred) * unit(centred + sigma * noise)).sum(1).mean())

    figure, axes = new_figure(6.4, 3.4)
    sigmas = np.linspace(0, 0.2, 60)
    axes.plot(sigmas, [cosine(sigma) for sigma in sigmas], color=palette.FIRST)
    labels = {
        "caption_spread": "another caption of the same photo",
        "scaled_spread": f"--sigma auto: {SPREADS:g} times the first",
        "pair_cosine": "the photo itself",
        "published": "published constant",
    }
    for name, label in labels.items():
        sigma = rules[name]["sigma"]
        axes.plot(sigma, cosine(sigma), "o", color=palette.SECOND)
        axes.annotate(
            f"{label}  {sigma:.3f}",
            (sigma, cosine(sigma)),
            (6, 3),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(
        xlabel="sigma",
        title="Cosine of a caption with noise to the same caption without",
        ylim=(0, 1.05),
    )
    save_figure(figure, HERE / "sigma.svg")


def unit(rows: Rows) -> Rows:
    """Return the rows at length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def main() -> None:
    """Embed the bundled photos and draw everything."""
    with tempfile.TemporaryDirectory() as folder:
        c3tools.copy_photos(Path(folder) / "images")
        store = c3tools.embed(
            Path(folder) / "images", Path(folder) / "store", backend="torch", precision="fp32"
        )
        pairs = store.pairs("image", "text", split="all")
        images, texts = first_pairs(pairs)
        gap, content = axes_of(images, texts)
        along = np.stack([gap, content[:, 0]], axis=1)
        # At an angle to the gap, rows without it spread in both directions
        aslant = np.stack([(gap + content[:, 1]) / np.sqrt(2), content[:, 0]], axis=1)
        middle = (images.mean(0) + texts.mean(0)) / 2
        draw_readme(first_hits(store, QUERY, 5), QUERY)
        draw_gap(images - middle, texts - middle, along)
        draw_steps(store, aslant)
        draw_store()
        draw_run()
        draw_moments()
        draw_sigma(store)


if __name__ == "__main__":
    main()
