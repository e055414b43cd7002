from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from c3tools import ablate_captions
from c3tools.paper.ablation.table import Ablation
from c3tools.store import Store
from tests.conftest import Messages

from ...captioning.conftest import make_captions_store

Table = Callable[..., tuple[Ablation, list[str]]]
QUICK: dict[str, Any] = {
    "size": "tiny",
    "epochs": 1,
    "precision": "fp32",
    "set": ["layers=1", "batch_size=64"],
}


@pytest.fixture(scope="module", autouse=True)
def without_java() -> Iterator[None]:
    """Tables are the same on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("c3tools.metrics.java_metrics.missing_java", lambda: "it needs Java")
        yield


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_captions_store(tmp_path_factory.mktemp("ablation") / "c3-store")[0]


@pytest.fixture
def table(toy_store: Store, tmp_path: Path) -> Table:
    """Compute a small table in a folder; returns it and what was said."""

    def run(store: Store | Path = toy_store.path, **changes: Any) -> tuple[Ablation, list[str]]:
        messages = Messages()
        options = {"seeds": 1, "output": tmp_path / "table", **QUICK, **changes}
        return ablate_captions(store, **options, reporter=messages), messages.texts

    return run


def finished(messages: list[str]) -> int:
    return sum("already finished" in text for text in messages)
