"""Queries of several parts: against sums that are computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from c3tools import Calibration, Index, Store, build_index, export_store
from c3tools.arrays import Array
from c3tools.errors import StoreError, TransformError, UnusedOptionError
from c3tools.index.queries import Query, combined
from c3tools.store import Rows
from tests.conftest import build_store
from tests.stores import unit

pytest.importorskip("faiss", reason="faiss is an extra")


@pytest.fixture(scope="module")
def index(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index(store, output=tmp_path_factory.mktemp("index") / "index")


def collapsed(store: Store, modality: str) -> np.ndarray:
    rows = unit(store.load(modality).embeddings.astype(np.float64))
    return unit(rows - store.moments(modality, "train").mean)


def parts(store: Store) -> list[Query]:
    """A text and a photo, as the model embeds them."""
    return [
        Query([label], store.load(name).embeddings[row : row + 1], name)
        for label, name, row in (("red", "text", 3), ("photo.jpg", "image", 7))
    ]


@pytest.mark.parametrize(
    ("weights", "label"),
    [
        (None, "red + photo.jpg"),
        ([1, 0.5], "1 × red + 0.5 × photo.jpg"),
        ([-1, 2], "-1 × red + 2 × photo.jpg"),
    ],
)
def test_a_text_and_a_photo_are_the_unit_sum_of_their_collapsed_vectors(
    index: Index, store: Store, weights: Any, label: str
) -> None:
    query = combined(index.pipeline, parts(store), weights)
    one, other = weights or (1, 1)
    expected = unit(one * collapsed(store, "text")[3:4] + other * collapsed(store, "image")[7:8])
    np.testing.assert_allclose(query.embeddings, expected, atol=2e-6)
    assert query.labels == [label]


def combined_z(calibration: Calibration, query: Array, cosines: Array, kind: str) -> Array:
    """z sqrt(r_m / r), r the geometric mean of r_m over kinds."""
    r = {
        name: (np.trace(m.covariance @ m.covariance) - np.trace(m.covariance) ** 2 / m.n) ** 0.5
        for name, m in calibration.moments.items()
    }
    geometric_mean = np.prod([*r.values()]) ** (1 / len(r))
    return np.asarray(calibration.z(query, cosines, kind) * np.sqrt(r[kind] / geometric_mean))


@pytest.mark.parametrize("weights", [None, [1, 0.5], [0.5, 1], [1, -1], [0.5, -1]])
def test_a_text_and_a_photo_have_one_score_for_all_weights(
    index: Index, store: Store, weights: list[float] | None
) -> None:
    query = combined(index.pipeline, parts(store), weights)
    assert query.modality is None
    (hits,) = index.rank(query.embeddings, query.modality, 300, by="row", transformed=True)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    for name in ("image", "text"):
        of_kind = [hit for hit in hits if hit.modality == name]
        own = collapsed(store, name)
        rows = [store.load(name).keys.index(hit.key) for hit in of_kind]
        cosines = own[rows] @ query.embeddings[0]
        expected = combined_z(index.calibration, query.embeddings[0], cosines, name)
        np.testing.assert_allclose([hit.score for hit in of_kind], expected, atol=1e-3)


def test_a_part_of_weight_0_is_in_no_query(index: Index, store: Store) -> None:
    text, photo = parts(store)
    alone = combined(index.pipeline, [text, photo], [2, 0])
    assert alone.modality == "text"
    np.testing.assert_allclose(alone.embeddings, unit(text.transformed(index.pipeline)), atol=1e-6)


def test_fused_rows_are_a_kind_for_a_text_and_a_photo(store: Store, tmp_path: Path) -> None:
    export = export_store(store, output=tmp_path / "fused", preset="gr-clip", fuse=True)
    index = build_index(export.output, output=tmp_path / "index")
    query = combined(index.pipeline, parts(store))
    (hits,) = index.rank(query.embeddings, query.modality, 300, by="row", transformed=True)
    fused = [hit for hit in hits if hit.modality == "fused"]
    assert len(fused) > 20
    cosines = np.array([hit.cosine for hit in fused])
    expected = combined_z(index.calibration, query.embeddings[0], cosines, "fused")
    np.testing.assert_allclose([hit.score for hit in fused], expected, atol=1e-4)

    # A fused row as a part of a query
    text, _ = parts(store)
    (result,) = index.search(vector=text.embeddings, key=fused[0].key, weights=[1, 2])
    assert result.hits[0].key == fused[0].key


def test_several_texts_are_one_query_with_weights_and_several_without(
    index: Index, store: Store
) -> None:
    vectors = store.load("text").embeddings[:2]
    assert len(index.search(vector=vectors)) == 2
    (one,) = index.search(vector=vectors, weights=[1, 1])
    assert one.query == "vector row 0 + vector row 1"
    assert combined(index.pipeline, [Query(["a", "b"], vectors, "text")]).modality == "text"


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1], r"for each of the 2 parts of the query \(red, photo.jpg\), but --weights has 1\."),
        ([1, 2, 3], r"but --weights has 1, 2, 3\."),
        ([1, float("nan")], r"but --weights has 1, nan\."),
        ([0, 0], "All weights of the query are 0"),
    ],
)
def test_weights_that_no_query_can_have(
    index: Index, store: Store, weights: list[float], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        combined(index.pipeline, parts(store), weights)


def test_what_cannot_be_combined(index: Index, store: Store, tmp_path: Path) -> None:
    text, photo = parts(store)
    with pytest.raises(StoreError, match=r"\(red, red\) cancel each other out"):
        combined(index.pipeline, [text, text], [1, -1])
    with pytest.raises(UnusedOptionError, match="--weights has no effect with a query of one part"):
        index.search(vector=text.embeddings, weights=[2])
    sound = Query(["a.flac"], text.embeddings, "audio")
    with pytest.raises(TransformError, match="not fitted for the modality 'audio'"):
        combined(index.pipeline, [text, sound])

    # Photos alone: no text has a mean
    images = store.load("image")
    rows = Rows.of("image", images.keys, images.embeddings, split=["train"] * len(images.keys))
    alone = build_store(tmp_path / "alone", rows)
    for pipeline in (
        build_index(alone, output=tmp_path / "photos").pipeline,
        build_index(store, output=tmp_path / "plain", preset="c1").pipeline,
    ):
        with pytest.raises(StoreError, match="does not subtract the mean of text vectors") as error:
            combined(pipeline, [text, photo])
        assert "c3 means load" in str(error.value)
