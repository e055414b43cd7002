"""`c3 export`, `index` and `search`: embeddings for other programs, and search in them.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import c3tools
from c3tools.io.files import write_all

from ._console import lines_for_dash, message, out, print_table, reporter


def export(*, list_all: bool = False, **options: Any) -> Any:
    """Write transformed embeddings, and the fitted pipeline that made them, to a folder.

    Args:
        list_all: List the presets and exit.
    """
    from c3tools.transforms.presets import PRESETS, preset_table

    if list_all:
        print_table(preset_table())
        return [
            {"name": n, "summary": formula, "source": source}
            for n, (formula, source) in PRESETS.items()
        ]
    report = c3tools.export_store(**options, reporter=reporter())
    for line in report.lines():
        message(line)
    if isinstance(report.output, Path):
        for name in report.rows if options["format"] == "hf" else ():
            message(f'Read it with: datasets.load_dataset("{report.output}", "{name}")')
        message(f'For new embeddings: c3tools.Pipeline.load("{report.output}")')
        message(
            f'For its rows, which went through it: c3tools.Pipeline.for_rows("{report.output}")'
        )
    return report.to_dict()


def index(**options: Any) -> Any:
    """Build a FAISS index of the store for `c3 search`. The mean of each modality is subtracted.

    Run it again after the store changed: only the rows of new, changed and removed shards are
    written or removed. The index is rebuilt if the settings differ or if the store has more than
    doubled; a message gives the reason.
    """
    built = c3tools.build_index(**options, reporter=reporter())
    for line in built.lines():
        message(line)
    return built.to_dict()


def search(
    text: Sequence[str] = (),
    *,
    image: Sequence[str] = (),
    audio: Sequence[str] = (),
    vector: str | Path | None = None,
    index: str | Path | None = None,
    html: Path | None = None,
    **options: Any,
) -> Any:
    """Find the images and texts of an index that are nearest to a query, in one list.

    An image and its texts are one hit, ranked by the best of them, and so are exact copies (files
    of the same SHA-256, and equal texts without an image). --by row lists every row.

    The score says how many standard deviations the cosine of a row is above that of unrelated rows
    of its own modality, so rows of both modalities can be compared.

    Args:
        image: Search with this image.
        audio: Search with this sound file.
        index: The folder of the index. By default c3-index; if it is not there, the index that
            c3 embed --faiss made beside the store.
        html: Also write an HTML page with thumbnails.
        text: Texts to search for; - reads them from standard input, one a line.
    """
    from c3tools.index import contact_sheet, find_index

    opened = c3tools.Index.open(find_index(index))
    results = opened.search(
        lines_for_dash(text) or None,
        image=image or None,
        audio=audio or None,
        vector=vector,
        **options,
        reporter=reporter(),
    )
    if html is not None:
        write_all(html, contact_sheet(results, opened.store_path).encode())
        message(f"Wrote {html}")
    for result in results:
        out.print(result.query, style="bold")
        for hit in result.hits:
            out.print(hit.line(), soft_wrap=True)
    return [result.to_dict() for result in results]


def serve(**options: Any) -> None:
    """Serve a page to search an index with texts and photos, and the same search in JSON.

    Images and texts are in one list, as in `c3 search`. GET /search?q=TEXT&k=10 returns JSON; POST
    /search takes a photo (Content-Type: image/...) or {"vector": [...], "modality": "text"}.
    """
    c3tools.serve_index(**options, reporter=reporter())
