"""What SECURITY.md promises of the code: no pickle, no shell, no unsafe YAML, no network."""

from __future__ import annotations

import ast
import json
import pickle
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools.errors import C3Error, TransformError
from c3tools.moments import load_moments
from c3tools.store import Store
from c3tools.store.importers import read_pickle, read_table, read_vectors
from c3tools.transforms import Pipeline
from tests.conftest import C3, unit_rows
from tests.fuzz.targets import _arrays, _recipe
from tests.stores import whole_store

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "c3tools").rglob("*.py"), *(ROOT / "cli").rglob("*.py")])
FORBIDDEN = re.compile(
    r"(c?[pP]ickle|dill|cloudpickle|marshal|shelve|joblib|jsonpickle)\.(load|loads|open|Unpickler|decode)"
    r"|(numpy|pandas|pd)\.read_pickle|yaml\.(load|unsafe_load|full_load|load_all|Loader|UnsafeLoader|FullLoader)"
    r"|os\.(system|popen|exec\w*|spawn\w*)|subprocess\.(getoutput|getstatusoutput)|eval|exec|compile|__import__"
    r"|(urllib\.request|requests|httpx|aiohttp|http\.client)(\.\w+)*"
)
# the one place that fetches an address which a list names, where --download asks for it
DOWNLOADS = ROOT / "c3tools" / "corpus" / "images.py"
PICKLES = ROOT / "c3tools" / "store" / "importers" / "pickles.py"


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(source: str) -> Iterator[str]:
    """Calls that would run what a file says, or a shell, or go to the network."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (
                name for name in names if re.fullmatch(r"dill|shelve|marshal|joblib|urllib\.request|requests", name)
            )
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        given = {keyword.arg: keyword.value for keyword in node.keywords}
        if FORBIDDEN.fullmatch(name):
            yield name
        if name == "torch.load" and not _is(given.get("weights_only"), True):
            yield "torch.load without weights_only=True"
        if name.endswith("np.load") and not _is(given.get("allow_pickle"), False):
            yield "np.load without allow_pickle=False"
        if _is(given.get("shell"), True):
            yield "shell=True"
        if name.endswith("Environment") and "jinja2" in name and not _is(given.get("autoescape"), True):
            yield "jinja2 without autoescape=True"


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_unpickles_or_starts_a_shell(path: Path) -> None:
    expected = {"urllib.request", "urllib.request.Request", "urllib.request.urlopen"} if path == DOWNLOADS else set()
    assert set(offences(path.read_text(encoding="utf-8"))) == expected


@pytest.mark.parametrize(
    "line",
    [
        "pickle.load(f)",
        "pickle.loads(b)",
        "pickle.Unpickler(f).load()",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "yaml.load(t, Loader=yaml.Loader)",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "eval(text)",
        "import dill",
        "jinja2.Environment(loader=x)",
        "urllib.request.urlopen(u)",
    ],
)
def test_the_test_above_can_fail(line: str) -> None:
    assert len(list(offences(line))) == 1


def test_only_the_restricted_unpickler_is_derived_from_one() -> None:
    users = [path for path in SOURCES if re.search(r"^\s*(import|from) pickle\b", path.read_text(), re.MULTILINE)]
    assert users == [PICKLES]


class _Owner:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (self.command,)


def test_reading_works_with_every_unpickler_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = whole_store(tmp_path / "s").path
    _recipe(tmp_path)
    _arrays(tmp_path)

    def taken(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler", "_loads", "_load"):
        monkeypatch.setattr(pickle, name, taken)
    opened = Store.open(store)
    assert len(opened.load("text")) == 60
    assert opened.moments("image").n == 30
    assert len(opened.recorded_failures()) == 1
    assert load_moments(store / "borrowed-moments.safetensors")[0]
    assert Pipeline.load(tmp_path).transform(unit_rows(2, 12), modality="text").shape == (2, 12)
    for name in ("x.npy", "x.npz", "x.safetensors", "x.csv", "x.parquet"):
        assert read_vectors(tmp_path / name).vectors.shape == (5, 12)
    assert read_table(tmp_path / "meta.jsonl")["id"] == [1, 2]


@pytest.mark.parametrize(
    "payload",
    [
        b"cposix\nsystem\n(S'touch owned'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy\nndarray\n(I1000000000000\ntR.",
        b"cnumpy\ndtype\n(S'f4'\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb.",
        b"cnumpy\ndtype\n(S'O'\ntR(I3\nS'|'\n(NNtNI99\nI-1\nI63\ntb.",
        b"(dS'a'\nb.",
        b"c_codecs\nencode\n(S'x'\nS'zlib'\ntR.",
        b"\x80\x04cos\nsystem\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0bcore.system\x93.",
    ],
)
def test_a_pickle_that_wants_more_than_arrays_is_refused(
    tmp_path: Path, payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pkl").write_bytes(payload)
    with pytest.raises(C3Error):
        read_pickle(tmp_path / "x.pkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pkl"]


def test_yaml_neither_makes_objects_nor_grows(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(f"steps: !!python/object/apply:os.system ['touch {tmp_path}/owned']")
    with pytest.raises(TransformError, match="not valid YAML"):
        Pipeline.from_config(path)
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    for last in ("steps: [*a59]", "name: *a59\nsteps: []", "steps: [{step: collapse, modalities: *a59}]"):
        path.write_text("\n".join([*lines, last]))
        with pytest.raises(TransformError) as error:
            Pipeline.from_config(path)
        assert len(str(error.value)) < 5000
    assert not (tmp_path / "owned").exists()


def test_no_command_on_local_data_opens_a_connection(tmp_path: Path, c3: C3, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_store(tmp_path / "c3-store")

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refused)
    for command in (["verify"], ["means"], ["gap-report"], ["export"], ["split", "new"]):
        result = c3(*command)
        assert result.exit_code == 0, (command, result.stderr, result.exception)


def test_names_from_files_are_text_in_the_report(tmp_path: Path, c3: C3) -> None:
    path = whole_store(tmp_path / "c3-store").path
    text = (path / "store.json").read_text()
    (path / "store.json").write_text(text.replace("test-model", "<script>alert(1)</script>"))
    assert c3("gap-report").exit_code == 0
    page = (tmp_path / "gap-report.html").read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_newer_store_is_refused_by_every_command(tmp_path: Path, c3: C3) -> None:
    for name in ("c3-store", "second"):
        path = whole_store(tmp_path / name).path
        value = json.loads((path / "store.json").read_text())
        (path / "store.json").write_text(json.dumps({**value, "format_version": 2}))
    (tmp_path / "t.txt").write_text("a dog\n")
    np.save(tmp_path / "v.npy", unit_rows(3, 12))
    commands = [
        ["verify"],
        ["verify", "--repair"],
        ["means"],
        ["gap-report"],
        ["export"],
        ["index"],
        ["merge", "new", "c3-store", "second"],
        ["split", "new"],
        ["embed", "t.txt"],
        ["import", "--image", "v.npy"],
        ["train-decoder"],
        ["ablate"],
    ]
    before = {file: file.read_bytes() for file in sorted((tmp_path / "c3-store").rglob("*")) if file.is_file()}
    for command in commands:
        result = c3(*command)
        assert result.exit_code == 1, (command, result.stdout, result.exception)
        assert "format version 2, but this version of c3tools only reads up to 1" in result.stderr, (
            command,
            result.stderr,
        )
    after = {file: file.read_bytes() for file in before}
    assert after == before


def test_every_promise_names_a_test_that_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 15
    for path, name in named:
        assert re.search(rf"def {name}\b", (ROOT / path).read_text(encoding="utf-8")), f"{path}::{name}"
