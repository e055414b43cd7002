"""Check which pairs of two modalities may not belong together.

For a pair of an image x and a text y, of unit length after Collapse, the cosine is compared with
those of unrelated rows, whose mean and variance the moments of each modality tell:

    z_x = (x.y - x.mu_text) / sqrt(x' S_text x)          z = (z_x + z_y) / 2

z does not order pairs better than the cosine does (docs/results/curation.md). Its scale is what it
is worth: pairs whose images were exchanged have mean 0 and deviation 1 with every encoder. Half of
them are below their median, so twice the share of the real pairs below it is the share that is
unrelated, as long as few of the others are below it:

    2 P(z < median) = share + 2 (1 - share) P(z < median | related)

An encoder that tells pairs badly puts related pairs below the median too. Whether it does is told
by a ratio in which the share cancels, as unrelated pairs are above the .9 quantile and below the
median of exchanged pairs in known numbers:

    [(P(z > q90) - .1) / .9] / [1 - 2 P(z < q50)] = P'(z > q90 | related) / P'(z > q50 | related)

with P' less what exchanged pairs have there. It is near 1 if related pairs are far above exchanged
ones. Related pairs that the encoder tells from exchanged ones in some items alone look like wrong
ones in the others: so the share is of pairs that look unrelated to this encoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..arrays import Array, Indices, Mask, Matrix
from ..choices import Fraction, MarkSplits, checked
from ..corpus.splits import ALL, split_order
from ..errors import StoreError, UnusedOptionError
from ..io.files import naming
from ..io.locations import location
from ..io.outputs import write_output
from ..lists import as_list
from ..metrics.significance import mean_interval, share_interval
from ..moments import unit_rows
from ..pages import Section, render_page
from ..reporter import SILENT, Reporter, counted
from ..result_table import Table
from ..seeds import generator
from ..store import Pairs, Rows, Store
from ..store.leave_out import shards_metadata
from ..store.left_out import LEAVE_OUT_COLUMN, LeftOut
from ..store.rows import ITEM_COLUMNS, embedding_matrix, row_splits, split_mask
from ..store.shards import shard_schema
from ..transforms.calibration import Calibration
from .groups import ways_to_mark_all_splits
from .pictures import NO_PATH, pictures_of

_OTHERS = 1_000  # rows of the second modality that each pair is ranked among
_ROWS_AT_A_TIME = 4_096
_EXCHANGES = 10  # times that each row is paired with a row of another item
_LEAST_PAIRS_OF_SHARE = 50
_MOST_UNRELATED = 0.9  # upper end above which pairs look like exchanged ones
_LEAST_RATIO = 0.7  # see the module; docs/results/curation.md has that of several encoders
_MOST_BY_HAND = 0.01  # of the pairs: so many could change a share by one point
_REASON = re.compile(r"z -?\d+\.\d+, rank \d+")  # of the rows that this command marks
_COPY = re.compile(r"(copy of|equal to) ")  # the reasons that `c3 duplicates` gives
_EQUAL = 1e-6  # squared distance of unit rows that float16 rounds differently
_LEAST_PAIRS = 20
_SHOWN_PAIRS = 60
_READ_COLUMNS = ("key", *ITEM_COLUMNS, "split", "caption", "path")
_JSON_COLUMNS = ("key", "image_key", "cosine", "z", "rank", "split", LEAVE_OUT_COLUMN)
_TEMPLATE = Path(__file__).parent / "templates" / "pairs.html"


@dataclass(frozen=True)
class CheckedPair:
    """A pair and how well its rows fit each other.

    Attributes:
        key: of the row of the second modality: of a caption.
        image_key: of the row of the first modality: of an image.
        cosine: of the two embeddings as they are in the store.
        z: how many standard deviations the cosine is above that of unrelated rows, after Collapse.
        rank: how many of the other rows fit the image better, plus 1.
        split: of the pair.
        leave_out: whether its row of the second modality is marked, for `c3 leave-out`.
        better: key of the row that fits the image best among the others; None if none fits better.
        caption: of the row of the second modality, where it is a text.
        better_caption: of the row ``better``, where it is a text.
        path: of the row of the first modality, where it is a photo.
    """

    key: str
    image_key: str
    cosine: float
    z: float
    rank: int
    split: str
    leave_out: bool
    better: str | None
    caption: str | None
    better_caption: str | None
    path: str | None


@dataclass(frozen=True)
class UnrelatedShare:
    """The expected share of pairs that look unrelated to the encoder.

    Attributes:
        split: of the pairs; ``all`` for all of them.
        pairs: their number.
        share: twice the share of pairs with z below the median of exchanged pairs; where it is a
            bound, the upper end of the interval; None if there is no share.
        interval: its 95% interval; None for fewer than 3 items, and if there is no share.
        at_most: whether the share is a bound, because the encoder tells these pairs too badly for
            an estimate.
        missing: why there is no share, in words; empty otherwise.
    """

    split: str
    pairs: int
    share: float | None
    interval: tuple[float, float] | None
    at_most: bool = False
    missing: str = ""


@dataclass(frozen=True, repr=False)
class PairCheck:
    """The pairs of two modalities of a store, the likeliest wrong ones first.

    Attributes:
        store: the path of the store.
        modalities: of the first and the second row of each pair.
        rows: all pairs, ordered by z, ascending: a column for each attribute of `CheckedPair`, and
            those of --keep-columns.
        shares: the expected shares of pairs that look unrelated, of all pairs and by split.
        exchanged: median and standard deviation of z of pairs whose first rows were exchanged.
        others: number of rows that each pair was ranked among.
        shards: metadata of the table: which shards it was made from.
        notes: what the user should know about the marks.
    """

    store: Path
    modalities: tuple[str, str]
    rows: pa.Table
    shares: list[UnrelatedShare]
    exchanged: tuple[float, float]
    others: int
    shards: dict[bytes, bytes]
    notes: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"PairCheck({self.store}: {counted(len(self.rows), 'pair')})"

    @cached_property
    def pairs(self) -> list[CheckedPair]:
        """All pairs, the likeliest wrong ones first; for millions of pairs, ``rows`` takes less
        memory.
        """
        return self._worst_pairs(len(self.rows))

    def _worst_pairs(self, count: int) -> list[CheckedPair]:
        shown = self.rows.slice(0, count).select([*CheckedPair.__dataclass_fields__])
        return [CheckedPair(**row) for row in shown.to_pylist()]

    @property
    def left_out(self) -> int:
        """The number of pairs that were marked to be left out."""
        return int(pc.sum(self.rows.column(LEAVE_OUT_COLUMN)).as_py())

    def to_dict(self) -> dict[str, Any]:
        """Return what `c3 pairs --json` prints: the shares of pairs that look unrelated to the
        encoder, and the pairs, the likeliest wrong ones first.
        """
        return {
            "look_unrelated": [asdict(share) for share in self.shares],
            "pairs": self.rows.select(_JSON_COLUMNS).to_pylist(),
        }

    def explanation(self) -> list[str]:
        """Return what the numbers mean, in sentences."""
        median, deviation = self.exchanged
        first, second = self.modalities
        sentences = [
            f"z says how many standard deviations the cosine of a pair is above that of unrelated "
            f"rows. Pairs whose {first} rows were exchanged have the median {median:.2f} and the "
            f"standard deviation {deviation:.2f}. Half of the pairs that look unrelated to this "
            "encoder are below that median, so their share is twice that of the pairs below it.",
            f"A {second} row of a similar {first} row is not noticed. Correct pairs that the "
            "encoder does not understand look unrelated too. If it was trained on these pairs, "
            "wrong ones fit better than they should.",
        ]
        for missing in dict.fromkeys(share.missing for share in self.shares if share.missing):
            splits = " and ".join(share.split for share in self.shares if share.missing == missing)
            sentences.insert(1, f"No share for {splits}: {missing}.")
        if any(share.at_most for share in self.shares):
            sentences.insert(
                1,
                "At most: this encoder puts many pairs that belong together no higher than "
                "exchanged ones, so only a bound can be given.",
            )
        return [*sentences, *self.notes]

    def table(self) -> Table:
        """Return the expected shares of pairs that look unrelated."""
        rows = []
        for share in self.shares:
            unrelated = "" if share.share is None else f"{share.share:.1%}"
            interval = ""
            if share.at_most:
                unrelated = f"at most {unrelated}"
            elif share.interval is not None:
                interval = f"{share.interval[0]:.1%} to {share.interval[1]:.1%}"
            rows.append((share.split, f"{share.pairs:,}", unrelated, interval))
        columns = ("split", "pairs", "look unrelated", "95% interval")
        return Table(columns, rows, str(self.store))

    def worst(self, count: int = 10) -> Table:
        """Return the worst-fitting pairs."""
        rows = [
            (
                pair.key,
                f"{pair.z:.2f}",
                f"{pair.cosine:.3f}",
                f"{pair.rank:,}",
                f"{pair.split}, marked" if pair.leave_out else pair.split,
                pair.caption or "",
            )
            for pair in self._worst_pairs(count)
        ]
        columns = ("key", "z", "cosine", "rank", "split", "caption")
        return Table(columns, rows, "The worst-fitting pairs", left=("split", "caption"))

    def save(self, path: str | Path) -> Path:
        """Write the page of the worst-fitting pairs to a path or URL, and return it."""
        shown = self._worst_pairs(_SHOWN_PAIRS)
        pictures = pictures_of((pair.path for pair in shown), self.store)
        pairs: list[dict[str, Any]] = []
        for pair in shown:
            picture = pictures.get(pair.path or "", NO_PATH)
            better = pair.better_caption or pair.better
            caption = pair.caption or pair.key
            pairs.append({**vars(pair), **vars(picture), "caption": caption, "better": better})
        section = Section(
            "How many look unrelated to this encoder", self.explanation(), [self.table()]
        )
        page = render_page(
            _TEMPLATE,
            title=f"{counted(len(self.rows), 'pair')} of {' and '.join(self.modalities)}",
            sections=[section],
            pairs=pairs,
            others=self.others,
        )
        target = location(path)
        write_output(target, ".html", lambda file: file.write_text(page, encoding="utf-8"))
        return target

    def save_table(self, path: str | Path) -> Path:
        """Write all pairs as a Parquet file, which `c3 leave-out` takes, and return its path."""
        marks = self.rows.column(LEAVE_OUT_COLUMN).to_pylist()
        z = self.rows.column("z").to_pylist()
        ranks = self.rows.column("rank").to_pylist()
        reasons = [
            f"z {z[number]:.2f}, rank {ranks[number]}" if is_marked else None
            for number, is_marked in enumerate(marks)
        ]
        columns = {
            "key": self.rows.column("key"),
            "image_key": self.rows.column("image_key"),
            "modality": pa.array([self.modalities[1]] * len(self.rows), pa.string()),
            "cosine": self.rows.column("cosine").cast(pa.float32(), safe=False),
            "z": self.rows.column("z").cast(pa.float32(), safe=False),
            "rank": self.rows.column("rank").cast(pa.int32()),
            "split": self.rows.column("split"),
            LEAVE_OUT_COLUMN: self.rows.column(LEAVE_OUT_COLUMN),
            "reason": pa.array(reasons, pa.string()),
        }
        for name in self.rows.column_names:
            columns.setdefault(name, self.rows.column(name))
        table = pa.table(columns).replace_schema_metadata(self.shards)
        target = location(path)
        write_output(target, ".parquet", lambda file: pq.write_table(table, file))
        return target

    def _repr_html_(self) -> str:
        return self.table()._repr_html_() + self.worst()._repr_html_()


@checked
def check_pairs(
    store: Store | str | Path = "c3-store",
    *,
    modalities: Sequence[str] | None = None,
    split: str | None = None,
    mark_worst: Fraction | None = None,
    mark_below: float | None = None,
    mark_splits: MarkSplits = "train",
    by: str | None = None,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> PairCheck:
    """Rank the pairs of two modalities by how likely they are wrong.

    Args:
        store: See `embed`.
        modalities: The two modalities to pair. By default image and text or, if one is missing, the
            first two.
        split: See `gap_report`.
        mark_worst: Mark this fraction of the train pairs for c3 leave-out, beginning with the
            worst-fitting.
        mark_below: Mark train pairs with z below this value for c3 leave-out.
        mark_splits: Mark pairs of train, or of all splits: without those of val and test, scores on
            them are no longer comparable with earlier ones.
        by: Mark the fraction of --mark-worst for each value of this column, which --keep-columns
            has kept, for example a category. Without, a store with several kinds of data may lose
            pairs of one kind only.
        seed: Seed for all random numbers.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, it is an export, a modality is missing, there are too few
            pairs, their rows of one modality are all equal, or there is no column ``by``.
        UnusedOptionError: if ``by`` is given without ``mark_worst``.

    Example:
        >>> check = c3tools.check_pairs("c3-store")
        >>> check
        PairCheck(c3-store: 620 pairs)
        >>> worst = check.pairs[0]
        >>> worst.key, worst.image_key
        ('000000121647#3', '000000121647')
    """
    modalities = as_list(modalities)
    store = Store.open(store, reporter=reporter)
    store.info.require_raw(store.path)
    first, second = store.choose_modalities(modalities, "A check of pairs")
    if by is not None and mark_worst is None:
        raise UnusedOptionError(
            "--by", "without --mark-worst, whose fraction it marks of each value"
        )

    # Read the pairs. Those that this command has left out were chosen by z, so the shares are
    # estimated with them
    reasons = store.left_out.reasons
    left_out_by_z = {
        name
        for name, reason in reasons.items()
        if name.modality == second and _REASON.fullmatch(reason)
    }
    otherwise = {name: reason for name, reason in reasons.items() if name not in left_out_by_z}
    pairs = Pairs.match(
        *(_rows_on_disk(store, name, split, by, LeftOut(otherwise)) for name in (first, second))
    )
    items = pairs.item_index[pairs.rows]
    keys = pairs.second.table.column("key").take(pairs.rows)
    unused_keys = pa.array([name.key for name in left_out_by_z], pa.string())
    is_used: Mask = ~np.asarray(pc.is_in(keys, value_set=unused_keys), dtype=np.bool_)

    # Refuse pairs that cannot be told from unrelated ones
    if is_used.sum() < _LEAST_PAIRS:
        raise StoreError(
            f"{store.path} has {counted(int(is_used.sum()), 'pair')} of {first} and {second} "
            f"rows{'' if split is None else f' in the split {split!r}'}; {_LEAST_PAIRS} are needed "
            f"to tell which of them are unusual.",
            remedy="Embed images together with their captions, or name two modalities whose rows "
            "have the same keys with --modalities.",
        )
    for rows, numbers in ((pairs.first, items), (pairs.second, pairs.rows)):
        if _are_equal(rows, numbers):
            raise StoreError(
                f"The {counted(len(pairs), 'pair')} in {store.path} all have the same "
                f"{rows.modality} embedding, so exchanging it changes nothing, and no pair can be "
                "told from an unrelated one.",
                remedy=f"Embed {rows.modality} rows that differ from item to item, or choose pairs "
                "with --split or --modalities.",
            )
    calibration = Calibration.fit(store)
    if not calibration.moments:
        raise StoreError(
            f"{store.path} has too few train rows to estimate the mean of each modality, so pairs "
            f"cannot be compared with unrelated rows.",
            remedy="Embed more rows, or load moments from the same model with `c3 means load "
            "FILE`.",
        )
    scored = score_pairs(pairs, calibration, seed, reporter, is_used)
    splits = np.array(row_splits(pairs.second.table), dtype=object)[pairs.rows]

    # Mark train pairs alone, unless all splits are asked for
    may_be_marked = is_used & ((splits == "train") | (mark_splits == ALL))
    marked = np.zeros(len(pairs), dtype=bool)
    notes = []
    if mark_worst is not None:
        if mark_worst == 1:
            raise StoreError(
                f"--mark-worst is a fraction of the train pairs and cannot be {mark_worst:g}.",
                remedy="For example: --mark-worst 0.02",
            )
        if by is None:
            notes.append(
                "If the store has several kinds of data, the worst pairs may all be of the kind "
                "that the encoder knows least. --by COLUMN marks as large a fraction of each kind."
            )
        groups = np.zeros(len(pairs), int) if by is None else _groups(pairs, by, store.path)
        marked = _worst(scored.z, mark_worst, may_be_marked, groups)
    if mark_below is not None:
        marked |= may_be_marked & (scored.z < mark_below)
    is_held_out = is_used & ~may_be_marked
    if is_held_out.any():
        notes.append(
            f"{is_held_out.sum():,} of {counted(int(is_used.sum()), 'pair')} are not in train, so "
            f"none of them can be marked. {ways_to_mark_all_splits(store.path)}"
        )

    # Rows left out by hand may have been chosen by z too; nobody has said. Then there is no share
    by_hand = [
        name
        for name, reason in otherwise.items()
        if name.modality in (first, second) and not _COPY.match(reason)
    ]
    missing = ""
    if len(by_hand) > _MOST_BY_HAND * len(pairs):
        missing = (
            f"{counted(len(by_hand), 'row was', 'rows were')} left out by hand, and if these "
            "fitted least, the others look better than they are. To see a share, take them back "
            "with `c3 leave-out --undo`"
        )

    # The table of the pairs that are used, the likeliest wrong ones first
    order = np.argsort(scored.z, kind="stable")
    order = order[is_used[order]]
    better = scored.better[order]
    better_rows: Any = pa.array(better, mask=better < 0)  # null where no row fits better
    columns = {
        "key": pairs.second.table.column("key").take(pairs.rows[order]),
        "image_key": pairs.first.table.column("key").take(items[order]),
        "cosine": scored.cosine[order],
        "z": scored.z[order],
        "rank": scored.rank[order],
        "split": splits[order],
        LEAVE_OUT_COLUMN: marked[order],
        "better": pairs.second.table.column("key").take(better_rows),
        "caption": _texts(pairs.second, "caption").take(pairs.rows[order]),
        "better_caption": _texts(pairs.second, "caption").take(better_rows),
        "path": _texts(pairs.first, "path").take(items[order]),
    }
    for name in store.info.columns:
        columns.setdefault(name, pairs.second.table.column(name).take(pairs.rows[order]))
    return PairCheck(
        store=store.path,
        modalities=(first, second),
        rows=pa.table(columns),
        shares=unrelated_shares(scored, splits, items, is_used, missing),
        exchanged=(float(np.median(scored.exchanged)), float(np.std(scored.exchanged))),
        others=scored.others,
        shards=shards_metadata(store),
        notes=notes,
    )


@dataclass(frozen=True)
class ScoredPairs:
    """The measures of how well the rows of n pairs fit.

    Attributes:
        cosine: of the embeddings as they are, float64 (n,).
        z: float64 (n,); see the module.
        rank: among the other rows, int64 (n,), from 1.
        better: the row of the second modality that fits best among the others, int64 (n,); -1 if
            none fits better.
        exchanged: z of pairs of rows of different items, up to `_EXCHANGES` for each row:
            float64 (m,).
        others: number of rows that a pair was ranked among.
    """

    cosine: Array
    z: Array
    rank: Indices
    better: Indices
    exchanged: Array
    others: int


def score_pairs(
    pairs: Pairs,
    calibration: Calibration,
    seed: int,
    reporter: Reporter,
    is_used: Mask | None = None,
) -> ScoredPairs:
    """Compare the rows of all pairs with each other and with unrelated rows.

    Args:
        pairs: n of them.
        calibration: of both modalities.
        seed: of the rows to compare with.
        reporter: shows the progress.
        is_used: the pairs whose rows others are ranked among, (n,); all by default.
    """
    count = len(pairs)
    items = pairs.item_index[pairs.rows]

    # The rows of the second modality that each pair is ranked among
    candidates = np.arange(count) if is_used is None else np.flatnonzero(is_used)
    sample_size = min(_OTHERS, len(candidates))
    rng = generator(seed, "other rows of pairs")
    sample = np.sort(rng.choice(candidates, sample_size, replace=False))  # of pairs
    sampled_rows = _centred(calibration, pairs.second, pairs.rows[sample])

    cosine = np.empty(count)
    z = np.empty(count)
    rank = np.empty(count, np.int64)
    better = np.empty(count, np.int64)
    exchanged = []
    # Rows are exchanged within blocks, so these are random: neighbours in a store may be similar
    rng = generator(seed, "exchanged pairs")
    blocks = np.array_split(rng.permutation(count), math.ceil(count / _ROWS_AT_A_TIME))
    with reporter.progress("Comparing pairs", count) as progress:
        for block in blocks:
            block_items = items[block]
            x = _centred(calibration, pairs.first, block_items)  # (b, d)
            y = _centred(calibration, pairs.second, pairs.rows[block])  # (b, d)

            # The cosine is that of the embeddings as they are
            first_rows = _unit(pairs.first, block_items).astype(np.float64)
            second_rows = _unit(pairs.second, pairs.rows[block]).astype(np.float64)
            cosine[block] = np.einsum("nd,nd->n", first_rows, second_rows)

            # z of the pairs, in column 0 of (b, 1 + exchanges), and of exchanged pairs. A shift
            # may lead to a row of the same item, which is not exchanged
            shifts = np.append(0, 1 + rng.permutation(len(block) - 1)[:_EXCHANGES])
            partner = (np.arange(len(block))[:, None] + shifts) % len(block)
            scores = _z(calibration, pairs, x, y, partner)
            z[block] = scores[:, 0]
            is_exchanged = block_items[:, None] != block_items[partner]
            exchanged.append(scores[is_exchanged])

            # The rank among the sampled rows, less those of the image itself
            cosines = x @ sampled_rows.T  # (b, sample)
            cosines[block_items[:, None] == items[sample][None, :]] = -np.inf
            cosine_of_pair = np.einsum("nd,nd->n", x, y)
            rank[block] = 1 + (cosines > cosine_of_pair[:, None]).sum(axis=1)
            best = cosines.argmax(axis=1)
            fits_better = cosines[np.arange(len(block)), best] > cosine_of_pair
            better[block] = np.where(fits_better, pairs.rows[sample[best]], -1)
            progress.advance(len(block))
    return ScoredPairs(cosine, z, rank, better, np.concatenate(exchanged), others=sample_size)


def _rows_on_disk(
    store: Store, modality: str, split: str | None, by: str | None, left_out: LeftOut
) -> Rows:
    """Return rows whose embeddings, in the precision of the store, are in a temporary file: those
    of millions of rows need no memory.

    Args:
        store: to read from.
        modality: of the rows.
        split: of the rows; None for all splits.
        by: another column to read, if the modality has it.
        left_out: the rows not to read.

    Raises:
        OSError: if the disk is full.
    """
    schema = shard_schema(modality, store.info)
    wanted = dict.fromkeys((*_READ_COLUMNS, by, *store.info.columns))  # each column once
    names = [name for name in wanted if name in schema.names]
    tables = [schema.empty_table().select(names)]
    folder = Path(gettempdir())
    with naming(folder), TemporaryFile(dir=folder) as file:
        for batch in store.batches(modality, [*names, "embedding"]):
            chosen, _ = left_out.divide(modality, batch)
            chosen = chosen.filter(pa.array(split_mask(chosen, split)))
            file.write(embedding_matrix(chosen, store.info.dtype).data)
            tables.append(pa.table(chosen.select(names)))
        file.flush()
        table = pa.concat_tables(tables).combine_chunks()
        shape = (max(len(table), 1), store.info.dim)  # an empty file cannot be mapped
        embeddings = np.memmap(file, store.info.dtype, "r+", shape=shape)[: len(table)]
    return Rows(modality, embeddings, table)


def _unit(rows: Rows, numbers: Indices) -> Matrix:
    """Return rows at unit length: float32 (n, d)."""
    return unit_rows(rows.embeddings[numbers].astype(np.float32))


def _are_equal(rows: Rows, numbers: Indices) -> bool:
    """Return whether rows are equal but for rounding."""
    first = _unit(rows, numbers[:1])
    for start in range(0, len(numbers), _ROWS_AT_A_TIME):
        block = _unit(rows, numbers[start : start + _ROWS_AT_A_TIME])
        if ((block - first) ** 2).sum(axis=1).max() > _EQUAL:
            return False
    return True


def _centred(calibration: Calibration, rows: Rows, numbers: Indices) -> Matrix:
    """Return rows after Collapse, at unit length: float32 (n, d)."""
    transformed = calibration.pipeline.transform(rows.embeddings[numbers], modality=rows.modality)
    return unit_rows(transformed)


def _z(calibration: Calibration, pairs: Pairs, x: Matrix, y: Matrix, partner: Indices) -> Array:
    """Return z of centred rows x (n, d) with rows of y (n, d): float64 (n, k).

    Args:
        calibration: of both modalities.
        pairs: the modalities of which x and y are.
        x: rows of the first modality.
        y: rows of the second modality.
        partner: rows of y for each row of x, a permutation in each column: int64 (n, k).
    """
    cosines = np.empty(partner.shape)
    for column, rows in enumerate(partner.T):
        cosines[:, column] = np.einsum("nd,nd->n", x, y[rows], dtype=np.float64)
    of_first = calibration.z(x, cosines, pairs.second.modality)
    cosines_of_y = np.empty_like(cosines)
    np.put_along_axis(cosines_of_y, partner, cosines, axis=0)
    of_y = calibration.z(y, cosines_of_y, pairs.first.modality)
    return np.asarray((of_first + np.take_along_axis(of_y, partner, axis=0)) / 2)


def unrelated_shares(
    scored: ScoredPairs,
    splits: Any,
    items: Indices,
    is_used: Mask | None = None,
    missing: str = "",
) -> list[UnrelatedShare]:
    """Return the expected shares of pairs that look unrelated to the encoder, of all and of each
    split.

    The interval goes from the lower end of four times the share below the exchanged quartile to the
    upper end of twice that below the median. Related pairs are more between the two than below the
    quartile (b): if a > b pairs are between the two, the interval begins at the lower end of
    4 (b - (a - b) / 2), which is exact for related pairs that are three times as many between as
    below. Where the upper end is at least 90%, there is no share; else, where the ratio of the
    module is below .7, the share is a bound, the upper end.

    Where pairs are left out because of their z, the share is that of all, less what is expected to
    be unrelated among those left out: as many as there would be among exchanged pairs of that z. By
    chance they may be more, so the lower end of the interval is less all that are left out.

    Args:
        scored: of n pairs.
        splits: of the pairs: object (n,).
        items: of the pairs: int64 (n,).
        is_used: the pairs that are not left out: bool (n,); all by default.
        missing: why there can be no share, in words; empty otherwise.
    """
    if is_used is None:
        is_used = np.ones(len(splits), dtype=bool)
    quartile, median, high_quantile = np.quantile(scored.exchanged, (0.25, 0.5, 0.9))
    names = sorted(set(splits[is_used].tolist()), key=split_order)
    masks = {"all": np.ones(len(splits), dtype=bool)}
    if len(names) > 1:
        masks |= {name: splits == name for name in names}
    shares = []
    for name, mask in masks.items():
        used_count = int(is_used[mask].sum())
        if missing or used_count < _LEAST_PAIRS_OF_SHARE:
            why = missing or f"it needs at least {_LEAST_PAIRS_OF_SHARE} pairs"
            shares.append(UnrelatedShare(name, used_count, None, None, missing=why))
            continue
        z = scored.z[mask]
        split_items = items[mask]

        # Which fraction of unrelated pairs is left out, as far as z tells: that of exchanged pairs
        # whose neighbour in the order of z is left out
        order = np.argsort(z)
        neighbour = np.minimum(np.searchsorted(z[order], scored.exchanged), len(order) - 1)
        is_left_out = ~is_used[mask][order]
        left_out_fraction = float(is_left_out[neighbour].mean())
        left_out_count = int(is_left_out.sum())
        share_of_used = partial(_share_of_used, used=used_count, left_out=left_out_count)

        # The share is twice that of the pairs below the median, see the module
        below_quartile = (z < quartile).astype(np.float64)
        below_median = (z < median).astype(np.float64)
        share = min(2 * float(below_median.mean()), 1.0)
        quartile_interval = share_interval(below_quartile, split_items)
        median_interval = share_interval(below_median, split_items)
        if quartile_interval is None or median_interval is None:
            share = share_of_used(share, left_out_fraction)
            shares.append(UnrelatedShare(name, used_count, share, None))
            continue

        # No share, or a bound alone, where the encoder tells these pairs badly
        high = min(2 * median_interval[1], 1.0)
        if high >= _MOST_UNRELATED:
            why = (
                "these pairs look like exchanged ones: most are wrong, or this encoder cannot "
                "tell them"
            )
            shares.append(UnrelatedShare(name, used_count, None, None, missing=why))
            continue
        above = (float((z > high_quantile).mean()) - 0.1) / 0.9  # of related pairs, see the module
        if above / (1 - share) < _LEAST_RATIO:
            most = share_of_used(high, left_out_fraction)
            shares.append(UnrelatedShare(name, used_count, most, (0.0, most), at_most=True))
            continue

        # The lower end, which is corrected where related pairs are between quartile and median
        low = min(4 * quartile_interval[0], share)
        if below_median.sum() > 2 * below_quartile.sum():
            # Related pairs make the excess; about half as many of them are below the quartile
            corrected = 8 * below_quartile - 2 * below_median  # 4 (b - (a - b) / 2)
            ends = mean_interval(corrected, split_items)
            low = 0.0 if ends is None else max(min(low, ends[0]), 0.0)

        low = share_of_used(low, 1.0)  # at worst, all left out are unrelated
        high = share_of_used(high, left_out_fraction)
        share = share_of_used(share, left_out_fraction)
        shares.append(UnrelatedShare(name, used_count, share, (low, high)))
    return shares


def _share_of_used(share: float, left_out_fraction: float, *, used: int, left_out: int) -> float:
    """Return the unrelated share of the pairs that are used, from that of all pairs.

    Args:
        share: of all pairs.
        left_out_fraction: of the unrelated pairs, those that are expected to be left out.
        used: the number of pairs that are used.
        left_out: the number of the others.
    """
    unrelated = share * (used + left_out)
    return min((unrelated - min(left_out_fraction * unrelated, left_out)) / used, 1.0)


def _worst(z: Array, fraction: float, may_be_marked: Mask, groups: Indices) -> Mask:
    """Return the pairs of least z, as large a fraction of each group: bool (n,).

    Args:
        z: of the pairs: float64 (n,).
        fraction: of the pairs of a group that may be marked.
        may_be_marked: the pairs to choose from: bool (n,).
        groups: the number of each pair's group: int64 (n,).
    """
    is_worst = np.zeros(len(z), dtype=bool)
    for group in np.unique(groups):
        of_group = np.flatnonzero(may_be_marked & (groups == group))
        worst_first = of_group[np.argsort(z[of_group], kind="stable")]
        is_worst[worst_first[: math.floor(fraction * len(of_group))]] = True
    return is_worst


def _groups(pairs: Pairs, column: str, store: Path) -> Indices:
    """Return the number of each pair's value in a column of its second row or, where that has
    none, of its first: int64 (n,).
    """
    if column not in pairs.second.table.column_names:
        raise StoreError(
            f"{store} has no column {column!r} of {pairs.second.modality} rows.",
            remedy="Name a column that `c3 embed --keep-columns` has kept.",
        )
    of_second: Any = pairs.second.table.column(column).take(pairs.rows)
    values = of_second
    if column in pairs.first.table.column_names:
        of_first: Any = pairs.first.table.column(column).take(pairs.item_index[pairs.rows])
        values = pc.coalesce(of_second, of_first)
    return np.unique([repr(value) for value in values.to_pylist()], return_inverse=True)[1]


def _texts(rows: Rows, name: str) -> Any:
    """Return a column of texts; nulls if there is no such column."""
    if name not in rows.table.column_names:
        return pa.nulls(len(rows), pa.string())
    return rows.table.column(name)
