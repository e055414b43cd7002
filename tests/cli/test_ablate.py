from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import C3

from ..captioning.conftest import make_captions_store

pytest.importorskip("pycocoevalcap")
QUICK = ("--size", "tiny", "--epochs", "1", "--precision", "fp32", "--seeds", "2")


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
    assert "95 % interval" in result.stdout
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
    assert again.stderr.count("already finished") == 4
    kept = {(row["method"], row["seed"], row["sigma"]): row for row in rows}
    more = json.loads((tmp_path / "more.json").read_text())
    assert len(more) == 6
    assert all(row == kept[cell] for row in more if (cell := (row["method"], row["seed"], row["sigma"])) in kept)
    # other settings: nothing is taken over
    other = c3("ablate", "--methods", "CLIPRe", *QUICK, "--beams", "2")
    assert "already finished" not in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sigma", "much"), "sigma must be a number of at least 0, 'auto', 'pairs' or 'best', not 'much'"),
        (("--sigma", "-0.1"), "not '-0.1'"),
        (("--grid", "a,b", "--sigma", "best"), "not 'a'"),
        (("--grid", "auto", "--sigma", "best"), "not 'auto'"),
        (("--train-fraction", "0"), "must be above 0"),
        (("--methods", ""), "at least one of the methods"),
        (("--methods", "C1,C4"), "There is no method C4"),
        (("--methods", "C1,MAGIC,ESPER"), "MAGIC, ESPER need texts encoded by toy-model"),
        (("--size", "tiny", "--set", "colour=red"), "has no setting 'colour=red'"),
        (("--task", "texts"), "There is no task 'texts'"),
        (("--task", "images", "--test-store", "c3-store"), "--test-store is only for --task captions"),
        (("--task", "images", "--epochs", "1"), "--epochs is only for --task captions"),
        (("--task", "images", "--length-penalty", "1"), "--length-penalty is only for --task captions"),
        (("--steps", "10"), "--steps is only for --task images"),
        (("--encoder", "c3-mini"), "--encoder is only for --task images"),
    ],
)
def test_wrong_input_is_one_clear_error(c3: C3, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    make_captions_store(tmp_path / "c3-store")
    result = c3("ablate", *arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "c3-ablation").exists()


def test_methods_are_listed(c3: C3) -> None:
    listed = c3("ablate", "--list")
    assert listed.exit_code == 0
    assert all(name in listed.stdout for name in ("C2_1", "CapDec", "paired"))
