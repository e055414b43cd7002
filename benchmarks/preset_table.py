"""Compare all presets on 500 real CLIP pairs, and write docs/reference/presets.md.

    python benchmarks/preset_table.py FOLDER             # prints the table
    python benchmarks/preset_table.py FOLDER --write     # also writes docs/reference/presets.md

FOLDER contains image.npy and text.npy, paired rows: 500 image and caption embeddings of COCO
val2017 by OpenAI's CLIP ViT-B/16 (512 dimensions). In each of 20 splits, the pipeline (means, maps,
memories) is fitted on one half, and the other half is measured as inference inputs, so no pair is
used for both. The table shows mean ± standard deviation over the splits.

Takes about a minute on 2 cores. It should print a gap near 0.85 for c1, and a gap near that by
chance for c2-collapse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from c3tools.geometry.spaces import modality_bias
from c3tools.moments import Moments
from c3tools.seeds import generator
from c3tools.transforms import PRESETS, preset

HERE = Path(__file__).resolve().parent.parent
PAGE = HERE / "docs" / "reference" / "presets.md"
# places in what `measure` returns
PAIRED = 2
TRAINING = 5


def measure(name: str, x: np.ndarray, y: np.ndarray, split: int) -> list[float]:
    """Measure one preset on one split: x images, y texts, paired rows."""
    order = generator(0, "preset table", split).permutation(len(x))
    fit, held = order[: len(x) // 2], order[len(x) // 2 :]
    moments = {"image": Moments.from_rows(x[fit]), "text": Moments.from_rows(y[fit])}
    items = [str(row) for row in fit]
    pipeline = preset(name).fit(moments, {"image": x[fit], "text": y[fit]}, items={"text": items})
    image = pipeline.transform(x[held], modality="image").astype(np.float64)
    text = pipeline.transform(y[held], modality="text").astype(np.float64)
    names = [str(row) for row in held]
    noised = pipeline.transform(
        y[held], modality="text", training=True, keys=names, items=names, seed=split
    ).astype(np.float64)
    cosines = image @ text.T
    fitted = 1 / len(fit) if any(step.state for step in pipeline.steps) else 0.0
    own, n = np.diag(cosines), len(held)
    return [
        float(np.linalg.norm(image.mean(axis=0) - text.mean(axis=0))),
        float(np.sqrt((image - text).var(axis=0, ddof=1).sum() * (1 / n + fitted))),
        float(own.mean()),
        100 * recall_at_1(cosines),
        100 * recall_at_1(cosines.T),
        float((image * noised).sum(axis=1).mean()),
        *(estimate.value for estimate in modality_bias(image, text)),
    ]


def recall_at_1(cosines: np.ndarray) -> float:
    """Share of rows whose own column is the largest; equal values count as a chance among them."""
    own = np.diag(cosines)[:, None]
    better, equal = (cosines > own).sum(axis=1), (cosines == own).sum(axis=1)
    return float(np.where(better == 0, 1 / equal, 0).mean())


def measured(x: np.ndarray, y: np.ndarray, splits: int) -> dict[str, list[str]]:
    """Return mean ± standard deviation of each measure, by preset."""
    cells_of = {}
    for name in PRESETS:
        # gr-clip with another norm for each modality
        if name == "fair":
            continue
        values = np.array([measure(name, x, y, split) for split in range(splits)])
        cells_of[name] = [
            f"{mean:.{digits}f} ± {std:.{digits}f}"
            for mean, std, digits in zip(
                values.mean(axis=0),
                values.std(axis=0, ddof=1),
                (3, 3, 3, 1, 1, 3, 3, 3),
                strict=True,
            )
        ]
        print(f"| {name} | {' | '.join(cells_of[name])} |", flush=True)
    return cells_of


def inference_table(cells_of: dict[str, list[str]]) -> list[str]:
    """Return a Markdown table of inference inputs: one row for all presets that give the same."""
    lines = [
        "| preset | gap | gap by chance | paired cosine | recall@1 image→text, % "
        "| recall@1 text→image, % | bias@10, image queries | bias@10, text queries |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names_of: dict[tuple[str, ...], list[str]] = {}
    for name, cells in cells_of.items():
        at_inference = (*cells[:TRAINING], *cells[TRAINING + 1 :])
        names_of.setdefault(at_inference, []).append(name)
    for at_inference, names in names_of.items():
        lines.append(f"| {', '.join(names)} | {' | '.join(at_inference)} |")
    return lines


def training_table(cells_of: dict[str, list[str]]) -> list[str]:
    """Return a Markdown table of the presets whose training inputs differ from inference inputs."""
    lines = ["| preset | cosine with the training input |", "|---|---|"]
    for name, cells in cells_of.items():
        if cells[TRAINING] != cells[PAIRED]:
            lines.append(f"| {name} | {cells[TRAINING]} |")
    return lines


# how the page writes the symbols of a formula
SYMBOLS = {
    "sqrt(": "√(",
    "sigma^2": "σ²",
    "sigma": "σ",
    "mu": "μ",
    "tau": "τ",
    "delta": "δ",
    " - ": " − ",
    " . ": " · ",
}

PROSE = {
    "using": """A **preset** is a ready-made way to bridge the modality gap, in most cases a published one. It is a **pipeline**, that
