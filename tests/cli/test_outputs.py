"""The rules for folders that commands write to: one run at a time, and Ctrl-C says what is kept."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from unittest.mock import Mock

import pytest

from c3tools import TerminalReporter
from c3tools.io.lock import locked
from tests.conftest import C3, done

QUICK = "--epochs 1 --precision fp32 -o out"
CONTINUED = (
    "embed notes.txt --workers 0 --backend torch --precision fp32 --store out",
    "import --image i.npy --store out",
    "export --workers 1 -o out",
    "index -o out",
    f"train-decoder --size tiny --sigma 0.1 {QUICK}",
    f"connect heads {QUICK}",
)
OTHERS = (
    "index --factory Flat -o out",
    "merge --prefix -o out c3-store other",
    "split -o out",
    f"connect lit photos --model local-dir:tiny {QUICK}",
    f"ablate-captions --size tiny --seeds 1 --methods C1 {QUICK}",
    "demo --output out",
)


@pytest.mark.parametrize("command", [*CONTINUED, *OTHERS])
def test_the_second_run_into_a_folder_is_refused(c3: C3, workplace: Path, command: str) -> None:
    before = {path.name for path in workplace.iterdir()}
    with locked(workplace / "out"):
        result = c3(*command.split())
    assert result.exit_code == 1, result.output
    assert re.search(
        r"Another run is writing to \S*out\S* \(process \d+ on ", " ".join(result.stderr.split())
    )
    assert {path.name for path in workplace.iterdir() if not path.name.startswith(".")} <= before


@pytest.mark.parametrize(
    "command",
    [
        *CONTINUED,
        "export --format npy -o out",
        "export --format hf -o out",
        "means save out",
        "means load moments.safetensors",
        "gap-report --html out",
    ],
)
def test_files_that_did_not_change_are_not_touched(c3: C3, workplace: Path, command: str) -> None:
    if command.startswith("means load"):
        done(c3("means", "save", "moments.safetensors"))
    done(c3(*command.split()))
    files = [path for path in workplace.rglob("*") if path.is_file()]
    for path in files:
        os.utime(path, ns=(1, 1))

    done(c3(*command.split()))

    assert [path for path in workplace.rglob("*") if path.is_file()] == files
    assert [path for path in files if path.stat().st_mtime_ns != 1] == []


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("command", [*CONTINUED, "gap-report"])
def test_ctrl_c_is_exit_code_130_and_the_same_command_goes_on(
    c3: C3, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    progress = Mock(advance=Mock(side_effect=KeyboardInterrupt))
    with monkeypatch.context() as patch:
        patch.setattr(TerminalReporter, "progress", lambda *_: contextlib.nullcontext(progress))
        result = c3(*command.split())
    assert result.exit_code == 130, result.output
    assert re.search(r"Interrupted\. [A-Z].*\.$", " ".join(result.stderr.split()))
    done(c3(*command.split()))
