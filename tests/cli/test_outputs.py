"""The rules for folders that commands write to: one run at a time, and Ctrl-C says what is kept."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from c3tools import TerminalReporter
from c3tools.io.lock import locked
from c3tools.reporter import Progress
from tests.conftest import C3, done

QUICK = "--epochs 1 --precision fp32 -o OUT"
WRITERS = {
    "embed": "embed notes.txt --workers 0 --backend torch --precision fp32 --store OUT",
    "import": "import --image i.npy --store OUT",
    "export": "export --workers 1 -o OUT",
    "export faiss": "export -f faiss -o OUT",
    "index": "index -o OUT",
    "merge": "merge --prefix OUT c3-store other",
    "split": "split OUT",
    "train-decoder": f"train-decoder --size tiny --sigma 0.1 {QUICK}",
    "connect heads": f"connect heads {QUICK}",
    "connect lit": f"connect lit photos --model local-dir:tiny {QUICK}",
    "ablate": f"ablate --size tiny --seeds 1 --methods C1 {QUICK}",
    "demo": "demo --out OUT",
    "gap-report": "gap-report",
}
CONTINUED = ("embed", "import", "export", "index", "train-decoder", "connect heads", "gap-report")


def command(name: str, output: str) -> list[str]:
    return WRITERS[name].replace("OUT", output).split()


@pytest.mark.parametrize("name", [name for name in WRITERS if "OUT" in WRITERS[name]])
def test_the_second_run_into_a_folder_is_refused(c3: C3, workplace: Path, name: str) -> None:
    before = {path.name for path in workplace.iterdir()}
    with locked(workplace / "out"):
        result = c3(*command(name, "out"))
    assert result.exit_code == 1, result.output
    assert re.search(r"Another run is writing to \S*out\S* \(process \d+ on ", " ".join(result.stderr.split()))
    assert {path.name for path in workplace.iterdir() if not path.name.startswith(".")} <= before


@pytest.mark.parametrize("name", CONTINUED)
def test_ctrl_c_is_exit_code_130_and_the_same_command_goes_on(
    c3: C3, workplace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    class Interrupted(Progress):
        def advance(self, count: int = 1, note: str | None = None) -> None:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def progress(*_: Any, **__: Any) -> Iterator[Progress]:
        yield Interrupted()

    with monkeypatch.context() as patch:
        patch.setattr(TerminalReporter, "progress", progress)
        result = c3(*command(name, "out"))
    assert result.exit_code == 130, result.output
    assert re.search(r"Interrupted\. [A-Z].*\.$", " ".join(result.stderr.split()))
    done(c3(*command(name, "out")))
