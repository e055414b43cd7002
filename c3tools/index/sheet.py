"""A page of search results, with thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..corpus.items import is_sound
from ..errors import reason_of
from ..io.locations import is_url
from ..reporter import counted
from .index import SearchResult

_TEMPLATE = Path(__file__).parent / "templates" / "contact_sheet.html"
_THUMBNAIL = 480  # pixels of the longer side, for screens with two pixels to the point


def contact_sheet(results: Sequence[SearchResult], beside: Path | None = None) -> str:
    """Return a self-contained page of the results: images as thumbnails over their texts.

    An image that cannot be read from here is shown as its key and the reason.

    Args:
        results: what a search has found.
        beside: a store: relative paths that lead nowhere from the current folder start from the
            folder it is in.
    """
    from ..io.images import UNREADABLE, thumbnail
    from ..pages import render_page
    from ..photos.finder import PhotoFinder

    paths = set()
    for result in results:
        paths.add(result.query)
        paths.update(hit.path for hit in result.hits if hit.path)
    pictures: dict[str, dict[str, str]] = {}
    with PhotoFinder(beside) as photos:
        for path in paths:
            file = Path(path)
            if isinstance(beside, Path) and not file.exists():
                file = beside.parent / path
            if is_sound(path) and file.is_file():  # played from where it is
                pictures[path] = {"sound": file.absolute().as_uri()}
                continue
            try:
                pictures[path] = {"source": thumbnail(photos.read_again(path), _THUMBNAIL)}
            except UNREADABLE as error:
                pictures[path] = {"problem": "not fetched" if is_url(path) else reason_of(error)}
    title = results[0].query if len(results) == 1 else counted(len(results), "query", "queries")
    return render_page(_TEMPLATE, title=title, results=results, pictures=pictures)
