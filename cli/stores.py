"""`c3 embed`, `import`, `means`, `verify`, `merge` and `split`: stores of embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import c3tools
from c3tools.errors import C3Error
from c3tools.reporter import counted

from ._console import err, message, out, print_table, reporter, write_json
from ._files import named_files

if TYPE_CHECKING:
    from c3tools.moments import Moments

NOT_WHOLE = 3  # the exit code of `c3 verify`


def embed(paths: list[str], *, strict: bool = False, json: str | None = None, **options: Any) -> None:
    """Embed images and videos with their captions, or texts, into a store.

    Captions are detected automatically for each image: captions.jsonl, metadata.jsonl or metadata.csv in the folder or
    beside it, COCO .json in the folder, or a .txt file with the name of the image. Tars and tables contain their own.
    Run the same command again to continue an interrupted run or to add new inputs.

    Args:
        strict: Exit with code 1 if any input could not be embedded.
    """
    summary = c3tools.embed(paths, **options, reporter=reporter()).summary
    if write_json(summary.to_dict(), json):
        print_table(summary.table())
        for note in summary.notes():
            out.print(note, markup=False, highlight=False)
    if strict and summary.failures_in_store:
        raise typer.Exit(1)


def import_(source: Path | None = None, *, other: Sequence[str] = (), json: str | None = None, **options: Any) -> None:
    """Make a store from embeddings of another program. Rows without ids are paired by their order.

    Args:
        other: A file of vectors of another modality, for example audio=audio.npy.
    """
    report = c3tools.import_embeddings(source, **options, other=named_files(other), reporter=reporter())
    write_json(report.to_dict(), json)
    for note in report.notes:
        message(note)
    if report.failures:
        first = report.failures[0]
        message(
            f"{counted(len(report.failures), 'row was', 'rows were')} left out; {report.store}/failures.parquet lists "
            f"the reasons. The first ({first.path}): {first.message}."
        )
    listing = ", ".join(f"{count:,} {name}" for name, count in report.rows.items())
    message(f"Imported {listing} rows into {report.store} ({counted(report.pairs, 'pair')}).")


def means(
    *,
    store: str | Path = "c3-store",
    save: str | Path | None = None,
    split: str = "train",
    load: str | Path | None = None,
    unload: bool = False,
    merge: Sequence[str | Path] = (),
    json: str | None = None,
) -> None:
    """Show, save, merge or load the mean and covariance of each modality.

    Args:
        unload: Go back to the store's own moments.
        merge: Merge moments files, and write the result to ``save``.
    """
    if merge:
        if save is None:
            raise C3Error("--merge needs --save.", remedy="Add --save FILE, the file for the merged moments.")
        if load is not None or unload:
            raise C3Error(
                "--merge cannot be combined with --load or --unload.", remedy="Merge first, then load the result."
            )
        merged = c3tools.merge_means(merge, save)
        _print_saved(save, merged)
        write_json({"output": str(save), "rows": {name: moments.n for name, moments in merged.items()}}, json)
        return
    if unload:
        c3tools.unload_means(store)
    if load is not None:
        loaded = c3tools.load_means(store, load)
        message(f"Collapse now uses the moments in {load}: {', '.join(loaded)}.")
    opened = c3tools.Store.open(store, reporter=reporter())
    if save is not None:
        _print_saved(save, c3tools.save_means(opened, save, split=split))
    found = c3tools.compute_means(opened)
    if opened.split_note:
        message(opened.split_note)
    if write_json(found.to_dict(), json):
        print_table(found.table())
        if found.gap_length is not None:
            out.print(f"Length of the modality gap: {found.gap_length:.4f}", highlight=False)


def _print_saved(path: str | Path, groups: dict[str, Moments]) -> None:
    message(f"Wrote {path}: {', '.join(counted(moments.n, f'{name} row') for name, moments in groups.items())}")


def verify(
    path: str | Path | None = None, *, store: str | Path | None = None, json: str | None = None, **options: Any
) -> None:
    """Check that every file of a store is there and undamaged.

    Every problem is reported with its file and with the command that solves it. The exit code is 0 if the store is
    whole, 3 if files are missing or damaged or the run that writes the store did not finish, and 1 for an error, such
    as a missing store. --repair removes damaged shards. The `c3 embed` or `c3 import` command that made the store then
    makes them again; if their inputs are gone, --forget gives their rows up.

    Args:
        path: The store: a folder or a URL (s3://, gs://). By default c3-store.
        store: The store, as in other commands; the same as [STORE].
    """
    result = c3tools.verify_store(store or path or "c3-store", **options, reporter=reporter())
    if write_json(result.to_dict(), json):
        for name, shards in result.shards.items():
            read = result.read[name]
            rows_read = "read" if read == shards else f"of {read:,} shards read"
            rows, parts = counted(result.rows[name], "row"), counted(shards, "shard")
            out.print(f"{name}: {rows} in {parts}, rows {rows_read}", highlight=False)
        for finding in result.findings:
            level = "[bold yellow]warning[/]" if finding.warning else "[bold red]defect[/]"
            err.print(f"{level} ({finding.check})", end=" ", highlight=False)
            message(f"{result.store / finding.where}: {finding.what}\n  {finding.remedy}")
        for line in result.repaired:
            out.print(f"Repaired: {line}.", markup=False, highlight=False)
        state = f"has {counted(result.open, 'defect')}"
        if result.whole:
            state = f"is {'now ' if result.repaired else ''}complete and undamaged"
            if result.findings:
                state += f"; see the {counted(len(result.findings), 'finding')} above"
        out.print(f"{result.store} {state}.", markup=False, highlight=False)
    if not result.whole:
        raise typer.Exit(NOT_WHOLE)


def merge(destination: str, stores: list[Path], *, json: str | None = None, **options: Any) -> None:
    """Join stores of the same model into a new one.

    If stores share keys, nothing is written unless --keep or --prefix is given.
    """
    report = c3tools.merge_stores(destination, stores, **options, reporter=reporter())
    write_json(report.to_dict(), json)
    listing = ", ".join(f"{rows:,} {name}" for name, rows in report.rows.items()) or "no"
    dropped = f"; {report.dropped:,} duplicates were left out" if report.dropped else ""
    message(f"Wrote {report.store}: {listing} rows{dropped}.")
    for note in report.notes:
        message(note)


def split(destination: str, *, fractions: str | None = None, json: str | None = None, **options: Any) -> None:
    """Copy the store with new splits: by a stable hash of the key, from a column or from a file.

    Texts are in the split of their image. The moments are computed for the new splits, so that Collapse is fitted on
    the new train split. The old store is not changed.
    """
    numbers = None
    if fractions is not None:
        try:
            train, val, test = map(float, fractions.split(","))
        except ValueError:
            raise C3Error(
                f"--fractions {fractions} is not three numbers.", remedy="For example: --fractions 0.8,0.1,0.1"
            ) from None
        numbers = (train, val, test)
    report = c3tools.split_store(destination, **options, fractions=numbers, reporter=reporter())
    if write_json(report.to_dict(), json):
        print_table(report.table())
    if report.unnamed:
        message(f"The table does not name {counted(report.unnamed, 'row')}; these stay in the split they were in.")
