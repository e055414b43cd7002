from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from c3tools.ablation import ABLATION, METHODS, Ablation, AblationRun
from c3tools.metrics.significance import crossed_interval


def run_of(method: str, seed: int, values: Sequence[float] | np.ndarray, sigma: float = 0.1) -> AblationRun:
    """A run with these scores of its images in CIDEr."""
    captions = {str(image): "" for image in range(len(values))}
    own = {"CIDEr": [float(value) for value in values]}
    strength = sigma if METHODS[method].noisy else 0.0
    return AblationRun(method, seed, strength, {"CIDEr": float(np.mean(values))}, captions, image_values=own)


def table_of(runs: Sequence[AblationRun], methods: Sequence[str] = ()) -> Ablation:
    return Ablation(runs, methods)


def test_the_table_has_mean_and_standard_deviation_over_seeds() -> None:
    runs = [AblationRun("C3", seed, 0.1, {"CIDEr": value}, {}) for seed, value in enumerate((40.0, 42.0, 44.0))]
    runs.append(AblationRun("C1", 0, 0.0, {"CIDEr": 30.04}, {}))
    table = table_of(runs)
    assert table.rows[0]["scores"]["CIDEr"] == {"mean": 42.0, "std": 2.0, "interval": None}
    assert table.rows[1]["scores"]["CIDEr"] == {"mean": 30.04, "std": None, "interval": None}
    assert table.table().columns == ["method", "sigma", "seeds", "CIDEr", "published", "checkpoint"]
    assert table.table().rows == [
        ["C3", "0.1", "3", "42.0 ± 2.0", "93.3 ± 0.3", "texts"],
        ["C1", "–", "1", "30.0", "13.0", "texts"],
    ]
    assert "| C3 | 0.1 | 3 | 42.0 ± 2.0 | 93.3 ± 0.3 | texts |" in table.to_markdown()
    assert "| C1 | – | 1 | 30.0 | 13.0 | texts |" in table.to_markdown()
    assert "Zhang et al. (C3), ICLR 2024 (C3, C1)" in table.to_markdown()
    assert "<td>42.0 ± 2.0</td>" in table._repr_html_()
    assert [run["scores"] for run in table.to_dict()["runs"]] == [run.scores for run in runs]


def test_floor_and_oracle_bound_the_others() -> None:
    scores = {"C1": 10.0, "C3": 40.0, "oracle": 50.0}
    runs = [AblationRun(name, 0, 0.1, {"CIDEr": value}, {}) for name, value in scores.items()]
    assert table_of(runs).remarks[0].startswith("C3 covers 75% of the way from the floor (C1) to the oracle")
    assert not any("floor" in text for text in table_of(runs[:2]).remarks)


def test_scores_stand_under_their_names_whether_computed_now_or_read() -> None:
    """Finished cells are kept with their scores in another order than that of the scorer."""
    read = AblationRun("C1", 0, 0.0, {"CIDEr": 11.1, "ROUGE-L": 22.2}, {})
    computed = AblationRun("C3", 0, 0.1, {"ROUGE-L": 44.4, "CIDEr": 33.3}, {})
    for runs in ([read, computed], [computed, read]):
        shown = table_of(runs, ABLATION).table()  # the order of the methods, not of the runs
        assert shown.columns[3:5] == ["CIDEr", "ROUGE-L"]
        assert [[row[0], *row[3:5]] for row in shown.rows] == [["C1", "11.1", "22.2"], ["C3", "33.3", "44.4"]]


def test_what_was_trained_and_on_what_it_was_chosen_stand_beside_the_scores() -> None:
    """In the terminal, as Markdown and as JSON."""
    known: dict[str, Any] = {"parameters": 1_440_000, "training_seconds": 100.0}
    esper = AblationRun("ESPER", 0, 0.0, {"CIDEr": 20.0}, {"a": "", "b": ""}, **known)
    again = replace(esper, seed=1, training_seconds=300.0)
    zerocap = AblationRun("ZeroCap", 0, 0.0, {"CIDEr": 10.0}, {"a": ""}, parameters=990_000, training_seconds=64.0)
    bare = AblationRun("CLIPRe", 0, 0.0, {"CIDEr": 25.0}, {"a": "", "b": ""})
    table = table_of([esper, again, zerocap, bare], ["ESPER", "ZeroCap", "CLIPRe"])
    shown = table.table()
    columns = ["method", "sigma", "seeds", "images", "CIDEr", "published", "checkpoint", "parameters", "training"]
    assert shown.columns == columns
    assert shown.rows == [
        ["ESPER", "–", "2", "2", "20.0 ± 0.0", "78.2", "images", "1.4 M", "3 min"],
        ["ZeroCap", "–", "1", "1", "10.0", "34.5", "texts", "1.0 M", "64 s"],
        ["CLIPRe", "–", "1", "2", "25.0", "25.6", "–", "–", "–"],
    ]
    assert "| ESPER | – | 2 | 2 | 20.0 ± 0.0 | 78.2 | images | 1.4 M | 3 min |" in table.to_markdown()
    assert "whose checkpoint was chosen by references" in table.to_markdown()
    (first, *_), runs = table.rows, table.to_dict()["runs"]
    assert first["published"]["value"] == 78.2
    assert (runs[0]["parameters"], runs[0]["training_seconds"], runs[0]["images"]) == (1_440_000, 100.0, 2)
    assert runs[2]["checkpoint"] == "texts"


