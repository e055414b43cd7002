"""`c3 embed`, `import`, `verify`, `merge`, `split` and `leave-out`: stores of embeddings.

For ``**options`` and what is returned, see __init__.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import c3tools

from ._console import err, message, out, print_table, reporter
from ._derive import Outcome

NOT_WHOLE = 3  # the exit code of `c3 verify`


def embed(paths: list[str], *, faiss: bool = False, strict: bool = False, **options: Any) -> Any:
    """Embed images, videos and texts into a store.

    Captions are detected automatically: in captions.jsonl, metadata.jsonl, metadata.csv,
    captions.csv or a COCO .json in the image's folder, or in a .txt file with the image's name.
    Tars and tables contain their own captions. Run the same command again to continue an
    interrupted run or to add inputs.

    Inputs that cannot be embedded are listed in failures.parquet, and the run continues. The exit
    code is 1 if all images, all videos, all audio files or all texts failed; with --strict, if any
    input failed.

    Args:
        paths: Images, videos, folders, WebDataset tars, Parquet or Arrow tables, or text files.
            URLs work too (s3://, gs://, hf://, http(s)://); {000..012} and * are expanded. - reads
            texts from standard input.
        faiss: Also build an index of the unchanged embeddings in STORE-index. c3 search uses it if
            there is no c3-index.
        strict: Exit with code 1 if any input could not be embedded. This includes changed images
            that keep their old rows.
    """
    if faiss:
        from c3tools.index.codes import load_faiss
        from c3tools.index.index import index_beside

        load_faiss()  # a missing FAISS is reported before the work
    with TemporaryDirectory() as folder:
        if "-" in paths:  # the texts have the keys stdin:1, stdin:2, ...
            lines = Path(folder, "stdin.txt")
            lines.write_bytes(sys.stdin.buffer.read())
            paths = [str(lines) if path == "-" else path for path in paths]
        store = c3tools.embed(paths, **options, reporter=reporter())
    if faiss:
        # An exact index keeps float16 rows of norm 1 as they are
        is_half = store.info.normalised and store.info.dtype == "float16"
        c3tools.build_index(
            store,
            output=index_beside(store.path),
            factory="SQfp16" if is_half else "Flat",
            preset="c1",
            reporter=reporter(),
        )
    summary = store.summary
    print_table(summary.table())
    for note in summary.notes():
        out.print(note)
    not_updated = [key for one in summary.modalities.values() for key in one.not_updated]
    some_failed = summary.failures_in_store > 0 or bool(not_updated)
    failed = bool(summary.all_failed) or (strict and some_failed)
    return Outcome(summary.to_dict(), int(failed))


def import_(source: Path | None = None, **options: Any) -> Any:
    """Make a store from embeddings that you already have.

    Images and texts without ids are paired in order.
    """
    report = c3tools.import_embeddings(source, **options, reporter=reporter())
    for line in report.lines():
        message(line)
    return report.to_dict()


def verify(**options: Any) -> Any:
    """Check that every file of a store is there and intact.

    Exports and indexes are checked too, and the files of clusters and of trained decoders,
    generators, heads and models. Each problem is reported with its file and the command that fixes
    it. Exit codes: 0 if nothing is wrong; 3 if files are missing or damaged, or if the run that
    writes the store did not finish; 1 for errors, such as a missing store, or defects while another
    run is writing.

    --repair removes damaged shards, so that the command that made the store, export or index can
    recreate them. For a store made by `c3 merge` or `c3 split`, run that command again with a new
    folder. If the inputs no longer exist, use --forget.
    """
    result = c3tools.verify_store(**options, reporter=reporter())
    for line in result.counts():
        out.print(line)
    for finding in result.findings if not out.quiet else ():
        err.print(finding.heading, style="bold", end=" ")
        message(result.explain(finding))
    for line in result.verdict():
        out.print(line)
    return Outcome(result.to_dict(), 0 if result.whole else NOT_WHOLE)


def merge(stores: list[Path], **options: Any) -> Any:
    """Join stores of the same model into a new one.

    If stores share keys, nothing is written unless you give --keep-first or --prefix.
    """
    report = c3tools.merge_stores(stores, **options, reporter=reporter())
    message(report.line())
    return report.to_dict()


def split(**options: Any) -> Any:
    """Copy a store with new train, val and test splits.

    Rows are assigned by a stable hash of their keys, or by --file. Texts get the split of their
    image. The new store has its own means, so that Collapse is fitted on the new train split. The
    old store is not changed.
    """
    report = c3tools.split_store(**options, reporter=reporter())
    print_table(report.table())
    for note in report.notes():
        message(note)
    return report.to_dict()


def leave_out(tables: list[Path] | None = None, **options: Any) -> Any:
    """Leave rows out of a store, or take them back.

    The rows stay in the store, but no command uses them. Without tables and --key, the command
    lists the rows that are left out. Leaving out an image also leaves out its captions; leaving out
    a caption keeps the image. To update an export or an index, run its command again.
    """
    result = c3tools.leave_out(tables=tables or (), **options)
    is_listing = not (tables or options["keys"] or options["undo"])
    if is_listing and result.rows:
        print_table(result.table())
    out.print(result.line())
    for note in result.notes:
        message(note)
    return result.to_dict()
