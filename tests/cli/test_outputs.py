"""The rule for folders that commands write to: one run at a time, and on Ctrl-C what is said is so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from c3tools.io.lock import locked
from c3tools.training.checkpoints import CheckpointDir
from tests.conftest import C3

from ..captioning.conftest import make_captions_store
from ..connect.photos import save_photos, save_tiny_clip
from ..connect.worlds import write_files

RUNS = CheckpointDir.beside
Lock = Callable[[Path], Path]
# the command, and the folder that its lock is in
WRITERS: dict[str, tuple[list[str], Lock]] = {
    "embed": (["embed", "photos", "--store", "out", "--precision", "fp32"], lambda out: out),
    "import": (["import", "--image", "f/image.npy", "--store", "out"], lambda out: out),
    "export": (["export", "-o", "out"], lambda out: out),
    "index": (["index", "-o", "out"], lambda out: out),
    "export faiss": (["export", "-f", "faiss", "-o", "out"], lambda out: out),
    "ablate": (["ablate", "-o", "out", "--size", "tiny", "--epochs", "1"], lambda out: out),
    "demo": (["demo", "--out", "out"], lambda out: out),
    "split": (["split", "out"], lambda out: out.with_name(".out.unfinished")),
    "merge": (["merge", "out", "c3-store", "more", "--prefix"], lambda out: out.with_name(".out.unfinished")),
    "train-decoder": (["train-decoder", "-o", "out"], lambda out: RUNS(out).path),
    "connect heads": (["connect", "heads", "-o", "out"], lambda out: RUNS(out).path),
    "connect lit": (["connect", "lit", "photos", "--model", "TINY", "-o", "out"], lambda out: RUNS(out).path),
    "connect full": (["connect", "full", "photos", "--model", "TINY", "-o", "out"], lambda out: RUNS(out).path),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    make_captions_store(tmp_path / "c3-store")
    make_captions_store(tmp_path / "more")
    write_files(tmp_path / "f")
    save_photos(tmp_path / "photos", 2)
    return tmp_path


@pytest.mark.parametrize("command", WRITERS)
def test_the_second_run_into_a_folder_is_refused(c3: C3, place: Path, command: str) -> None:
    arguments, lock = WRITERS[command]
    tiny = save_tiny_clip(place / "tiny") if "TINY" in arguments else ""
    before = {path.name for path in place.iterdir()}
    with locked(lock(place / "out")):
        result = c3(*(tiny if part == "TINY" else part for part in arguments))
    assert result.exit_code == 1, result.output
    assert re.search(r"Another run is writing to \S*out\S* \(process \d+ on ", " ".join(result.stderr.split()))
    assert {path.name for path in place.iterdir()} == before


@pytest.mark.parametrize(
    "command", [["index"], ["export", "--overwrite"], ["ablate"], ["connect", "heads", "--overwrite"]]
)
def test_other_files_are_left_alone(c3: C3, place: Path, command: list[str]) -> None:
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    for folder in ("c3-store", "photos"):
        result = c3(*command, "-o", folder)
        assert result.exit_code == 1
        assert f"{folder} contains other files (" in result.stderr
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "command", ["gap-report", "evaluate", "caption", "simulate", "index", "export", "embed", "ablate"]
)
def test_on_ctrl_c_nothing_is_promised_that_is_not_so(
    c3: C3, place: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    where, arguments, said = {
        "gap-report": ("c3tools.store.Store.open", [], "No output of this run was kept."),
        "evaluate": ("c3tools.captioning.evaluate.store_references", [], "No output of this run was kept."),
        "caption": ("c3tools.captioning.caption.images_by_key", ["photos"], "No output of this run was kept."),
        "simulate": (
            "c3tools.geometry.theory.networks.generator",
            ["init-gap", "--toy"],
            "No output of this run was kept.",
        ),
        "index": (
            "c3tools.index.faiss_shards.write_shards",
            [],
            "An index is built in one go; run the same command again to restart.",
        ),
        "export": (
            "c3tools.export.export.ExportWork._transform",
            ["--workers", "1"],
            "No file was finished; run the same command again to restart.",
        ),
        "embed": (
            "c3tools.embedding.shards.write_shard",
            ["photos", "--store", "new", "--workers", "0"],
            "Rows kept in new: none; run the same command again to continue.",
        ),
        "ablate": (
            "c3tools.captioning.training.Trainer._run_step",
            ["--size", "tiny", "--epochs", "1", "--seeds", "1"],
            "No part of this training was kept; run the same command again to restart it. No result of the table was "
            "finished.",
        ),
    }[command]
    monkeypatch.setattr(where, interrupted)
    result = c3(command, *arguments)
    assert result.exit_code == 130, result.output
    assert " ".join(result.stderr.split()).endswith(f"Interrupted. {said}")
