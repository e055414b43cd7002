"""Find copies of rows in a store, within and across splits.

Equal files, equal rows and equal texts are found first. Of the other rows the embeddings propose
the nearest ten, and again ten of those that are left, and the content of the photos decides
(`agreement`): a threshold on the cosine would be a guess, since two greyhounds in a race can be as
near as two copies of a photo.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..choices import Fraction, MarkSplits, NonNegativeFloat, NonNegativeInt, checked
from ..errors import StoreError
from ..io.locations import location
from ..io.outputs import write_output
from ..lists import as_list
from ..pages import render_page
from ..reporter import SILENT, Reporter, counted
from ..result_table import Table
from ..store import Store
from ..store.leave_out import shards_metadata
from ..store.left_out import LEAVE_OUT_COLUMN
from ..store.shards import CARRIED_TYPES
from .groups import MARKED_TIERS, TIERS, Copy, DuplicateGroup, ways_to_mark_all_splits
from .near_copies import search_copies
from .pictures import NO_PATH, pictures_of

_SHOWN_GROUPS = 60  # of each kind
_SHOWN_ROWS = 6  # of a group
_TEMPLATE = Path(__file__).parent / "templates" / "duplicates.html"
_TIERS = (
    ("exact", "Identical files, rows or texts", "Identical texts are listed, but never left out."),
    ("copy", "Copies", "The photos show the same content."),
    (
        "same scene",
        "The same scene",
        "Different photos of the same scene, heavily edited copies, or pictures with the same "
        "outline on a plain background, such as a product in two colours.",
    ),
    ("alike", "Similar embeddings", "Their cosine is above --cosine."),
)


_COLUMNS: Any = [
    ("key", pa.string()),
    ("modality", pa.string()),
    ("group", pa.int32()),
    ("kept", pa.bool_()),
    ("cosine", pa.float32()),
    ("agreement", pa.float32()),
    ("tier", pa.string()),
    ("split", pa.string()),
    (LEAVE_OUT_COLUMN, pa.bool_()),
    ("reason", pa.string()),
    ("lost_captions", pa.list_(pa.string())),
    ("path", pa.string()),
    ("caption", pa.string()),
]
_TABLE = pa.schema(_COLUMNS)


@dataclass(frozen=True, repr=False)
class Duplicates:
    """Groups of copies in a store, leaks first.

    Attributes:
        store: the path of the store.
        groups: leaks first, then by tier.
        compared: pairs of photos whose content was compared.
        notes: what the user should know, such as photos that no longer exist.
        captions: of texts by key.
        paths: of photos by key.
        kept_columns: values of the columns of --keep-columns by modality and key.
        column_types: of these columns.
        shards: metadata of the table: which shards it was made from.
    """

    store: Path
    groups: list[DuplicateGroup]
    compared: int
    notes: list[str]
    captions: dict[str, str]
    paths: dict[str, str]
    kept_columns: dict[tuple[str, str], dict[str, Any]]
    column_types: dict[str, pa.DataType]
    shards: dict[bytes, bytes]

    def __repr__(self) -> str:
        return f"Duplicates({self.store}: {counted(len(self.groups), 'group')})"

    @property
    def left_out(self) -> int:
        """The number of rows that were marked to be left out."""
        return sum(copy.leave_out for group in self.groups for copy in group.copies)

    def to_dict(self) -> list[dict[str, Any]]:
        """Return what `c3 duplicates --json` prints: the groups, leaks first."""
        return [group.to_dict() for group in self.groups]

    def table(self) -> Table:
        """Return the numbers of groups, rows, leaks and marked rows by modality and tier."""
        by_kind = defaultdict[tuple[str, str], list[DuplicateGroup]](list)
        for group in self.groups:
            by_kind[group.modality, group.tier].append(group)
        rows = []
        for (modality, tier), groups in sorted(by_kind.items()):
            marked = sum(copy.leave_out for group in groups for copy in group.copies)
            rows.append(
                (
                    modality,
                    tier,
                    f"{len(groups):,}",
                    f"{sum(len(group.copies) for group in groups):,}",
                    f"{sum(group.is_leak for group in groups):,}",
                    f"{marked:,}",
                )
            )
        columns = ("modality", "tier", "groups", "copies", "leaks", "left out")
        return Table(columns, rows, str(self.store), left=("tier",))

    def save(self, path: str | Path) -> Path:
        """Write the page of the groups, side by side, to a path or URL, and return it."""
        # Leaks first, then the other groups of each tier
        leaks = [group for group in self.groups if group.is_leak]
        kinds = [("Leaks between splits", "", leaks)]
        for tier, title, text in _TIERS:
            others = [group for group in self.groups if group.tier == tier and not group.is_leak]
            kinds.append((title, text, others))
        sections = []
        for title, text, groups in kinds:
            if not groups:
                continue

            # Show the first rows of the first groups
            shown_groups = groups[:_SHOWN_GROUPS]
            keys = [key for group in shown_groups for key in group.keys[: _SHOWN_ROWS + 1]]
            pictures = pictures_of((self.paths.get(key) for key in keys), self.store)
            shown = []
            for group in shown_groups:
                words = {group.kept: f"{group.kept_split}, kept"}
                for copy in group.copies[: _SHOWN_ROWS - 1]:
                    agreed = "" if copy.agreement is None else f", agreement {copy.agreement:.2f}"
                    marked = ", marked" if copy.leave_out else ""
                    words[copy.key] = f"{copy.split}{marked}, cosine {copy.cosine:.3f}{agreed}"
                rows = []
                for key, said in words.items():
                    picture = pictures.get(self.paths.get(key, ""), NO_PATH)
                    caption = self.captions.get(key)
                    rows.append({**vars(picture), "key": key, "words": said, "caption": caption})
                shown.append({"rows": rows, "more": len(group.copies) + 1 - len(rows)})
            more = len(groups) - len(shown)
            sections.append({"title": title, "text": text, "groups": shown, "more": more})
        page = render_page(
            _TEMPLATE,
            title=counted(len(self.groups), "group of copies", "groups of copies"),
            table=self.table(),
            notes=self.notes,
            sections=sections,
        )
        target = location(path)
        write_output(target, ".html", lambda file: file.write_text(page, encoding="utf-8"))
        return target

    def save_table(self, path: str | Path) -> Path:
        """Write all rows of all groups as a Parquet file, which `c3 leave-out` takes; return its
        path.
        """
        rows = []
        for number, group in enumerate(self.groups):
            kept = Copy(group.kept, 1.0, None, group.kept_split)
            for copy in (kept, *group.copies):
                row = {"modality": group.modality, "group": number, "tier": group.tier}
                row |= {**asdict(copy), "kept": copy is kept}
                row["path"] = self.paths.get(copy.key) if group.modality != "text" else None
                row["caption"] = self.captions.get(copy.key) if group.modality == "text" else None
                row = self.kept_columns.get((group.modality, copy.key), {}) | row
                if copy.leave_out:
                    relation = "equal to" if group.tier == "exact" else "copy of"
                    row["reason"] = f"{relation} {group.kept} ({group.kept_split})"
                rows.append(row)
        target = location(path)
        schema = _TABLE.with_metadata(self.shards)
        for name, kind in self.column_types.items():
            if name not in schema.names:
                schema = schema.append(pa.field(name, kind))
        table = pa.Table.from_pylist(rows, schema)
        write_output(target, ".parquet", lambda file: pq.write_table(table, file))
        return target

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()


@checked
def find_duplicates(
    store: Store | str | Path = "c3-store",
    *,
    modality: Sequence[str] | None = None,
    cosine: Fraction | None = None,
    mark_splits: MarkSplits = "train",
    image_timeout: NonNegativeFloat = 60,
    workers: NonNegativeInt = 2,
    reporter: Reporter = SILENT,
) -> Duplicates:
    """Find copies of rows within and across the splits of a store, and mark copies in train.

    In groups of identical files and of copies by content, train rows are marked to be left out; if
    all rows are in train, the one with the most captions is kept, then the one that shows what both
    show on the larger area or without a border. By default, no row of val and test is
    marked. Groups of the same scene, of identical texts and of similar embeddings are listed
    without marks, and so are pictures on a plain background (emoji, logos, products) that differ
    only in colour.

    Photos that were rotated, stretched or cropped by more than 30% are not found, nor are photos
    that became part of a screenshot or collage.

    Args:
        store: See `embed`.
        modality: Search only these modalities.
        cosine: Also list rows whose embeddings have at least this cosine.
        mark_splits: Mark copies in train, or in all splits: without those of val and test, scores
            on them are no longer comparable with earlier ones.
        image_timeout: See `embed`.
        workers: Number of processes that decode photos.
        reporter: Shows the progress.

    Raises:
        StoreError: if there is no store, it is an export, a modality is missing, or ``cosine`` is
            0.
        MissingExtraError: if faiss is not installed.

    Example:
        >>> duplicates = c3tools.find_duplicates("c3-store", modality=["text"])
        >>> duplicates
        Duplicates(c3-store: 1 group)
        >>> duplicates.groups[0].keys
        ['000000555009#0', '000000516008#0']
        >>> duplicates.captions["000000555009#0"]
        'A laptop computer sitting on top of a desk.'
    """
    modalities = as_list(modality)
    if cosine == 0:
        raise StoreError(
            "A cosine of 0 does not distinguish similar rows from others.",
            remedy="Pass a number between 0 and 1, for example --cosine 0.98.",
        )
    store = Store.open(store, reporter=reporter)
    store.info.require_raw(store.path)

    # Search each modality for copies, and keep what is shown of the rows in groups
    groups: list[DuplicateGroup] = []
    notes: list[str] = []
    captions: dict[str, str] = {}
    paths: dict[str, str] = {}
    kept_columns: dict[tuple[str, str], dict[str, Any]] = {}
    column_types = {name: CARRIED_TYPES[kind] for name, kind in store.info.columns.items()}
    compared = 0
    for name in modalities or store.modalities:
        store.require(name)
        # In the precision of the store, which takes half the memory of float32
        rows = store.load(name, dtype=store.info.dtype)
        search = search_copies(
            store,
            rows,
            cosine=cosine,
            mark_splits=mark_splits,
            image_timeout=image_timeout,
            workers=workers,
            reporter=reporter,
        )
        groups += search.groups
        compared += search.compared
        notes += search.notes
        grouped_keys = {key for group in search.groups for key in group.keys}
        for column, value_of in (("caption", captions), ("path", paths)):
            if column in rows.table.column_names:
                for key, value in zip(rows.keys, rows.column(column), strict=True):
                    if value and key in grouped_keys:
                        value_of[key] = value
        if column_types:
            columns = rows.table.select(["key", *column_types])
            is_grouped = pc.is_in(columns.column("key"), pa.array([*grouped_keys], pa.string()))
            for row in columns.filter(is_grouped).to_pylist():
                key = row.pop("key")
                kept_columns[name, key] = row
        del rows  # before those of the next modality are loaded

    # Leaks come first, texts after images, and large groups before small ones
    groups.sort(
        key=lambda group: (
            not group.is_leak,
            group.modality == "text",
            TIERS.index(group.tier),
            -len(group.copies),
        )
    )

    # Say what would be lost with the marked rows, and which copies are not marked
    copies = [copy for group in groups for copy in group.copies]
    lost = sum(len(copy.lost_captions) for copy in copies)
    if lost:
        notes.append(
            f"{counted(lost, 'caption of a marked row is', 'captions of marked rows are')} not "
            f"among those of the kept rows: see the column lost_captions of the table."
        )
    not_marked = sum(
        not copy.leave_out
        for group in groups
        if group.tier in MARKED_TIERS and group.modality != "text"
        for copy in group.copies
    )
    if not_marked:
        notes.append(
            f"{counted(not_marked, 'copy is', 'copies are')} not in train and not marked. "
            f"{ways_to_mark_all_splits(store.path)}"
        )
    return Duplicates(
        store.path,
        groups,
        compared,
        notes,
        captions=captions,
        paths=paths,
        kept_columns=kept_columns,
        column_types=column_types,
        shards=shards_metadata(store),
    )
