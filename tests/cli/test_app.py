from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import c3tools
from c3tools import devices
from c3tools.captioning import CaptionDecoder, Captioner, CaptionTokenizer, DecoderConfig
from c3tools.store import Rows, Store
from tests.conftest import C3, build_store, loaded_by_command, unit_rows

HEAVY = ("torch", "open_clip", "pyarrow", "matplotlib", "numpy")
HEAVY_MODELS = {"torch", "open_clip", "torchvision", "timm"}
PROBE = "import sys; {code}; print(sorted(set({heavy}) & set(sys.modules)))"


def loaded_by(code: str) -> str:
    command = [sys.executable, "-c", PROBE.format(code=code, heavy=HEAVY)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


def test_import_loads_nothing_heavy() -> None:
    assert loaded_by("import c3tools") == "[]"


def test_help_loads_nothing_heavy() -> None:
    code = "import contextlib; from c3tools.cli import app\nwith contextlib.suppress(SystemExit): app(['--help'])"
    assert loaded_by(f"exec({code!r})") == "[]"


@pytest.mark.parametrize(
    ("code", "budget"),
    [
        ("import c3tools", 15),  # 6 when this was written
        ("import contextlib; from c3tools.cli import app\nwith contextlib.suppress(SystemExit): app(['--help'])", 370),
        ("import c3tools; c3tools.Pipeline", 230),  # 180, most of them of numpy
    ],
    ids=["import", "help", "pipeline"],
)
def test_what_is_imported_stays_within_a_budget_of_modules(code: str, budget: int) -> None:
    lines = f"import sys\nbefore = len(sys.modules)\n{code}\nprint(len(sys.modules) - before)"
    shown = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert int(shown.stdout.splitlines()[-1]) <= budget


def test_a_pipeline_loads_neither_torch_nor_arrow_nor_the_client_of_the_hub() -> None:
    code = "import sys, c3tools; c3tools.Pipeline; print({'torch', 'pyarrow', 'huggingface_hub'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_a_command_is_imported_when_it_is_asked_for() -> None:
    loaded = loaded_by_command(["verify", "--help"])
    assert {name for name in loaded if name.startswith("c3tools.cli.") and "._" not in name} == {"c3tools.cli.verify"}


def test_all_places_say_the_same_version() -> None:
    root = Path(__file__).parents[2]
    listed = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    cited = re.search(r"^version: (.+)$", (root / "CITATION.cff").read_text("utf-8"), re.MULTILINE)
    newest = re.search(r"^## (\S+),", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert [found and found[1] for found in (cited, newest)] == [listed, listed]
    assert c3tools.__version__ == listed


def test_photos_are_embedded_reported_and_captioned_without_torch(photos: Path, tmp_path: Path) -> None:
    if devices._may_have_gpu():
        pytest.skip("torch is asked for the GPU")
    store, report = tmp_path / "s", tmp_path / "report.json"
    assert HEAVY_MODELS.isdisjoint(loaded_by_command(["embed", str(photos), "--store", str(store)]))
    assert HEAVY_MODELS.isdisjoint(loaded_by_command(["gap-report", str(store), "--json", str(report)]))
    save_small_captioner(Store.open(store), tmp_path / "d")
    arguments = ["caption", str(photos), "--decoder", str(tmp_path / "d"), "--json", str(tmp_path / "captions.json")]
    assert HEAVY_MODELS.isdisjoint(loaded_by_command([*arguments, "--beams", "2"]))
    assert len(json.loads((tmp_path / "captions.json").read_text())) == len(list(photos.glob("*.jpg")))


def save_small_captioner(store: Store, folder: Path) -> None:
    """Save a captioner of random weights."""
    tokenizer = CaptionTokenizer.train(["a dog", "a cat on a red bus"], 300)
    config = DecoderConfig(store.info.dim, tokenizer.vocab_size, width=8, layers=1, heads=2, max_tokens=5)
    pipeline = c3tools.preset("c3", sigma=0.1).fit(store)
    Captioner(CaptionDecoder(config), tokenizer, pipeline, {"model": store.info.model}).save(folder)


def test_torch_is_loaded_where_it_is_asked_for(photos: Path, tmp_path: Path) -> None:
    arguments = ["embed", str(photos / "captions.jsonl"), "--store", str(tmp_path / "s"), "--backend", "torch"]
    assert "torch" in loaded_by_command(arguments)


def test_the_probe_can_fail() -> None:
    assert "pyarrow" in loaded_by("import c3tools; c3tools.Store")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_letters_that_the_terminal_cannot_show_do_not_stop_a_command(tmp_path: Path, encoding: str) -> None:
    name = "сон ö"
    (tmp_path / name).mkdir()
    (tmp_path / name / "夢.txt").write_text("夢 ö\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-c", "from c3tools.cli._app import main; main()", *arguments]
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        return subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)

    text = run("verify", name)
    assert text.returncode == 1
    assert b"Traceback" not in text.stderr
    assert "сон ö".encode(encoding, "replace") in text.stderr
    build_store(tmp_path / name / "store", Rows.of("text", ["夢", "ö"], unit_rows(2, 4)))
    result = run("verify", f"{name}/store", "--json")
    assert b"Traceback" not in result.stderr
    assert json.loads(result.stdout.decode(encoding))["store"] == f"{name}/store"


def test_public_names_are_sorted_and_there() -> None:
    assert c3tools.__all__ == sorted(c3tools.__all__)
    for name in c3tools.__all__:
        assert getattr(c3tools, name) is not None
    assert dir(c3tools) == c3tools.__all__
    with pytest.raises(AttributeError, match="nonsense"):
        _ = c3tools.nonsense


def test_the_version_is_that_of_the_package(c3: C3) -> None:
    from importlib.metadata import version

    assert c3("--version").stdout.strip() == f"c3tools {version('c3tools')}" == f"c3tools {c3tools.__version__}"


def test_every_command_has_a_help_text(c3: C3) -> None:
    from c3tools.cli._app import COMMANDS

    names = re.findall(r"│ ([a-z][a-z-]+) ", c3("--help").stdout)
    assert len(names) == len(COMMANDS)
    for name in names:
        result = c3(name, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout


VERBS = {
    "ablate": "ablate",
    "caption": "caption_images",
    "connect.apply": "apply_heads",
    "connect.full": "connect_towers",
    "connect.heads": "connect_heads",
    "connect.lit": "connect_towers",
    "demo": "run_demo",
    "embed": "embed",
    "evaluate": "evaluate_captions",
    "export": "export_store",
    "gap_report": "gap_report",
    "generate": "generate",
    "import_": "import_embeddings",
    "index": "build_index",
    "merge": "merge_stores",
    "models": "list_models",
    "simulate.depth": "simulate_depth",
    "simulate.gap_after_training": "simulate_gap_after_training",
    "simulate.init_gap": "simulate_init_gap",
    "simulate.stable_region": "simulate_stable_region",
    "simulate.temperature": "simulate_temperature",
    "split": "split_store",
    "train_decoder": "train_captioner",
    "train_generator": "train_generator",
    "verify": "verify_store",
}


def comparable(value: object) -> object:
    """Return a default as the command line writes it: names with commas, paths as text, nothing for no value."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or None
    return str(value) if isinstance(value, (Path, float)) else value


@pytest.mark.parametrize("command", VERBS)
def test_the_defaults_of_a_command_are_those_of_its_verb(command: str) -> None:
    module, _, name = command.partition(".")
    found = getattr(importlib.import_module(f"c3tools.cli.{module}"), name or module)
    own, verb = (inspect.signature(f).parameters for f in (found, getattr(c3tools, VERBS[command])))
    shared = [name for name in own if name in verb and verb[name].default is not inspect.Parameter.empty]
    if command == "verify":
        shared.remove("store")  # also the argument; None tells which of the two is given
    assert shared
    for name in shared:
        assert comparable(own[name].default) == comparable(verb[name].default), name


def test_an_error_is_one_message_without_a_traceback(c3: C3) -> None:
    result = c3("means")
    assert result.exit_code == 1
    assert "no store at c3-store" in result.stderr
    assert "c3 embed PATH" in result.stderr
    assert "Traceback" not in result.output


def test_a_usage_error_exits_with_2(c3: C3) -> None:
    assert c3("embed").exit_code == 2
    assert c3("nonsense").exit_code == 2
    assert "Did you mean 'embed'?" in c3("embd").stderr


@pytest.mark.parametrize(
    "command",
    [
        ["verify", "/none"],
        ["means", "--store", "/none"],
        ["gap-report", "/none"],
        ["export", "--store", "/none"],
        ["embed", "/none"],
        ["import", "--image", "/none.npy"],
        ["evaluate", "--store", "/none"],
        ["ablate", "--store", "/none", "--sigma", "0.1"],
        ["index", "--store", "/none"],
        ["merge", "out", "/none", "/neither"],
        ["split", "out", "--store", "/none"],
        ["caption", "/none.jpg", "--decoder", "/none"],
        ["connect", "heads", "--store", "/none"],
    ],
    ids=lambda command: command[0],
)
def test_an_error_is_json_too_where_json_is_asked_for(c3: C3, command: list[str]) -> None:
    result = c3(*command, "--json")
    assert result.exit_code == 1, result.output
    value = json.loads(result.stdout)
    assert value["error"]
    assert value.keys() == {"error", "remedy"}
    assert "Error:" in result.stderr


@pytest.mark.parametrize(
    ("command", "option", "number"),
    [
        (["generate", "a dog"], "--guidance", "nan"),
        (["caption", "x.jpg"], "--length-penalty", "-inf"),
        (["embed", "images"], "--image-timeout", "inf"),
        (["demo"], "--sigma", "inf"),
        (["connect", "heads"], "--cone", "nan"),
        (["simulate", "temperature", "--scale", "10"], "--scale", "nan"),
    ],
)
def test_an_option_takes_finite_numbers_only(c3: C3, command: list[str], option: str, number: str) -> None:
    result = c3(*command, option, number)
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert f"Invalid value for '{option}': {number} is not a finite number." in said
