from __future__ import annotations

import inspect
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from unittest.mock import Mock

import pytest
from c3tools.cli._console import write_json

import c3tools
from c3tools.assets.paths import PHOTOS
from c3tools.errors import OUT_OF_MEMORY
from c3tools.export import FORMATS
from c3tools.terminal import CONTROL_CHARACTERS
from c3tools.transforms.presets import PRESETS
from tests.conftest import C3
from tests.golden import INTERFACE, described

from .test_words import compare

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "c3tools" / "assets" / "coco-cc" / "captions.jsonl"
MODELS = {"torch", "open_clip", "openvino", "pandas"}
HEAVY = {"torch", "open_clip", "pyarrow", "faiss", "matplotlib", "numpy"}
RUN = (
    "import contextlib; from c3tools.cli import app\nwith contextlib.suppress(SystemExit): app({})"
)
TRANSFORM = """
import numpy as np
from c3tools import Pipeline, preset
saved = preset("c3").fit({"text": np.tile(np.eye(4), (5, 1))}).save("p")
Pipeline.load(saved).transform(np.eye(4), training=True, keys=[*"abcd"])
"""


@pytest.mark.parametrize(
    ("code", "absent", "present", "budget"),
    [
        ("import c3tools", HEAVY, "c3tools", 15),
        ("--help", HEAVY, "typer", 370),
        ("train-decoder --help", HEAVY, "typer", 450),
        ("embed --no-such-option", HEAVY, "typer", 450),
        (f"embed '{TABLE}' --text-column none", MODELS, "pyarrow", 1200),
        (f"embed '{TABLE}' --dry-run --store none", MODELS, "pyarrow", 1200),
        (
            f"embed '{next(PHOTOS.glob('images/*'))}' t.txt",
            {"torch", "open_clip"},
            "openvino",
            2000,
        ),
        (
            TRANSFORM,
            HEAVY - {"numpy"} | {"PIL", "sklearn", "yaml", "rich", "huggingface_hub"},
            "numpy",
            320,
        ),
        (
            "import c3tools.captioning.caption",
            {"matplotlib", "transformers", "torchvision"},
            "torch",
            2000,
        ),
    ],
)
def test_a_start_loads_little(
    tmp_path: Path, code: str, absent: set[str], present: str, budget: int
) -> None:
    (tmp_path / "t.txt").write_text("a dog")
    code = code if "import " in code else RUN.format(shlex.split(code))
    lines = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    shown = subprocess.run(
        [sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    loaded = set(shown.stdout.splitlines()[-1].split())
    assert (absent & loaded, present in loaded) == (set(), True)
    assert len(loaded) <= budget


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("export --preset c2-", ["c2-collapse", "c2-corrupt"]),
        ("export --preset ", list(PRESETS)),
        ("export -f ", list(FORMATS)),
        ("embed --precision fp", ["fp32", "fp16"]),
        ("train-decoder --size p", ["paper"]),
        ("ablate-captions --size p", ["paper"]),
        ("ablate-images --size p", []),
    ],
)
def test_the_shell_completes_choices(words: str, expected: list[str]) -> None:
    typed = {"COMP_WORDS": f"c3 {words}", "COMP_CWORD": "3", "_C3_COMPLETE": "complete_bash"}
    command = [sys.executable, "-c", "from c3tools.cli import main; main()"]
    printed = subprocess.check_output(command, env={**os.environ, **typed}, text=True)
    assert printed.split() == expected


def test_all_places_say_the_same_version(c3: C3) -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for file, pattern in (("CITATION.cff", r"^version: (.+)$"), ("CHANGELOG.md", r"^## (\S+),")):
        assert re.findall(pattern, (ROOT / file).read_text("utf-8"), re.MULTILINE)[0] == listed
    assert c3("--version").stdout.strip() == f"c3tools {listed}" == f"c3tools {c3tools.__version__}"


def test_public_names_and_defaults_are_those_on_record() -> None:
    """``C3_RECORD=1 pytest tests/cli/test_app.py`` makes the record anew."""
    assert c3tools.__all__ == sorted(c3tools.__all__) == dir(c3tools)
    said = ""
    for name in sorted({*c3tools.__all__} - {"__version__"}):
        value = getattr(c3tools, name)
        said += described(name, value)
        for key in sorted(vars(value)) if inspect.isclass(value) else ():
            if not key.startswith("_") and callable(getattr(value, key)):
                said += described(f"{name}.{key}", getattr(value, key))
    compare(INTERFACE, said)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = c3tools.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_letters_that_the_terminal_cannot_show_do_not_stop_a_command(
    tmp_path: Path, encoding: str
) -> None:
    name = "сон [b] ö"
    command = [
        sys.executable,
        "-c",
        "from c3tools.cli import main; main()",
        "verify",
        "--store",
        f"{name}/1",
        "--json",
    ]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "FORCE_COLOR": "1", "TERM": "xterm"}
    said = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment, check=False)
    assert (said.returncode, b"Traceback" in said.stderr) == (1, False)
    assert f" {name}/1 ".encode(encoding, "replace") in said.stderr  # in one colour
    assert said.stdout.startswith(b'{\n  "schema": 1,\n  "error": "')
    assert (name.encode() in said.stdout) == (encoding == "utf-8")
    assert f" {name}/1 " in json.loads(said.stdout.decode(encoding))["error"]


