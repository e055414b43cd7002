from __future__ import annotations

from pathlib import Path

import pytest

from .pages import as_on_a_plain_install


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the bundled photos, embedded once, with the photos beside it in images/."""
    from c3tools import copy_photos, embed

    folder = tmp_path_factory.mktemp("docs")
    copy_photos(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        as_on_a_plain_install(patch)
        patch.chdir(folder)  # paths in the store are as the user names them
        embed("images", "c3-store")
    return folder / "c3-store"
