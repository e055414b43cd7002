"""Code spans of the manual name commands, options, files, keys and functions that exist."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from .pages import ROOT

SPANS = runpy.run_path(str(ROOT / "docs" / "spans.py"))


@pytest.mark.parametrize("path", SPANS["PAGES"], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_page_names_nothing_that_does_not_exist(path: Path) -> None:
    assert SPANS["unknown"](path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("`c3 gap-raport`", "command: c3 gap-raport"),
        ("`c3 simulate depht`", "command: c3 simulate depht"),
        ("```bash\nc3 embed images && c3 indecs\n```", "command: c3 indecs"),
        ("`--mark-worts 0.02`", "option: --mark-worts"),
        ("`c3 pairs --undo`", "option: c3 pairs --undo"),
        (
            "```console\n$ c3 embed images --mark-worst 1  # --no-option\n```",
            "option: c3 embed --mark-worst",
        ),
        ("`python docs/reference.py --wirte`", "option: --wirte"),
        ("`duplicate.parquet`", "file: duplicate.parquet"),
        ("`c3-store/left-outs.parquet`", "file: c3-store/left-outs.parquet"),
        ("`c3tools/store/shard.py`", "file: c3tools/store/shard.py"),
        ("`lost_caption`", "name: lost_caption"),
        ("`recal@10`", "name: recal@10"),
        (
            "`one_list.MODALITY.{other_modality, recal}.raw`",
            "name: one_list.MODALITY.{other_modality, recal}.raw",
        ),
        ("`c3tools.check_pair(store)`", "name: c3tools.check_pair"),
        ("`PairsCheck`", "name: PairsCheck"),
        ("`Store.opens`", "name: Store.opens"),
    ],
)
def test_a_broken_span_of_each_kind_is_found(text: str, found: str) -> None:
    assert SPANS["unknown"](f"# Page\n\n{text}\n") == [found]


def test_what_a_page_makes_and_what_other_programs_have_is_known() -> None:
    page = "```python\nmine = 1\n```\n\n`mine`, `c3 embed x.csv`, `x.csv`, `a + b`, `HF_TOKEN`\n"
    assert SPANS["unknown"](page) == []