is, a list of steps such as normalising embeddings, subtracting a mean or adding noise. Pass its name as `--preset`, or
build it in Python:

```py
pipeline = c3tools.preset("c3", sigma=0.06).fit(store)
vectors = pipeline.transform(embeddings, modality="image")
pipeline.save("recipe")
```

A pipeline is *fitted* once, for example on the means of a store, and then [applied](../guides/pipeline.md) to any number
of rows. You can also write [your own](exports.md#your-own-pipeline).""",
    "intro": """`c3 export --list` prints this table. e is an embedding, μ the mean of its modality over the train split, σ the noise set
by `--sigma`, z standard normal noise, norm(v) = unit(v) = v / ‖v‖, s the standard deviation per dimension, and tr the
total variance. x is the modality of inference inputs (images, for captions), y the modality of training inputs (texts).
Only training inputs get noise.""",
    "retrieval": """`c3-retrieval` mixes each input with its nearest training captions (during training, captions of other images), which
[improves captions](../results/captions.md#flickr8k). In return, every input is compared with up to 500,000 training
captions, drawn at random. Their embeddings are saved with the pipeline, and so with the decoder (2 bytes × dimensions
per caption). Publish such a decoder only if you may publish the captions.""",
    "set-up": """As far as 250 pairs can show, centring each modality (`c3`, `gr-clip`) closes the gap at almost no cost in recall. Moving
the two modalities along the gap closes it too, but costs a third of the recall.

![Gap and recall of each preset](presets.svg)

The data are 500 image–caption pairs of COCO val2017, encoded by OpenAI CLIP ViT-B/16. In each of {splits} random splits, the
preset is fitted on one half and measured on inference inputs of the other half. The table shows mean ± standard
deviation over the splits.

- *Gap* is the distance between the two means.
- *Gap by chance* is the distance to expect without a gap: √(tr(S) (1/250 + 1/250)), where S is the covariance of the
  pair differences, or √(tr(S) / 250) if nothing is fitted.
- *bias@10* is the share of a query's ten nearest rows, among 100 images and their captions, that have its own modality;
  0.5 means no bias.""",
    "training": """A decoder trained on texts has to bridge the difference between an image's inference input and its caption's training
input. Without noise, the cosine of the two is the paired cosine above. With noise, it is:""",
    "reading": """- `decap`, `clipre` and `c3-retrieval` move images onto a memory, which has only 250 texts here, so differences between
  images are lost. `ridge` and `procrustes` are fitted on 250 pairs, fewer than the 512 dimensions.
- `fair` is `gr-clip` with a different norm for each modality.""",
}


def in_symbols(formula: str) -> str:
    """Write a formula of a preset with the symbols of the page."""
    for word, symbol in SYMBOLS.items():
        formula = formula.replace(word, symbol)
    return formula


def page(cells_of: dict[str, list[str]], splits: int) -> str:
    """Return the page docs/reference/presets.md."""
    listing = [
        f"| `{name}` | {in_symbols(formula)} | {in_symbols(source)} |"
        for name, (formula, source) in PRESETS.items()
    ]
    sections = [
        "# Presets and pipelines",
        "<!-- Made by `python benchmarks/preset_table.py FOLDER --write`; change the script, not this "
        "page. -->",
        PROSE["using"],
        "## All presets",
        PROSE["intro"],
        "\n".join(["| preset | embedding | source |", "|---|---|---|", *listing]),
        PROSE["retrieval"],
        "## On real CLIP pairs",
        PROSE["set-up"].format(splits=splits),
        "\n".join(inference_table(cells_of)),
        PROSE["reading"],
        PROSE["training"],
        "\n".join(training_table(cells_of)),
    ]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    """Print the table; write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder with image.npy and text.npy, paired rows")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(HERE)}")
    arguments = parser.parse_args()
    x, y = (
        np.load(arguments.folder / f"{name}.npy", allow_pickle=False) for name in ("image", "text")
    )
    x, y = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    cells_of = measured(x, y, arguments.splits)
    if arguments.write:
        PAGE.write_text(page(cells_of, arguments.splits), encoding="utf-8")


if __name__ == "__main__":
    main()
