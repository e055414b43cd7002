from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from c3tools import build_index
from tests.conftest import build_store, copy_photos, unit_rows
from tests.stores import gap_store, make_vectors

from ..captioning.conftest import TOY, make_captions_store, trained_captioner
from ..connect.photos import save_tiny_clip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a small synthetic store in c3-store."""
    monkeypatch.chdir(tmp_path)
    return gap_store(tmp_path / "c3-store").path.parent


@pytest.fixture(scope="session")
def made_workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workplace")
    _, world = make_captions_store(folder / "c3-store")
    build_store(folder / "texts", world.texts, model=TOY, dtype="float32")
    build_store(folder / "images", world.images, model=TOY, dtype="float32")
    make_captions_store(folder / "other", noise=0.05)
    trained_captioner().save(folder / "c3-decoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        build_index("c3-store")
    copy_photos(folder / "photos", 8)
    save_tiny_clip(folder / "tiny")
    images, texts = make_vectors(6)
    arrays: dict[str, np.ndarray] = {
        "i": images,
        "t": texts,
        "eight": np.eye(6, 8),
        "flat": np.zeros(5),
        "far": unit_rows(4, 32),
        "holes": np.diag([1, 2, np.nan]),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "both.npz", a=images, b=images)
    (folder / "cut.npy").write_bytes((folder / "i.npy").read_bytes()[:100])
    for name in ("empty", "mine"):
        (folder / name).mkdir()
    files = {
        "mine/notes.txt": "keep",
        "notes.txt": "a dog\n",
        "steps.yaml": "steps: [normalize]\n",
        "broken.jsonl": "{",
        "one.jsonl": '{"id": 1}\n',
        "same.jsonl": "".join(f'{{"id": {i // 2}}}\n' for i in range(6)),
        "ids.jsonl": "".join(f'{{"id": {i}}}\n' for i in range(6)),
        "texts.jsonl": '{"text": "a dog"}\n',
        "splits.jsonl": '{"key": "image01", "split": "val"}\n',
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def workplace(made_workplace: Path, tmp_path: Path) -> Path:
    """A folder with stores, photos, models, an index, and files that are good, damaged and
    foreign."""
    shutil.copytree(made_workplace, tmp_path, dirs_exist_ok=True)
    return tmp_path