TERMINATED = """
import os, signal, c3tools
from c3tools.cli import main
def verify(store, **options):
    worker = os.fork()
    if worker:
        print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
c3tools.verify_store = verify
main()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_command_that_is_terminated_says_so_once() -> None:
    said = subprocess.run(
        [sys.executable, "-c", TERMINATED, "verify"], capture_output=True, text=True, check=False
    )
    kept = "Terminated. No output of this run was kept.\n"
    assert (said.returncode, said.stdout, said.stderr) == (
        128 + signal.SIGTERM,
        f"{-signal.SIGTERM}\n",
        kept,
    )


INTERRUPTED_TWICE = """
import os, signal, c3tools
from c3tools.cli import _app
def verify(store, **options):
    os.kill(os.getpid(), signal.SIGINT)
def message_after_signal(text):
    os.kill(os.getpid(), signal.SIGINT)
    message(text)
message, _app.message = _app.message, message_after_signal
c3tools.verify_store = verify
_app.main()
"""


def test_a_second_ctrl_c_prints_nothing() -> None:
    said = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_TWICE, "verify"],
        capture_output=True,
        text=True,
        check=False,
    )
    kept = "Interrupted. No output of this run was kept.\n"
    assert (said.returncode, said.stdout, said.stderr) == (128 + signal.SIGINT, "", kept)


@pytest.mark.skipif(os.name == "nt", reason="pipes break in another way there")
@pytest.mark.parametrize("words", ["--help", "export --list", "export --list --json -"])
def test_a_reader_that_has_enough_is_no_error(words: str) -> None:
    reads, writes = os.pipe()
    os.close(reads)
    run = "from c3tools.cli._app import main; main()"
    try:
        said = subprocess.run(
            [sys.executable, "-c", run, *words.split()],
            stdout=writes,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(writes)
    assert (said.returncode, said.stderr) == (0, b"")


def test_a_server_that_is_ended_says_nothing_of_output(
    c3: C3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c3tools, "serve_index", Mock(side_effect=KeyboardInterrupt("Terminated.")))
    result = c3("serve")
    assert result.exit_code == 128 + signal.SIGTERM
    assert result.stderr == "Terminated. The server was stopped.\n"


def test_pandas_is_hidden_from_pyarrow_alone(c3: C3) -> None:
    c3("means", "show", "--store", "none")
    assert not any("hide_pandas" in str(finder) for finder in sys.meta_path)


def test_errors_of_the_machine_are_like_others(c3: C3, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(28, "No space left", "x")
    for error, said in ((MemoryError(), OUT_OF_MEMORY), (full, str(full))):
        monkeypatch.setattr(c3tools, "verify_store", Mock(side_effect=error))
        result = c3("verify", "--json")
        assert (result.exit_code, f"Error: {said}\n" in result.stderr) == (1, True)
        assert json.loads(result.stdout)["error"] == said


def test_an_error_is_written_to_the_file_for_json(c3: C3, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text("{}")
    for words in (
        "embed nothere --json x.json",
        "verify --store nope --json=x.json",
        "pairs --json x.json",
    ):
        result = c3(*words.split())
        content = json.loads(file.read_text())
        assert (result.exit_code, [*content]) == (1, ["schema", "error", "remedy"])
        assert content["error"] in result.stderr


def test_an_error_replaces_no_other_file_and_no_captions(c3: C3, tmp_path: Path) -> None:
    for words, content in (
        ("embed nothere --json x.json", "mine"),
        ("caption no --json x.json", "[]"),
    ):
        (tmp_path / "x.json").write_text(content)
        assert c3(*words.split()).exit_code == 1
        assert (tmp_path / "x.json").read_text() == content
    assert c3("embed", "nothere", "--json=no/folder.json").exit_code == 1


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"price": math.nan}, "-")
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "schema": 1,
        "price": None,
    }


def test_json_on_standard_output_has_no_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    caption = "\x1b[2J \x7f \x9b31m \u202e \U000e0041 é\n"
    write_json({"caption": caption}, "-")
    printed = capsys.readouterr().out
    assert not set(map(ord, printed)) & CONTROL_CHARACTERS
    assert json.loads(printed) == {"schema": 1, "caption": caption}
