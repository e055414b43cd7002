"""Doubles and data that several tests share; everything here works offline."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

# read where numpy and torch are first imported, here and in the processes that tests start: small
# products lose more by waiting for threads than they gain, tests run side by side, and the last
# bits of a sum depend on the number of threads
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from typer.testing import CliRunner, Result

from c3tools.assets.paths import PHOTOS
from c3tools.identity import ModelIdentity
from c3tools.io import locations
from c3tools.io.files import json_text
from c3tools.reporter import Progress, Reporter
from c3tools.store import (
    Failure,
    Rows,
    Store,
    StoreInfo,
    StoreWriter,
    create_store,
    part_name,
    shard_table,
    write_rows,
)
from tests.servers import Faults, Hub, hub_server, s3_credentials, s3_server

if TYPE_CHECKING:
    from c3tools.encoders import Encoder

# a shell starts what runs in the background with Ctrl-C ignored, and every process that it starts
# inherits that
signal.signal(signal.SIGINT, signal.default_int_handler)

locations.FIRST_PAUSE = 0.001  # between attempts to reach a server
# how long an example takes depends on what else the machine does
settings.register_profile("c3", deadline=None)
settings.load_profile("c3")

ALL_CASES = "C3_ALL_CASES" in os.environ
SHARED_DATA = Path(__file__).parent.parent.parent / "shared" / "data"
MODEL = ModelIdentity(name="test-model", weights_sha256="0" * 64)
C3 = Callable[..., Result]  # the fixture `c3`
T = TypeVar("T")


def slice_of(cases: Iterable[T], every: int = 3) -> list[T]:
    """Return the first case and every third one after it; with C3_ALL_CASES=1 all cases, as
    `make long` runs them.
    """
    return list(cases)[:: 1 if ALL_CASES else every]


@pytest.fixture
def shared_data() -> Path:
    """Real data that developers have beside the repository; without it the test is skipped."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the development data is not at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture
