"""Scripts in examples/clusters run on a store, where their packages are installed."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import c3tools
from c3tools.store import Store

from .conftest import EXAMPLES

pytestmark = pytest.mark.filterwarnings("ignore")  # those of other packages


def test_clusters_of_scikit_learn(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sklearn_clusters.py", str(store.path)])
    runpy.run_path(str(EXAMPLES / "clusters/sklearn_clusters.py"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["k = 5", "k = 11", "k = 40"]
    assert lines[0].endswith("c3 clusters 100%") and lines[3].startswith("HDBSCAN after Collapse")


def test_topics_of_bertopic(
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("bertopic", reason="the package bertopic is not there")
    c3tools.cluster(store, output=tmp_path / "c3-clusters")
    arguments = ["bertopic_topics.py", str(store.path), str(tmp_path / "c3-clusters")]
    monkeypatch.setattr(sys, "argv", arguments)
    runpy.run_path(str(EXAMPLES / "clusters/bertopic_topics.py"))
    assert "of the captions are in the topic of their photo" in capsys.readouterr().out
