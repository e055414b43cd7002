"""Captions as files, written while they are made: JSON and CSV, .txt and XMP beside the photos, a contact sheet.

JSON and CSV grow row by row and are valid after each row; files beside photos appear complete or not at all. A killed
run loses at most the captions of one batch, and the same command continues it:

    captions.json, captions.csv    rows of key, path, caption, captioner; one row per photo
    photos/dog.txt                 the caption of photos/dog.jpg alone, as training sets have it
    photos/dog.xmp                 the caption as dc:description, as photo managers read it

Existing captions are kept. Rows by another captioner or of other photos are refused, so that no file mixes two results.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from PIL import Image

from ..encoders import open_image
from ..errors import CorpusError, OutputError
from ..io.files import MALFORMED, find_leftovers, write_atomically, write_text_atomically
from ..io.lock import is_at, lock_file
from ..reporter import counted

FIELDS = ("key", "path", "caption", "captioner")
Row = dict[str, str]
_TEMPLATE = Path(__file__).parent / "templates" / "captions.html"
_THUMBNAIL = 480  # pixels of the longer side, for screens with two pixels to the point
_IN_SHEET = 1000
_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="c3tools">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/">
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


def _to_xmp(caption: str) -> str:
    return _XMP.format(escape("".join(letter for letter in caption if letter >= " ")))


SIDECARS: Mapping[str, Callable[[str], str]] = {".txt": lambda caption: f"{caption}\n", ".xmp": _to_xmp}


class CaptionWriter:
    """Writes captions to all requested files, and knows which photos have none.

    A context manager: JSON and CSV files are open, and locked against other runs, in its block.

    Args:
        photos: the paths of photos by key; of embeddings the path they come from.
        captioner: what makes the captions, in words, with a digest of all that they depend on.
        json: a file of rows, on this machine.
        csv: the same as CSV.
        txt: write ``photo.txt`` beside ``photo.jpg``.
        xmp: write ``photo.xmp`` beside it.
        html: a page of all photos with their captions, written by `finish`.
        overwrite: write all captions again.

    Attributes:
        captions: the captions that are known so far, by key.
        pending: the keys of the photos to caption, in order.

    Raises:
        CorpusError: if two photos would share a file beside them.
        OutputError: if a file cannot be written to, contains something else, or captions of other settings or photos.
    """

    def __init__(
        self,
        photos: Mapping[str, Path],
        captioner: str,
        *,
        json: Path | None = None,
        csv: Path | None = None,
        txt: bool = False,
        xmp: bool = False,
        html: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self._photos, self._captioner = photos, captioner
        self._sidecars = [suffix for suffix, wanted in zip(SIDECARS, (txt, xmp), strict=True) if wanted]
        self._tables = [_Table(path, kind) for path, kind in ((json, _JSON), (csv, _CSV)) if path is not None]
        self._html, self._overwrite = html, overwrite
        self._stack = ExitStack()
        self.captions: dict[str, str] = {}
        self.pending: list[str] = []
        for suffix in self._sidecars:
            _check_sidecars(photos.values(), suffix)
        self._leftovers: list[Path] = []

    def __enter__(self) -> CaptionWriter:
        """Open the files, and find out what is there."""
        with ExitStack() as stack:
            for table in self._tables:
                stack.enter_context(table)
                self._take(table)
            self._leftovers = self._find_leftovers()
            for key, caption in list(self.captions.items()):
                self.write(key, caption)  # to the other files, if the run was killed between two
            self.pending = [key for key in self._photos if key not in self.captions and not self._has_sidecars(key)]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files, and remove what a run that was killed left beside them."""
        self._stack.close()
        for leftover in self._leftovers:
            leftover.unlink(missing_ok=True)

    @property
    def files(self) -> str:
        """The files that captions are kept in, in words; empty if there are none."""
        return " and ".join([str(table.path) for table in self._tables] + [f"{end} files" for end in self._sidecars])

    def write(self, key: str, caption: str) -> None:
        """Write the caption of a photo to every file that lacks it."""
        path = self._photos[key]
        self.captions[key] = caption
        row = dict(zip(FIELDS, (key, str(path), caption, self._captioner), strict=True))
        for table in self._tables:
            if key not in table.rows:
                table.append(row)
        for suffix in self._sidecars:
            beside = path.with_suffix(suffix)
            if self._overwrite or not (beside.exists() or beside.is_symlink()):
                write_text_atomically(beside, SIDECARS[suffix](caption))

    def finish(self, failures: Sequence[tuple[Path, str]]) -> dict[str, str]:
        """Write the page, and return the captions by key in the order of the photos."""
        self.captions = {key: self.captions[key] for key in self._photos if key in self.captions}
        if self._html is not None:
            from ..pages import render_page

            shown = list(self.captions.items())[:_IN_SHEET]
            page = render_page(
                _TEMPLATE,
                title=counted(len(self.captions), "caption"),
                captioner=self._captioner,
                photos=[(key, caption, _thumbnail(self._photos[key])) for key, caption in shown],
                more=len(self.captions) - len(shown),
                failures=failures,
            )
            write_text_atomically(self._html, page)
        return self.captions

    def _find_leftovers(self) -> list[Path]:
        """Return temporary files of earlier runs in the folders of the photos; no other program uses their names."""
        own = [table.path for table in self._tables] + ([] if self._html is None else [self._html])
        own += [path.with_suffix(suffix) for suffix in self._sidecars for path in self._photos.values()]
        names: dict[Path, set[str]] = {}
        for path in own:
            names.setdefault(path.parent, set()).add(path.name)
        return [leftover for folder, known in names.items() for leftover in find_leftovers(folder, known)]

    def _take(self, table: _Table) -> None:
        """Read the captions that a file already contains.

        Raises:
            OutputError: if they are by another captioner, or of other photos with the same keys.
        """
        if self._overwrite:
            table.clear()
        remedy = "Choose another file, or replace its rows with --overwrite."
        for row in table.rows.values():
            if row["captioner"] != self._captioner:
                other = row["captioner"] or "an unknown captioner"
                raise OutputError(
                    f"{table.path} contains captions by {other}, not by {self._captioner}.", remedy=remedy
                )
            path = self._photos.get(row["key"])
            if path is None:
                continue
            if str(path) != row["path"] and path.absolute() != Path(row["path"]).absolute():
                raise OutputError(
                    f"{table.path} contains a caption of {row['path']} with the key {row['key']!r}, but this key now "
                    f"belongs to {path}.",
                    remedy=remedy,
                )
            self.captions[row["key"]] = row["caption"]

    def _has_sidecars(self, key: str) -> bool:
        """Return whether a photo has all its files and needs no caption for another output; remember the answer."""
        if self._overwrite or self._tables or not self._sidecars:
            return False
        files = [self._photos[key].with_suffix(suffix) for suffix in self._sidecars]
        if not all(file.exists() for file in files):
            return False
        if ".txt" in self._sidecars and not files[0].is_symlink():
            self.captions[key] = files[0].read_text(encoding="utf-8", errors="replace").strip()
        return key in self.captions or self._html is None


