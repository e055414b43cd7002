"""A store as a data set on the Hugging Face hub, for `datasets.load_dataset`, and a store again from it.

    README.md                                 the card: one configuration per modality, encoder, preprocessing, norm
    store.json                                what the embeddings are, as in the store
    data/image/train-00000-of-00002.parquet   the rows of one split, as all commands see it
    data/image/failures.parquet               the images that failed; data/failures.parquet: inputs refused before
    moments/image.safetensors                 count, mean and scatter by split

Images are not among it. A path of an image that is absolute is cut to the name of the file. Failures are without
their messages, which may name folders too.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from ..corpus.splits import Kept, split_order
from ..errors import OutputError, StoreError
from ..io.files import write_atomically, write_json_atomically
from ..io.hub import CARD_FILE, CONFIG_FILE, Card, HubRepository
from ..io.locations import names_in
from ..io.outputs import Output, replacing
from ..io.parquet import read_parquet
from ..moments import Moments, load_counts, save_moments
from .manifest import finish_store, new_store
from .metadata import INFO_FILE, Failure, StoreInfo, read_failures, write_failures
from .rows import row_splits
from .shards import check_schema, parquet_writer, shard_schema, write_rows

_DATA, _MOMENTS = "data", "moments"
_FILES = {INFO_FILE, _DATA, _MOMENTS}
_FILE_BYTES = 2**28  # of embeddings, before they are packed; a file is read whole
_DATA_FILE = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.parquet")


class HubDataset(HubRepository):
    """A store, as far as a data set needs it.

    Attributes:
        path: the folder.
        info: of the store.
    """

    repository_type = "dataset"
    path: Path
    info: StoreInfo

    @property
    def modalities(self) -> list[str]:
        """The names of the modalities."""
        raise NotImplementedError

    @property
    def kept_splits(self) -> Kept:
        """The splits whose rows stay in them."""
        raise NotImplementedError

    def count(self, modality: str) -> int:
        """Return the number of rows of a modality."""
        raise NotImplementedError

    def failures(self, modality: str) -> list[Failure]:
        """Return the inputs of a modality that were not embedded."""
        raise NotImplementedError

    def recorded_failures(self) -> list[Failure]:
        """Return all inputs that were not embedded, with those refused before encoding."""
        raise NotImplementedError

    def batches(self, modality: str) -> Iterator[pa.RecordBatch]:
        """Stream the rows of a modality."""
        raise NotImplementedError

    def moments_by_split(self, modality: str) -> dict[str, Moments]:
        """Return the moments of a modality for each split."""
        raise NotImplementedError

    def card(self) -> Card:
        """Return the facts of its card on the hub."""
        counts = {name: _counts(self.moments_by_split(name)) for name in self.modalities if self.count(name)}
        info = self.info
        facts = {
            "encoder": info.model,
            "dimensions": info.dim,
            "dtype": info.dtype,
            "normalised": "yes: every embedding has length 1" if info.normalised else "no",
            "preprocessing": json.dumps(info.preprocessing) if info.preprocessing else "unknown",
            **{
                f"{name} rows": ", ".join(f"{split} {n:,}" for split, n in by_split.items())
                for name, by_split in counts.items()
            },
        }
        configs = [
            {
                "config_name": name,
                "data_files": [{"split": split, "path": f"{_DATA}/{name}/{split}-*.parquet"} for split in by_split],
            }
            for name, by_split in counts.items()
        ]
        first, splits = next(iter(counts.items()))
        return Card(
            f"Embeddings of `{info.model.name}` without the images themselves. Beside the rows are their moments by "
            "split (`moments/`).",
            f'import c3tools, datasets\n\nrows = datasets.load_dataset("{{name}}", "{first}", '
            f'split="{next(iter(splits))}")\nstore = c3tools.Store.from_pretrained("{{name}}", output="c3-store")',
            facts,
            tags=("embeddings", "CLIP", "modality-gap"),
            metadata={"configs": configs},
        )

    def save_repository(self, folder: Path) -> None:
        """Write the data set to a folder, whole or not at all; a former one is replaced.

        Raises:
            OutputError: if the folder contains anything else.
            StoreError: if the store has no rows, or cannot be read.
        """
        if not any(map(self.count, self.modalities)):
            raise StoreError(f"The store {self.path} has no rows to share.", remedy="Run `c3 embed` first.")
        Output(folder, "data set", (_DATA,), overwrite=True).holds_result()
        there = set().union(*names_in(folder))
        others = there - _FILES - {CONFIG_FILE, CARD_FILE}
        if others or (there and not there >= _FILES):
            raise OutputError(
                f"{folder} contains {min(others, default=_DATA)}, which is not part of a data set that c3tools wrote.",
                remedy="Choose a new or empty folder.",
            )
        with replacing(folder, keep=False) as new:
            write_json_atomically(new / INFO_FILE, self.info.to_dict())
            refused = [failure for failure in self.recorded_failures() if failure.stage == "list"]
            _write_failures(new / _DATA, refused)
            for name in self.modalities:
                moments = self.moments_by_split(name)
                place, counts = new / _DATA / name, _counts(moments)
                _write_files(place, name, self.info, self.batches(name), counts, self.kept_splits)
                _write_failures(place, self.failures(name))
                target = new / _MOMENTS / f"{name}.safetensors"
                write_atomically(target, lambda path, found=moments: save_moments(path, found, {}))  # type: ignore[misc]

    @classmethod
    def load_repository(cls, folder: Path, *, output: str | Path = "c3-store", **options: Any) -> Self:
        """Make a store of a data set: one shard of each of its files.

        Args:
            folder: what `save_repository` wrote.
            output: the folder of the new store.
            options: none.

        Raises:
            StoreError: if there is something at ``output``, or the data set is not of c3tools, or damaged.
        """
        if options:
            raise TypeError(f"A store is loaded without {', '.join(options)}.")
        target = Path(output)
        if target.exists() and not (target.is_dir() and not any(target.iterdir())):
            raise StoreError(f"There is something at {target} already.", remedy="Name a new folder for the store.")
        if not (folder / INFO_FILE).is_file() or not (folder / _DATA).is_dir():
            raise StoreError(
                f"{folder} is no data set that c3tools wrote: {INFO_FILE} or {_DATA} is not there.",
                remedy="`c3 import` takes embeddings of other programs.",
            )
        info = StoreInfo.load(folder)
        with new_store(target, info) as new:
            failures = read_failures(folder / _DATA)
            for modality in sorted(path.name for path in (folder / _DATA).glob("[!._]*/")):
                failed = read_failures(folder / _DATA / modality)
                tables = [_read(file, modality, info) for file in _files_of(folder, modality)]
                for part, table in enumerate(tables or [shard_schema(modality, info).empty_table()]):
                    write_rows(new, info, modality, part, table, () if part else failed)
                _check_count(folder, modality, info)
            finish_store(new, failures)
        opened: Self = cls.open(target)  # type: ignore[attr-defined]
        return opened


def _write_failures(folder: Path, failures: Iterable[Failure]) -> None:
    shown = [replace(failure, path=_without_folder(failure.path), message="") for failure in failures]
    if shown:
        write_failures(folder, shown)


def _counts(moments: Mapping[str, Moments]) -> dict[str, int]:
    """Return the number of rows by the name of a split on the hub, in the order of splits."""
    counts: Counter[str] = Counter()
    for split in sorted(moments, key=split_order):
        counts[_hub_name(split)] += moments[split].n
    return {split: n for split, n in counts.items() if n}


def _hub_name(split: str) -> str:
    """Return the name of a split as the hub accepts it: letters, digits and underscores."""
    return re.sub(r"\W", "_", split)


def _write_files(
    folder: Path,
    modality: str,
    info: StoreInfo,
    batches: Iterator[pa.RecordBatch],
    counts: Mapping[str, int],
    kept: Kept,
) -> None:
    """Write the rows of a modality; the files of a split have the same number of rows, except the last."""
    folder.mkdir(parents=True)
    file_rows = max(1, _FILE_BYTES // (info.dim * (2 if info.dtype == "float16" else 4)))
    metadata = shard_schema(modality, info).metadata
    writers: dict[str, pq.ParquetWriter] = {}
    written: Counter[str] = Counter()
    try:
        for batch in batches:
            rows = _without_folders(batch.replace_schema_metadata(metadata))
            splits = [_hub_name(split) for split in row_splits(batch, kept)]
            for split in dict.fromkeys(splits):
                chosen = rows.filter(pa.array([own == split for own in splits]))
                while len(chosen):
                    number, there = divmod(written[split], file_rows)
                    if not there:
                        if split in writers:
                            writers.pop(split).close()
                        total = -(-counts[split] // file_rows)
                        path = folder / f"{split}-{number:05d}-of-{total:05d}.parquet"
                        writers[split] = parquet_writer(path, rows.schema, split_bytes=False)
                    piece = chosen.slice(0, file_rows - there)
                    writers[split].write_batch(piece)
                    written[split] += len(piece)
                    chosen = chosen.slice(len(piece))
    finally:
        for writer in writers.values():
            writer.close()


def _without_folder(path: str) -> str:
    """Return a path, cut to the file name if it is absolute, because it reveals folders of the user."""
    plain = path.strip("'\"")  # a path that is not UTF-8 is recorded in quotes
    return PurePath(plain).name if PurePath(plain).is_absolute() else path


def _without_folders(batch: pa.RecordBatch) -> pa.RecordBatch:
    if "path" not in batch.schema.names:
        return batch
    place = batch.schema.get_field_index("path")
    paths = [path and _without_folder(path) for path in batch.column("path").to_pylist()]
    return batch.set_column(place, batch.schema.field(place), pa.array(paths, batch.schema.field(place).type))


def _files_of(folder: Path, modality: str) -> list[Path]:
    """Return the data files of a modality, by split and number; all files of a split have to be there."""
    matches = [(path, _DATA_FILE.fullmatch(path.name)) for path in (folder / _DATA / modality).iterdir()]
    found = [(match[1], int(match[2]), int(match[3]), path) for path, match in matches if match]
    for split, _, total, path in found:
        if sum(own == split for own, *_ in found) != total:
            raise StoreError(
                f"{path.parent} does not have all {total} files of the split {split}.",
                remedy="Fetch the data set again.",
            )
    return [path for *_, path in sorted(found, key=lambda entry: (split_order(entry[0]), entry[1]))]


def _read(path: Path, modality: str, info: StoreInfo) -> pa.Table:
    try:
        table = read_parquet(path)
        check_schema(table.schema, modality, info, ())
        table.validate(full=True)  # text that is not UTF-8 would fail later
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StoreError(f"{path} cannot be read ({error}).", remedy="Fetch the data set again.") from error
    return table


def _check_count(folder: Path, modality: str, info: StoreInfo) -> None:
    """Refuse a data set whose number of rows differs from that in its moments."""
    expected = sum(load_counts(folder / _MOMENTS / f"{modality}.safetensors").values())
    there = sum(pq.read_metadata(path).num_rows for path in _files_of(folder, modality))
    if there != expected:
        raise StoreError(
            f"The data set has {there:,} {modality} rows; its moments are of {expected:,}.",
            remedy="Fetch the data set again.",
        )
