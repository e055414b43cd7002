"""Synthetic pairs of modalities with known geometry, and the measures computed in plain float64
numpy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from c3tools.identity import ModelIdentity
from c3tools.reporter import Progress, Reporter
from c3tools.store import Rows, Store
from tests import stores
from tests.conftest import build_store

EVIL = "<script>alert(1)</script>"


class Told(Reporter, Progress):
    """Keeps what it is told of the last piece of work."""

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        self.left = total or 0
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.left, self.note = self.left - count, note


def paper_model(
    items: int, dim: int, *, sigma: float = 0.03, captions: int = 1
) -> tuple[np.ndarray, ...]:
    """`e_x - e_y = c + eps`, c constant and orthogonal to what varies: (images, texts, owner), not
    normalised."""
    rng, owner = np.random.default_rng(0), np.repeat(np.arange(items), captions)
    content, half_gap = rng.normal(size=(items, dim)) * 0.05, 0.4 * np.eye(dim)[0]
    content[:, 0] = 0
    return (
        content + half_gap,
        content[owner] - half_gap + rng.normal(size=(len(owner), dim)) * sigma,
        owner,
    )


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64."""
    return stores.unit(rows.astype(np.float64))


def plain_measures(image: np.ndarray, text: np.ndarray, owner: np.ndarray) -> dict[str, float]:
    """Every number that must agree, from the definitions, on all cosines at once."""
    x, y = unit(image), unit(text)
    cosines = x @ y.T
    matching = np.arange(len(x))[:, None] == owner
    difference, num = x[owner] - y, np.mean(1 - cosines[matching]) / 2
    within = [np.mean(1 - (rows @ rows.T)[~np.eye(len(rows), dtype=bool)]) / 2 for rows in (x, y)]
    result = {
        "length": np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)),
        "instance_distance": np.linalg.norm(difference, axis=1).mean(),
        "rmg": num / (num + np.mean(within)),
        "paired_cosine": cosines[matching].mean(),
        "unpaired_cosine": cosines[~matching].mean(),
        "residual_rms": np.sqrt(np.mean((difference - difference.mean(axis=0)) ** 2)),
    }
    for name, rows in (("image", x), ("text", y)):
        s = np.linalg.svd(np.cov(rows.T, bias=True), compute_uv=False)
        p = s[s > 0] / s.sum()
        result[f"{name}_effective_dimension"] = np.sum(np.cumsum(p) <= 0.99) + 1
        result[f"{name}_effective_rank"] = np.exp(-np.sum(p * np.log(p)))
        result[f"{name}_participation_ratio"] = 1 / np.sum(p**2)
        result[f"{name}_mean_norm"] = np.linalg.norm(rows.mean(axis=0))
    for preset, a, b in (
        ("raw", x, y),
        ("c2-collapse", unit(x - x.mean(axis=0)), unit(y - y.mean(axis=0))),
    ):
        for way, scores, right in (
            ("image_to_text", a @ b.T, matching),
            ("text_to_image", b @ a.T, matching.T),
        ):
            found = np.take_along_axis(right, np.argsort(-scores, axis=1), axis=1)
            result |= {
                f"{preset} {way} recall@{k}": found[:, :k].any(axis=1).mean() for k in (1, 5, 10)
            }
    return result


def reported_measures(values: dict[str, Any]) -> dict[str, float]:
    """The same numbers, and others, out of a report."""
    result = values["gap"] | values["pairs"]
    for name, found in values["modalities"].items():
        result |= {f"{name}_{key}": value for key, value in found.items()}
    for preset, ways in values["retrieval"].items():
        result |= {
            f"{preset} {way} {key}": value
            for way, scores in ways.items()
            for key, value in scores.items()
        }
    return {key: value for key, value in result.items() if isinstance(value, int | float)}


def hostile_store(path: Path) -> Store:
    """Images with none to six captions each, whose names and texts would be elements of a page if
    not escaped.

    Four captions have no image. The noise of the pairs is skewed, the gap varies along the store,
    and no two modalities or dimensions are alike.
    """
    rng, axes = np.random.default_rng(0), np.eye(12)
    sizes, owner = (
        np.r_[np.linspace(0.3, 0.05, 8), np.zeros(4)],
        np.sort(rng.integers(50, size=110)),
    )
    content = rng.normal(size=(52, 12)) * sizes
    image = (
        content
        + 0.3 * axes[3]
        + 0.2 * axes[9]
        + 0.15 * np.where(np.arange(52) < 20, 1, -1)[:, None] * axes[10]
    )
    text = content[owner] - 0.2 * axes[4] + 0.4 * rng.standard_exponential((110, 12)) * sizes
    keys = [f"photo{i}" for i in range(51)] + [EVIL]
    images = Rows.of("image", keys, unit(image), path=keys)
    owners = [None] * 4 + [keys[number] for number in owner[4:]]
    texts = Rows.of(
        "text",
        [f"t{i}" for i in range(110)],
        unit(text),
        image_key=owners,
        caption=[f"{EVIL} é"] * 110,
    )
    model = ModelIdentity(name=f"{EVIL}<img src='http://example.invalid/x.png'> [bold]&")
    return build_store(path, images, texts, model=model, dtype="float32")
