from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from c3tools.cli.ablate import _show
from typer.testing import Result

from c3tools import devices
from c3tools.ablation.cells import TableSettings, store_data
from c3tools.ablation.run import METHODS, AblationData, AblationRun, _fitted, _pseudo_pairs, run_ablation
from c3tools.ablation.table import markdown_table, order_notes, table_rows
from c3tools.captioning import SIZES, GenerationConfig, size
from c3tools.errors import DecoderError
from c3tools.metrics import score_captions
from c3tools.seeds import keyed_normal

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
    markdown = (tmp_path / "c3-ablation" / "table.md").read_text().splitlines()
    table = [line for line in markdown if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["method", "---", "C1", "C3", "C3"]
    # every row says what makes it, and that is what makes it
    commands = [line.strip() for line in markdown if line.startswith("    c3 ablate")]
    assert len(commands) == 3
    assert commands == list(dict.fromkeys(row["command"] for row in rows))
    assert all(command in result.stdout and command in page for command in commands)
    again = c3(*commands[-1].split()[1:], "-o", "elsewhere", "--json", "elsewhere.json")
    assert again.exit_code == 0, again.stderr
    remade = {row["seed"]: row["scores"] for row in json.loads((tmp_path / "elsewhere.json").read_text())}
    assert remade == {row["seed"]: row["scores"] for row in rows if row["command"] == commands[-1]}
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


def test_a_cell_is_that_of_what_its_size_stands_for(c3: C3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_captions_store(tmp_path / "c3-store")
    run = ("ablate", "--methods", "CLIPRe", "--seeds", 1, "--size", "tiny")
    assert c3(*run).exit_code == 0
    tiny = size("tiny")
    same = c3(*run, "--epochs", tiny.training.epochs)
    assert same.stderr.count("finished before") == 1
    # another release trains the same name in another way: its cells are others
    changed = replace(tiny, training=replace(tiny.training, epochs=tiny.training.epochs + 1))
    monkeypatch.setattr("c3tools.captioning.config.SIZES", {**SIZES, "tiny": changed})
    other = c3(*run)
    assert other.exit_code == 0, other.stderr
    assert "finished before" not in other.stderr
    assert "finished before" in c3(*run, "--epochs", tiny.training.epochs).stderr


def test_the_table_has_mean_and_standard_deviation_over_seeds() -> None:
    runs = [AblationRun("C3", seed, 0.1, {"CIDEr": value}, {}) for seed, value in enumerate((40.0, 42.0, 44.0))]
    runs.append(AblationRun("C1", 0, 0.0, {"CIDEr": 30.04}, {}))
    rows = table_rows(runs)
    assert rows[0]["scores"]["CIDEr"] == {"mean": 42.0, "std": 2.0}
    assert rows[1]["scores"]["CIDEr"] == {"mean": 30.04, "std": None}
    assert "| C3 | 0.1 | 3 | 42.0 ± 2.0 |" in markdown_table(rows)
    assert "| C1 | – | 1 | 30.0 |" in markdown_table(rows)


def test_scores_stand_under_their_names_whether_computed_now_or_read(capsys: pytest.CaptureFixture[str]) -> None:
    """Finished cells are kept with their scores in another order than that of the scorer."""
    read = AblationRun("C1", 0, 0.0, {"CIDEr": 11.1, "ROUGE-L": 22.2}, {})
    computed = AblationRun("C3", 0, 0.1, {"ROUGE-L": 44.4, "CIDEr": 33.3}, {})
    for runs in ([read, computed], [computed, read]):
        rows = table_rows(runs, TableSettings())
        assert [row["method"] for row in rows] == ["C1", "C3"]  # the order of the methods, not of the runs
        assert [list(row["scores"]) for row in rows] == [["CIDEr", "ROUGE-L"]] * 2
        _show(rows)
        lines = {
            line.split("│")[1].strip(): line.split("│")[3:5]
            for line in capsys.readouterr().out.splitlines()
            if "│ C" in line
        }
        assert {name: [float(cell) for cell in cells] for name, cells in lines.items()} == {
            "C1": [11.1, 22.2],
            "C3": [33.3, 44.4],
        }


def test_the_order_of_the_methods_is_put_beside_the_spread() -> None:
    scores = {"C1": (30.0, 30.4), "C2_1": (35.0, 35.2), "C2_2": (38.0, 39.0), "C3": (38.5, 39.1)}
    runs = [
        AblationRun(name, seed, 0.1 if METHODS[name].noisy else 0.0, {"CIDEr": value}, {})
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]
    notes = order_notes(table_rows(runs))
    assert len(notes) == 3
    assert notes[0] == "C2_1 − C1: +4.9 CIDEr, beyond the spread over seeds (0.3)"
    assert notes[2] == "C3 − C2_2: +0.3 CIDEr, within the spread over seeds (0.7), sigma 0.1"
    assert order_notes(table_rows([run for run in runs if run.seed == 0])) == []


def test_sigma_is_chosen_on_the_val_split_for_each_method(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    options = ("--methods", "C1,C2_2,C3", *QUICK, "--sigma", "best", "--grid", "0.02,0.3", "--epochs", "4")
    result = c3("ablate", *options, "--json", "runs.json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads((tmp_path / "runs.json").read_text())
    assert sorted((row["method"], row["seed"]) for row in rows) == [
        (name, seed) for name in ("C1", "C2_2", "C3") for seed in (0, 1)
    ]
    tried = json.loads((tmp_path / "c3-ablation" / "sigma.json").read_text())
    assert (tried["split"], tried["metric"]) == ("val", "CIDEr")
    for row in rows:
        if row["method"] == "C1":
            continue
        scores = tried["scores"][row["method"]]
        assert set(scores) == {"0.02", "0.3"}
        best = max(scores, key=scores.__getitem__)
        assert row["sigma"] == float(best)
        assert row["sigma_from"] == "best"
        if row["seed"] == 0:  # chosen by the first seed's captions of the val images, not of the scored ones
            assert row["val_scores"]["CIDEr"] == scores[best]
    assert "(best)" in result.stdout
    again = c3("ablate", *options, "--sigma", "auto")
    assert again.exit_code == 0, again.stderr
    assert "(auto)" in again.stdout
    refused = c3("ablate", *options, "--split", "val")
    assert refused.exit_code == 1
    assert "cannot be what the table is scored on" in " ".join(refused.stderr.split())


def test_the_val_split_can_be_scored_by_every_method(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("ablate", "--methods", "C3,paired,WS-ClipCap", *QUICK, "--split", "val", "--json", "runs.json")
    assert result.exit_code == 0, result.stderr
    assert "among those that checkpoints are chosen on" in " ".join(result.stderr.split())
    assert len(json.loads((tmp_path / "runs.json").read_text())) == 6


def test_another_way_to_write_captions_needs_no_training(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    greedy = c3("ablate", "--methods", "C3", *QUICK, "--json", "greedy.json")
    assert greedy.exit_code == 0, greedy.stderr
    folders = sorted(path.name for path in (tmp_path / "c3-ablation" / "decoders").glob("*/*"))
    assert folders == ["c3-text-sigma0.1-seed0", "c3-text-sigma0.1-seed1"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c3-ablation").rglob("weights.safetensors")}
    beams = c3("ablate", "--methods", "C3", *QUICK, "--beams", "3", "--json", "beams.json")
    assert beams.exit_code == 0, beams.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c3-ablation").rglob("weights.safetensors")} == before
    losses = [
        [run["best_val_loss"] for run in json.loads((tmp_path / f"{name}.json").read_text())]
        for name in ("greedy", "beams")
    ]
    assert losses[0] == losses[1]
    # a damaged one is trained again, and an unkept one was never there
    next(iter(before)).write_bytes(b"cut")
    again = c3("ablate", "--methods", "C3", *QUICK, "--beams", "2", "--json", "again.json")
    assert again.exit_code == 0, again.stderr
    assert [run["best_val_loss"] for run in json.loads((tmp_path / "again.json").read_text())] == losses[0]
    assert c3("ablate", "--methods", "C3", *QUICK, "--no-keep-decoders", "-o", "bare").exit_code == 0
    assert not (tmp_path / "bare" / "decoders").exists()


def test_train_fractions_are_rows(c3: C3, tmp_path: Path) -> None:
    make_captions_store(tmp_path / "c3-store")
    fractions = ("--train-fraction", "0.25", "--train-fraction", "1")
    result = c3("ablate", "--methods", "C3", *QUICK, *fractions, "--json", "runs.json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads((tmp_path / "runs.json").read_text())
    assert [(row["train_fraction"], row["seed"]) for row in rows] == [(0.25, 0), (0.25, 1), (1.0, 0), (1.0, 1)]
    assert "--train-fraction 0.25" in rows[0]["command"]
    assert "0.25" in result.stdout
    assert "| C3 | 0.1 | 0.25 | 2 |" in (tmp_path / "c3-ablation" / "table.md").read_text()
    again = c3("ablate", "--methods", "C3", *QUICK, *fractions)
    assert again.stderr.count("finished before") == 4


def test_pseudo_pairs_are_training_images_with_their_nearest_training_captions(data: AblationData) -> None:
    train, val = _pseudo_pairs(data)
    held_out = set(data.val_owners)
    assert {key.split("#")[0] for key in val.keys} == held_out
    assert {key.split("#")[0] for key in train.keys} == set(data.train_images) - held_out
    assert (train.modality, val.modality) == ("image", "image")
    for rows in (train, val):
        for key, embedding, caption in list(zip(rows.keys, rows.embeddings, rows.captions, strict=True))[::7]:
            image, rank = key.split("#")
            np.testing.assert_array_equal(embedding, data.train_images[image])
            order = np.argsort(-(data.train.embeddings @ embedding), kind="stable")
            assert caption == data.train.captions[order[int(rank)]]


def test_each_method_goes_through_the_transforms_of_its_paper(data: AblationData) -> None:
    """METHODS as (training, inference) on one image and one text, by their formulas."""
    text, image = data.train.embeddings[:1], data.images[:1]
    key = [data.train.keys[0]]
    noise = keyed_normal(0, 0, key, text.shape[1])
    unit = lambda x: x / np.linalg.norm(x)  # noqa: E731
    means = {name: moments.mean for name, moments in data.moments.items()}
    weights = np.exp((data.train.embeddings @ image[0]) / 0.01 - 100)
    memory = unit((weights[:, None] * data.train.embeddings).sum(axis=0))
    noised = unit(text[0] + 0.2 * noise[0])
    expected = {
        "C1": (text[0], image[0]),
        "C2_1": (unit(text[0] - means["text"]), unit(image[0] - means["image"])),
        "C2_2": (noised, image[0]),
        "C3": (unit(text[0] - means["text"] + 0.2 * noise[0]), unit(image[0] - means["image"])),
        "CapDec": (noised, image[0]),
        "LAFITE": (unit(0.25 * text[0] + 0.75 * unit(noise[0])), image[0]),
        "DeCap": (text[0], memory),
    }
    for name, (trained, inferred) in expected.items():
        method = METHODS[name]
        assert method.training is not None
        training = _fitted(data, method.training, 0.2).transform(text, modality="text", training=True, keys=key)
        inference = _fitted(data, method.inference, 0.2).transform(image, modality="image")
        np.testing.assert_allclose(training[0], trained, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(inference[0], inferred, atol=2e-5, err_msg=name)


def test_magic_needs_the_encoder_and_uses_it(data: AblationData) -> None:
    class Encoder:
        def __init__(self) -> None:
            self.texts = 0

        def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
            self.texts += len(texts)
            return np.eye(1, 32, dtype=np.float32).repeat(len(texts), axis=0)

    encoder, magic = Encoder(), GenerationConfig("magic", max_tokens=2)
    options = {"size_name": "tiny", "epochs": 1, "compute": FP32, "generation": magic}
    with pytest.raises(DecoderError, match="no encoder was given"):
        next(run_ablation(data, ["C1"], **options))
    (run,) = run_ablation(data, ["C1"], encoder=encoder, **options)
    assert encoder.texts > 0
    assert len(run.captions) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sigma", "much"), "sigma is a number of at least 0, 'auto' or 'best', not 'much'"),
        (("--sigma", "-0.1"), "not '-0.1'"),
        (("--grid", "a,b", "--sigma", "best"), "not 'a'"),
        (("--grid", "auto", "--sigma", "best"), "The grid is a list of numbers"),
        (("--train-fraction", "0"), "must be above 0"),
        (("--methods", ""), "at least one of its methods"),
        (("--magic", "--beams", "3"), "Choose one"),
        (("--size", "tiny", "--set", "colour=red"), "has no setting 'colour=red'"),
    ],
)
def test_wrong_input_is_one_clear_error(c3: C3, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("ablate", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "c3-ablation").exists()


def test_one_caption_only_is_too_few_for_a_table(c3: C3, tmp_path: Path) -> None:
    from c3tools.store import Shard, StoreInfo, create_store, write_shard

    info = StoreInfo({"name": "toy"}, 4, dtype="float32")
    create_store(tmp_path / "c3-store", info)
    rows = np.eye(1, 4, dtype=np.float32)
    columns = {"key": ["a"], "path": ["a.png"], "width": [1], "height": [1], "split": ["train"]}
    write_shard(tmp_path / "c3-store", info, Shard("image", 0, rows, columns))
    columns = {"key": ["a#0"], "caption": ["a dog"], "image_key": ["a"], "split": ["train"]}
    write_shard(tmp_path / "c3-store", info, Shard("text", 0, rows, columns))
    result = c3("ablate")
    assert result.exit_code == 1
    assert "needs captions to learn from and others to validate on" in " ".join(result.stderr.split())


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

    from c3tools.errors import MetricError

    bare = replace(data, train_images={})
    for name in ("paired", "WS-ClipCap"):
        with pytest.raises(DecoderError, match="learns from training images"):
            next(run_ablation(bare, [name], epochs=1))
    with pytest.raises(MetricError, match="no image to caption"):
        next(run_ablation(replace(data, images=data.images[:0]), ["C1"]))
