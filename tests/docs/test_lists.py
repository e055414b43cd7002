"""The tables of the documentation name what the tables of the code name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from c3tools.encoders.backends import BACKENDS
from c3tools.metrics.captions import METRICS
from c3tools.transforms import PRESETS
from c3tools.transforms.pipeline import step_kinds

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("presets.md", PRESETS),
        ("exports.md", step_kinds()),
        ("embedding.md", BACKENDS),
        ("decoders.md", METRICS),
    ],
)
def test_page_names_every_row(page: str, names: Iterable[str]) -> None:
    text = (REFERENCE / page).read_text(encoding="utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []
