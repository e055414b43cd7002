"""Find the best sigma for real CLIP embeddings with classifiers of caption words, trained on texts, tested on images.

    python benchmarks/sigma_probe.py FOLDER

FOLDER contains image.npy, text.npy and meta.jsonl: embeddings of images and of their captions, such as the 500 pairs of
CLIP ViT-B/16 in docs/results/sigma.md. These are too few captions to train a decoder, but enough to learn whether a
word is in a caption.

For each frequent word, a logistic classifier is trained on the text embeddings of one half of the items, with Collapse
(C3) or without (C2_2), and with new noise of the given sigma in every step. Then it ranks the images of the other half,
without noise. The score of a word is its average precision; an image is positive if one of its captions contains the
word. The table shows the mean over words, as mean ± standard deviation over random halves.

Takes about 3 minutes on 2 cores. It should print a table by sigma, the three candidate rules on the training half, and
how much each of them loses compared with the best sigma.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from sigma_rules import draw, rules_of
from sigma_sweep import markdown_table

from c3tools.metrics.tokenizer import tokenize
from c3tools.seeds import generator
from c3tools.transforms.sigma import PUBLISHED_SIGMA

_STOP = "a an the of in on at with and is are to his her its it by for from up out as that this two one"
STOP = frozenset(_STOP.split())


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sigmas", default="0,0.02,0.03,0.045,0.06,0.08,0.1,0.1265,0.16,0.2,0.3")
    parser.add_argument("--splits", type=int, default=10, help="random halves")
    parser.add_argument("--words", type=int, default=60, help="the most frequent ones")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("c3-sigma-probe"))
    options = parser.parse_args()
    images, texts, owner, words = read(options.folder)
    sigmas = [float(text) for text in options.sigmas.split(",")]
    curves: dict[str, dict[float, list[float]]] = {"C2_2": {}, "C3": {}}
    found: dict[str, list[float]] = {}
    for split in range(options.splits):
        order = generator(0, "sigma probe", split).permutation(len(np.unique(owner)))
        first = np.isin(owner, np.unique(owner)[order[: len(order) // 2]])
        fit, held = np.unique(owner[first]), np.unique(owner[~first])
        means = [images[fit].mean(axis=0), texts[first].mean(axis=0)]
        renumbered = np.searchsorted(fit, owner[first])
        for rule in rules_of(images[fit], texts[first], renumbered, means):
            if rule.sigma:
                found.setdefault(rule.name, []).append(rule.sigma)
        chosen = [word for word, _ in Counter(w for row in np.flatnonzero(first) for w in words[row]).most_common()]
        of_image = [set().union(*(words[row] for row in np.flatnonzero(owner == item))) for item in held]
        chosen = [word for word in chosen if any(word in own for own in of_image)][: options.words]
        labels = np.array([[word in words[row] for word in chosen] for row in np.flatnonzero(first)], dtype=np.float32)
        truth = np.array([[word in own for word in chosen] for own in of_image])
        for name, centred in (("C2_2", False), ("C3", True)):
            shift = means if centred else [np.zeros(images.shape[1])] * 2
            x, y = texts[first] - shift[1], images[held] - shift[0]
            for sigma in sigmas:
                scores = probe(x.astype(np.float32), labels, y.astype(np.float32), sigma, split, options.steps)
                value = 100 * np.mean([average_precision(truth[:, i], scores[:, i]) for i in range(len(chosen))])
                curves[name].setdefault(sigma, []).append(float(value))
    rules = {name: float(np.mean(values)) for name, values in found.items()} | {"published": PUBLISHED_SIGMA}
    options.out.mkdir(parents=True, exist_ok=True)
    plain = {name: {f"{s:g}": values for s, values in points.items()} for name, points in curves.items()}
    content = {"folder": options.folder.name, "average_precision": plain, "rules": rules}
    (options.out / f"{options.folder.name}.json").write_text(json.dumps(content, indent=1))
    figure = options.out / f"{options.folder.name}.svg"
    draw(figure, curves, rules, ylabel="mean average precision of words, %", title=options.folder.name)
    print(markdown_table(curves, {}, rules))


def read(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[set[str]]]:
    """Images (m, d) and texts (k, d), unit rows; the image of each text; the words of each text."""
    images, texts = (np.load(folder / name).astype(np.float64) for name in ("image.npy", "text.npy"))
    rows = [json.loads(line) for line in (folder / "meta.jsonl").read_text().splitlines()]
    owner, captions, kept = [], [], []
    for row in rows:
        if row.get("text_rows") == []:  # an image whose captions were not embedded
            continue
        pairs = (
            zip(row["text_rows"], row["captions"], strict=True)
            if "text_rows" in row
            else [(row["row"], row["caption"])]
        )
        for text, caption in pairs:
            owner.append(row["row"])
            captions.append(caption)
            kept.append(text)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts[kept])]
    return unit[0], unit[1], np.array(owner), [set(tokenize(caption)) - STOP for caption in captions]


def probe(x: np.ndarray, labels: np.ndarray, y: np.ndarray, sigma: float, seed: int, steps: int) -> np.ndarray:
    """Scores (n, words) of images by logistic classifiers trained on noised texts."""
    torch.manual_seed(seed)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(labels)
    # the same learning problem at every sigma: inputs of unit variance per dimension, biases at the words' rates
    scale = x.shape[1] ** 0.5
    layer = torch.nn.Linear(x.shape[1], labels.shape[1])
    torch.nn.init.zeros_(layer.weight)
    rate = targets.mean(dim=0).clamp(1e-3, 1 - 1e-3)
    layer.bias.data = torch.log(rate / (1 - rate))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.02, weight_decay=0.01)
    for _ in range(steps):
        noised = torch.nn.functional.normalize(inputs + sigma * torch.randn_like(inputs), dim=-1)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(layer(scale * noised), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        found = layer(scale * torch.nn.functional.normalize(torch.from_numpy(y), dim=-1))
    return np.asarray(found.numpy())


def average_precision(truth: np.ndarray, scores: np.ndarray) -> float:
    """Mean, over the positives, of the precision at their rank."""
    hits = truth[np.argsort(-scores, kind="stable")]
    ranks = np.flatnonzero(hits) + 1
    return float(np.mean(np.arange(1, len(ranks) + 1) / ranks))


if __name__ == "__main__":
    main()
