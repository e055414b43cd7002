from __future__ import annotations

import pytest

from c3tools.ablation import AblationData
from c3tools.ablation.data import ablation_data
from c3tools.store import Store

from ..captioning.conftest import make_captions_store


@pytest.fixture(scope="session")
def toy_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_captions_store(tmp_path_factory.mktemp("ablation") / "c3-store")[0]


@pytest.fixture(scope="session")
def data(toy_store: Store) -> AblationData:
    return ablation_data(toy_store)[0]
