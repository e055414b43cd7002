from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from c3tools.cli._app import COMMANDS, app

import c3tools
from c3tools.store import Rows
from tests.conftest import C3, build_store, loaded_by_command, unit_rows

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "open_clip", "pyarrow", "faiss", "matplotlib", "numpy"}
HELP = "import contextlib; from c3tools.cli import app\nwith contextlib.suppress(SystemExit): app(['--help'])"


def modules_after(code: str) -> set[str]:
    lines = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    shown = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    return set(shown.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("code", "absent", "budget"),
    [
        ("import c3tools", HEAVY, 15),
        (HELP, HEAVY, 370),
        ("import c3tools; c3tools.Pipeline", {"torch", "pyarrow", "huggingface_hub"}, 320),
    ],
    ids=["import", "help", "pipeline"],
)
def test_a_start_loads_little(code: str, absent: set[str], budget: int) -> None:
    loaded = modules_after(code)
    assert not absent & loaded
    assert len(loaded) <= budget


def test_the_probe_can_fail() -> None:
    assert "pyarrow" in modules_after("import c3tools; c3tools.Store")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(c3: C3, command: str) -> None:
    found: Any = typer.main.get_command(app)
    for word in command.split():
        found = found.get_command(None, word)
    assert "Usage: c3" in c3(*command.split(), "--help").stdout
    assert all(len(parameter.help.split()) > 1 for parameter in found.params)


def test_help_of_a_command_and_a_wrong_option_load_nothing_heavy() -> None:
    assert not HEAVY & loaded_by_command(["train-decoder", "--help"])
    wrong = HELP.replace("'--help'", "'embed', '--no-such-option'")
    assert not HEAVY & modules_after(wrong)


def test_the_options_of_experts_stand_at_the_end(c3: C3) -> None:
    everyday, _, expert = c3("embed", "--help").stdout.partition("Options for experts and clusters")
    for name in ("executor", "address", "processes", "compile", "random-init", "image-timeout"):
        assert f"--{name} " in expert
        assert f"--{name} " not in everyday
    assert c3("--help").stdout.index("│ simulate ") > c3("--help").stdout.index("│ info ")


def test_all_places_say_the_same_version(c3: C3) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    newest = re.search(r"^## (\S+),", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert [found and found[1] for found in (cited, newest)] == [listed, listed]
    assert c3("--version").stdout.strip() == f"c3tools {listed}" == f"c3tools {c3tools.__version__}"


def test_public_names_are_sorted_and_there() -> None:
    assert c3tools.__all__ == sorted(c3tools.__all__) == dir(c3tools)
    for name in c3tools.__all__:
        assert getattr(c3tools, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = c3tools.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_letters_that_the_terminal_cannot_show_do_not_stop_a_command(tmp_path: Path, encoding: str) -> None:
    name = "сон ö"
    build_store(tmp_path / name, Rows.of("text", ["夢", "ö"], unit_rows(2, 4)))

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", "from c3tools.cli import main; main()", *arguments]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        return subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)

    text = run("verify", f"{name}/none")
    assert (text.returncode, b"Traceback" in text.stderr) == (1, False)
    assert "сон ö".encode(encoding, "replace") in text.stderr
    result = run("verify", name, "--json")
    assert json.loads(result.stdout.decode(encoding))["store"] == name


@pytest.mark.parametrize("command", ["verify", "means", "export", "evaluate", "index", "ablate"])
def test_an_error_is_json_too_where_json_is_asked_for(c3: C3, command: str) -> None:
    result = c3(command, *(["none"] if command == "verify" else ["--store", "none"]), "--json")
    assert result.exit_code == 1, result.output
    value = json.loads(result.stdout)
    assert "none" in value["error"]
    assert value.keys() == {"error", "remedy"}
    assert "Error:" in result.stderr