def test_a_row_has_its_interval_over_images_and_seeds() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(50, 40, size=(3, 100))
    few = [run_of("C1", seed, (1.0, 2.0)) for seed in range(3)]
    table = table_of([*(run_of("C3", seed, each) for seed, each in enumerate(values)), *few])
    low, high = crossed_interval(values) or (0, 0)
    assert table.rows[0]["scores"]["CIDEr"]["interval"] == pytest.approx([low, high])
    assert table.rows[1]["scores"]["CIDEr"]["interval"] is None
    shown = table.table()
    place = shown.columns.index("95 % interval")
    assert shown.columns[place - 1] == "CIDEr"
    assert [row[place] for row in shown.rows] == [f"{low:.1f} to {high:.1f}", ""]
    assert f"{low:.1f} to {high:.1f} |" in table.to_markdown()
    assert table_of([run_of("C3", 0, (0.0, 0.0, 3.0))]).rows[0]["scores"]["CIDEr"]["interval"][0] == 0  # as all scores
    one = table_of([run_of("C3", 0, values[0])]).rows[0]["scores"]["CIDEr"]["interval"]
    assert one == pytest.approx(crossed_interval(values[:1]))


def test_the_tables_of_a_terminal_have_every_score_but_bleu_1_to_3_and_fit_it() -> None:
    names = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr", "ROUGE-L")
    runs = [
        replace(run_of(method, seed, np.linspace(40, 60, 10)), scores=dict.fromkeys(names, 50.0), parameters=1_440_000)
        for method in ABLATION
        for seed in range(2)
    ]
    scores, trainings = table_of(runs).tables()
    assert scores.columns == ["method", "sigma", "CIDEr", "95 % interval", "BLEU-4", "ROUGE-L"]
    assert trainings.columns == ["method", "sigma", "seeds", "published", "checkpoint", "parameters", "training"]
    for table in (scores, trainings):
        widest = [max(map(len, cells)) for cells in zip(table.columns, *table.rows, strict=True)]
        assert sum(widest) + 3 * len(widest) <= 80
        assert [row[0] for row in table.rows] == list(ABLATION)


def test_each_step_of_the_method_is_compared_on_the_same_images_and_seeds() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(50, 40, size=400)  # whose spread hides the steps in the scores, but not in their differences
    steps = {"C1": 0.0, "C2_1": 5.0, "C2_2": 8.0, "C3": 8.0}
    runs = [
        run_of(name, seed, images + step + rng.normal(0, 10, size=400), sigma=0.0812345)
        for name, step in steps.items()
        for seed in range(3)
    ]
    notes = table_of(runs).notes
    assert len(notes) == 3
    found = re.fullmatch(r"C2_1 − C1: \+(.*) CIDEr, 95 % interval \+(.*) to \+(.*) over images and seeds", notes[0])
    assert found is not None
    difference, low, high = map(float, found.groups())
    assert low < difference < high
    assert 2 < low < 5 < high < 8
    assert notes[1].startswith("C2_2 − C1, sigma 0.0812: +")
    assert re.fullmatch(r"C3 − C2_2, sigma 0.0812: .* −.* to \+.* over images and seeds; not shown to differ", notes[2])
    more = [run_of("DeCap", seed, images + 20 + rng.normal(0, 10, size=400)) for seed in range(3)]
    *steps_alone, against = table_of([*runs, *more]).notes
    assert steps_alone == notes
    assert re.fullmatch(r"DeCap − C3, sigma 0.0812: \+1\d.* 95 % interval \+.* over images and seeds", against)
    (single, *_) = table_of([run for run in runs if run.seed == 0]).notes
    assert single.endswith("over images (one seed)")
    # only what both have is compared; nothing is said where that is too little
    shared = table_of([run for run in runs if run.method != "C2_1" or run.seed == 1]).notes
    assert shared[0].endswith("over images (one seed)")
    other = [replace(run, seed=run.seed + 3) if run.method == "C1" else run for run in runs]
    assert [note.split(",")[0] for note in table_of(other).notes] == ["C3 − C2_2"]
    assert table_of([replace(run, image_values={}) for run in runs]).notes == []
    assert table_of([run_of(name, 0, (1.0, 2.0)) for name in ABLATION]).notes == []
