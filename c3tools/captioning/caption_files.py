"""Captions as files: JSON and CSV, .txt and XMP beside the photos, a contact sheet.

    captions.json, captions.csv    rows of key, path, caption, captioner; one row per photo
    photos/dog.txt                 the caption of photos/dog.jpg alone, as training sets have it
    photos/dog.xmp                 the caption as dc:description, as photo managers read it

Every file appears complete or not at all. JSON and CSV are written again every few seconds, and when the run ends or is
interrupted; files beside photos as soon as their caption is made. So a run that is killed loses a few seconds, and the
same command continues it. Existing captions are kept. Rows by another captioner or of other photos are refused, so that
no file mixes two results.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from ..encoders import open_image
from ..errors import CorpusError, OutputError
from ..io.files import MALFORMED, find_leftovers, read_json, write_text_atomically
from ..io.lock import locked_file
from ..pages import inline_image, render_page
from ..reporter import counted

FIELDS = ("key", "path", "caption", "captioner")
SAVE_SECONDS = 5.0
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

    A context manager: JSON and CSV files are locked against other runs in its block, and written when it ends.

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
        files: the files that captions are kept in, in words; empty if there are none.

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
        self._photos, self._captioner, self._html, self._overwrite = photos, captioner, html, overwrite
        self._sidecars = [suffix for suffix, wanted in zip(SIDECARS, (txt, xmp), strict=True) if wanted]
        formats = ((json, _read_json, _to_json), (csv, _read_csv, _to_csv))
        self._tables = [(path.resolve(), read, render) for path, read, render in formats if path is not None]
        self._rows: dict[Path, dict[str, Row]] = {}
        self._stack = ExitStack()
        self._saved, self._cost = time.monotonic(), 0.0
        self.captions: dict[str, str] = {}
        self.pending: list[str] = []
        names = [str(path) for path in (json, csv) if path is not None] + [
            f"{suffix} files" for suffix in self._sidecars
        ]
        self.files = " and ".join(names)
        for suffix in self._sidecars:
            _check_sidecars(photos, suffix)

    def __enter__(self) -> CaptionWriter:
        """Lock the files, and find out what is there."""
        with ExitStack() as stack:
            for path, read, _ in self._tables:
                stack.enter_context(locked_file(path))
                self._rows[path] = self._known(path, read) if path.exists() and path.stat().st_size else {}
            for leftover in self._leftovers():
                stack.callback(leftover.unlink, missing_ok=True)
            for key, caption in list(self.captions.items()):
                self.write(key, caption)  # to the other files, if the run was killed between two
            self.pending = [key for key in self._photos if key not in self.captions and not self._has_sidecars(key)]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Write JSON and CSV, and remove what a run that was killed left beside them."""
        with self._stack:
            self.save()

    def write(self, key: str, caption: str) -> None:
        """Keep the caption of a photo for every file that lacks it."""
        path = self._photos[key]
        self.captions[key] = caption
        row = dict(zip(FIELDS, (key, str(path), caption, self._captioner), strict=True))
        for rows in self._rows.values():
            rows.setdefault(key, row)
        for suffix in self._sidecars:
            beside = path.with_suffix(suffix)
            if self._overwrite or not (beside.exists() or beside.is_symlink()):
                write_text_atomically(beside, SIDECARS[suffix](caption))
        if time.monotonic() - self._saved > SAVE_SECONDS + 20 * self._cost:  # a long file is written less often
            self.save()

    def save(self) -> None:
        """Write the rows to JSON and CSV."""
        started = time.monotonic()
        for path, _, render in self._tables:
            write_text_atomically(path, render(list(self._rows[path].values())))
        self._saved = time.monotonic()
        self._cost = self._saved - started

    def finish(self, failures: Sequence[tuple[Path, str]]) -> dict[str, str]:
        """Write the page, and return the captions by key in the order of the photos."""
        self.captions = {key: self.captions[key] for key in self._photos if key in self.captions}
        if self._html is not None:
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

    def _known(self, path: Path, read: Callable[[Path], list[Row]]) -> dict[str, Row]:
        """Read the rows that a file already contains, and take their captions.

        Raises:
            OutputError: if they are by another captioner, or of other photos with the same keys.
        """
        remedy = "Choose another file, or replace its rows with --overwrite."
        try:
            rows = {row["key"]: {name: row.get(name) or "" for name in FIELDS} for row in read(path)}
            "".join(value for row in rows.values() for value in row.values()).encode()  # text alone
        except (csv.Error, *MALFORMED) as error:
            raise OutputError(f"{path} was not written by c3 caption.", remedy="Choose another file.") from error
        if self._overwrite:
            return {}
        for key, row in rows.items():
            if row["captioner"] != self._captioner:
                other = row["captioner"] or "an unknown captioner"
                raise OutputError(f"{path} contains captions by {other}, not by {self._captioner}.", remedy=remedy)
            photo = self._photos.get(key)
            if photo is None:
                continue
            if str(photo) != row["path"] and photo.absolute() != Path(row["path"]).absolute():
                raise OutputError(
                    f"{path} contains a caption of {row['path']} with the key {key!r}, but this key now belongs to "
                    f"{photo}.",
                    remedy=remedy,
                )
            self.captions[key] = row["caption"]
        return rows

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

    def _leftovers(self) -> list[Path]:
        """Return temporary files of earlier runs in the folders of the photos; no other program uses their names."""
        own = [path for path, _, _ in self._tables] + ([] if self._html is None else [self._html])
        own += [path.with_suffix(suffix) for suffix in self._sidecars for path in self._photos.values()]
        names: dict[Path, set[str]] = {}
        for path in own:
            names.setdefault(path.parent, set()).add(path.name)
        return [leftover for folder, known in names.items() for leftover in find_leftovers(folder, known)]


def _read_json(path: Path) -> list[Row]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError("not a list")
    return rows


def _to_json(rows: list[Row]) -> str:
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n" if rows else "[\n]\n"


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    if tuple(header) != FIELDS:
        raise ValueError("other columns")
    return [dict(zip(FIELDS, row, strict=True)) for row in rows if row]


def _to_csv(rows: list[Row]) -> str:
    lines = []
    for values in (FIELDS, *(row.values() for row in rows)):
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\r\n").writerow(values)  # quotes values that contain a part of it
        lines.append(buffer.getvalue().removesuffix("\r\n"))
    return "\n".join(lines) + "\n"


def _check_sidecars(photos: Mapping[str, Path], suffix: str) -> None:
    """Refuse photos that would share a file beside them, and folders that cannot be written to.

    Raises:
        CorpusError: with the two photos.
        OutputError: with the folder.
    """
    owners: dict[Path, Path] = {}
    for photo in photos.values():
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
    try:
        return inline_image(open_image(path)[0], _THUMBNAIL)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
