from __future__ import annotations

from collections.abc import Sequence

from c3tools.ablation import ABLATION, METHODS, Ablation, AblationRun


def table_of(runs: Sequence[AblationRun], methods: Sequence[str] = ()) -> Ablation:
    return Ablation(runs, methods)


def test_the_table_has_mean_and_standard_deviation_over_seeds() -> None:
    runs = [AblationRun("C3", seed, 0.1, {"CIDEr": value}, {}) for seed, value in enumerate((40.0, 42.0, 44.0))]
    runs.append(AblationRun("C1", 0, 0.0, {"CIDEr": 30.04}, {}))
    table = table_of(runs)
    assert table.rows[0]["scores"]["CIDEr"] == {"mean": 42.0, "std": 2.0}
    assert table.rows[1]["scores"]["CIDEr"] == {"mean": 30.04, "std": None}
    assert table.table().columns == ["method", "sigma", "CIDEr"]
    assert table.table().rows == [["C3", "0.1", "42.0 ± 2.0"], ["C1", "–", "30.0"]]
    assert "| C3 | 0.1 | 3 | 42.0 ± 2.0 |" in table.to_markdown()
    assert "| C1 | – | 1 | 30.0 |" in table.to_markdown()
    assert "<td>42.0 ± 2.0</td>" in table._repr_html_()
    assert [run["scores"] for run in table.to_dict()["runs"]] == [run.scores for run in runs]


def test_scores_stand_under_their_names_whether_computed_now_or_read() -> None:
    """Finished cells are kept with their scores in another order than that of the scorer."""
    read = AblationRun("C1", 0, 0.0, {"CIDEr": 11.1, "ROUGE-L": 22.2}, {})
    computed = AblationRun("C3", 0, 0.1, {"ROUGE-L": 44.4, "CIDEr": 33.3}, {})
    for runs in ([read, computed], [computed, read]):
        shown = table_of(runs, ABLATION).table()  # the order of the methods, not of the runs
        assert shown.columns == ["method", "sigma", "CIDEr", "ROUGE-L"]
        assert shown.rows == [["C1", "–", "11.1", "22.2"], ["C3", "0.1", "33.3", "44.4"]]


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