def browser() -> Iterator[Any]:
    """Drive Debian's Chromium; without it the test is skipped."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        pytest.skip("there is no Chromium with its driver here")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-proxy-server",
        "--window-size=1000,900",
    ):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()


@cache
def documented_keys() -> dict[str, tuple[str, str]]:
    """By command, the kind of value that docs/reference/outputs.md promises, and the cell with its
    keys."""
    page = Path(__file__).parent.parent / "docs" / "reference" / "outputs.md"
    rows = re.findall(
        r"^\| `c3 (.+?)` \| (\w*) ?\| (.*) \|$", page.read_text("utf-8"), re.MULTILINE
    )
    return {command: (kind, cell) for command, kind, cell in rows}


def keys_in(cell: str, *, without: str) -> set[str]:
    """Return the keys in a cell of the page, without what a pattern matches."""
    return set(re.findall(r"`([^`]+)`", re.sub(without, "", cell)))


def undocumented_keys(command: str, value: Any) -> set[str]:
    """Return the keys of what a command writes that are not on the page."""
    rows = [value] if isinstance(value, dict) else value
    wanted = "object" if isinstance(value, dict) else "list"
    keys = {"schema"}
    for name in (command, f"{command} --list"):
        kind, cell = documented_keys().get(name, ("", ""))
        if kind == wanted:
            keys |= keys_in(cell, without=r"\([^()]*\)")  # the keys of what a key has
    written: set[str] = set().union(*rows)
    if command == "index":  # of -k
        written = {re.sub(r"@\d+$", "@10", key) for key in written}
    return written - keys


def unwritten_keys(command: str, value: Any) -> set[str]:
    """Return the keys on the page, without those in brackets, that a value has nowhere."""
    written = set(re.findall(r'"([^"]+)": ', json_text(value)))
    missing = []
    for name in (command, f"{command} --list"):
        if value and name in documented_keys():
            _, cell = documented_keys()[name]
            missing.append(keys_in(cell, without=r"\[.*?\]") - written)
    return min(missing, key=len, default=set())


@pytest.fixture
def values_written() -> list[tuple[str, Any]]:
    """The commands that `c3` ran in this test, and what they wrote as JSON."""
    return []


@pytest.fixture
def c3(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, values_written: list[tuple[str, Any]]
) -> C3:
    """Run `c3 ARGUMENTS` in an empty folder; the result has exit_code, stdout and stderr."""
    from c3tools.cli import _derive, app

    run_command = _derive._Command.run
    write_json = _derive.write_json

    def run_and_check(command: Any, **values: Any) -> None:
        def write(value: Any, destination: str | None) -> None:
            assert undocumented_keys(command.name, value) == set()
            values_written.append((command.name, value))
            write_json(value, destination)

        monkeypatch.setattr(_derive, "write_json", write)
        run_command(command, **values)

    monkeypatch.setattr(_derive._Command, "run", run_and_check)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("C3_STORE", raising=False)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="c3")

    return run


def done(result: Result) -> Result:
    """The result of a command that has to succeed."""
    assert result.exit_code == 0, result.output
    return result


def as_json(result: Result) -> Any:
    """What a command that has to succeed printed."""
    return json.loads(done(result).stdout)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """An S3 on this machine with an empty ``bucket``; what is yielded says which requests fail.

    Credentials and endpoint are in the environment, where users have them.
    """
    pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("upath", reason="the extra url is not installed")
    s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    faults = Faults()
    with s3_server(faults) as endpoint:
        for name, value in s3_credentials(endpoint).items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("bucket")
        yield faults
        faults.every = 0
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, its cache, and the token that may write."""
    with hub_server() as server:
        from huggingface_hub import constants

        for name, value in {
            "ENDPOINT": server.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.endpoint
            + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        for proxy in ("http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


@pytest.fixture(params=["disk", "s3"])
def put(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    """Where a test has its stores: on disk, as they were made, or in an object store whose every
    seventh request fails.

    What is yielded takes the folder of a store and gives its place.
    """
    if request.param == "disk":
        return lambda folder: folder
    faults: Faults = request.getfixturevalue("s3")

    def to_s3(folder: Path) -> Path:
        faults.every = 0
        place = put_store(folder, f"s3://bucket/{folder.name}")
        faults.every = 7
        return place

    return to_s3


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store that `gap_store` makes by default, for tests that only read it."""
    from tests.stores import gap_store

    return gap_store(tmp_path_factory.mktemp("shared") / "c3-store")


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The bundled model, loaded once."""
    from c3tools.encoders import load_encoder

    return load_encoder(backend="torch", precision="fp32")


@pytest.fixture(scope="session", params=["torch", "openvino"])
def each_encoder(request: pytest.FixtureRequest) -> Encoder:
    """The bundled model in fp32, by every backend."""
    from c3tools.encoders import load_encoder

    return load_encoder(backend=request.param, precision="fp32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of four bundled photos with their captions (20), split into train and val."""
    return copy_photos(tmp_path / "photos", 4)


def copy_photos(folder: Path, count: int) -> Path:
    """Copy the first bundled photos with their captions, those of the split test last."""
    folder.mkdir(parents=True)
    lines = (PHOTOS / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = sorted(
        (json.loads(line) for line in lines), key=lambda row: (row["split"] == "test", row["image"])
    )[:count]
    for number, row in enumerate(rows):
        shutil.copyfile(PHOTOS / "images" / row["image"], folder / row["image"])
        row["split"] = "val" if number % 4 == 3 else "train"
    write_jsonl(folder / "captions.jsonl", *rows)
    return folder


def write_jsonl(path: Path, *rows: object) -> Path:
    """Write a line of JSON for each row."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class Messages(Reporter):
    """A reporter that keeps the messages."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def message(self, text: str) -> None:
        self.texts.append(text)


class Counted(Reporter, Progress):
    """Keeps the count of each piece of work, and the last note that was not empty."""

    def __init__(self) -> None:
        self.counts, self.notes = Counter[str](), dict[str, str]()

    @contextmanager
    def progress(self, label: str, total: int | None = None) -> Iterator[Progress]:
        self.label = label
        yield self

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self.counts[self.label] += count
        if note:
            self.notes[self.label] = note


def build_store(
    path: Path,
    *modalities: Rows,
    model: Mapping[str, Any] = MODEL,
    dtype: str = "float16",
    normalised: bool = True,
    part_rows: int | Mapping[str, int] = 1000,
    failures: Sequence[tuple[int, Failure]] = (),
    preprocessing: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Store:
    """Write rows of one modality each to a new store, which carries ``columns`` of these types
    (string, int64, double or bool).

    It says ``normalised`` of their norms; ``failures`` are of image shards, with their numbers.
    """
    dim = modalities[0].embeddings.shape[1]
    info = StoreInfo(
        ModelIdentity(model),
        dim,
        dtype=dtype,
        normalised=normalised,
        preprocessing=dict(preprocessing or {}),
        columns=dict(columns or {}),
    )
    create_store(path, info)
    for rows in modalities:
        size = part_rows if isinstance(part_rows, int) else part_rows[rows.modality]
        for part, start in enumerate(range(0, len(rows), size)):
            chosen = rows.select(np.arange(len(rows))[start : start + size])
            row_columns = {name: chosen.column(name) for name in chosen.table.column_names}
            failed = [
                failure
                for number, failure in failures
                if (rows.modality, part) == ("image", number)
            ]
            add_shard(path, info, rows.modality, part, chosen.embeddings, row_columns, failed)
    StoreWriter(path).finish()
    return Store.open(path)


def add_shard(
    path: Path,
    info: StoreInfo,
    modality: str,
    part: int,
    embeddings: npt.NDArray[Any],
    columns: Mapping[str, Sequence[Any]],
    failures: Sequence[Failure] = (),
    made_from: str | None = None,
) -> None:
    """Write a shard to a store, which does not list it yet."""
    table = shard_table(info, modality, embeddings, columns)
    write_rows(path / part_name(modality, part), info, modality, table, failures, made_from)


def make_store(
    path: Path,
    image: npt.NDArray[Any],
    text: npt.NDArray[Any],
    *,
    owners: Sequence[int | None] | None = None,
    split: str | Sequence[str] | None = "train",
    **options: Any,
) -> Store:
    """A store of given embeddings: image rows ``image0``…, text row i belongs to image
    ``owners[i]`` (i by default).

    ``split`` is that of all rows, or that of each image, in which its texts are too; ``options``
    are of `build_store`.
    """
    owners = range(len(text)) if owners is None else owners
    keys = [f"image{i}" for i in range(len(image))]
    splits = [split] * len(image) if split is None or isinstance(split, str) else split
    split_of: dict[int | None, str | None] = dict(enumerate(splits))
    images = Rows.of("image", keys, image, path=[f"{key}.jpg" for key in keys], split=splits)
    texts = Rows.of(
        "text",
        [f"text{i}" for i in range(len(text))],
        text,
        caption=[f"caption {i}" for i in range(len(text))],
        image_key=[None if owner is None else f"image{owner}" for owner in owners],
        split=[split_of.get(owner, "train") for owner in owners],
    )
    return build_store(path, images, texts, **{"dtype": "float32", **options})


def store_files(folder: Path) -> list[Path]:
    """The files of a store that hold something, sorted."""
    return sorted(file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of the files of a folder, but for the times of a store's inputs."""
    files = [file for file in store_files(folder) if file.name != "inputs.parquet"]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def put_store(folder: Path, url: str) -> Path:
    """Put a store on disk to a URL, whose place is returned."""
    place = locations.location(url)
    for file in store_files(folder):
        locations.upload(file, place / file.relative_to(folder).as_posix())
    return place


def contents_at_url(place: Path) -> dict[str, bytes]:
    """What `contents` returns, of a folder in an object store."""
    folders, files = locations.names_in(place)
    found = {name: locations.read_all(place / name) for name in files if name != "inputs.parquet"}
    for folder in folders:
        found |= {
            f"{folder}/{name}": content for name, content in contents_at_url(place / folder).items()
        }
    return found


def unit_rows(n: int, dim: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Random unit vectors, float32 (n, dim)."""
    rows = np.random.default_rng(seed).normal(size=(n, dim))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)
