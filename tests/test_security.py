"""What SECURITY.md promises of the code: no pickle, no shell, no unsafe YAML, no network."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from c3tools.errors import TransformError
from c3tools.transforms import Pipeline
from tests.conftest import C3, contents, copy_photos, done, unit_rows
from tests.stores import whole_store

ROOT = Path(__file__).parent.parent
SOURCES = [*(ROOT / "c3tools").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
OFFENCES = (
    "import pickle\npickle.load(f)",
    "import pickle\npickle.Unpickler(f).load()",
    "import yaml\nyaml.load(t, Loader=yaml.Loader)",
    "import os\nos.system('ls')",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "eval(text)",
    "import jinja2\njinja2.Environment(loader=x)",
    "import urllib.request\nurllib.request.urlopen(u)",
)
NOTE_HOSTS = """
import os, sys
def note(event, values):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        with open(os.environ["HOSTS"], "a") as file:
            file.write(f"{values[0]}\\n")
sys.addaudithook(note)
"""
RUN_COMMANDS = """
import sys
from typer.testing import CliRunner
from c3tools.cli import app
for line in sys.stdin:
    done = CliRunner().invoke(app, line.split(), prog_name="c3")
    assert done.exit_code == 0, line + done.output
"""
LOCAL_COMMANDS = """
embed photos --device cpu,cpu --shard-size 4
embed notes.txt --random-init 1 --store others
import --image i.npy --text i.npy --store imported
import --image i.npy --text i.npy --store imported-2
merge imported imported-2 --prefix --model toy -o merged
split -o new
verify
means show
gap-report
clusters -k 2
pairs
duplicates
leave-out
index
search dog --image photos/000000000285.jpg
export
train-decoder --size tiny --epochs 1 --sigma 0.1
caption photos
evaluate-captions --split val --metrics ROUGE-L --resamples 9
connect heads --dim 8 --hidden 8 --epochs 1
connect apply -o applied
simulate depth --width 8 --layers 5 --rows 20
"""


def lint(*arguments: object, given: str | None = None) -> str:
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--output-format",
        "concise",
        *map(str, arguments),
    ]
    return subprocess.run(
        command, cwd=ROOT, input=given, capture_output=True, text=True, check=False
    ).stdout


def test_no_source_unpickles_or_starts_a_shell() -> None:
    assert re.search(r": S\d|suspicious", lint("c3tools", "cli")) is None
    for line in OFFENCES:  # the rules can fail
        said = lint("--no-preview", "--stdin-filename", "c3tools/x.py", "-", given=line)
        assert re.search(r"\bS\d\d\d\b", said), line
    for path in SOURCES:
        for call in re.findall(r"(?:torch|np)\.load\((?:[^()]|\([^()]*\))*\)", path.read_text()):
            assert "weights_only=True" in call or "allow_pickle=False" in call, path
    users = [
        path
        for path in SOURCES
        if re.search(r"^\s*(import|from) pickle\b", path.read_text(), re.MULTILINE)
    ]
    assert len(users) == 1  # the restricted unpickler of published files


def test_a_pickle_that_wants_more_than_arrays_is_refused(c3: C3, tmp_path: Path) -> None:
    for payload in (
        b"cposix\nsystem\n(S'touch owned'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"ctorch.storage\n_load_from_bytes\n(C\x21cposix\nsystem\n(S'touch owned'\ntR.tR.",
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"cnumpy\ndtype\n(S'O'\ntR(I3\nS'|'\n(NNtNI99\nI-1\nI63\ntb.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bcore.system\x93.",
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96\xff\xff\xff\x7f\0\0\0\0.",
    ):
        (tmp_path / "x.pkl").write_bytes(payload)
        result = c3("import", "x.pkl")
        assert (result.exit_code, "Traceback" in result.output) == (1, False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pkl"]


def test_code_in_a_file_is_never_run(c3: C3, tmp_path: Path) -> None:
    import torch

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            import os

            return os.system, ("touch owned",)

    for suffix in (".pt", ".npy", ".npz"):
        path = tmp_path / f"evil{suffix}"
        if suffix == ".pt":
            torch.save({"embedding": Evil()}, path)
        else:
            (np.save if suffix == ".npy" else np.savez)(
                path, np.array([Evil()], dtype=object), allow_pickle=True
            )
        assert c3("import", "--image", path.name).exit_code == 1
        assert [*tmp_path.iterdir()] == [path]
        path.unlink()


def test_yaml_neither_makes_objects_nor_grows(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"steps: !!python/object/apply:os.system ['touch {tmp_path}/owned']")
    with pytest.raises(TransformError):
        Pipeline.from_config(path)
    lines = [
        "a0: &a0 [x, x]",
        *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60)),
        "steps: [*a59]",
    ]
    path.write_text("\n".join(lines))
    with pytest.raises(TransformError) as error:
        Pipeline.from_config(path)
    assert len(str(error.value)) < 5000
    assert not (tmp_path / "owned").exists()


def test_no_command_on_local_data_opens_a_connection(
    tmp_path: Path, c3: C3, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_store(tmp_path / "c3-store")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    for command in (
        ["verify"],
        ["means", "show"],
        ["gap-report"],
        ["export"],
        ["split", "-o", "new"],
    ):
        done(c3(*command))


def test_no_command_looks_up_a_host_in_any_process(tmp_path: Path) -> None:
    copy_photos(tmp_path / "photos", 8)
    np.save(tmp_path / "i.npy", unit_rows(6, 8))
    (tmp_path / "notes.txt").write_text("a dog\na cat\n")
    (tmp_path / "home").mkdir()
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(NOTE_HOSTS)  # is imported by each process
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path / "home"),
        "HOSTS": str(tmp_path / "hosts"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
    }
    ran = subprocess.run(
        [sys.executable, "-c", RUN_COMMANDS],
        cwd=tmp_path,
        env=environment,
        input=LOCAL_COMMANDS.strip(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert not (tmp_path / "hosts").exists(), (tmp_path / "hosts").read_text()
    assert not [*(tmp_path / "home").rglob("*openvino*")]


def test_a_newer_store_is_refused_and_unchanged(tmp_path: Path, c3: C3) -> None:
    path = whole_store(tmp_path / "c3-store").path
    value = json.loads((path / "store.json").read_text())
    (path / "store.json").write_text(json.dumps({**value, "format_version": 2}))
    (tmp_path / "t.txt").write_text("a dog\n")
    before = contents(path)
    for command in ("means show", "export", "embed t.txt", "train-decoder"):
        result = c3(*command.split())
        assert (result.exit_code, "newer version" in result.stderr) == (1, True), result.output
        assert contents(path) == before


def test_every_promise_names_tests_that_are_there() -> None:
    table = [
        line
        for line in (ROOT / "SECURITY.md").read_text("utf-8").splitlines()
        if line.startswith("| ")
    ][1:]
    assert len(table) > 15
    for line in table:
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", line)
        assert named, line
        for path, name in named:
            assert not name or f"def {name}(" in (ROOT / path).read_text("utf-8"), f"{path}::{name}"
            assert (ROOT / path).is_file(), path
