from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.metrics.significance import crossed_interval
from c3tools.paper.ablation.cells import MethodRun
from c3tools.paper.ablation.methods import ABLATION, IMAGE_METHODS, METHODS
from c3tools.paper.ablation.table import Ablation
from tests.golden import recorded

GOLDEN = Path(__file__).parent / "golden"
METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr", "ROUGE-L")
IMAGE_METRICS = ("FD-x", "IS-x-coco80", "KID-x", "recall@1-x", "recall@10-x")


def run_of(
    method: str,
    values: Any,
    seed: int = 0,
    sigma: float = 0.1,
    metrics: Sequence[str] = ("CIDEr",),
    **changes: Any,
) -> MethodRun:
    """A run whose images have these scores, in every metric."""
    own, scores = (
        {name: [*map(float, values)] for name in metrics},
        dict.fromkeys(metrics, float(np.mean(values))),
    )
    return MethodRun(
        method,
        seed,
        sigma if METHODS[method].noisy else 0.0,
        scores,
        images=len(values),
        values=own,
        **changes,
    )


def runs_of(steps: dict[str, float], metrics: Sequence[str], **changes: Any) -> list[MethodRun]:
    """Runs that differ by steps, which the images' own part hides in the scores, but not in their
    differences."""
    rng = np.random.default_rng(0)
    images, every = (
        rng.normal(50, 40, size=400),
        [(*step, seed) for step in steps.items() for seed in range(3)],
    )
    noisy = (
        (name, images + step + rng.normal(0, 10, size=400), seed) for name, step, seed in every
    )
    return [run_of(*values, metrics=metrics, **changes) for values in noisy]


def test_a_row_has_mean_and_deviation_over_seeds_and_the_interval_over_images_and_seeds() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(50, 40, size=(3, 100))
    runs = [run_of("C3", each, seed) for seed, each in enumerate(values)]
    table = Ablation([*runs, run_of("C1", (30.0, 30.08))])
    score, single = (row["scores"]["CIDEr"] for row in table.rows)
    assert score["mean"] == pytest.approx(values.mean())
    assert score["std"] == pytest.approx(values.mean(axis=1).std(ddof=1))
    assert score["interval"] == pytest.approx(crossed_interval(values))
    assert single == {"mean": pytest.approx(30.04), "std": None, "interval": None}
    interval = "{:.1f} to {:.1f}".format(*score["interval"])
    rows = table.tables()[0].rows
    for shown in rows[0], table.to_markdown(), table.to_html(), table._repr_html_():
        assert interval in shown
    assert rows[1] == ["C1", "–", "30.0", ""]
    plot = table.to_html().partition('aria-label="CIDEr of each method"')[2].partition("</svg>")[0]
    assert re.findall(r">(C\d.*?)<", plot) == ["C3, sigma 0.1", "C1"]
    assert "<svg" not in Ablation([run_of("C1", (30.0,), metrics=["ROUGE-L"])]).to_html()
    (zero,) = Ablation([run_of("C3", (0.0, 0.0, 3.0))]).rows
    assert zero["scores"]["CIDEr"]["interval"][0] == 0  # no score is below it


