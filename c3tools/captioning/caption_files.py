"""Caption files: JSON, .txt and XMP files next to the photos, and a contact sheet.

    captions.json     rows of key, path, caption, captioner; one row per photo
    photos/dog.txt    the caption of photos/dog.jpg alone, as training sets have it
    photos/dog.xmp    the caption as dc:description, as photo managers read it

Every file appears complete or not at all. JSON is written again every few seconds, and when the run
ends or is interrupted; files beside photos as soon as their caption is made. So a run that is
killed loses a few seconds, and the same command continues it. Existing captions are kept. Rows by
another captioner or of other photos are refused, so that no file mixes two results.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from xml.sax.saxutils import escape

import msgspec

from ..corpus.items import Failure, is_sound
from ..errors import OutputError
from ..io.files import MALFORMED, read_limited, remove_leftovers, write_text_atomically
from ..io.images import UNREADABLE, thumbnail
from ..io.lock import locked_file
from ..reporter import counted

SAVE_SECONDS = 5.0
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


_SIDECARS: Mapping[str, Callable[[str], str]] = {
    ".txt": lambda caption: f"{caption}\n",
    # XML has no control characters
    ".xmp": lambda caption: _XMP.format(escape(re.sub(r"[\x00-\x1f]", "", caption))),
}


class _Row(msgspec.Struct):
    key: str
    path: str
    caption: str
    captioner: str


class CaptionWriter:
    """Writes captions to all requested files, and knows which photos have none.

    A context manager: the JSON file is locked against other runs in its block, and written when it
    ends.

    Args:
        photos: the paths of photos by key; of embeddings the path they come from.
        captioner: what makes the captions, in words, with a digest of all that they depend on.
        json: a file of rows, on this machine.
        txt: write ``photo.txt`` beside ``photo.jpg``.
        xmp: write ``photo.xmp`` beside it.
        html: a page of all photos with their captions, written by `finish`.
        overwrite: write all captions again.

    Attributes:
        captions: the captions that are known so far, by key.
        pending: the keys of the photos to caption, in order.
        files: the files that captions are kept in, in words; empty if there are none.

    Raises:
        OutputError: if a file cannot be written to, contains something else, or captions of other
            settings or photos, or two photos would share a file beside them.
    """

    def __init__(
        self,
        photos: Mapping[str, Path],
        captioner: str,
        *,
        json: Path | None = None,
        txt: bool = False,
        xmp: bool = False,
        html: Path | None = None,
        overwrite: bool = False,
    ) -> None:
        self._photos = photos
        self._captioner = captioner
        self._json = None if json is None else json.resolve()
        self._html = html
        self._overwrite = overwrite
        self._sidecars: list[str] = []
        if txt:
            self._sidecars.append(".txt")
        if xmp:
            self._sidecars.append(".xmp")
        self._rows: dict[str, _Row] = {}
        self._stack = ExitStack()
        self._saved = time.monotonic()
        self._save_seconds = 0.0  # that the last write of the JSON file took
        self.captions: dict[str, str] = {}
        self.pending: list[str] = []
        names = [] if json is None else [str(json)]
        names += [f"{suffix} files" for suffix in self._sidecars]
        self.files = " and ".join(names)

        # Photos that differ in their suffix alone would share a file beside them
        photo_by_stem: dict[Path, Path] = {}
        for photo in photos.values():
            other = photo_by_stem.setdefault(photo.with_suffix(""), photo)
            if self._sidecars and other != photo:
                raise OutputError(
                    f"The captions of {photo} and {other} cannot be written next to them, because "
                    f"they would share a file.",
                    remedy="Rename one of the photos, or write the captions to one file with "
                    "--json.",
                )

    def __enter__(self) -> CaptionWriter:
        """Lock the files, and find out what is there."""
        with ExitStack() as stack:
            if self._json is not None:
                stack.enter_context(locked_file(self._json))
                self._read(self._json)

            # Remove what a killed run left; no other program uses the temporary names of these
            files = [path for path in (self._json, self._html) if path is not None]
            for suffix in self._sidecars:
                files += [path.with_suffix(suffix) for path in self._photos.values()]
            names = {path.name for path in files}
            for folder in {path.parent for path in files}:
                remove_leftovers(folder, names)

            # If a run was killed between two files, the second lacks a caption of the first
            for key, caption in list(self.captions.items()):
                self.write(key, caption)

            # Photos without a caption are pending, but for those that have all their files already
            reads_sidecars = bool(self._sidecars) and not (self._overwrite or self._json)
            for key, photo in self._photos.items():
                beside = [photo.with_suffix(suffix) for suffix in self._sidecars]
                has_files = reads_sidecars and all(file.exists() for file in beside)
                text_file = photo.with_suffix(".txt")
                if has_files and text_file in beside and not text_file.is_symlink():
                    text = text_file.read_text(encoding="utf-8", errors="replace")
                    self.captions[key] = text.strip()
                # The page shows captions, which .xmp files alone do not give back
                needs_none = has_files and self._html is None
                if key not in self.captions and not needs_none:
                    self.pending.append(key)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Write the JSON file, and remove what a run that was killed left beside the files."""
        with self._stack:
            self.save()

    def write(self, key: str, caption: str) -> None:
        """Keep the caption of a photo for every file that lacks it."""
        path = self._photos[key]
        self.captions[key] = caption
        self._rows.setdefault(key, _Row(key, str(path), caption, self._captioner))
        for suffix in self._sidecars:
            beside = path.with_suffix(suffix)
            if self._overwrite or not (beside.exists() or beside.is_symlink()):
                write_text_atomically(beside, _SIDECARS[suffix](caption))
        # a long file is written less often
        if time.monotonic() - self._saved > SAVE_SECONDS + 20 * self._save_seconds:
            self.save()

    def save(self) -> None:
        """Write the rows to the JSON file."""
        started = time.monotonic()
        if self._json is not None:
            lines = []
            for row in self._rows.values():
                lines.append(json.dumps(msgspec.to_builtins(row), ensure_ascii=False))
            content = "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[\n]\n"
            write_text_atomically(self._json, content)
        self._saved = time.monotonic()
        self._save_seconds = self._saved - started

    def finish(self, failures: Sequence[Failure]) -> dict[str, str]:
        """Write the page, and return the captions by key in the order of the photos."""
        self.captions = {key: self.captions[key] for key in self._photos if key in self.captions}
        if self._html is not None:
            from ..pages import render_page  # with matplotlib, which takes a third of a second

            # A photo is shown as a data: URL, None if it can no longer be read; a sound where it is
            shown = []
            for key, caption in list(self.captions.items())[:_IN_SHEET]:
                path = self._photos[key]
                element = "img"
                source: str | None = None
                if is_sound(path):
                    element = "audio"
                    source = path.absolute().as_uri()
                else:
                    with suppress(*UNREADABLE):
                        source = thumbnail(path, _THUMBNAIL)
                shown.append((key, caption, element, source))
            page = render_page(
                _TEMPLATE,
                title=counted(len(self.captions), "caption"),
                captioner=self._captioner,
                photos=shown,
                more=len(self.captions) - len(shown),
                failures=failures,
            )
            write_text_atomically(self._html, page)
        return self.captions

    def _read(self, path: Path) -> None:
        """Read the rows that the JSON file already contains, and take their captions.

        Raises:
            OutputError: if they are by another captioner, or of other photos with the same keys.
        """
        try:
            content = read_limited(path) if path.exists() else b""
            rows = msgspec.json.decode(content, type=list[_Row]) if content else []
        except MALFORMED as error:
            raise OutputError(
                f"{path} was not written by c3 caption.", remedy="Choose another file."
            ) from error
        if self._overwrite:
            return
        for row in rows:
            photo = self._photos.get(row.key)
            is_other_photo = (
                photo is not None
                and str(photo) != row.path
                and photo.absolute() != Path(row.path).absolute()
            )
            if row.captioner != self._captioner or is_other_photo:
                added = f"captions by {self._captioner}."
                if is_other_photo:
                    added = f"one of {photo} with the same key."
                raise OutputError(
                    f"{path} contains a caption of {row.path}, with the key {row.key!r}, by "
                    f"{row.captioner}. This run would add {added}",
                    remedy="Choose another file, or replace its rows with --overwrite.",
                )
            self._rows[row.key] = row
            if photo is not None:
                self.captions[row.key] = row.caption