class _Format(NamedTuple):
    """The layout of a file of rows: head, ``first``, the rows separated by ``between``, tail."""

    head: str
    first: str
    between: str
    tail: str
    render: Callable[[Row], str]
    parse: Callable[[str], list[Row]]


class _Table:
    """A file of rows on this machine that is valid after each row; an incomplete last row is dropped.

    Attributes:
        path: of the file.
        rows: by key.
    """

    def __init__(self, path: Path, kind: _Format) -> None:
        if not isinstance(path, Path):
            raise OutputError(
                f"{path} is a URL, and rows cannot be added to a file there.", remedy="Choose a file on this machine."
            )
        self.path, self._format = path, kind
        self.rows: dict[str, Row] = {}

    def __enter__(self) -> _Table:
        self._file = self._open()
        try:
            content = self._file.read()
            self.rows = {row["key"]: row for row in self._read(content.decode("utf-8", errors="replace"))}
            if content != self._text().encode():
                with self._file:  # keeps other runs off until the new file is locked
                    self._write_all()
                    self._file = self._open()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            os.fsync(self._file.fileno())

    def append(self, row: Row) -> None:
        """Add a row, by one write over the tail."""
        form = self._format
        start = self._file.seek(-len(form.tail.encode()), os.SEEK_END)
        lead = form.between if self.rows else form.first
        try:
            self._put(lead + form.render(row) + form.tail)
        except OSError:
            self._file.truncate(start)  # a full disk: without the part of the row
            raise
        self.rows[row["key"]] = row

    def clear(self) -> None:
        """Drop all rows."""
        self.rows = {}
        self._file.seek(0)
        self._file.truncate()
        self._put(self._text())

    def _put(self, text: str) -> None:
        content = text.encode()
        while content:  # a disk that is nearly full takes a part first, and then refuses the rest
            content = content[self._file.write(content) :]

    def _open(self) -> io.FileIO:
        """Open the file for this run only; it is created if it does not exist."""
        while True:
            file = io.FileIO(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+")
            try:
                lock_file(file.fileno(), self.path)
                if is_at(self.path, file.fileno()):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()  # another run replaced the file after this one had opened it

    def _write_all(self) -> None:
        write_atomically(self.path, lambda temporary: temporary.write_bytes(self._text().encode()))

    def _text(self) -> str:
        form = self._format
        rows = form.between.join(form.render(row) for row in self.rows.values())
        return form.head + (form.first + rows if rows else "") + form.tail

    def _read(self, text: str) -> Iterator[Row]:
        if not text.strip():
            return
        try:
            for row in self._format.parse(text):
                found = {name: row.get(name) or "" for name in FIELDS}
                if not row["key"] or not all(isinstance(value, str) for value in found.values()):
                    raise ValueError("a row has no key")
                "".join(found.values()).encode()  # halves of characters cannot be written
                yield found
        except MALFORMED as error:
            raise OutputError(f"{self.path} was not written by c3 caption.", remedy="Choose another file.") from error


def _parse_json(text: str) -> list[Any]:
    """Return the rows of a JSON list; if the list is incomplete, the rows that are complete.

    Raises:
        ValueError: if it is not a list of objects.
    """
    try:
        value = json.loads(text)
    except ValueError:
        lines = text.splitlines()
        if lines[0] != _JSON.head:
            raise
        value = []
        for line in lines[1:]:
            try:
                value.append(json.loads(line.removesuffix(",")))
            except ValueError:
                break
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _parse_csv(text: str) -> list[Any]:
    """Return the rows of a CSV file; an incomplete last one is left out: without a line break, or cut at one inside it.

    Raises:
        ValueError: if it has other columns.
    """
    text = text[: text.rfind("\n") + 1]
    reader = csv.reader(io.StringIO(text))
    try:
        if tuple(next(reader, ())) != FIELDS:
            raise ValueError("other columns")
        rows = [row for row in reader if row]
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if rows and len(rows[-1]) < len(FIELDS) and text.count('"') % 2:
        rows.pop()
    return [dict(zip(FIELDS, row, strict=True)) for row in rows]


def _csv_line(values: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(values)  # quotes values that contain a part of it
    return buffer.getvalue().removesuffix("\r\n")


_JSON = _Format("[", "\n", ",\n", "\n]\n", lambda row: json.dumps(row, ensure_ascii=False), _parse_json)
_CSV = _Format(_csv_line(FIELDS), "\n", "\n", "\n", lambda row: _csv_line([row[name] for name in FIELDS]), _parse_csv)


def _check_sidecars(photos: Sequence[Path] | Any, suffix: str) -> None:
    """Refuse photos that would share a file beside them, and folders that cannot be written to.

    Raises:
        CorpusError: with the two photos.
        OutputError: with the folder.
    """
    owners: dict[Path, Path] = {}
    for photo in photos:
        other = owners.setdefault(photo.with_suffix(suffix), photo)
        if other != photo:
            raise CorpusError(
                f"{other} and {photo} would have the same caption file {photo.with_suffix(suffix)}.",
                remedy="Rename one of them, or write the captions to one file with --json or --csv.",
            )
    for folder in {photo.parent for photo in owners.values()}:
        if not os.access(folder, os.W_OK):
            raise OutputError(
                f"Captions cannot be written beside the photos, because {folder} is not writable.",
                remedy="Make it writable, or write the captions to one file with --json or --csv.",
            )


def _thumbnail(path: Path) -> str | None:
    """Return a photo as a ``data:`` URL, or None if it can no longer be read."""
    from ..pages import inline_image

    try:
        return inline_image(open_image(path)[0], _THUMBNAIL)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
