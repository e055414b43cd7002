"""Clusters in a folder: what they count, and that they are continued, assigned and refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import c3tools
from c3tools.clustering.cross_centroids import spherical_kmeans
from c3tools.clusters import cluster as module
from c3tools.clusters.summary import ClusteredRows, summarise
from c3tools.errors import OutputError, StoreError, TransformError
from c3tools.geometry.mixed_clusters import kappa_of_pairs
from c3tools.seeds import generator
from c3tools.store import Store, StoreWriter
from tests.conftest import C3, Messages, add_shard, as_json, build_store, contents, done
from tests.stores import gap_store, make_vectors, one_byte_changed, two_texts_per_image


@pytest.fixture(scope="module")
def clusters(store: Store, tmp_path_factory: pytest.TempPathFactory) -> c3tools.Clusters:
    return c3tools.cluster(store, output=tmp_path_factory.mktemp("made") / "clusters")


def labels_in(folder: Path, modality: str) -> np.ndarray:
    rows = pq.read_table(folder / "clusters.parquet").to_pylist()
    return np.array([row["cluster"] for row in rows if row["modality"] == modality])


def test_the_table_has_every_row_once_and_the_record_counts_it(
    store: Store, clusters: c3tools.Clusters
) -> None:
    table = pq.read_table(clusters.folder / "clusters.parquet")
    names = ["modality", "key", "cluster", "cosine"]
    assert table.column_names[:4] == names
    assert {*table.column_names[4:]} == {"path", "caption"}
    assert table.column("key").to_pylist() == [*store.load("image").keys, *store.load("text").keys]
    images, texts = (labels_in(clusters.folder, name) for name in ("image", "text"))
    assert len(clusters) == round(90**0.5) == len(clusters.centroids["image"])
    pairs = store.pairs()
    together = texts[images[pairs.item_index] == texts]
    for each in clusters.record["clusters"]:
        number = each["cluster"]
        assert each["rows"] == {"image": sum(images == number), "text": sum(texts == number)}
        assert each["pairs_together"] == sum(together == number)
    one_kind = [each for each in clusters.record["clusters"] if 0 in each["rows"].values()]
    assert clusters.record["one_kind"]["clusters"] == len(one_kind)


def test_a_row_is_nearest_to_the_centroid_of_the_other_modality(
    store: Store, clusters: c3tools.Clusters
) -> None:
    rows = clusters.pipeline.transform(store.load("image").embeddings, modality="image")
    cosines = rows @ clusters.centroids["text"].T
    assert np.array_equal(cosines.argmax(axis=1), labels_in(clusters.folder, "image"))
    table = pq.read_table(clusters.folder / "clusters.parquet")
    assert table.column("cosine").to_numpy()[: len(rows)] == pytest.approx(
        cosines.max(axis=1), abs=1e-6
    )
    embeddings = store.load("text").embeddings
    assert np.array_equal(clusters.assign(embeddings, "text"), labels_in(clusters.folder, "text"))
    with pytest.raises(StoreError, match="no clusters of audio rows"):
        clusters.assign(embeddings, "audio")


def test_words_set_a_cluster_apart(tmp_path: Path) -> None:
    captions = ["a dog in snow", "the dog runs", "a red bus", "a blue bus", "a bus"]
    table = pa.table({"key": list("abcde"), "caption": captions})
    cosines = np.array([0.1, 0.2, 0.3, 0.9, 0.4], np.float32)
    found = summarise({"text": ClusteredRows(table, np.array([0, 0, 1, 1, 1]), cosines)}, {}, 3)
    assert found[0]["pairs_together"] is None
    # The share of the other texts counts one text more that has the word: (times + 1) / (n + 1)
    assert found[0]["words"] == ["dog", "in", "runs", "snow", "the"]
    assert found[1]["words"] == ["bus"]  # 1 of 3 have red; (0 + 1) / (2 + 1) of the others
    assert [each["central_text"] for each in found] == ["the dog runs", "a blue bus", None]


@pytest.mark.parametrize("kind", ["export", "index"])
def test_exports_and_indexes_give_the_clusters_of_their_store(tmp_path: Path, kind: str) -> None:
    store = gap_store(tmp_path / "store", dtype="float32")
    expected = c3tools.cluster(store, output=tmp_path / "of-store")
    if kind == "export":
        c3tools.export_store(store, output=tmp_path / kind, preset="c2-collapse", dtype="float32")
    else:
        c3tools.build_index(store, output=tmp_path / kind, factory="Flat")
    found = c3tools.cluster(tmp_path / kind, output=tmp_path / "of-other")
    for name in ("image", "text"):
        assert np.array_equal(labels_in(found.folder, name), labels_in(expected.folder, name))
    assert found.record["clusters"] == expected.record["clusters"]


def test_rows_of_an_export_before_its_noise_go_through_the_steps_that_are_left(
    tmp_path: Path, store: Store
) -> None:
    c3tools.export_store(store, output=tmp_path / "before", before_noise=True)
    c3tools.export_store(store, output=tmp_path / "finished", role="inference", dtype="float32")
    found, expected = (
        c3tools.cluster(tmp_path / name, output=tmp_path / f"of-{name}")
        for name in ("before", "finished")
    )
    for name in ("image", "text"):
        assert np.array_equal(labels_in(found.folder, name), labels_in(expected.folder, name))


def test_one_modality_is_spherical_k_means(store: Store, tmp_path: Path) -> None:
    found = c3tools.cluster(store, modalities=["text"], k=5, output=tmp_path / "clusters")
    rows = found.pipeline.transform(store.load("text").embeddings, modality="text")
    expected = spherical_kmeans(rows, 5, generator(0, "clusters"))
    assert found.centroids["text"] == pytest.approx(expected, abs=1e-5)
    assert found.record["verdict"] is None and found.explanation() == []


def test_new_rows_are_assigned_to_the_centroids_that_are_there(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store")
    output = tmp_path / "clusters"
    before = c3tools.cluster(store, output=output)
    rows = store.load("image").embeddings[:3]
    keys = {"key": ["new0", "new1", "new2"]}
    add_shard(store.path, store.info, "image", 9, rows, keys)
    StoreWriter(store.path).finish()
    with pytest.raises(OutputError, match="same settings but different data"):
        c3tools.cluster(store.path, output=output)
    after = c3tools.cluster(store.path, output=output, assign=True)
    for name in ("image", "text"):
        assert np.array_equal(after.centroids[name], before.centroids[name])
    assert after.record["rows"]["image"] == 93
    assert np.array_equal(labels_in(output, "image")[-3:], labels_in(output, "image")[:3])
    messages = Messages()
    c3tools.cluster(store.path, output=output, assign=True, reporter=messages)
    assert "nothing to do" in messages.texts[-1]


def test_rows_of_another_model_or_pipeline_are_not_assigned(store: Store, tmp_path: Path) -> None:
    output = tmp_path / "clusters"
    c3tools.cluster(store, output=output)
    other = gap_store(tmp_path / "other", model={"name": "other-model"})
    with pytest.raises(TransformError, match="their models are other-model and test-model"):
        c3tools.cluster(other, output=output, assign=True)
    c3tools.export_store(store, output=tmp_path / "export", preset="whiten")
    with pytest.raises(
        TransformError, match=r"of whiten, tag .* of gr-clip, tag .* the steps differ"
    ):
        c3tools.cluster(tmp_path / "export", output=output, assign=True)


def test_texts_with_noise_are_not_taken_for_those_of_a_pipeline_with_equal_tensors(
    store: Store, tmp_path: Path
) -> None:
    c3tools.export_store(store, output=tmp_path / "collapsed", preset="gr-clip")
    c3tools.export_store(store, output=tmp_path / "noised", preset="c3")
    records = [c3tools.Pipeline.load(tmp_path / name).record() for name in ("collapsed", "noised")]
    assert records[0]["tensors"] == records[1]["tensors"]
    output = tmp_path / "clusters"
    c3tools.cluster(tmp_path / "collapsed", output=output)
    with pytest.raises(TransformError, match="text rows have noise") as refusal:
        c3tools.cluster(tmp_path / "noised", output=output, assign=True)
    assert "--role inference" in str(refusal.value.remedy)
    # Nor are clusters made of them, to which new embeddings would be assigned without noise
    with pytest.raises(TransformError, match="text rows have noise"):
        c3tools.cluster(tmp_path / "noised", output=tmp_path / "other")
    c3tools.cluster(tmp_path / "noised", modalities=["image"], output=tmp_path / "images")


def test_one_cluster_has_a_map(store: Store, tmp_path: Path) -> None:
    clusters = c3tools.cluster(store, output=tmp_path / "clusters", k=1)
    page = (clusters.folder / "clusters.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert '<figure class="wide">' not in page  # which is cut on a narrow screen


def test_a_cluster_without_rows_is_not_of_one_kind(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store")
    clusters = c3tools.cluster(store, output=tmp_path / "clusters", k=90)
    sizes = [list(each["rows"].values()) for each in clusters.record["clusters"]]
    assert [0, 0] in sizes
    of_one_kind = [size for size in sizes if sorted(size)[0] == 0 and size != [0, 0]]
    assert clusters.record["one_kind"] == {
        "clusters": len(of_one_kind),
        "rows": sum(map(sum, of_one_kind)),
    }


def test_a_run_that_was_killed_leaves_nothing_and_gives_the_same_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = c3tools.cluster(store, output=tmp_path / "expected")
    with monkeypatch.context() as patch:
        patch.setattr(module, "clusters_page", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            c3tools.cluster(store, output=tmp_path / "clusters")
    with pytest.raises(StoreError, match="There is no finished clustering"):
        c3tools.Clusters.load(tmp_path / "clusters")
    found = c3tools.cluster(store, output=tmp_path / "clusters")
    assert contents(found.folder) == contents(expected.folder)


def test_threads_do_not_change_the_bytes(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store", 400)
    command = "import sys, c3tools; c3tools.cluster(sys.argv[1], output=sys.argv[2], k=60)"
    for threads in ("1", "2"):
        variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        subprocess.run(
            [sys.executable, "-c", command, str(store.path), str(tmp_path / threads)],
            env={**os.environ, **variables},
            check=True,
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_what_is_damaged_or_too_small_is_refused(store: Store, tmp_path: Path) -> None:
    output = tmp_path / "clusters"
    c3tools.cluster(store, output=output)
    (output / "centroids.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match=r"centroids\.safetensors is missing, damaged"):
        c3tools.cluster(store, output=output, assign=True)
    with pytest.raises(StoreError, match="90 rows cannot be divided into 91 clusters"):
        c3tools.cluster(store, output=tmp_path / "many", k=91)
    with pytest.raises(StoreError, match="no image rows in the split 'holiday'"):
        c3tools.cluster(store, output=tmp_path / "none", split="holiday")
    few = gap_store(tmp_path / "few", 12, parts=1)
    with pytest.raises(StoreError, match="too few train rows to estimate the mean"):
        c3tools.cluster(few, output=tmp_path / "few-clusters")


def test_damaged_files_of_clusters_are_found(store: Store, tmp_path: Path) -> None:
    output = tmp_path / "clusters"
    c3tools.cluster(store, output=output)
    assert c3tools.verify_store(output).verdict() == [f"{output} is complete and undamaged."]
    for file in output.iterdir():
        with one_byte_changed(file, file.stat().st_size // 2, 1):
            found = c3tools.verify_store(output)
        assert [(each.check, each.file) for each in found.defects] == [("checksum", file.name)]
    with pytest.raises(StoreError, match=r"(?s)clusters\.json, so it is no store.*--overwrite"):
        c3tools.verify_store(output, repair=True)
    (output / "clusters.html").unlink()
    found = c3tools.verify_store(output)
    assert found.whole and [each.level for each in found.findings] == ["warning"]
    assert c3tools.Clusters.load(output).folder == output
    (output / "centroids.safetensors").unlink()
    assert not c3tools.verify_store(output).whole


def test_the_verdict_is_of_the_clusters_that_are_written(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store", text_noise=0.4)
    by_default = c3tools.cluster(store, output=tmp_path / "default")
    many = c3tools.cluster(store, output=tmp_path / "many", k=45)
    measures = [each.record["verdict"]["measures"] for each in (by_default, many)]
    assert [each["clusters"] for each in measures] == [9, 45]
    assert measures[1]["kappa"]["cross"] < measures[0]["kappa"]["cross"] - 0.1
    assert "With 45 cross-centroids" in many.record["verdict"]["because"]
    assert "with the default of 9" in many.record["verdict"]["because"]
    assert [*measures[0]["kappa"]] == ["cross"]  # gap-report compares with k-means
    too_many = c3tools.cluster(store, output=tmp_path / "too-many", k=73)
    assert too_many.record["verdict"]["answer"] == "unknown"
    assert "four fifths" in too_many.record["verdict"]["because"]


def test_the_report_measures_the_clusters_that_are_made_by_default(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store", text_noise=0.4)
    found = c3tools.cluster(store, output=tmp_path / "clusters").record["verdict"]["measures"]
    reported = c3tools.gap_report(store, presets=("raw",)).verdict["clusters"].measures
    assert reported["clusters"] == found["clusters"]
    for measure in ("kappa", "one_kind"):
        assert [*reported[measure]] == ["raw", "collapsed", "cross"]
        assert reported[measure]["cross"] == found[measure]["cross"]


def test_beside_the_verdict_stands_the_share_of_the_table(tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store", text_noise=0.4)
    found = c3tools.cluster(store, output=tmp_path / "clusters", k=40)
    images, texts = (labels_in(found.folder, name) for name in ("image", "text"))
    expected = kappa_of_pairs(images[store.pairs().item_index], texts).mean()
    assert found.record["kappa_of_table"] == pytest.approx(expected)
    assert expected > found.record["verdict"]["measures"]["kappa"]["cross"] + 0.1
    assert f"made from, {100 * expected:.0f}% are in one cluster" in found.explanation()[1]


def test_with_enough_pairs_that_no_centroid_was_made_from_those_are_measured(
    tmp_path: Path,
) -> None:
    store = gap_store(tmp_path / "store", 1_500, dtype="float32")
    found = c3tools.cluster(store, output=tmp_path / "clusters", k=2)
    (pairs,) = found.record["verdict"]["measures"]["kappa_rows"].values()
    # 128 images were trained on, and 128 texts; some of the same items
    assert 2 * (1_500 - 256) <= pairs < 2 * (1_500 - 128)
    by_folds = c3tools.cluster(store, output=tmp_path / "folds", k=12)
    assert by_folds.record["verdict"]["measures"]["kappa_rows"] == {"cross": 3_000}


def test_a_text_of_many_items_counts_once_for_the_number_of_clusters(tmp_path: Path) -> None:
    images, texts = make_vectors(200)
    images_rows, text_rows = two_texts_per_image(["train"] * 200, images, texts.repeat(10, 0)[:400])
    store = build_store(tmp_path / "store", images_rows, text_rows)
    assert len(c3tools.cluster(store, output=tmp_path / "clusters")) == 6  # the root of 40


def test_a_verdict_by_an_earlier_measure_is_not_taken_for_finished(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "clusters"
    with monkeypatch.context() as patch:
        patch.setattr(module, "MEASURE", "halves by row")
        c3tools.cluster(store, output=output)
    with pytest.raises(OutputError, match="made with measure halves by row"):
        c3tools.cluster(store, output=output)
    with pytest.raises(StoreError, match="measured by an earlier version") as refusal:
        c3tools.cluster(store, output=output, assign=True)
    assert "--overwrite" in str(refusal.value.remedy)


def test_clusters_that_are_not_to_be_relied_on_are_said_to_be(c3: C3, tmp_path: Path) -> None:
    store = gap_store(tmp_path / "store", text_noise=30.0)
    found = as_json(c3("clusters", "--store", store.path, "-o", "c", "--json", "-"))
    assert found["verdict"]["answer"] == "no"
    printed = done(c3("clusters", "--store", store.path, "-o", "c")).stdout
    assert "cluster each kind by itself" in " ".join(printed.split())
    refused = c3("clusters", "--assign", "-k", 3, "-o", "c")
    assert refused.exit_code == 2 and "-k has no effect" in refused.stderr