def test_rows_are_in_the_order_of_the_methods_and_scores_under_their_names(tmp_path: Path) -> None:
    read = MethodRun("C1", 0, 0.0, {"CIDEr": 11.1, "ROUGE-L": 22.2})
    computed = MethodRun("C3", 0, 0.1, {"ROUGE-L": 44.4, "CIDEr": 33.3}, {"k": "a dog"})
    table = Ablation(
        [read, computed, replace(read, seed=1)],
        examples={"k": ("first", "last")},
        command="c3 ablate-captions",
    )
    shown = table.tables()[0]
    assert [row[::2] for row in shown.rows] == [
        ["C1", "11.1 ± 0.0", "22.2 ± 0.0"],
        ["C3", "33.3", "44.4"],
    ]
    table.save(tmp_path / "a/b")
    page = (tmp_path / "a/b/table.html").read_text(encoding="utf-8")
    sheet = re.findall(r"<t[dh]>(.*?)</t[dh]>", page.partition("of the first seed")[2])
    assert sheet == [
        "image",
        "C1",
        "C3, sigma 0.1",
        "written by a person",
        "first",
        "",
        "a dog",
        "last",
    ]
    own = {
        "sigma_from": "given",
        "best_val_loss": None,
        "parameters": 0,
        "training_seconds": 0.0,
        "images": 0,
        "recipe_sigma": 0.0,
        "command": "c3 ablate-captions",
    }
    assert (
        table.to_dict()["runs"][0]
        == {"method": "C1", "seed": 0, "sigma": 0.0, "scores": read.scores} | own
    )


def test_what_the_methods_are_and_what_was_published_of_them() -> None:
    """As Zhang et al. (C3, ICLR 2024) and the papers of the others have it."""
    value: dict[str, Any] = {"captions": {}, "images": {}}
    for task, methods in ("captions", METHODS), ("images", IMAGE_METHODS):
        for name, of in methods.items():
            own = {"needs_encoder": of.needs_encoder, "noisy": of.noisy, "on": of.chosen_on}
            value[task][name] = asdict(of) | own
    recorded(GOLDEN / "methods.json", value)


def test_the_tables_of_a_terminal_fit_it() -> None:
    runs = runs_of(
        dict.fromkeys(ABLATION, 0.0), METRICS, parameters=1_440_000, training_seconds=100.0
    )
    images = Ablation(
        runs_of(dict.fromkeys(IMAGE_METHODS, 0.0), IMAGE_METRICS),
        task="images",
        real={"FD-x": 0.123},
    )
    tables = [*Ablation(runs).tables(), *images.tables()]
    recorded(GOLDEN / "tables.json", [*map(vars, tables)])
    for table in tables[:-1]:  # but what was published
        widths = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
        assert sum(widths) + 3 * len(widths) <= 80


@pytest.mark.parametrize(
    ("task", "metrics", "other"),
    [("captions", ["CIDEr", "ROUGE-L"], "DeCap"), ("images", ["FD-x", "recall@1-x"], "LAFITE")],
)
def test_steps_are_compared_on_the_same_images_and_seeds(
    task: str, metrics: Sequence[str], other: str
) -> None:
    steps = {"C1": 0.0, "C2_1": 5.0, "C2_2": 8.0, "C3": 8.0, other: 20.0}
    runs = runs_of(steps, metrics, sigma=0.0812345)
    recorded(GOLDEN / f"steps_{task}.json", Ablation(runs, task=task).notes)

    def told(chosen: list[MethodRun]) -> list[str]:
        return Ablation(chosen, task=task).notes

    assert "over images and seeds" in told([run for run in runs if run.seed < 2])[0]
    # only what both have is compared; nothing is said where that is too little
    assert told([run for run in runs if run.method != "C2_1" or run.seed == 1])[0].endswith(
        "over images (one seed)"
    )
    assert [note[:7] for note in told([run for run in runs if run.method in ("C1", "C3")])] == [
        "C3 − C1"
    ]
    assert told([run_of(name, (1.0, 2.0), metrics=metrics) for name in ABLATION]) == []


def test_methods_with_empty_captions_are_named() -> None:
    """Those of trainings with few epochs, whose scores of 0 stand beside published ones."""
    silent = [run_of("C3", [0.0, 0.0], seed, outputs={"a": "", "b": " "}) for seed in (0, 1)]
    table = Ablation([*silent, run_of("C1", [5.0, 5.0], outputs={"a": "a dog", "b": "a cat"})])
    assert [note for note in table.notes if "empty" in note] == [
        "C3, sigma 0.1: 4 of 4 captions are empty. A decoder that was trained too little ends "
        "before the first word: train it longer (--epochs)."
    ]
