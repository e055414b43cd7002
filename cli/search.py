"""`c3 export`, `index` and `search`: embeddings for other programs, and search.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import c3tools
from c3tools.errors import note_on_interrupt
from c3tools.io.files import write_all

from ._console import lines_for_dash, message, out, print_table, reporter


def export(*, list_all: bool = False, **options: Any) -> Any:
    """Write embeddings without the gap, for other programs.

    The folder also contains the fitted pipeline that transformed them.

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
        message(f'For this export\'s own rows: c3tools.Pipeline.for_rows("{report.output}")')
    return report.to_dict()


def index(**options: Any) -> Any:
    """Build an index of a store for c3 search.

    Run it again after the store has changed. This updates only new, changed and removed shards. The
    index is rebuilt if the settings differ or the store has more than doubled; a message gives the
    reason.
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
    """Search images and texts as one list.

    An image and its texts are one hit, ranked by its best row. Exact copies (files with the same
    SHA-256, or equal texts without an image) are also one hit. --by row lists every row.

    The score is the number of standard deviations by which a row's cosine exceeds the mean cosine
    of unrelated rows of its modality. With this score, images and texts can be compared.

    A text and an image together form one query: c3 search "red" --image PHOTO. Their vectors are
    added after each modality's mean is subtracted. With --weights 1,0.5 the photo counts half;
    --weights -1,1 finds rows that are like the photo and unlike the text; with -0.5,1 the photo
    counts more.

    --where 'colour=red' returns only rows with this value in a column that c3 embed
    --keep-columns has kept; quote < and > for the shell: --where 'price<20'.

    Args:
        image: Search with this image.
        audio: Search with this audio file.
        index: The folder of the index. By default c3-index or, if it is missing, the index that c3
            embed --faiss built next to the store.
        html: Also write an HTML page with thumbnails.
        text: Texts to search for; - reads them from standard input, one per line.
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
    """Serve a search page and a JSON API.

    Images and texts are ranked in one list, as in `c3 search`. The API answers in JSON: GET
    /search?q=TEXT&k=10, or POST /search with a photo (Content-Type: image/...) or with {"vector":
    [...], "modality": "text"}.
    """
    with note_on_interrupt(lambda: "The server was stopped."):
        c3tools.serve_index(**options, reporter=reporter())
