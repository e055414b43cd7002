"""An export in an object store, on a server whose every seventh request fails, against the same on disk."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import DEFAULT, Mock, patch

import pytest

from c3tools.errors import OutputError
from c3tools.export import export_store
from c3tools.io.locations import location
from c3tools.store import Store
from c3tools.store.shards import write_rows
from tests.conftest import contents, contents_at_url
from tests.servers import Faults

URL = "s3://bucket/runs/export"


@pytest.mark.parametrize("format", ["parquet", "npy"])
def test_an_export_at_a_url(store: Store, tmp_path: Path, s3: Faults, format: str) -> None:
    disk = export_store(store, tmp_path / "disk", format=format)
    s3.every = 7
    cut = Mock(wraps=write_rows, side_effect=[DEFAULT] * 3 + [KeyboardInterrupt])
    with patch("c3tools.export.write_rows", cut), pytest.raises(KeyboardInterrupt):
        export_store(store, URL, format=format, workers=1)
    there = export_store(store, URL, format=format)
    assert (there.parts, there.kept, there.rows, there.bytes) == (3, 3, disk.rows, disk.bytes)
    assert contents_at_url(location(URL)) == contents(tmp_path / "disk")
    assert s3.failed > 3
    with pytest.raises(OutputError, match=r"\(c3\)"):
        export_store(store, URL, preset="c1", format=format)
    export_store(store, URL, preset="c1", format=format, overwrite=True)
    export_store(store, tmp_path / "other", preset="c1", format=format)
    assert contents_at_url(location(URL)) == contents(tmp_path / "other")
