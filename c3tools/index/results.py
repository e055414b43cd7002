"""The rows that a search found: as data, as a table, and as a page of thumbnails."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..corpus import ImageReader
from ..corpus.containers import PhotoFinder
from ..io.locations import is_url
from ..reporter import counted
from ..tables import Table

_TEMPLATE = Path(__file__).parent / "templates" / "contact_sheet.html"
_THUMBNAIL = 480  # pixels of the longer side, for screens with two pixels to the point


@dataclass(frozen=True)
class Hit:
    """A row that was found.

    Attributes:
        score: cosine with the query after the transform.
        key: of the row.
        modality: of the row.
        caption: of a text.
        path: of an image, or of the image that a text belongs to, if the index has it.
        image_key: of the image that a text belongs to.
    """

    score: float
    key: str
    modality: str
    caption: str | None = None
    path: str | None = None
    image_key: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the hit as JSON values, without what it lacks."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SearchResult:
    """The rows found for one query.

    Attributes:
        query: the text, the path, the key, or the number of the vector.
        hits: the rows: the best of each modality that was searched, one modality after the other.
    """

    query: str
    hits: list[Hit]

    @property
    def groups(self) -> dict[str, list[Hit]]:
        """The hits by modality, in their order."""
        return {name: [hit for hit in self.hits if hit.modality == name] for name in {h.modality: 0 for h in self.hits}}

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"query": self.query, "hits": [hit.to_dict() for hit in self.hits]}

    def _repr_html_(self) -> str:
        """Return a table of the hits, for notebooks."""
        rows = [(f"{hit.score:.3f}", hit.modality, hit.key, hit.caption or hit.path or "") for hit in self.hits]
        return Table(("score", "modality", "key", "caption or path"), rows, self.query)._repr_html_()


def contact_sheet(results: Sequence[SearchResult]) -> str:
    """Return a self-contained page of the results: images as thumbnails, texts beside the image they belong to.

    An image that cannot be read from here is shown as its key and the reason.
    """
    from ..pages import render_page

    pictures: dict[str, dict[str, str]] = {}
    finder = PhotoFinder()
    with ImageReader() as reader:
        for result in results:
            for path in [result.query, *(hit.path for hit in result.hits)]:
                if path and path not in pictures:
                    pictures[path] = _picture(reader, path, finder)
    title = results[0].query if len(results) == 1 else counted(len(results), "query", "queries")
    return render_page(_TEMPLATE, title=title, results=results, pictures=pictures)


def _picture(reader: ImageReader, path: str, finder: PhotoFinder) -> dict[str, str]:
    """Return the thumbnail of an image as a ``data:`` URL, or why there is none."""
    from PIL import Image

    from ..encoders import open_image
    from ..pages import inline_image

    try:
        if is_url(path):
            return {"problem": "not fetched"}
        image, _, _ = open_image(io.BytesIO(reader.read(finder.find(path, path))))
        return {"source": inline_image(image, _THUMBNAIL)}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return {"problem": getattr(error, "strerror", None) or str(error) or type(error).__name__}
