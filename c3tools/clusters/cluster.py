"""`c3 clusters`: cluster the rows of one modality, or of two together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from ..arrays import Indices, Matrix
from ..choices import PositiveInt, checked
from ..clustering.cross_centroids import deciding_centroids, nearest_centroids, train_centroids
from ..corpus.splits import ALL
from ..errors import StoreError
from ..geometry.collect import Sample
from ..geometry.mixed_clusters import (
    MEASURE,
    MOST_ITEMS,
    default_count,
    measure_mixed_clusters,
)
from ..geometry.verdict import judge_clusters
from ..io.artifact import ArtifactType, digest_of, reading, reserve_output, writing
from ..io.files import write_text_atomically
from ..lists import as_list
from ..moments import unit_rows
from ..reporter import SILENT, Reporter, counted
from ..result_table import Table
from ..seeds import generator
from ..store import Store
from ..store.rows import ITEM_COLUMNS, item_keys, one_array
from ..store.shards import FUSED
from ..transforms import Pipeline
from ..transforms.space import Space
from .page import clusters_page
from .source import Source
from .summary import ClusteredRows, kappa_of_table, match_pairs, summarise, table_of

RECORD_FILE = "clusters.json"
TABLE_FILE = "clusters.parquet"
PAGE_FILE = "clusters.html"
_CENTROIDS_FILE = "centroids.safetensors"
CLUSTERS = ArtifactType("clustering", RECORD_FILE, StoreError, "c3 clusters", "", (TABLE_FILE,))
_COLUMNS = ("key", "caption", "path", *ITEM_COLUMNS)
_TRAINING_ROWS = 64  # of each modality, per cluster
_UNSEEN_ITEMS = 1_000  # centroids are judged by so many items that they were not made from, or more
_SHOWN_CLUSTERS = 20


@dataclass(frozen=True, repr=False)
class Clusters:
    """Clusters of the rows of one or two modalities, stored in a folder.

    Attributes:
        folder: with clusters.parquet, clusters.html, the centroids and the pipeline.
        record: the content of clusters.json.
        centroids: by modality, float32 (k, d), of its rows after the pipeline.
        pipeline: the fitted pipeline that rows go through first.
    """

    folder: Path
    record: dict[str, Any]
    centroids: dict[str, Matrix]
    pipeline: Pipeline

    @classmethod
    def load(cls, folder: str | Path) -> Clusters:
        """Open the clusters in a folder.

        Raises:
            StoreError: if there are none, or one of their files is missing or damaged.
        """
        with reading(folder, CLUSTERS) as (path, content):
            centroids = load_file(path / _CENTROIDS_FILE)
            return cls(path, content["record"], centroids, Pipeline.load(path))

    @property
    def space(self) -> Space:
        """The space of the centroids."""
        return Space.after(self.pipeline, f"the clusters {self.folder}")

    def __repr__(self) -> str:
        rows = counted(sum(self.record["rows"].values()), "row")
        return f"Clusters({str(self.folder)!r}: {rows} in {counted(len(self), 'cluster')})"

    def __len__(self) -> int:
        """Return the number of clusters."""
        return len(self.record["clusters"])

    def assign(self, embeddings: npt.ArrayLike, modality: str) -> Indices:
        """Return the cluster of embeddings (n, d) as the encoder gives them: int64 (n,).

        Raises:
            StoreError: if the clusters have no such modality.
        """
        if modality not in self.centroids:
            raise StoreError(
                f"{self.folder} has no clusters of {modality} rows.",
                remedy=f"It has clusters of {' and '.join(self.centroids)} rows.",
            )
        rows = self.pipeline.transform(np.asarray(embeddings, np.float32), modality=modality)
        return nearest_centroids(unit_rows(rows), deciding_centroids(self.centroids, modality))

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 clusters --json` prints."""
        shown = {name: value for name, value in self.record.items() if name != "made_from"}
        return {"output": str(self.folder), **shown}

    def table(self) -> Table:
        """Return the largest clusters."""
        names = list(self.record["rows"])
        clusters = sorted(self.record["clusters"], key=lambda each: -sum(each["rows"].values()))
        shown = clusters[:_SHOWN_CLUSTERS]
        columns = {"cluster": [str(each["cluster"]) for each in shown]}
        for name in names:
            heading = name if name == FUSED else f"{name}s"
            columns[heading] = [f"{each['rows'][name]:,}" for each in shown]
        if shown[0]["pairs_together"] is not None:
            columns["pairs together"] = [f"{each['pairs_together']:,}" for each in shown]
        left = ("words", "most central text") if "text" in names else ()
        if left:
            columns["words"] = [", ".join(each["words"]) for each in shown]
            columns["most central text"] = [each["central_text"] or "" for each in shown]
        largest = "" if len(clusters) == len(shown) else f"The {len(shown)} largest of "
        title = f"{largest}{counted(len(clusters), 'cluster')} of {' and '.join(names)} rows"
        rows = list(zip(*columns.values(), strict=True))
        return Table(list(columns), rows, title, left=left)

    def explanation(self) -> list[str]:
        """Return the verdict, and what to do, in sentences."""
        verdict = self.record["verdict"]
        if verdict is None:
            return []
        one_kind = self.record["one_kind"]
        first, second = self.record["rows"]
        sentences = [
            f"{verdict['question']} {verdict['answer'].capitalize()}. {verdict['because']}",
        ]
        in_table = self.record.get("kappa_of_table")  # earlier versions did not count it
        if in_table is not None:
            sentences.append(
                f"In {TABLE_FILE}, with the pairs that the centroids were made from, "
                f"{100 * in_table:.0f}% are in one cluster, beyond chance."
            )
        sentences.append(
            f"With only one modality: {one_kind['clusters']:,} of {counted(len(self), 'cluster')}, "
            f"with {one_kind['rows']:,} of {counted(sum(self.record['rows'].values()), 'row')}."
        )
        by_itself = (
            f"cluster each kind by itself, with --modalities {first} and with --modalities {second}"
        )
        if verdict["answer"] in ("no", "partly"):
            sentences.append(f"Do not rely on these clusters: {by_itself}.")
        if verdict["answer"] == "unknown":
            sentences.append(f"Look at the page before you rely on these clusters, or {by_itself}.")
        return sentences

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@checked
def cluster(
    store: Store | str | Path = "c3-store",
    *,
    output: str | Path = "c3-clusters",
    k: PositiveInt | None = None,
    split: str | None = None,
    modalities: Sequence[str] | None = None,
    seed: int = 0,
    assign: bool = False,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Clusters:
    """Cluster one modality by spherical k-means, or two modalities together by cross-centroids.

    Writes each row's cluster, a page and the centroids to a folder. The rows of a store are
    collapsed first; the rows of an export go through the steps that are left of its pipeline, if
    any; the rows of an index are used unchanged.

    Args:
        store: A store, an export or an index: a folder, or a URL (s3://, gs://).
        output: The folder to write the clusters to.
        k: Number of clusters. By default the square root of the number of rows, or, with pairs, of
            distinct items in the smaller modality.
        split: See `gap_report`.
        modalities: One modality, or two to cluster together. By default image and text; in stores
            without them, the first two modalities or the only one.
        seed: See `gap_report`.
        assign: Assign all rows of the store, including new ones, to the existing clusters in
            ``output``.
        overwrite: Replace clusters in ``output`` that were made with other settings or data; the
            old ones are kept as OUTPUT.previous.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, a modality is missing, there are fewer rows than clusters,
            or too few to be collapsed, or an export with ``fuse`` is given without ``modalities``.
        TransformError: if rows have noise, or those to ``assign`` are of another model or went
            through another pipeline.
        OutputError: if ``output`` contains other clusters or other files, or another run is writing
            to it.
        UnusedOptionError: if an option has no effect with another.

    Example:
        >>> clusters = c3tools.cluster("c3-store", output="c3-clusters")
        >>> clusters
        Clusters('c3-clusters': 744 rows in 11 clusters)
        >>> clusters.record["verdict"]["answer"]
        'yes'
        >>> store = c3tools.Store.open("c3-store")
        >>> clusters.assign(store.load("text").embeddings, "text").shape
        (620,)
    """
    store = Store.open(store, codes=True, reporter=reporter)

    # The settings, or those of the clusters that rows are assigned to
    former = None
    settings: dict[str, Any] = {"k": k, "split": split or ALL, "seed": seed}
    if assign:
        former = _load_measured(output)
        settings = former.record["made_from"]["settings"]
        modalities = settings["modalities"]
    names = _choose_modalities(store, as_list(modalities))
    settings["modalities"] = names
    if len(names) == 2 and former is None:
        settings["measure"] = MEASURE
    source = Source.open(store, names, settings["split"], former.space if former else None)

    # The same settings, rows and centroids give the same clusters
    shards = [[store.shard_digest(name, part) for part in store.parts(name)] for name in names]
    data_digest = digest_of(shards, source.pipeline.digest)
    trained_on = former.record["trained_on"] if former else data_digest
    digest = digest_of(settings, data_digest, trained_on)
    with reserve_output(
        Path(output), CLUSTERS, settings, overwrite=overwrite or assign, reporter=reporter
    ) as target:
        finished = target.finished(digest, Clusters.load)
        if finished is not None:
            return finished

        # Train centroids and judge them, or take those that are there
        tables = {name: source.table(name, (*_COLUMNS, *store.info.columns)) for name in names}
        pairs = match_pairs(tables)
        if former:
            # Which rows these centroids were made from is not known: their verdict stays
            numbers = _draw_training_rows(tables, len(former), settings["seed"])
            drawn_rows = _read_rows(source, numbers, reporter)
            judged = _JudgedCentroids(former.centroids, former.record["verdict"], drawn_rows)
        else:
            judged = _make_clusters(source, tables, pairs, k, seed, reporter)

        # Assign every row, and count what is in each cluster
        count = len(judged.centroids[names[0]])
        deciding = {name: deciding_centroids(judged.centroids, name) for name in names}
        clustered = assign_rows(source, tables, deciding, reporter)
        summary = summarise(clustered, pairs, count)
        cluster_sizes = [list(entry["rows"].values()) for entry in summary]
        rows_of_one_kind = [max(sizes) for sizes in cluster_sizes if min(sizes) == 0 < max(sizes)]
        record = {
            "made_from": target.made_from(digest),
            "trained_on": trained_on,
            "store": str(store.path),
            "rows": {name: len(table) for name, table in tables.items()},
            "verdict": judged.verdict,
            "kappa_of_table": kappa_of_table(clustered, pairs) if pairs else None,
            "one_kind": {"clusters": len(rows_of_one_kind), "rows": sum(rows_of_one_kind)},
            "clusters": summary,
        }

        def save(folder: Path) -> None:
            with writing(folder, CLUSTERS, {"record": record}) as new:
                source.pipeline.save(new)
                save_file(judged.centroids, new / _CENTROIDS_FILE)
                pq.write_table(table_of(clustered), new / TABLE_FILE)
                clusters = Clusters(folder, record, judged.centroids, source.pipeline)
                page = clusters_page(
                    clusters.explanation(),
                    summary,
                    clustered,
                    judged.rows,
                    deciding,
                    beside=store.path,
                )
                write_text_atomically(new / PAGE_FILE, page)

        target.write(save)
        return Clusters.load(target.folder)


def _load_measured(folder: str | Path) -> Clusters:
    """Open the clusters in a folder whose verdict is kept.

    Raises:
        StoreError: see `Clusters.load`; also if an earlier version of c3tools measured them.
    """
    clusters = Clusters.load(folder)
    measure = clusters.record["made_from"]["settings"].get("measure")
    if clusters.record["verdict"] and measure != MEASURE:
        raise StoreError(
            f"The verdict of {folder} was measured by an earlier version of c3tools, on the pairs "
            f"that the centroids were made from.",
            remedy="Cluster again with --overwrite, or to another --output.",
        )
    return clusters


def _choose_modalities(store: Store, modalities: Sequence[str] | None) -> list[str]:
    """Return the modalities to cluster, in the order of the store.

    Raises:
        StoreError: see `Store.choose_modalities`; also if none are named, and each item stands once
            in the store, as a row of one of three.
    """
    if modalities is None and FUSED in store.modalities:
        raise StoreError(
            f"In {store.path} each item is stored once, as a row of one of the modalities "
            f"{', '.join(store.modalities)}, but clusters are built from one or two modalities.",
            remedy="Choose them with --modalities, for example --modalities fused, or cluster the "
            "store that was exported.",
        )
    chosen = store.choose_modalities(modalities, "A clustering", least=1)
    return [name for name in store.modalities if name in chosen]


def assign_rows(
    source: Source,
    tables: Mapping[str, pa.Table],
    deciding: Mapping[str, Matrix],
    reporter: Reporter,
) -> dict[str, ClusteredRows]:
    """Return the cluster of every row, by modality, by the centroids that decide on its rows."""
    clustered = {}
    total = sum(len(table) for table in tables.values())
    with reporter.progress("Assigning rows", total) as progress:
        for name, table in tables.items():
            labels = []
            cosines = []
            for raw in source.batches(name):
                rows = source.transform(raw, name)
                labels.append(nearest_centroids(rows, deciding[name]))
                # Not a product of matrices, whose last bits depend on the number of threads
                cosines.append(np.einsum("nd,nd->n", rows, deciding[name][labels[-1]]))
                progress.advance(len(rows))
            clustered[name] = ClusteredRows(table, np.concatenate(labels), np.concatenate(cosines))
    return clustered


class _JudgedCentroids(NamedTuple):
    """Centroids with their verdict.

    Attributes:
        centroids: by modality, float32 (k, d).
        verdict: on clusters of two modalities; None for those of one.
        rows: by modality, rows for the map: those that the centroids were made from, or as many.
    """

    centroids: dict[str, Matrix]
    verdict: dict[str, Any] | None
    rows: dict[str, Matrix]


def _make_clusters(
    source: Source,
    tables: Mapping[str, pa.Table],
    pairs: Mapping[str, Indices],
    k: int | None,
    seed: int,
    reporter: Reporter,
) -> _JudgedCentroids:
    """Train centroids, and judge them if they are of two modalities.

    Raises:
        StoreError: if there are fewer rows than clusters.
    """
    # Choose the number of clusters
    fewest = min(len(table) for table in tables.values())
    default = default_count(fewest)
    paired_sample = None
    if pairs:
        paired_sample = _sample_pairs(source, pairs, seed, reporter)
        default = default_count(_count_distinct_items(tables, paired_sample))
    count = k or default
    if count > fewest:
        raise StoreError(
            f"{counted(fewest, 'row')} cannot be divided into {counted(count, 'cluster')}.",
            remedy=f"Choose at most {fewest} with -k.",
        )

    # Train the centroids
    numbers = _draw_training_rows(tables, count, seed)
    training_rows = _read_rows(source, numbers, reporter)
    centroids = train_centroids(training_rows, count, generator(seed, "clusters"), reporter)
    names = list(tables)
    if len(names) == 1:
        return _JudgedCentroids(centroids, None, training_rows)

    # Judge these centroids by pairs that they have not seen, or else others, made in the same way.
    # If there are more than by default, say how the default number does
    measured = None
    measured_by_default = None
    if paired_sample is not None:
        unseen = _sample_unseen_pairs(source, pairs, numbers, training_rows, seed, reporter)
        if unseen is None:
            measured = measure_mixed_clusters(paired_sample, names, count, seed=seed)
        else:
            measured = measure_mixed_clusters(unseen, names, count, centroids=centroids, seed=seed)
        if count > default:
            measured_by_default = measure_mixed_clusters(paired_sample, names, default, seed=seed)
    verdict = judge_clusters(measured, names, fewer=measured_by_default)
    return _JudgedCentroids(centroids, asdict(verdict), training_rows)


def _draw_training_rows(
    tables: Mapping[str, pa.Table], count: int, seed: int
) -> dict[str, Indices]:
    """Return the numbers of the rows that so many clusters are made from, by modality."""
    numbers = {}
    for name, table in tables.items():
        order = generator(seed, "training rows", name).permutation(len(table))
        numbers[name] = np.sort(order[: _TRAINING_ROWS * count])
    return numbers


def _read_rows(
    source: Source, numbers: Mapping[str, Indices], reporter: Reporter
) -> dict[str, Matrix]:
    """Return the rows with these numbers, which ascend, as they are clustered."""
    total = sum(source.store.count(name, source.split) for name in numbers)
    rows = {}
    with reporter.progress("Reading a sample", total) as progress:
        for name, its_numbers in numbers.items():
            rows[name] = source.transform(source.sample(name, its_numbers, progress), name)
    return rows


def _sample_pairs(
    source: Source, pairs: Mapping[str, Indices], seed: int, reporter: Reporter
) -> Sample:
    """Return the pairs of at most 5,000 drawn items, in rows as they are clustered."""
    first, second = pairs
    items = pairs[first]
    order = generator(seed, "items of the verdict").permutation(np.unique(items))
    is_drawn = np.isin(items, order[:MOST_ITEMS])
    numbers = {name: np.unique(rows[is_drawn]) for name, rows in pairs.items()}
    rows = _read_rows(source, numbers, reporter)
    item_index = np.searchsorted(numbers[first], items[is_drawn])
    return Sample(rows[first], rows[second], item_index, complete=False)


def _sample_unseen_pairs(
    source: Source,
    pairs: Mapping[str, Indices],
    training_numbers: Mapping[str, Indices],
    training_rows: Mapping[str, Matrix],
    seed: int,
    reporter: Reporter,
) -> Sample | None:
    """Return pairs of items of which no row, and no row equal to theirs, was trained on; None with
    fewer than 1,000 such items.
    """
    # An item goes by the number of its row of the first modality
    first, second = pairs
    items = pairs[first]
    seen_by_second = items[np.isin(pairs[second], training_numbers[second])]
    is_unseen = ~np.isin(items, np.union1d(training_numbers[first], seen_by_second))
    if len(np.unique(items[is_unseen])) < _UNSEEN_ITEMS:
        return None
    unseen = {name: numbers[is_unseen] for name, numbers in pairs.items()}
    sample = _sample_pairs(source, unseen, seed, reporter)

    # Leave out items with a row that equals one of the training
    trained = {row.tobytes() for rows in training_rows.values() for row in rows}
    first_equals, second_equals = (
        np.array([row.tobytes() in trained for row in rows])
        for rows in (sample.first, sample.second)
    )
    is_left = ~first_equals
    is_left[sample.item_index[second_equals]] = False
    left, _ = sample.part(np.flatnonzero(is_left))
    if not left.paired or left.distinct_items.max() + 1 < _UNSEEN_ITEMS:
        return None
    return left


def _count_distinct_items(tables: Mapping[str, pa.Table], sample: Sample) -> int:
    """Return the number of items of the modality that has fewer; those with equal rows, by their
    share in a sample of pairs, count as one.
    """
    first, second = tables
    counts = []
    for name, share in sample.distinct_shares(first, second).items():
        items = len(one_array(item_keys(tables[name])).unique())
        counts.append(max(1, round(items * share)))
    return min(counts)
