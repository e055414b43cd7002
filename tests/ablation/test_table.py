from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from c3tools.ablation import ABLATION, METHODS, Ablation, AblationRun


def table_of(runs: Sequence[AblationRun], methods: Sequence[str] = ()) -> Ablation:
    return Ablation(runs, methods)


def test_the_table_has_mean_and_standard_deviation_over_seeds() -> None:
    runs = [AblationRun("C3", seed, 0.1, {"CIDEr": value}, {}) for seed, value in enumerate((40.0, 42.0, 44.0))]
    runs.append(AblationRun("C1", 0, 0.0, {"CIDEr": 30.04}, {}))
    table = table_of(runs)
    assert table.rows[0]["scores"]["CIDEr"] == {"mean": 42.0, "std": 2.0}
    assert table.rows[1]["scores"]["CIDEr"] == {"mean": 30.04, "std": None}
    assert table.table().columns == ["method", "sigma", "CIDEr", "published", "checkpoint"]
    assert table.table().rows == [
        ["C3", "0.1", "42.0 ± 2.0", "93.3 ± 0.3", "texts"],
        ["C1", "–", "30.0", "13.0", "texts"],
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
        assert shown.columns[:4] == ["method", "sigma", "CIDEr", "ROUGE-L"]
        assert [row[:4] for row in shown.rows] == [["C1", "–", "11.1", "22.2"], ["C3", "0.1", "33.3", "44.4"]]


def test_what_was_trained_and_on_what_it_was_chosen_stand_beside_the_scores() -> None:
    """In the terminal, as Markdown and as JSON."""
    known: dict[str, Any] = {"parameters": 1_440_000, "training_seconds": 100.0}
    esper = AblationRun("ESPER", 0, 0.0, {"CIDEr": 20.0}, {"a": "", "b": ""}, **known)
    again = replace(esper, seed=1, training_seconds=300.0)
    zerocap = AblationRun("ZeroCap", 0, 0.0, {"CIDEr": 10.0}, {"a": ""}, parameters=990_000, training_seconds=64.0)
    bare = AblationRun("CLIPRe", 0, 0.0, {"CIDEr": 25.0}, {"a": "", "b": ""})
    table = table_of([esper, again, zerocap, bare], ["ESPER", "ZeroCap", "CLIPRe"])
    shown = table.table()
    columns = ["method", "sigma", "images", "CIDEr", "published", "checkpoint", "parameters", "training"]
    assert shown.columns == columns
    assert shown.rows == [
        ["ESPER", "–", "2", "20.0 ± 0.0", "78.2", "images", "1.4 M", "3 min"],
        ["ZeroCap", "–", "1", "10.0", "34.5", "texts", "1.0 M", "64 s"],
        ["CLIPRe", "–", "2", "25.0", "25.6", "–", "–", "–"],
    ]
    assert "| ESPER | – | 2 | 2 | 20.0 ± 0.0 | 78.2 | images | 1.4 M | 3 min |" in table.to_markdown()
    assert "whose checkpoint was chosen by references" in table.to_markdown()
    (first, *_), runs = table.rows, table.to_dict()["runs"]
    assert first["published"]["value"] == 78.2
    assert (runs[0]["parameters"], runs[0]["training_seconds"], runs[0]["images"]) == (1_440_000, 100.0, 2)
    assert runs[2]["checkpoint"] == "texts"


def test_the_order_of_the_methods_is_put_beside_the_spread() -> None:
    scores = {"C1": (30.0, 30.4), "C2_1": (35.0, 35.2), "C2_2": (38.0, 39.0), "C3": (38.5, 39.1)}
    runs = [
        AblationRun(name, seed, 0.1 if METHODS[name].noisy else 0.0, {"CIDEr": value}, {})
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]
    notes = table_of(runs).notes
    assert len(notes) == 3
    assert notes[0] == "C2_1 − C1: +4.9 CIDEr, beyond the spread over seeds (0.3)"
    assert notes[2] == "C3 − C2_2: +0.3 CIDEr, within the spread over seeds (0.7), sigma 0.1"
    assert table_of([run for run in runs if run.seed == 0]).notes == []
