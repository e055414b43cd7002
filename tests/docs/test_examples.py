"""The examples in docstrings of public names run, and print what they show.

Each starts in a folder of its own with the bundled photos in images/ and their store in c3-store/,
which is open as ``store``.
"""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path

import numpy as np
import pytest

import c3tools
from c3tools.metrics.caption_scores import score_captions

from .pages import as_on_a_plain_install, same

PUBLIC = {name: getattr(c3tools, name) for name in c3tools.__all__ if name != "__version__"}
PUBLIC["score_captions"] = score_captions
EXAMPLES = {
    test.name: test
    for name, value in PUBLIC.items()
    for test in doctest.DocTestFinder().find(value, name, module=False, globs={})
    if test.examples
}


class Checker(doctest.OutputChecker):
    """Compares words, and numbers with the tolerance of pages of the documentation."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return same(want, got)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_shows(
    name: str, embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(embedded.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    as_on_a_plain_install(monkeypatch)
    test = EXAMPLES[name]
    test.globs = {"c3tools": c3tools, "np": np, "store": c3tools.Store.open("c3-store")}
    report: list[str] = []
    doctest.DocTestRunner(Checker(), verbose=False).run(test, out=report.append)
    assert not report, "".join(report)
    assert not any("..." in example.want for example in test.examples)
