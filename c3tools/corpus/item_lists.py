"""Lists that may be larger than memory: the images and texts of a corpus, in temporary databases."""

from __future__ import annotations

import json
import sqlite3
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, overload

from ..io.temporary import open_database, using_temporary_files
from .images import ByteRange, Download, ImageItem, TableCell

Item = TypeVar("Item")
_BLOCK = 4096  # items written or read at a time
_SOURCES: dict[str, type[ByteRange | TableCell | Download]] = {
    kind.__name__: kind for kind in (ByteRange, TableCell, Download)
}


class ItemList(Sequence[Item]):
    """A list of named tuples of text and numbers, or of texts, in a database that spills to a temporary file.

    It is read like a list, whose slices are lists; `find` and `has` look items up by their values. Like a list, it is
    not for several threads that change it.

    Args:
        kind: the named tuple, or str; the first field is the key.
        items: to begin with.
        printable: halves of characters in texts, which cannot be stored, are written as ``\\udc80``.
    """

    __hash__ = None  # type: ignore[assignment] # like that of a list

    def __init__(self, kind: type[Item], items: Iterable[Item] = (), *, printable: bool = False) -> None:
        self._kind = kind
        self._columns: tuple[str, ...] = getattr(kind, "_fields", ("key",))
        self._pack, self._unpack = _codec(kind, printable=printable)
        self._recent: list[Item] = []  # not written yet
        self._recent_positions: dict[str, int] = {}  # by key, once keys are looked up
        self._stored = 0
        self._database: sqlite3.Connection | None = None
        self._indexed: set[str] = set()
        self._last_key = ""
        self._ascending = True
        self.extend(items)

    def append(self, item: Item) -> None:
        """Add an item at the end.

        Raises:
            C3Error: if there is no room for temporary files.
        """
        if "key" in self._indexed:
            self._recent_positions.setdefault(self._pack(item)[0], len(self))
        self._recent.append(item)
        if len(self._recent) >= _BLOCK:
            self._flush()

    def replace(self, position: int, item: Item) -> None:
        """Put another item with the same key at a position."""
        if position >= self._stored:
            self._recent[position - self._stored] = item
        elif self._database is not None:
            places = ", ".join(f"{column} = ?" for column in self._columns)
            with using_temporary_files():
                self._database.execute(f"update items set {places} where n = ?", (*self._pack(item), position + 1))

    def extend(self, items: Iterable[Item]) -> None:
        """Add items at the end."""
        for item in items:
            self.append(item)

    def __iadd__(self, items: Iterable[Item]) -> ItemList[Item]:
        """Add items at the end."""
        self.extend(items)
        return self

    def __len__(self) -> int:
        """Return the number of items."""
        return self._stored + len(self._recent)

    def __iter__(self) -> Iterator[Item]:
        """Yield the items in order, those too that are added meanwhile."""
        start = 0
        while block := self.block(start, start + _BLOCK):
            yield from block
            start += len(block)

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """Return one item, or a list of several."""
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            return self.block(start, stop) if step == 1 else [self[position] for position in range(start, stop, step)]
        position = range(len(self))[index]
        return self.block(position, position + 1)[0]

    def __eq__(self, other: object) -> bool:
        """Return whether the other is a list of the same items in the same order."""
        if not isinstance(other, ItemList | list):
            return NotImplemented
        return len(self) == len(other) and all(map(lambda one, two: one == two, self, other))

    def __repr__(self) -> str:
        """Return the first items, and how many there are."""
        shown = ", ".join(map(repr, self[:3]))
        return f"[{shown}{', …' * (len(self) > 3)}] ({len(self):,})"

    def like(self) -> ItemList[Item]:
        """Return an empty list for the same kind of items."""
        return ItemList(self._kind)

    def block(self, start: int, stop: int) -> list[Item]:
        """Return the items at the positions from ``start`` up to ``stop``."""
        self._flush()
        rows = self._select("where n > ? and n <= ? order by n", start, stop)
        return [self._unpack(row) for _, *row in rows]

    def sort(self) -> None:
        """Sort by the keys, as text; items with one key stay in their order."""
        database = self._flush()
        if self._ascending or database is None:
            return
        names = ", ".join(self._columns)
        with using_temporary_files():
            database.execute("alter table items rename to unsorted")
            self._create_table(database)
            database.execute(f"insert into items ({names}) select {names} from unsorted order by key, n")
            database.execute("drop table unsorted")
        self._indexed.clear()
        self._ascending = True

    def find(self, keys: Iterable[str]) -> Iterator[tuple[int, Item] | None]:
        """Yield position and item of each key, or None; quick if the keys come in the order of the items.

        Of items with one key, any is found.
        """
        self._index("key")
        following: Iterator[tuple[Any, ...]] = iter(())
        ahead = None
        for key in keys:
            if ahead is None or ahead[1] != key:
                ahead = next(self._select("where key = ? order by n limit 1", key), None)
                if ahead is None:
                    position = self._recent_positions.get(key)
                    yield None if position is None else (position, self._recent[position - self._stored])
                    continue
                following = self._select("where n > ? order by n", ahead[0])
            number, *row = ahead
            yield number - 1, self._unpack(row)
            ahead = next(following, None)

    def has(self, value: str | None, column: str = "key") -> bool:
        """Return whether an item has this value in a column."""
        self._index(column)
        if value is None or (column == "key" and value in self._recent_positions):
            return value is not None
        if column != "key":
            self._flush()
        return next(self._select(f"where {column} = ? limit 1", value), None) is not None

    def repeated_key(self) -> str | None:
        """Return the first key that several items have."""
        self._index("key")
        self._flush()
        if self._database is None:
            return None
        repeated = "select key from items group by key having count(*) > 1 order by min(n) limit 1"
        with using_temporary_files():
            return next((key for (key,) in self._database.execute(repeated)), None)

    def _select(self, clause: str, *values: object) -> Iterator[tuple[Any, ...]]:
        """Yield number (from 1) and columns of the items that were written."""
        if self._database is None:
            return
        with using_temporary_files():
            yield from self._database.execute(f"select n, {', '.join(self._columns)} from items {clause}", values)

    def _index(self, column: str) -> None:
        """Create an index of a column, so that looking up in it is fast."""
        if column in self._indexed:
            return
        database = self._flush()
        if database is not None:
            with using_temporary_files():
                database.execute(f"create index by_{column} on items ({column})")
            self._indexed.add(column)

    def _flush(self) -> sqlite3.Connection | None:
        """Write the added items; return the database, or None if there are no items."""
        if self._recent:
            rows = [self._pack(item) for item in self._recent]
            places = ", ".join("?" * len(self._columns))
            with using_temporary_files():
                if self._database is None:
                    self._database = open_database()
                    weakref.finalize(self, self._database.close)
                    self._create_table(self._database)
                self._database.executemany(f"insert into items ({', '.join(self._columns)}) values ({places})", rows)
            for key, *_ in rows:
                self._ascending = self._ascending and self._last_key <= key
                self._last_key = key
            self._stored += len(rows)
            self._recent = []
            self._recent_positions = {}
        return self._database

    def _create_table(self, database: sqlite3.Connection) -> None:
        database.execute(f"create table items (n integer primary key, {', '.join(self._columns)})")


def _codec(kind: type[Any], *, printable: bool) -> tuple[Callable[[Any], Sequence[Any]], Callable[[Any], Any]]:
    """Return the functions that convert an item to a row, and a row to an item."""
    if kind is ImageItem:
        return pack_image, unpack_image
    make = (lambda row: row[0]) if kind is str else kind._make
    if printable:
        return (lambda item: [as_storable(text) for text in ((item,) if kind is str else item)]), make
    return ((lambda text: (text,)) if kind is str else tuple), make


def as_storable(text: str) -> str:
    """Return a text as it can be stored: names of files may hold halves of characters."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def pack_image(image: ImageItem) -> Sequence[Any]:
    """Return the fields of an image, its source as JSON."""
    source = image.source
    if source is None:
        return image
    return *image[:-1], json.dumps([type(source).__name__, *source])


def unpack_image(row: Sequence[Any]) -> ImageItem:
    """Return the image with these fields."""
    *values, source = row
    if source is not None:
        kind, *fields = json.loads(source)
        source = _SOURCES[kind](*fields)
    return ImageItem._make((*values, source))
