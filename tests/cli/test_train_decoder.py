from __future__ import annotations

import json
from pathlib import Path

import pytest

from c3tools.captioning import Captioner
from tests.conftest import C3

from ..captioning.conftest import TOY, make_captions_store


def test_a_decoder_is_written_with_all_that_it_needs_and_continued(c3: C3, tmp_path: Path) -> None:
    store, world = make_captions_store(tmp_path / "c3-store", splits=False)
    quick = ("--size", "tiny", "--epochs", "2", "--precision", "fp32", "--set", "dropout=0.3")
    result = c3("train-decoder", "--sigma", "0.1", *quick, "--json", "run.json")
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "c3-decoder"
    names = {"decoder.json", "tokenizer.json", "transform.json", "transform.safetensors", "weights.safetensors"}
    names.add("curves.png")
    assert {path.name for path in folder.iterdir()} == names
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["model"] == TOY
    assert (record["preset"], record["sigma"], record["seed"], record["dim"]) == ("c3", 0.1, 0, 32)
    assert record["captions"] == {"train": 144, "val": 16}
    assert record["changes"] == ["dropout=0.3"]
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2]
    assert record["best_val_loss"] == min(epoch["val_loss"] for epoch in record["history"])
    captioner = Captioner.load(folder)
    assert captioner.pipeline.name == "c3"
    assert captioner.to_dict() == record
    assert len(captioner.caption(embeddings=world.images.embeddings[:1])) == 1
    assert not list(tmp_path.glob(".c3-decoder*"))  # neither the run nor a temporary folder is left
    assert store.info.dim == 32
    assert "There is no val split" in result.stderr
    assert "(kept)" in result.stdout
    tuned = c3("train-decoder", "--from", "c3-decoder", "--pairs", "0.5", "--epochs", "1", "-o", "tuned")
    assert tuned.exit_code == 0, tuned.stderr
    assert "before" in tuned.stdout
    assert Captioner.load(tmp_path / "tuned").record["from"] == "c3-decoder"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sigma", "much"), "sigma is a number of at least 0 or 'auto', not 'much'"),
        (("--sigma", "-1"), "sigma is a number of at least 0"),
        (("--sigma", "nan"), "sigma is a number of at least 0"),
        (("--train-fraction", "0"), "must be above 0"),
        (("--size", "huge"), "no decoder size 'huge'"),
        (("--preset", "c4"), "no preset 'c4'"),
        (("--train-split", "restval"), "no captions in the split 'restval'; it has train (112), val (16), test (32)"),
        (("--store", "nowhere"), "no store at nowhere"),
    ],
)
def test_wrong_input_is_one_clear_error(c3: C3, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("train-decoder", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "c3-decoder").exists()
