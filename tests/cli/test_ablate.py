from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from c3tools import devices
from c3tools.jobs.ablate import METHODS, AblationData, AblationRun, run_ablation
from c3tools.jobs.ablation_cells import store_data
from c3tools.jobs.ablation_table import markdown_table, table_rows
from c3tools.metrics import score_captions

from ..decoding.conftest import one_thread  # noqa: F401 - used by every test
from .captions_store import make_captions_store

pytest.importorskip("pycocoevalcap")
C3 = Callable[..., Result]
FP32 = devices.pick("cpu", "fp32")
QUICK = ("--size", "tiny", "--epochs", "1", "--precision", "fp32", "--seeds", "2")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> AblationData:
    store, _ = make_captions_store(tmp_path_factory.mktemp("store") / "c3-store")
    return store_data(store)


def test_the_data_of_a_store_keep_scored_images_out_of_training(data: AblationData) -> None:
    assert (len(data.train), len(data.val), len(data.images)) == (112, 16, 16)
    assert not set(data.train_owners) & set(data.image_keys)
    assert not set(data.train_images) & set(data.image_keys)
    assert {len(texts) for texts in data.references.values()} == {2}
    assert data.moments["image"].n == 56


def test_every_method_runs_and_is_scored(data: AblationData) -> None:
    runs = list(run_ablation(data, list(METHODS), sigma=0.1, size_name="tiny", epochs=1, compute=FP32))
    assert [run.method for run in runs] == list(METHODS)
    by_name = {run.method: run for run in runs}
    for run in runs:
        assert list(run.captions) == list(data.image_keys)
        assert run.scores == pytest.approx(score_captions(run.captions, data.references).corpus)
        assert run.sigma == (0.1 if METHODS[run.method].noisy else 0.0)
    # recipes that train alike are trained once
    assert by_name["CapDec"].captions == by_name["C2_2"].captions
    assert by_name["DeCap"].best_val_loss == by_name["C1"].best_val_loss
    assert by_name["CLIPRe"].best_val_loss is None
    # CLIPRe: the nearest training caption, by definition
    nearest = np.argmax(data.images @ data.train.embeddings.T, axis=1)
    assert list(by_name["CLIPRe"].captions.values()) == [data.train.captions[row] for row in nearest]


def test_seeds_matter_and_are_reproducible(data: AblationData) -> None:
    options = {"sigma": 0.1, "size_name": "tiny", "epochs": 2, "compute": FP32}
    first, second = run_ablation(data, ["C3"], seeds=(0, 1), **options)
    (again,) = run_ablation(data, ["C3"], seeds=(0,), **options)
    assert again.captions == first.captions
    assert again.best_val_loss == first.best_val_loss
    assert second.best_val_loss != first.best_val_loss


def test_the_command_prints_a_table_and_continues(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("ablate", "--methods", "C1,C3", *QUICK, "--sigma", "0.05", "--sigma", "0.1", "--json", "runs.json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads((tmp_path / "runs.json").read_text())
    cells = [(row["method"], row["seed"], row["sigma"]) for row in rows]
    assert sorted(cells) == sorted(
        [("C1", s, 0.0) for s in (0, 1)] + [("C3", s, sigma) for s in (0, 1) for sigma in (0.05, 0.1)]
    )
    assert all("CIDEr" in row["scores"] for row in rows)
    assert "CIDEr" in result.stdout
    page = (tmp_path / "c3-ablation" / "table.html").read_text()
    assert "<script" not in page
    assert page.count("<tr>") == 1 + 3 + 1 + 16
    table = (tmp_path / "c3-ablation" / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["method", "---", "C1", "C3", "C3"]
    # one cell more: the others are not computed again
    again = c3("ablate", "--methods", "C1,C3,CLIPRe", *QUICK, "--sigma", "0.05", "--json", "more.json")
    assert again.exit_code == 0, again.stderr
    assert again.stderr.count("finished before") == 4
    kept = {(row["method"], row["seed"], row["sigma"]): row for row in rows}
    more = json.loads((tmp_path / "more.json").read_text())
    assert len(more) == 6
    assert all(row == kept[cell] for row in more if (cell := (row["method"], row["seed"], row["sigma"])) in kept)
    # other settings: nothing is taken over
    other = c3("ablate", "--methods", "CLIPRe", *QUICK, "--beams", "2")
    assert "finished before" not in other.stderr


def test_the_table_has_mean_and_standard_deviation_over_seeds() -> None:
    runs = [AblationRun("C3", seed, 0.1, {"CIDEr": value}, {}) for seed, value in enumerate((40.0, 42.0, 44.0))]
    runs.append(AblationRun("C1", 0, 0.0, {"CIDEr": 30.04}, {}))
    rows = table_rows(runs)
    assert rows[0]["scores"]["CIDEr"] == {"mean": 42.0, "std": 2.0}
    assert rows[1]["scores"]["CIDEr"] == {"mean": 30.04, "std": None}
    assert "| C3 | 0.1 | 3 | 42.0 ± 2.0 |" in markdown_table(rows)
    assert "| C1 | – | 1 | 30.0 |" in markdown_table(rows)


def test_methods_are_listed_and_unknown_ones_refused(c3: C3, tmp_path: Path) -> None:
    listed = c3("ablate", "--list")
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in ("C2_1", "CapDec", "paired"))
    make_captions_store(tmp_path / "c3-store")
    result = c3("ablate", "--methods", "C1,C4")
    assert result.exit_code == 1
    assert "Unknown method C4" in result.stderr


def test_methods_that_need_images_say_so(data: AblationData) -> None:
    from dataclasses import replace

    from c3tools.errors import DecoderError, MetricError

    bare = replace(data, train_images={})
    for name in ("paired", "WS-ClipCap"):
        with pytest.raises(DecoderError, match="learns from training images"):
            next(run_ablation(bare, [name], epochs=1))
    with pytest.raises(MetricError, match="no image to caption"):
        next(run_ablation(replace(data, images=data.images[:0]), ["C1"]))
