from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import C3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("init-gap", "--toy", "--seeds", 2), "closed form"),
        (("depth", "--width", 16, "--layers", 4, "--rows", 50, "--every", 2), "eff. dim"),
        (("gap-after-training", "--pairs", 12, "--dim", 16, "--spans", 3, 5, "--steps", 40, "--every", 20), "loss"),
        (("stable-region", "--pairs", 30, "--dim", 16), "The lead is in proportion to tau:"),
        (("temperature", "--steps", 2, "--scale", 5, "--scale", 50, "--batch", 16), "logit scale"),
    ],
)
def test_each_prints_a_table_and_draws_a_figure(
    c3: C3, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    result = c3("simulate", *arguments)
    assert result.exit_code == 0, result.output
    assert words in " ".join(result.stdout.split())
    assert "The paper:" in result.stdout
    assert (tmp_path / f"simulate-{arguments[0]}.svg").read_text().startswith("<?xml")
    before = sorted(tmp_path.iterdir())
    assert c3("simulate", *arguments, "--json").exit_code == 0
    assert sorted(tmp_path.iterdir()) == before  # nothing is drawn beside JSON unless it is asked for
    printed = c3("simulate", *arguments, "--json", "--figure", "f.png")
    assert printed.exit_code == 0, printed.output
    assert isinstance(json.loads(printed.stdout), dict)
    assert (tmp_path / "f.png").is_file()


def test_init_gap_of_a_random_encoder(c3: C3, photos: Path, tmp_path: Path) -> None:
    """The architecture of the bundled model, random weights, four photos."""
    result = c3("simulate", "init-gap", photos, "--model", "c3-mini", "--seeds", 1, "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)["runs"][0]
    assert run["rows"] == {"image": 4, "text": 20}
    assert run["length"] > 0.3
    assert run["effective"]["image"] <= 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("init-gap", "nowhere"), "nowhere does not exist"),
        (("init-gap", "--model", "no-such-model"), "There is no model"),
        (("gap-after-training", "--dim", 16), "do not fit into 16"),
        (("stable-region", "--tau", 0), "needs tau > 0"),
        (("temperature", "--scale", -1), "above 0"),
        (("temperature", "--store", "nowhere"), "no store"),
        (("depth", "--width", 8, "--layers", 1, "--rows", 9, "--figure", "f.bmp"), "f.bmp"),
        (("gap-after-training", "--figure", "none/f.svg"), "the folder none does not exist"),
    ],
)
def test_what_cannot_be_is_one_clear_error(c3: C3, arguments: tuple[object, ...], message: str) -> None:
    result = c3("simulate", *arguments)
    assert result.exit_code == 1, result.output
    assert message in " ".join(result.stderr.split())
    assert "Traceback" not in result.output
